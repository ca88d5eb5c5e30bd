"""Crashes, hangs and what becomes of the calls: Python objects in processes of their own."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hybridload.deadlines import deadline, limited
from hybridload.errors import CallTimeout, ConfigError, NoUsableIsolation, PluginClosed, PluginCrashed
from hybridload.events import PluginEvent
from tests.isolation.conftest import PATIENCE, WORK, Employ, Write, in_thread, wait_until


def test_a_call_in_flight_says_how_the_plugin_ended(employ: Employ) -> None:
    work = employ()
    with pytest.raises(PluginCrashed, match="signal 9") as caught:
        work.worker.last_words("no more paper")
    assert caught.value.returncode == -signal.SIGKILL
    assert "no more paper" in caught.value.stderr


def test_whoever_calls_while_it_is_started_again_is_answered_by_the_new_one(employ: Employ) -> None:
    work = employ()
    call, _ = work.in_the_middle(work.worker.wait_for)
    before = work.kill()
    with pytest.raises(PluginCrashed):
        call.result(PATIENCE)
    # The crash is known now, and the new process takes a while: all of these wait.
    calls = [in_thread(work.worker.double, number) for number in range(8)]
    assert [each.result(PATIENCE) for each in calls] == [2 * number for number in range(8)]
    assert work.worker.pid() != before
    assert work.status().restarts == 1


def test_an_idempotent_call_in_flight_is_sent_again(employ: Employ) -> None:
    work = employ()
    call, file = work.in_the_middle(work.worker.wait_again)
    before = work.kill()
    work.story.wait_for("running")
    Path(file).touch()
    assert call.result(PATIENCE) == work.worker.pid() != before
    assert Path(f"{file}.entered").read_text().split() == [str(before), str(work.worker.pid())]


def test_a_call_that_kills_whoever_carries_it_out_is_tried_three_times(employ: Employ) -> None:
    work = employ("backoff = 0.01")
    with pytest.raises(PluginCrashed, match="exit status 7"):
        work.worker.die()
    assert len(set((work.folder / "notes").read_text().split())) == 3
    assert work.worker.double(4) == 8


def test_a_retry_ends_with_the_deadline_of_its_call(employ: Employ) -> None:
    work = employ("call_timeout = 2.0", "max_restarts = 50", "backoff = 60.0", "backoff_max = 60.0")
    with pytest.raises(PluginCrashed):
        work.worker.last_words("first")
    work.story.wait_for("running")  # at once the first time; in half a minute the second
    began = time.monotonic()
    with pytest.raises(CallTimeout, match="started again"):
        work.worker.die()
    assert time.monotonic() - began < 30
    assert work.status().state == "backing off"
    assert work.status().next_retry is not None


def test_waiting_for_a_restart_ends_with_the_callers_deadline(employ: Employ) -> None:
    work = employ("max_restarts = 50", "backoff = 60.0", "backoff_max = 60.0")
    for times in (1, 2):
        with pytest.raises(PluginCrashed):
            work.worker.last_words("bye")
        work.story.wait_for("starting" if times == 1 else "backing off")
        work.story.wait_for("running")
    began = time.monotonic()
    with deadline(0.5), pytest.raises(CallTimeout, match="started again"):
        work.worker.double(1)

    async def call() -> int:
        with deadline(0.5):
            return int(await work.worker.async_double(1))

    with pytest.raises(CallTimeout, match="started again"):
        asyncio.run(call())
    assert time.monotonic() - began < 15  # half a minute without


@pytest.mark.parametrize("how", ["call", "async call", "stream", "async stream"])
def test_waiting_for_a_restart_counts_towards_the_deadline_of_the_call(employ: Employ, how: str) -> None:
    work = employ("call_timeout = 600.0")
    plugin = work.loader._loaded["worker"]
    door, place = plugin._door, plugin._place
    assert place is not None
    left: list[float | None] = []
    wire = dict(place.methods["work"])

    def seen(method: Any) -> Any:
        def call(*args: Any) -> Any:
            left.append(limited(600.0, "worker"))
            return method(*args)

        return call

    place.methods["work"] = {name: seen(method) for name, method in wire.items()}
    door.shut(place)

    async def items() -> list[int]:
        return [item async for item in work.worker.async_count(2)]

    def make() -> Any:
        match how:
            case "call":
                return work.worker.double(1)
            case "async call":
                return asyncio.run(work.worker.async_double(1))
            case "stream":
                return list(work.worker.count(2))
            case _:
                return asyncio.run(items())

    call = in_thread(make)
    wait_until(lambda: door.limit.inside == 1)
    since = time.monotonic()
    wait_until(lambda: time.monotonic() > since)
    door.reopen(place)
    assert call.result(PATIENCE) in (2, [0, 1])
    if how != "async stream":  # made when its first item is asked for
        assert left[0] is not None
        assert left[0] < 600.0


def test_the_next_isolation_takes_over_and_the_preferred_one_comes_back(employ: Employ) -> None:
    work = employ('isolation = ["subprocess", "in-process"]', "max_restarts = 1", "retry_after = 0.5")
    work.kill()
    work.story.wait_for("running")
    work.kill()
    over = work.story.wait_for("failed over")
    assert (over.isolation, over.pid) == ("in-process", os.getpid())
    assert isinstance(over.error, PluginCrashed)
    assert work.worker.double(3) == 6
    back = work.story.wait_for("running", 2)
    assert back.isolation == "subprocess"
    assert work.worker.pid() == back.pid == work.status().pid
    assert (work.status().degraded, work.status().state) == (False, "running")
    assert work.story.told() == [
        *("crashed", "starting", "running"),
        *("crashed", "starting", "failed over"),
        "running",
    ]


def test_while_a_later_isolation_serves_the_slot_is_the_objects_own_method(employ: Employ) -> None:
    work = employ('isolation = ["subprocess", "in-process"]', "max_restarts = 0")
    assert not hasattr(work.worker.double, "__self__")
    work.kill()
    work.story.wait_for("failed over")
    assert type(work.worker.double.__self__).__name__ == "Worker"
    assert work.status().degraded
    assert [attempt.isolation for attempt in work.status().attempts] == ["subprocess"]


def test_with_nowhere_left_to_run_calls_are_refused_until_it_is_tried_again(employ: Employ) -> None:
    work = employ("max_restarts = 0", "retry_after = 3.0")
    work.kill()
    failed = work.story.wait_for("failed")
    assert failed.delay == 3.0
    assert work.status().pid is None
    with pytest.raises(NoUsableIsolation, match="tried again in") as caught:
        work.worker.double(1)
    assert isinstance(caught.value.attempts[0].error, PluginCrashed)
    assert work.status().state == "failed"
    work.story.wait_for("running")
    assert work.worker.double(1) == 2


def test_to_load_what_crashed_starts_it_at_once(employ: Employ) -> None:
    work = employ("max_restarts = 0")
    work.kill()
    work.story.wait_for("failed")
    assert work.loader.load("worker") is work.worker
    assert work.worker.double(1) == 2
    assert (work.status().state, work.status().restarts) == ("running", 1)


def test_what_hangs_is_found_and_replaced(employ: Employ) -> None:
    work = employ("health_interval = 0.1", "health_timeout = 2.0")
    call, _ = work.in_the_middle(work.worker.wait_for)
    before = work.kill(signal.SIGSTOP)
    with pytest.raises(PluginCrashed, match="does not answer and was killed"):
        call.result(PATIENCE)
    crash = work.story.wait_for("crashed")
    assert crash.message.endswith("Plugin 'worker' answered neither of two health checks within 2 s (health_timeout).")
    work.story.wait_for("running")
    assert work.worker.pid() != before


async def forgotten(event: PluginEvent) -> None:
    """Nobody awaits it."""


@pytest.mark.parametrize(("listener", "words"), [(None, "was given None"), (forgotten, "is an async def")])
def test_what_cannot_listen_is_refused_at_once(employ: Employ, listener: Any, words: str) -> None:
    work = employ()
    with pytest.raises(ConfigError, match=words):
        work.loader.on_event(listener)
    work.loader.reload("worker")  # which tells
    assert work.worker.double(1) == 2


def is_stopped(pid: int) -> bool:
    """Whether all its threads are: until the signal has reached them, one of them may go on answering."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) <= {"T"}


HUNG: dict[str, list[str]] = {
    "direct": [],
    "grpcio": [],
    "net/rpc": ['protocols = ["netrpc"]'],
    "multiplexed": ["multiplex = true"],
    "prefork": ["prefork = true"],
}


@pytest.mark.parametrize("how", HUNG)
def test_what_hangs_holds_up_nobody_who_leaves_it(
    employ: Employ, write_module: Write, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Calls in flight there fail as soon as it is seen that nobody answers, whatever is done to the plugin."""
    monkeypatch.setenv("HYBRIDLOAD_ENGINE", "grpcio" if how == "grpcio" else "direct")
    if how == "net/rpc":
        write_module("work_sdk", "\n".join(line for line in WORK.split("\n") if "terator[int]: ..." not in line))
    work = employ("health_interval = 0.2", "health_timeout = 0.5", "backoff = 0.01", *HUNG[how])
    acts: list[Callable[[], object]] = [
        lambda: work.loader.reload("worker"),
        lambda: work.loader.switch("worker", "in-process"),
        work.loader.close,
    ]
    for act in acts:
        if work.status().isolation == "in-process":
            work.loader.switch("worker", "subprocess")
        with deadline(PATIENCE):
            assert work.worker.double(2) == 4
        wait_until(partial(is_stopped, work.kill(signal.SIGSTOP)))
        began = time.monotonic()
        calls = [
            in_thread(work.worker.double, 2),
            in_thread(lambda: asyncio.run(work.worker.async_double(2))),
        ]
        if how != "net/rpc":
            calls.append(in_thread(lambda: list(work.worker.count(2))))
        gate = work.loader._loaded["worker"]._place.gate  # type: ignore[union-attr]
        wait_until(partial(lambda gate, calls: gate.inside >= len(calls), gate, calls))
        act()
        for call in calls:
            assert isinstance(call.exception(PATIENCE), PluginCrashed | PluginClosed)
        assert time.monotonic() - began < 20  # and not the 30 that calls may take to end


def test_an_interrupted_call_ends_here_and_its_plugin_ends_without_complaints(
    employ: Employ, caplog: pytest.LogCaptureFixture
) -> None:
    work = employ()
    file = str(work.folder / "never")
    over = threading.Event()

    def interrupt() -> None:
        wait_until(lambda: over.is_set() or os.path.exists(f"{file}.entered"))
        if not over.is_set():  # else it would end whoever runs the tests
            os.kill(os.getpid(), signal.SIGINT)

    interrupting = in_thread(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            work.worker.wait_for(file)
    finally:
        over.set()
    interrupting.result(PATIENCE)
    assert work.worker.double(2) == 4
    work.loader.close()
    its_own = [record for record in caplog.records if record.name.startswith("hybridload.goplugin")]
    assert [record.getMessage() for record in its_own if record.levelno >= logging.WARNING] == []


def test_without_health_checks_nobody_asks(employ: Employ) -> None:
    work = employ("health_interval = 0")
    assert work.worker.double(2) == 4
    loop = work.loader._host.loop
    loop.at("last", time.monotonic() + PATIENCE, lambda: None)
    wait_until(lambda: "last" in loop._due)
    assert list(loop._due) == ["last"]


def test_a_plugin_whose_connection_breaks_is_replaced_though_it_lives(employ: Employ) -> None:
    work = employ()
    before = work.worker.pid()
    # The other words where the supervisor was quicker to see it.
    with pytest.raises(PluginCrashed, match=r"broke its connection|does not answer and was killed"):
        work.worker.close_sockets()
    work.story.wait_for("running")
    assert work.worker.pid() != before


def test_each_transition_is_told_logged_and_shown(employ: Employ, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hybridload.events")
    work = employ("max_restarts = 5", "backoff = 0.4")
    shown: list[str] = []
    work.loader.on_event(lambda event: shown.append(work.loader.status("worker").state))
    for times in (1, 2):
        work.kill()
        work.story.wait_for("running", times)
    assert work.story.told() == [
        *("crashed", "starting", "running"),
        *("crashed", "backing off", "starting", "running"),
    ]
    logged = [record.getMessage() for record in caplog.records if record.name == "hybridload.events"]
    assert logged[-7:] == [f"plugin worker: {event.message}" for event in work.story.events]
    assert "restart 2 of 5" in work.story.named("starting")[1].message
    delay = work.story.named("backing off")[0].delay
    assert delay is not None
    assert 0.2 <= delay <= 0.4
    wait_until(lambda: len(shown) == len(work.story.events))  # the story is told first
    assert shown[-1] == "running"
    assert set(shown) <= {"starting", "backing off", "running", "crashed"}


def test_a_listener_may_use_the_loader_fail_or_leave(employ: Employ, caplog: pytest.LogCaptureFixture) -> None:
    work = employ("max_restarts = 0", "retry_after = 600")
    seen: list[str] = []
    leave = work.loader.on_event(lambda event: seen.append(event.what))

    def reacts(event: PluginEvent) -> None:
        if event.what == "failed":
            leave()
            work.loader.switch("worker", "in-process")
        raise RuntimeError("listener")

    work.loader.on_event(reacts)
    work.kill()
    work.story.wait_for("running")
    assert work.worker.pid() == os.getpid()
    assert "failed" in seen
    assert "running" not in seen
    assert "a listener failed at the event 'crashed'" in caplog.text


def test_closing_while_it_backs_off_refuses_who_waits(employ: Employ) -> None:
    work = employ("backoff = 60.0", "backoff_max = 60.0")
    work.kill()
    work.story.wait_for("running")
    work.kill()
    work.story.wait_for("backing off")
    waiting = in_thread(work.worker.double, 1)
    work.loader.close()
    with pytest.raises(PluginClosed):
        waiting.result(PATIENCE)
    assert work.status().state == "closed"


def test_on_an_event_loop_the_wait_blocks_nothing_else(employ: Employ) -> None:
    work = employ()

    async def main() -> None:
        call, _ = work.in_the_middle(work.worker.wait_for)
        work.kill()
        with pytest.raises(PluginCrashed):
            await asyncio.wrap_future(call)
        calls = [asyncio.ensure_future(work.worker.async_double(number)) for number in range(8)]
        turns = 0
        while not all(each.done() for each in calls):
            turns += 1
            await asyncio.sleep(0.001)
        assert [each.result() for each in calls] == [2 * number for number in range(8)]
        assert turns > 5
        assert [item async for item in work.worker.async_count(3)] == [0, 1, 2]

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_stream_that_begins_meanwhile_waits_as_well(employ: Employ) -> None:
    work = employ()

    async def main() -> None:
        call, _ = work.in_the_middle(work.worker.wait_for)
        work.kill()
        with pytest.raises(PluginCrashed):
            await asyncio.wrap_future(call)
        assert [item async for item in work.worker.async_count(3)] == [0, 1, 2]
        assert list(work.worker.count(3)) == [0, 1, 2]

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_one_that_gives_up_waiting_takes_nobody_along(employ: Employ) -> None:
    work = employ()

    async def main() -> None:
        call, _ = work.in_the_middle(work.worker.wait_for)
        work.kill()
        with pytest.raises(PluginCrashed):
            await asyncio.wrap_future(call)
        first, second = (asyncio.ensure_future(work.worker.async_double(number)) for number in (1, 2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == 4
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_crash_after_crash_under_calls_from_many_threads(employ: Employ) -> None:
    """Every call is answered rightly or says that the plugin crashed, and the plugin is there in the end."""
    work = employ("max_restarts = 1000", "backoff = 0.01", "backoff_max = 0.05")
    stop = threading.Event()

    def run(first: int) -> tuple[int, int]:
        right = crashed = 0
        for number in itertools.count(first):
            if stop.is_set():
                return right, crashed
            try:
                assert work.worker.double(number) == 2 * number
                right += 1
            except PluginCrashed:
                crashed += 1
        raise AssertionError

    runs = [in_thread(run, 1_000_000 * each) for each in range(8)]
    for times in range(1, 6):
        work.kill()
        work.story.wait_for("running", times)
    stop.set()
    counts = [each.result(PATIENCE) for each in runs]
    assert all(right for right, _ in counts)
    assert work.worker.double(1) == 2
    assert work.status().restarts == 5
