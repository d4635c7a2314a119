"""Room: how many bytes of answers the server holds at once, on their way in and until they are added up."""

import asyncio
from collections import deque


class Room:
    """Bytes that may be in flight. In order of asking; one answer larger than all of it comes alone."""

    def __init__(self, size: int) -> None:
        self._free = self._size = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def size(self) -> int:
        """All of it."""
        return self._size

    @property
    def used(self) -> int:
        """What is taken now."""
        return self._size - self._free

    async def take(self, size: int) -> int:
        """Wait until `size` bytes are free; gives how many to put back."""
        wanted = min(size, self._size)
        if not self._waiting and wanted <= self._free:
            self._free -= wanted
            return wanted
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.put_back(wanted)  # its turn came at the same moment
            else:
                self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
                self._serve()
            raise
        return wanted

    def put_back(self, size: int) -> None:
        """These bytes are free again."""
        self._free += size
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            wanted, turn = self._waiting.popleft()
            if turn.cancelled():
                continue
            self._free -= wanted
            turn.set_result(None)
