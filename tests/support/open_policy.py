"""A policy that permits everything, for tests of what comes after it; one rule with an @id, as every policy has."""

from pathlib import Path

from privet.client.policy import NodePolicy
from privet.client.settings import NodeSettings
from privet.privacy.policy.policy_file import PolicyFile

EVERYTHING = """
@id("everything")
permit (principal, action, resource);

// end of policy
"""


def permit_everything(home: Path) -> None:
    """Write it into a node's home."""
    (home / "policy.cedar").write_text(EVERYTHING)


def open_policy(home: Path, settings: NodeSettings | None = None) -> NodePolicy:
    """The policy of a node that permits everything, from a file in its home."""
    permit_everything(home)
    return NodePolicy(PolicyFile(home / "policy.cedar"), lambda: settings or NodeSettings())
