"""The way into a plugin, for coroutines that are cancelled on it."""

from __future__ import annotations

import asyncio

import pytest

from hybridload.door import Door
from hybridload.drain import Gate


class Place:
    def __init__(self) -> None:
        self.gate = Gate()


@pytest.mark.parametrize("steps", range(3))
@pytest.mark.parametrize("patience", [None, 60.0], ids=["no deadline", "deadline"])
def test_a_task_that_is_cancelled_as_its_turn_comes_is_cancelled_and_takes_no_place(
    steps: int, patience: float | None
) -> None:
    """:param steps: of the event loop, between the two."""
    door = Door("plugin", doubt=lambda place: None, absence=RuntimeError)
    door.limit.resize(1)
    place = Place()
    door.open(place)

    async def main() -> None:
        inside = await door.enter_async(None)
        until = None if patience is None else asyncio.get_running_loop().time() + patience
        entering = asyncio.create_task(door.enter_async(until))
        while not door.limit._turns:
            await asyncio.sleep(0)
        inside.leave()
        for _ in range(steps):
            await asyncio.sleep(0)
        if entering.cancel():
            with pytest.raises(asyncio.CancelledError):
                await entering
        else:
            entering.result().leave()
        assert door.limit.inside == 0

    asyncio.run(main())
    assert place.gate.close(0)
