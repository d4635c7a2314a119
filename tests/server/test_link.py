"""The hub: what it does when its database is away, and how a stream ends that was broken off."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from channel import OpenRoll, arrays_of, serving, wait_for
from intruders import CONNECT, hello, stream_channel, talked
from privet.privacy.channel import words
from privet.privacy.channel.credentials import channel_credentials
from privet.privacy.channel.frames import GRPC_OPTIONS, read_frame
from privet.privacy.channel.payload import chunk_frame
from privet.privacy.errors import DatabaseError
from privet.server.grid import GridTerms, GrpcGrid
from privet.server.link import Hub

LONG = 20.0


class MoodyRoll(OpenRoll):
    """A roll whose database goes away and comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self._asked = 0
        self._news = threading.Condition()

    def revision(self) -> int:
        with self._news:
            self._asked += 1
            self._news.notify_all()
        if self.is_away:
            raise DatabaseError("disk I/O error", "see that its disk has room")
        return super().revision()

    def wait(self, times: int) -> None:
        """Until it was asked so many times more, and the last answer but one was heard."""
        with self._news:
            wanted = self._asked + times
            assert self._news.wait_for(lambda: self._asked >= wanted, LONG)


def test_deny_list_that_cannot_be_read_is_logged_once_until_it_can(caplog: pytest.LogCaptureFixture) -> None:
    roll = MoodyRoll()

    async def story() -> None:
        watching = asyncio.create_task(Hub(roll).watch_denied())
        for is_away in (True, False, True):
            roll.is_away = is_away
            await asyncio.to_thread(roll.wait, 4)
        watching.cancel()

    with caplog.at_level(logging.INFO, "privet.server"):
        asyncio.run(story())
    told = [record.getMessage() for record in caplog.records if "deny-list" in record.getMessage()]
    away = "the deny-list cannot be read: disk I/O error"
    assert told == [away, "the deny-list can be read again", away]


def test_stream_that_is_ended_in_the_middle_of_a_write_ends_for_the_peer_too(tmp_path: Path) -> None:
    """A node that does not read is revoked: it finds the end when it reads on, and the server forgets it at once."""
    with serving() as server:
        member = server.authority.member(tmp_path, "slow", server.address)
        with grpc.secure_channel(server.address, channel_credentials(member), list(GRPC_OPTIONS)) as channel:
            over = threading.Event()
            call = channel.stream_stream(CONNECT)(_said(over), timeout=LONG)
            assert read_frame(next(call)).WhichOneof("kind") == "welcome"  # type: ignore[union-attr]
            grid = GrpcGrid(server.hub, GridTerms("run-1", lambda nodes: (list(nodes), {}), 4 * 2**30))
            asked = grid.create_message(arrays_of(2**24), words.EVALUATE, server.roll.node_id("slow"), "1")
            answers = grid.send_and_receive([asked], timeout=LONG)
            waiting = threading.Thread(target=lambda: list(answers))
            waiting.start()
            while not isinstance(read_frame(next(call)), memoryview):
                continue  # to the first chunk; the others are stuck
            server.roll.deny(member.key.fingerprint)
            wait_for(lambda: not server.hub.nodes(), "forgotten")
            with pytest.raises(grpc.RpcError) as caught:
                for _ in call:
                    pass
            over.set()
            grid.close()
            waiting.join(LONG)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_stream_that_is_broken_off_while_it_is_welcomed_ends_for_the_peer_too(tmp_path: Path) -> None:
    with serving() as server:
        member = server.authority.member(tmp_path, "hasty", server.address)
        with stream_channel(server.address, channel_credentials(member)) as channel:
            for _ in range(20):
                ended = talked(channel, [hello(b"h" * 16), chunk_frame([b"12345"])])
                assert ended.code is grpc.StatusCode.INVALID_ARGUMENT


def _said(over: threading.Event) -> Iterator[bytes]:
    yield hello(b"s" * 16).SerializeToString()
    over.wait(LONG)
