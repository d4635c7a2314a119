"""What a node asks of the server besides its stream: the model of a run, and the end of its membership."""

from collections.abc import Iterator

from . import privet_pb2 as pb
from .dial import SECONDS, dial, errors_of
from .member import Member
from .services import callable_of

MOST_MODEL_BYTES = 8 * 2**30  # twice the largest update that passes the channel


def leave_federation(member: Member) -> None:
    """Tell the server that this member leaves: its certificates are good for nothing from then on."""
    with dial(member) as channel, errors_of(member.address):
        callable_of(channel, "Membership", "Leave")(pb.Nothing(), timeout=SECONDS)


def model_parts(member: Member, run_id: str) -> Iterator[bytes]:
    """The file of the model of a run that this node took part in, part by part."""
    with dial(member) as channel, errors_of(member.address):
        for part in callable_of(channel, "Nodes", "Model")(pb.RunRequest(run_id=run_id)):
            yield part.content
