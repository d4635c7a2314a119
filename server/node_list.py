"""The nodes of a federation, as operators and auditors see them: who is connected, and who is not."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..privacy.channel.identities import Role
from .link import Hub
from .members import MemberRecord, Members
from .stream import NodeView
from .witnesses import Witnesses


class NodeList:
    """Members of role node, with what the hub knows of those that are connected."""

    def __init__(self, hub: Hub, members: Members, witnesses: Witnesses) -> None:
        self._hub = hub
        self._members = members
        self._witnesses = witnesses

    def nodes(self) -> list[dict[str, Any]]:
        """Every node that is or was a member, in order of name."""
        connected = {view.name: view for view in self._hub.nodes()}
        return [_told(record, connected.get(record.name)) for record in self._members.all() if record.role is Role.NODE]

    def witness_file(self, node: str) -> Path | None:
        """What the server remembers of a node's ledger; None where it remembers nothing."""
        if node not in {record.name for record in self._members.all() if record.role is Role.NODE}:
            return None
        path = self._witnesses.file(node)
        return path if path.exists() else None


def _told(record: MemberRecord, view: NodeView | None) -> dict[str, Any]:
    told: dict[str, Any] = {"name": record.name, "standing": str(record.standing), "is_connected": view is not None}
    if view is None:
        return told
    return told | {
        "node_id": view.node_id,
        "address": view.address,
        "since": _moment(view.since),
        "version": view.version,
        "python": view.python,
        "is_paused": view.is_paused,
        "tasks": dict(view.tasks),
        "apps": list(view.apps),
        "certificate_expires": _text(view.certificate_expires),
        "key_fingerprint": view.key_fingerprint,
        "answered": view.answered,
        "last_answer": _moment(view.last_answer) if view.last_answer else None,
        "last_run": view.last_run or None,
    }


def _moment(seconds: float) -> str:
    return _text(datetime.fromtimestamp(seconds, UTC))


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
