"""Inside: the end of the socket in a process that was started for one purpose, and how that process behaves.

It takes packets one by one: the first says what to serve, each other is a request. It ends with its socket, with its
parent, and with its first failure: after an exception of somebody else's code a new process is safer than a mended one
(Opacus' hooks may hold half a batch, a GPU may be lost).
"""

import ctypes
import fcntl
import os
import resource
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..privacy.errors import PrivetError
from .pipe import Packet, Pipe

_OUT_OF_THE_WAY = 200  # the socket's number: not one that a task's own files would have
_OUT_OF_MEMORY_SCORE = "800"  # of at most 1000: the system ends this process before the one that holds the ledger
_PR_SET_PDEATHSIG = 1

Handler = Callable[[Packet], Packet]
Opener = Callable[[Mapping[str, Any]], tuple[Handler, Packet]]


def serve(descriptor: int, parent: int, opener: Opener) -> None:
    """Answer what comes over the socket of that number; `opener` makes of the first packet a handler for the others."""
    pipe = Pipe(_own_socket(descriptor, parent))
    _be_expendable()
    handler: Handler | None = None
    while (packet := pipe.receive()) is not None:
        number = packet.head.get("number")
        try:
            if handler is None:
                _limit_memory(packet.head["memory_bytes"])
                handler, reply = opener(packet.head)
            else:
                reply = handler(packet)
        except Exception as error:
            traceback.print_exc()
            pipe.send(Packet({"failed": _told(error), "number": number}))
            return
        pipe.send(Packet({**reply.head, "number": number}, reply.arrays, reply.raw))


def _own_socket(descriptor: int, parent: int) -> socket.socket:
    """The socket, under a number out of a task's way; with its end, or its parent's, this process ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
    os.close(descriptor)
    threading.Thread(target=_end_with_parent, args=(moved,), daemon=True).start()
    return socket.socket(fileno=moved)


def _end_with_parent(descriptor: int) -> None:
    """Also in the middle of training: no request would be read then."""
    poll = select.poll()
    poll.register(descriptor, 0)  # nothing but the hang-up
    poll.poll()
    os._exit(0)


def _be_expendable() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold records
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text(_OUT_OF_MEMORY_SCORE)


def _limit_memory(most_bytes: int | None) -> None:
    """Of private memory that can be written: address space is no measure where a GPU maps its own into it."""
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))


def _told(error: Exception) -> dict[str, str]:
    if isinstance(error, PrivetError):
        return {"message": error.message, "remedy": error.remedy}
    return {"message": f"{type(error).__name__}: {error}", "remedy": "see the run's local log"}
