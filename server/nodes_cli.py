"""`privet node list`: who is connected, for operators and auditors."""

import json
import os
from typing import Any

from ..privacy.budget.options import AsJson, PassphraseFile
from ..privacy.channel.control_client import control_of
from ..privacy.home import Home, passphrase_from


def list_nodes(passphrase_file: PassphraseFile = None, as_json: AsJson = False) -> None:
    """List the federation's nodes: who is connected, since when, with what, and its last run.

    For operators and auditors; an institution asks `privet node status`.
    """
    _, client = control_of(Home.of(os.environ).root, passphrase_from(passphrase_file, os.environ))
    nodes = client.nodes()
    if as_json:
        print(json.dumps(nodes))
        return
    print("\n".join(_line(node) for node in nodes) or "no node has joined; next: privet invite NAME")


def _line(node: dict[str, Any]) -> str:
    if node["standing"] != "member":
        return f"{node['name']}: {node['standing']}"
    if not node["is_connected"]:
        return f"{node['name']}: not connected"
    tasks = ", ".join(f"{name} {version}" for name, version in node["tasks"].items()) or "nothing"
    paused = ", paused" if node["is_paused"] else ""
    last = f", last answer {node['last_answer']} in run {node['last_run']}" if node["last_run"] else ""
    return (
        f"{node['name']}: connected since {node['since']}{paused}, privet {node['version']}, offers {tasks}, "
        f"certificate until {node['certificate_expires']}{last}"
    )
