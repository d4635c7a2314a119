"""pfl_loop.py in several processes, as pfl's guide to fast simulations starts them; the first one's answer counts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from contender import asked

LOOP = Path(__file__).with_name("pfl_loop.py")


def main() -> None:
    processes = asked().processes
    sockets = [socket.socket() for _ in range(processes)]
    for one in sockets:
        one.bind(("localhost", 0))
    addresses = ",".join(f"localhost:{one.getsockname()[1]}" for one in sockets)
    for one in sockets:
        one.close()
    started = [
        subprocess.Popen(
            [sys.executable, str(LOOP), *sys.argv[1:]],
            env=os.environ | {"PFL_WORKER_ADDRESSES": addresses, "PFL_WORKER_RANK": str(rank)},
            stdout=None if rank == 0 else subprocess.DEVNULL,
        )
        for rank in range(processes)
    ]
    sys.exit(max(process.wait() for process in started))


if __name__ == "__main__":
    main()
