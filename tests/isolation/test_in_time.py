"""In-process calls of a plugin with a `call_timeout`: held to it as far as a thread can be, and bare without it."""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from hybridload import deadline
from hybridload.errors import CallTimeout

from .conftest import Open, wait_until

SDK = """
import asyncio, time
from collections.abc import AsyncIterator, Iterator
from typing import Protocol
from hybridload import Handshake, time_remaining

class Clock(Protocol):
    def left(self) -> float | None: ...
    def outlast(self) -> int: ...
    def fail_late(self) -> int: ...
    def give(self, late_at: int) -> Iterator[int]: ...
    async def sleep(self) -> int: ...
    async def time_out(self) -> int: ...
    def drip(self, late_at: int) -> AsyncIterator[int]: ...

def outlast():
    while time_remaining() > 0:
        time.sleep(0.01)

class Watch:
    def __init__(self):
        self.ended = []
    def left(self):
        return time_remaining()
    def outlast(self):
        outlast()
        return 1
    def fail_late(self):
        outlast()
        raise LookupError("found nothing")
    def give(self, late_at):
        try:
            for number in range(10):
                if number == late_at:
                    outlast()
                yield number
        finally:
            self.ended.append("give")
    async def sleep(self):
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append("sleep")
    async def time_out(self):
        raise TimeoutError("the plugin's own")
    async def drip(self, late_at):
        try:
            for number in range(10):
                if number == late_at:
                    await asyncio.Event().wait()
                yield number
        finally:
            self.ended.append("drip")

WATCH = Watch()
PLUGINS = {"clock": Clock}
HANDSHAKE = Handshake("ISOLATION_TEST", "on")
"""
CONFIG = """
[host]
plugins = "clock_sdk:PLUGINS"
handshake = "clock_sdk:HANDSHAKE"
[plugins.clock]
entry_point = "clock_sdk:WATCH"
isolation = "in-process"
"""
SHORT = "call_timeout = 0.3"
LONG = "call_timeout = 600.0"


@pytest.fixture
def watch(write_module: Any, open_loader: Open) -> Any:
    """Loads the clock with the given lines in its table."""
    write_module("clock_sdk", SDK)

    def begin(*lines: str) -> Any:
        return open_loader(config=CONFIG + "\n".join(lines)).load("clock")

    return begin


def ended() -> list[str]:
    found: list[str] = importlib.import_module("clock_sdk").WATCH.ended
    return found


def test_the_plugin_sees_the_earlier_of_the_two_deadlines(watch: Any) -> None:
    clock = watch("call_timeout = 60.0")
    assert 30 < clock.left() <= 60
    with deadline(20):
        assert 0 < clock.left() <= 20
    with deadline(600):
        assert 30 < clock.left() <= 60


def test_a_late_result_is_a_timeout_that_says_why(watch: Any) -> None:
    with pytest.raises(CallTimeout, match=r"within 0\.3 s .*outlast\(\) was let run to its end") as caught:
        watch(SHORT).outlast()
    assert caught.value.plugin == "clock"


def test_a_late_exception_is_the_cause_of_the_timeout(watch: Any) -> None:
    with pytest.raises(CallTimeout) as caught:
        watch(SHORT).fail_late()
    assert repr(caught.value.__cause__) == "LookupError('found nothing')"


def test_after_the_deadline_nothing_is_called(watch: Any) -> None:
    clock = watch(LONG)
    with deadline(0.0), pytest.raises(CallTimeout, match="has passed already"):
        clock.left()


def test_a_stream_has_one_deadline_for_all_its_items(watch: Any) -> None:
    clock = watch(SHORT)
    stream = clock.give(2)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(CallTimeout, match=r"give\(\) was let run to its end"):
        next(stream)
    assert list(stream) == []
    assert ended() == ["give"]


def test_a_stream_that_is_taken_too_slowly_ends(watch: Any) -> None:
    stream = watch(SHORT).give(-1)
    until = time.monotonic() + 0.3
    assert next(stream) == 0
    while time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(CallTimeout):
        next(stream)
    assert ended() == ["give"]


def test_a_closed_stream_closes_the_plugins(watch: Any) -> None:
    stream = watch(LONG).give(-1)
    assert next(stream) == 0
    stream.close()
    assert ended() == ["give"]


def test_an_async_method_is_cancelled(watch: Any) -> None:
    with pytest.raises(CallTimeout, match=r"sleep\(\) was given up"):
        asyncio.run(watch(SHORT).sleep())
    assert ended() == ["sleep"]


def test_a_timeout_of_the_plugins_own_is_none_of_the_call(watch: Any) -> None:
    with pytest.raises(TimeoutError, match="the plugin's own") as caught:
        asyncio.run(watch(LONG).time_out())
    assert type(caught.value) is TimeoutError


def test_cancelling_is_no_timeout(watch: Any) -> None:
    async def call() -> None:
        task = asyncio.create_task(watch(LONG).sleep())
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(call())
    assert ended() == ["sleep"]


def test_an_async_stream_is_cancelled(watch: Any) -> None:
    async def take() -> None:
        stream = clock.drip(2)
        assert [await anext(stream), await anext(stream)] == [0, 1]
        with pytest.raises(CallTimeout):
            await anext(stream)

    clock = watch(SHORT)
    asyncio.run(take())
    assert ended() == ["drip"]


def test_it_is_said_which_methods_cannot_be_interrupted(watch: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hybridload")
    watch(LONG)
    (said,) = (message for message in caplog.messages if "cannot interrupt" in message)
    assert "'clock'" in said
    assert "(left, outlast, fail_late, give)" in said


def test_the_setting_may_come_and_go_while_the_plugin_runs(
    write_module: Any, open_loader: Open, tmp_path: Path
) -> None:
    def change(*lines: str) -> None:
        (tmp_path / "new.toml").write_text(config + "\n".join(lines))
        (tmp_path / "new.toml").rename(tmp_path / "plugins.toml")

    write_module("clock_sdk", SDK)
    config = CONFIG.replace("[host]", "[host]\nwatch = true")
    clock = open_loader(config=config).load("clock")
    real = importlib.import_module("clock_sdk").WATCH
    assert clock.left == real.left  # no frame is added
    change("call_timeout = 1000.0")
    wait_until(lambda: clock.left() is not None)
    change("call_timeout = 20.0")
    wait_until(lambda: clock.left() <= 20)
    change()
    wait_until(lambda: clock.left() is None)
    assert clock.left == real.left
