"""Room for answers: what is taken is put back, in order of asking, and nobody waits for ever."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from privet.server.room import Room


def test_room_is_granted_in_order_of_asking() -> None:
    """A small answer does not overtake a large one, or the large one would wait for ever."""

    async def story() -> list[str]:
        room, granted = Room(10), list[str]()

        async def take(name: str, size: int) -> None:
            await room.take(size)
            granted.append(name)

        await take("first", 6)
        waiting = [asyncio.create_task(take(name, size)) for name, size in (("large", 8), ("small", 2))]
        await settled()
        assert granted == ["first"]
        room.put_back(6)
        await asyncio.gather(*waiting)
        return granted

    assert asyncio.run(story()) == ["first", "large", "small"]


def test_answer_larger_than_the_room_comes_alone() -> None:
    async def story() -> None:
        room = Room(10)
        taken = await room.take(4)
        large = asyncio.create_task(room.take(1000))
        await settled()
        assert not large.done()
        room.put_back(taken)
        assert await large == 10
        other = asyncio.create_task(room.take(1))
        await settled()
        assert not other.done()
        room.put_back(10)
        assert await other == 1

    asyncio.run(story())


def test_one_that_no_longer_waits_lets_the_next_in() -> None:
    async def story() -> None:
        room = Room(10)
        await room.take(6)
        large, small = asyncio.create_task(room.take(8)), asyncio.create_task(room.take(4))
        await settled()
        large.cancel()
        assert await small == 4

    asyncio.run(story())


def test_one_that_is_cancelled_at_its_turn_gives_its_room_back() -> None:
    async def story() -> None:
        room = Room(10)
        taken = await room.take(10)
        late = asyncio.create_task(room.take(10))
        await settled()
        room.put_back(taken)  # its turn has come, and it has not run yet
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        assert await asyncio.wait_for(room.take(10), 5) == 10

    asyncio.run(story())


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["finish", "cancel", "cancel at its turn"])), max_size=20)
)
def test_all_room_is_free_again_when_all_have_gone(answers: list[tuple[int, str]]) -> None:
    async def story() -> None:
        room = Room(16)
        first = await room.take(16)
        tasks = [asyncio.create_task(room.take(size)) for size, _ in answers]
        await settled()
        for task, (_, end) in zip(tasks, answers, strict=True):
            if end == "cancel":
                task.cancel()
        room.put_back(first)
        for task, (_, end) in zip(tasks, answers, strict=True):
            if end == "cancel at its turn":
                task.cancel()
            (taken,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(taken, int):
                room.put_back(taken)
        assert await asyncio.wait_for(room.take(16), 5) == 16

    asyncio.run(story())


async def settled() -> None:
    """Every task has run as far as it can."""
    for _ in range(3):
        await asyncio.sleep(0)
