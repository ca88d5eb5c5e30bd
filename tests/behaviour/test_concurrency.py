"""Calls at the same time, from threads and from the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .conftest import Row, ended_with_its_caller


def test_calls_of_several_threads_run_side_by_side(everything: Any, key: str) -> None:
    """Each waits for all the others: one after the other they would never end."""
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(everything.meet, key, 8) for _ in range(8)]
        assert sorted(call.result() for call in calls) == list(range(8))


def test_every_call_gets_its_own_answer(everything: Any) -> None:
    def calls(thread: int) -> bool:
        return all(everything.echo_text(f"{thread} {turn}") == f"{thread} {turn}" for turn in range(100))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(calls, range(8)))


def test_streams_and_calls_do_not_wait_for_each_other(streaming: Any, key: str) -> None:
    streams = [streaming.endless(f"{key} {number}") for number in range(20)]
    assert [next(stream) for stream in streams] == [0] * 20
    assert streaming.echo_text("through") == "through"
    for number, stream in enumerate(streams):
        stream.close()
        assert streaming.ended(f"{key} {number}")


def test_a_held_call_holds_no_other(everything: Any, key: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(everything.hold, key)
        assert everything.ended(f"{key} begun")
        assert not held.done()
        everything.release(key)
        assert held.result() is None


def test_the_event_loop_runs_on_while_a_call_is_awaited(everything: Any, row: Row, key: str) -> None:
    async def both() -> str:
        waiting = asyncio.create_task(everything.forever(key))
        assert await asyncio.to_thread(everything.ended, f"{key} begun")
        answer: str = await everything.slow_text("meanwhile")
        waiting.cancel()
        return answer

    assert asyncio.run(both()) == "meanwhile"
    assert ended_with_its_caller(everything, row, key)
