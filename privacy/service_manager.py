"""What systemd is told, where it asked to be: that a program is ready, how it stands, that it ends (sd_notify(3))."""

import contextlib
import os
import socket
from collections.abc import Mapping

READY, STOPPING = "READY=1", "STOPPING=1"
_LONGEST = 500  # characters of a status line


def tell_manager(*told: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send these words to the socket that the environment names; nothing happens where it names none."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto("\n".join(told).encode(), name)


def status(text: str) -> str:
    """The word that makes `systemctl status` show a text."""
    return "STATUS=" + "".join(c if c.isprintable() else " " for c in text)[:_LONGEST]
