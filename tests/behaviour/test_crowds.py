"""Callers who give up again and again, as many as they are, harm none that call beside them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .conftest import Row

# More than anybody's budget for streams that are reset, on this side or the other.
MANY = 1500


def test_calls_that_are_cancelled_end_no_others(everything: Any, row: Row, key: str) -> None:
    async def given_up() -> None:
        task = asyncio.ensure_future(everything.forever(f"{key} given up"))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def crowd() -> None:
        for _ in range(MANY // 50):
            await asyncio.gather(*(given_up() for _ in range(50)))

    with ThreadPoolExecutor(4) as pool:
        beside = [pool.submit(everything.hold, f"{key} {number}") for number in range(4)]
        assert all(everything.ended(f"{key} {number} begun") for number in range(4))
        asyncio.run(crowd())
        if row.differs("no-cancelling"):
            everything.release(f"{key} given up")
        for number in range(4):
            everything.release(f"{key} {number}")
        assert [call.result() for call in beside] == [None] * 4


def test_streams_that_are_closed_early_end_no_others(streaming: Any, key: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(streaming.hold, key)
        assert streaming.ended(f"{key} begun")
        numbers = streaming.count(0, MANY)
        for number in range(MANY):
            stream = streaming.count(0, 500)
            assert next(stream) == 0
            stream.close()
            assert next(numbers) == number
        streaming.release(key)
        assert beside.result() is None
