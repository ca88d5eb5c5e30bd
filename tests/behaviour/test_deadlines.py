"""Deadlines around calls: they end the call, cancel the work, and hold for what is called back."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hybridload import deadline, time_remaining
from hybridload.errors import CallTimeout

from .conftest import PATIENCE, Row, ended_with_its_caller


def test_calls_within_a_deadline_are_calls_as_ever(everything: Any) -> None:
    with deadline(PATIENCE):
        assert everything.echo_text("in time") == "in time"
        assert asyncio.run(everything.slow_text("in time")) == "in time"


def test_streams_within_a_deadline_are_streams_as_ever(streaming: Any) -> None:
    with deadline(PATIENCE):
        assert list(streaming.count(0, 3)) == [0, 1, 2]


def test_a_call_ends_with_the_deadline_and_so_does_its_work(everything: Any, row: Row, key: str) -> None:
    if row.differs("no-deadlines"):
        everything.release(key)
        with deadline(0.0):
            everything.hold(key)
        return
    begun = time.monotonic()
    with deadline(PATIENCE), deadline(0.3), deadline(PATIENCE), pytest.raises(CallTimeout):
        asyncio.run(everything.forever(key))
    assert time.monotonic() - begun < PATIENCE
    assert ended_with_its_caller(everything, row, key)


def test_a_plain_method_is_left_at_the_deadline(everything: Any, row: Row, key: str) -> None:
    """One that nothing can interrupt is late instead, and says so where it was asked to."""
    seconds = 1.0 if row.differs("uninterrupted") else 0.2

    def hold() -> None:
        with deadline(seconds):
            everything.hold(key)

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        if not row.differs("uninterrupted"):
            with pytest.raises(CallTimeout):
                held.result(PATIENCE)
            everything.release(key)
            return
        assert everything.ended(f"{key} begun")
        passed = time.monotonic() + seconds
        while time.monotonic() < passed:
            time.sleep(0.01)
        assert not held.done()
        everything.release(key)
        if row.differs("no-deadlines"):
            assert held.result(PATIENCE) is None
        else:
            with pytest.raises(CallTimeout, match=r"hold\(\) was let run to its end, because nothing can interrupt"):
                held.result(PATIENCE)


def test_nothing_is_sent_after_the_deadline(everything: Any, row: Row) -> None:
    with deadline(0.0):
        if row.differs("no-deadlines"):
            assert everything.echo_text("late") == "late"
        else:
            with pytest.raises(CallTimeout, match="has passed already"):
                everything.echo_text("late")
    assert everything.echo_text("after it") == "after it"


def test_what_is_called_back_is_held_to_the_deadline(everything: Any, row: Row) -> None:
    class Listener:
        def __init__(self) -> None:
            self.left: float | None = None

        def hear(self, text: str) -> str:
            self.left = time_remaining()
            return text

    listener = Listener()
    with deadline(PATIENCE):
        everything.tell(listener, ["how long?"])
    if row.differs("deadlines-stay"):
        assert listener.left is None
    else:
        assert listener.left is not None
        assert 0 < listener.left <= PATIENCE + 1  # grpcio rounds up, and goes by the wall clock
