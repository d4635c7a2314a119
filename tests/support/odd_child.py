"""What a worker's process may run into, on request: a module for `served.Served`. Without torch it starts fast.

Every deed ends, or waits for the test without a clock: a FIFO that the test opens says when it has begun.
"""

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
from privet.client.inside import serve
from privet.client.pipe import Packet, Pipe
from privet.privacy.errors import TaskError


def opened(head):
    if head.get("fails"):
        raise TaskError("unfit", "mend it")
    if head.get("serve") == "task":
        return liar(Path(head["source"]).name)
    memory: list[bytearray] = []

    def handle(asked: Packet) -> Packet:
        match asked.head["do"]:
            case "echo":
                return Packet({"pid": os.getpid()}, asked.arrays, asked.raw)
            case "raise":
                raise RuntimeError("patient 17")
            case "exit":
                os._exit(7)
            case "leave":
                sys.exit(5)
            case "segfault":
                ctypes.string_at(0)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "print and die":
                print("last words")
                os.kill(os.getpid(), signal.SIGKILL)
            case "print":
                os.write(1, b"printed to 1\n")
                print("printed to stdout")
                print("printed to stderr", file=sys.stderr)
                subprocess.run([sys.executable, "-c", "print('printed by another')"], check=True)
            case "write to descriptors":
                written = []
                for number in range(3, 20):
                    try:
                        written.append(os.write(number, b"not a packet at all"))
                    except OSError:
                        continue
                return Packet({"written": len(written)})
            case "speak out of turn":
                os.write(_socket(), b"not a packet at all, but long enough for one")
            case "answer twice":
                Pipe(_socket_object()).send(Packet({"number": asked.head["number"] - 1}))
            case "close":
                os.close(_socket())
            case "fall silent":
                _socket_object().shutdown(socket.SHUT_WR)
                wait(asked.head["fifo"])
            case "wait":
                wait(asked.head["fifo"])
            case "hold the interpreter":
                _hold(asked.head["fifo"])
            case "leave a child behind":
                left = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
                return Packet({"left": left.pid})
            case "fork":
                left_pid = os.fork()
                if not left_pid:
                    signal.pause()
                return Packet({"left": left_pid})
            case "fork away and die":
                if not os.fork():
                    os.setsid()
                    Path(asked.head["file"]).write_text(str(os.getpid()))
                    with Path(asked.head["fifo"]).open("w"):
                        signal.pause()
                with Path(asked.head["fifo"]).open("r"):
                    os._exit(3)
            case "look":
                return Packet(
                    {
                        "environment": dict(os.environ),
                        "descriptors": _sockets(),
                        "score": Path("/proc/self/oom_score_adj").read_text(),
                        "path": sys.path,
                        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
                    }
                )
            case "hog":
                for _ in range(600):
                    memory.append(bytearray(os.urandom(1024) * 1024))
        return Packet({})

    return handle, Packet({"memory": head["memory_bytes"]})


def liar(lie: str):
    """A trainer that does nothing, and tells what its data set's name says of it."""
    model = {"weight": np.zeros((2, 3), np.float32)}
    done = {"steps": "1"}

    def handle(asked: Packet) -> Packet:
        head = {"done": {"steps": 1} if lie == "done" else done, "sums": {"accuracy": 1 if lie == "sums" else 1.0}}
        match lie:
            case "shapes":
                return Packet(head, {"weight": np.zeros((3, 2), np.float32)})
            case "names":
                return Packet(head, {"bias": np.zeros((2, 3), np.float32)})
            case "more":
                return Packet(head, {**model, "records": np.zeros(9, np.float32)})
            case "metrics":
                return Packet({**head, "sums": {"accuracy": 1.0, "patient 17": 1.0}})
            case "much":
                return Packet({**head, "done": {"x" * 9: "y" * 2001}}, model)
            case "many":
                return Packet({**head, "done": {str(n): "1" for n in range(21)}}, model)
        return Packet(head, model if asked.head["ask"] == "train" else {})

    return handle, Packet({}, model)


def wait(fifo: str) -> None:
    with Path(fifo).open("w"):  # opens when the test opens its end
        threading.Event().wait()


def _hold(fifo: str) -> None:
    """In C, with the interpreter's lock held: no thread of Python runs in this process any more."""
    with Path(fifo).open("w"):
        ctypes.PyDLL(None).pause()


def _socket() -> int:
    return next(number for number in _sockets() if number > 2)


def _socket_object():
    return socket.socket(fileno=os.dup(_socket()))


def _sockets() -> list[int]:
    numbers = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if str(entry.readlink()).startswith("socket:"):
                numbers.append(int(entry.name))
        except OSError:
            continue
    return sorted(numbers)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), opened)
