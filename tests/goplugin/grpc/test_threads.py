"""Threads that run calls."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from hybridload.goplugin.grpc import threads
from hybridload.goplugin.grpc.threads import CallThreads


def test_there_are_as_many_threads_as_calls_at_once_and_no_more() -> None:
    pool = CallThreads("test", None)
    barrier = threading.Barrier(21)
    futures = [pool.submit(barrier.wait) for _ in range(20)]
    barrier.wait()
    assert sorted(future.result(10) for future in futures) != []
    assert pool.wait_idle(10)
    for _ in range(100):
        pool.submit(int).result(10)
        assert pool.wait_idle(10)
    assert sum(thread.name.startswith("test ") for thread in threading.enumerate()) == 20
    assert pool.close(10)


def test_calls_beyond_the_limit_wait_for_their_turn() -> None:
    pool = CallThreads("test", 2)
    release = threading.Event()
    blocked = [pool.submit(release.wait, 10) for _ in range(2)]
    waiting = pool.submit(int)
    assert not pool.wait_idle(0.05)
    assert not waiting.done()
    release.set()
    assert waiting.result(10) == 0
    assert all(future.result(10) for future in blocked)
    assert pool.close(10)


def test_what_a_call_raises_is_in_its_future_and_its_thread_goes_on() -> None:
    pool = CallThreads("test", 1)
    for error in (ValueError, SystemExit, KeyboardInterrupt):
        failed: Future[Any] = pool.submit(raise_, error)
        assert type(failed.exception(10)) is error
    assert pool.submit(int).result(10) == 0
    assert pool.close(10)


def raise_(error: type[BaseException]) -> None:
    raise error


def test_nothing_is_taken_after_the_end() -> None:
    pool = CallThreads("test", None)
    pool.submit(int).result(10)
    assert pool.close(10)
    assert pool.close(10)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(int)


def test_a_call_that_does_not_end_is_not_waited_for_for_ever() -> None:
    pool = CallThreads("test", None)
    release = threading.Event()
    pool.submit(release.wait, 60)
    began = time.monotonic()
    assert not pool.close(0.1)
    assert time.monotonic() - began < 5
    release.set()
    assert pool.close(10)


def test_idle_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_IDLE", 0.05)
    pool = CallThreads("idle", None)
    for _ in range(5):
        pool.submit(time.sleep, 0.01)
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("idle ") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert pool.submit(int).result(10) == 0
    assert pool.close(10)


def test_a_call_that_never_ends_does_not_keep_the_process_alive() -> None:
    code = (
        "import time\n"
        "from hybridload.goplugin.grpc.threads import CallThreads\n"
        "CallThreads('x', None).submit(time.sleep, 3600)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=20, check=True)
