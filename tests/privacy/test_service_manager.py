"""What systemd hears, on the socket that it names."""

import socket
from pathlib import Path

import pytest
from privet.privacy.service_manager import READY, status, tell_manager


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_manager_hears_what_it_is_told(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "notify")
    address, name = (path, path) if kind == "path" else (f"\0privet-test-{tmp_path}", f"@privet-test-{tmp_path}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(20)
        tell_manager(READY, status("connected\nMAINPID=1"), environment={"NOTIFY_SOCKET": name})
        assert listening.recv(1000).decode().split("\n") == ["READY=1", "STATUS=connected MAINPID=1"]


@pytest.mark.parametrize("name", ["", "/no/such/socket", "vsock:2:1234"])
def test_without_a_manager_nothing_happens(name: str) -> None:
    tell_manager(READY, environment={"NOTIFY_SOCKET": name})


def test_status_of_any_length_is_one_short_line() -> None:
    assert len(status("x" * 10_000)) < 600
