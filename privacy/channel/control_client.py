"""ControlClient: the operators' and auditors' side of the service Control.

What a server says is outside data here: bounded, and stripped of control characters before anybody prints it.
"""

import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from ..errors import ChannelError, PrivetError
from ..signed import SignedSubmission
from . import privet_pb2 as pb
from .dial import channel_error, dial
from .member import IDENTITY, Member
from .services import callable_of

SECONDS = 60.0  # for one call: a page may cost an accountant a second, and a graceful stop of a run is only asked for
VIEW_BYTES = 16 * 2**20
_ERROR_KEY = "privet-error-bin"
_ERROR_BYTES = 8192

View = dict[str, Any]
Connect = Callable[[], grpc.Channel]


class ControlError(PrivetError):
    """What the server answered instead: its own words, remedy and exit code."""

    def __init__(self, message: str, remedy: str, exit_code: int) -> None:
        super().__init__(message, remedy)
        self.exit_code = exit_code


class UnreachableError(ChannelError):
    """Nobody answers at the address, or the connection broke: the same call may succeed later."""


class ControlClient:
    """Calls of one command. `connect` opens a channel: `lambda: dial(member)`; `address` is named in errors."""

    def __init__(self, connect: Connect, address: str) -> None:
        self._connect = connect
        self._address = address

    def submit(self, signed: SignedSubmission) -> View:
        """Hand a submission in; gives the run's page."""
        request = pb.SubmitRequest(
            submission=signed.submission, signature=signed.signature, certificates=signed.certificates
        )
        return self._view("Submit", request)

    def runs(self) -> list[View]:
        """The runs, newest first."""
        return _list(self._view("Runs", pb.Nothing()), "runs")

    def run(self, run_id: str) -> View:
        """One run."""
        return self._view("Run", pb.RunRequest(run_id=run_id))

    def stop(self, run_id: str) -> View:
        """Stop a run."""
        return self._view("Stop", pb.RunRequest(run_id=run_id))

    def resume(self, run_id: str) -> View:
        """Go on with a run."""
        return self._view("Resume", pb.RunRequest(run_id=run_id))

    def nodes(self) -> list[View]:
        """Who is connected."""
        return _list(self._view("ListNodes", pb.Nothing()), "nodes")

    def watch(self, run_id: str, after: int = 0, follow: bool = False) -> Iterator[View]:
        """The events of a run after a number, and with `follow` what comes until it has ended."""
        request = pb.WatchRequest(run_id=run_id, after=after, follow=follow)
        for view in self._stream("Watch", request, None if follow else SECONDS):
            yield _read(view)

    def model(self, run_id: str) -> Iterator[bytes]:
        """The parts of the model's file."""
        for part in self._stream("Model", pb.RunRequest(run_id=run_id), None):
            yield part.content

    def witness(self, node: str) -> Iterator[bytes]:
        """The parts of what the server remembers of a node's ledger."""
        for part in self._stream("Witness", pb.WitnessRequest(node=node), None):
            yield part.content

    def _view(self, method: str, request: object) -> View:
        try:
            with self._connect() as channel:
                view: pb.View = callable_of(channel, "Control", method)(request, timeout=SECONDS)
        except grpc.RpcError as error:
            raise _told(error, self._address) from None
        return _read(view)

    def _stream(self, method: str, request: object, timeout: float | None) -> Iterator[Any]:
        try:
            with self._connect() as channel:
                yield from callable_of(channel, "Control", method)(request, timeout=timeout)
        except grpc.RpcError as error:
            raise _told(error, self._address) from None


def control_of(home: Path, passphrase: bytes | None) -> tuple[Member, ControlClient]:
    """The member whose home this is, and its way to the server, which is dialled at every call."""
    member = Member.load(home / IDENTITY, passphrase)
    return member, ControlClient(lambda: dial(member), member.address)


def printable(text: str) -> str:
    """The text without control, format and line-breaking characters: a terminal obeys some of them.

    >>> printable("ward\\x1b[2J 7")
    'ward[2J 7'
    """
    kept = (character for character in text if unicodedata.category(character) not in _UNPRINTABLE)
    return "".join(kept)


# Control, format (also right-to-left marks), surrogates, private use, line and paragraph separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {printable(name): _cleaned(item) for name, item in value.items()}
    return value


def _read(view: pb.View) -> View:
    try:
        told = json.loads(view.json) if len(view.json) <= VIEW_BYTES else None
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise ChannelError("the server's answer is not one of privet's", "install the same version at both ends")
    cleaned: View = _cleaned(told)
    return cleaned


def _list(view: View, name: str) -> list[View]:
    found = view.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ChannelError("the server's answer is not one of privet's", "install the same version at both ends")
    return found


def _told(error: grpc.RpcError, address: str) -> PrivetError:
    """The server's own words where it said some; else what the failed call means."""
    status = error.code()
    trailing: Any = error.trailing_metadata() or ()
    for name, value in trailing:
        if name == _ERROR_KEY and len(value) <= _ERROR_BYTES and (said := _said(value)):
            return said
    meant = channel_error(error, address)
    if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return UnreachableError(meant.message, meant.remedy)
    return ChannelError(printable(meant.message), meant.remedy)


def _said(content: bytes) -> ControlError | None:
    try:
        told = json.loads(content)
        message, remedy, code = printable(str(told["message"])), printable(str(told["remedy"])), int(told["exit"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return ControlError(message, remedy, code if code in (1, 2, 3) else 1)
