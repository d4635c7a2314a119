"""A TCP proxy with faults: it stands between nodes and a server and delays, cuts, truncates, corrupts, or falls silent.

Up is towards the server. A fault that is armed strikes once, when so many bytes have passed since, on whichever
connection they pass.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["up", "down"]
Strike = Callable[["_Pair", bytes], bytes | None]  # what is passed on instead; None ends the connection
_PIECE = 64 * 1024
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


@dataclass(eq=False)
class _Pair:
    """One connection and what it is passed on to."""

    sides: dict[Direction, asyncio.StreamWriter]  # where what goes in a direction is written
    is_silent: bool = False
    pending: set[asyncio.Task[None]] = field(default_factory=set)

    def reset(self) -> None:
        for writer in self.sides.values():
            raw = writer.get_extra_info("socket")
            if raw is not None and raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    def close(self) -> None:
        for writer in self.sides.values():
            writer.close()


@dataclass
class _Armed:
    """A fault that waits for its bytes."""

    direction: Direction
    left: int
    strike: Strike
    struck: threading.Event


class Proxy:
    """Listens on a free port of loopback and passes on to `port`. Its loop runs in a thread of its own."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.accepted = 0
        self.delay = 0.0
        self.is_open = True
        self._pairs: set[_Pair] = set()
        self._armed: list[_Armed] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    # ---- what a test does ----

    def cut_after(self, direction: Direction, count: int = 0) -> threading.Event:
        """Reset the connection."""
        return self._arm(direction, count, lambda pair, piece: (pair.reset(), None)[1])

    def truncate_after(self, direction: Direction, count: int = 0) -> threading.Event:
        """Pass half of a piece on, then end the connection as a program would."""

        def strike(pair: _Pair, piece: bytes) -> None:
            pair.sides[direction].write(piece[: len(piece) // 2])
            pair.close()

        return self._arm(direction, count, strike)

    def corrupt_after(self, direction: Direction, count: int = 0) -> threading.Event:
        """Flip one bit in the middle of a piece."""

        def strike(_: _Pair, piece: bytes) -> bytes:
            middle = len(piece) // 2
            return piece[:middle] + bytes([piece[middle] ^ 1]) + piece[middle + 1 :]

        return self._arm(direction, count, strike)

    def silence_after(self, direction: Direction, count: int = 0) -> threading.Event:
        """Pass nothing on any more, either way, and keep the connection open: as a firewall that forgot it."""

        def strike(pair: _Pair, piece: bytes) -> bytes:
            pair.is_silent = True
            return piece

        return self._arm(direction, count, strike)

    def call_after(self, direction: Direction, count: int, call: Callable[[], None]) -> threading.Event:
        """Do something at that moment; the piece is passed on."""

        def strike(_: _Pair, piece: bytes) -> bytes:
            call()
            return piece

        return self._arm(direction, count, strike)

    def cut(self) -> None:
        """Reset every connection, and let no new one in until `heal`."""

        def work() -> None:
            self.is_open = False
            for pair in list(self._pairs):
                pair.reset()

        self._loop.call_soon_threadsafe(work)

    def heal(self) -> None:
        """Let connections in again."""
        self.is_open = True

    def close(self) -> None:
        """End everything."""

        async def work() -> None:
            self._server.close()
            for pair in list(self._pairs):
                pair.reset()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)

        asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # ---- its own ----

    def _arm(self, direction: Direction, count: int, strike: Strike) -> threading.Event:
        armed = _Armed(direction, count, strike, threading.Event())
        self._loop.call_soon_threadsafe(self._armed.append, armed)
        return armed.struck

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            if not self.is_open:
                raise ConnectionRefusedError
            beyond = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair({"up": beyond[1], "down": writer})
        self._pairs.add(pair)
        try:
            done, pending = await asyncio.wait(
                [
                    asyncio.create_task(self._pass_on(pair, "up", reader)),
                    asyncio.create_task(self._pass_on(pair, "down", beyond[0])),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in pending:
                task.cancel()
            await asyncio.gather(*done, *pending, return_exceptions=True)
        finally:
            self._pairs.discard(pair)
            pair.close()

    async def _pass_on(self, pair: _Pair, direction: Direction, reader: asyncio.StreamReader) -> None:
        writer = pair.sides[direction]
        while piece := await reader.read(_PIECE):
            if self.delay:
                await asyncio.sleep(self.delay)
            struck = self._struck(pair, direction, piece)
            if struck is None:
                return
            if pair.is_silent:
                continue
            writer.write(struck)
            await writer.drain()

    def _struck(self, pair: _Pair, direction: Direction, piece: bytes) -> bytes | None:
        """The piece, after whatever strikes now."""
        result: bytes | None = piece
        for armed in [armed for armed in self._armed if armed.direction == direction]:
            armed.left -= len(piece)
            if armed.left <= 0 and result is not None:
                self._armed.remove(armed)
                result = armed.strike(pair, result)
                armed.struck.set()
        return result
