"""What listeners, log handlers and plugins' own code raise, and threads that cannot be started, end no supervision.

A row of each table is one failure. Whatever it is, a plugin that is killed comes back, twice, and the loader closes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from hybridload import Loader, deadline
from hybridload.errors import PluginError
from hybridload.loop import Loop
from tests.isolation.conftest import PATIENCE, WORK, Employ, Open, Workplace, Write, wait_until

Failure = Callable[[Loader], AbstractContextManager[object]]
RAISED: list[type[BaseException]] = [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]


def listener(kind: type[BaseException], what: str | None = None) -> Failure:
    """A listener that raises: at every event, or at those of one kind."""

    def listen(event: Any) -> None:
        if what in (None, event.what):
            raise kind("the listener's")

    @contextmanager
    def failing(loader: Loader) -> Iterator[None]:
        unsubscribe = loader.on_event(listen)
        yield
        unsubscribe()

    return failing


def stuck_listener() -> Failure:
    """One that does not return as long as the plugin is away."""

    @contextmanager
    def failing(loader: Loader) -> Iterator[None]:
        released = threading.Event()
        unsubscribe = loader.on_event(lambda event: released.wait(PATIENCE))
        yield
        released.set()
        unsubscribe()

    return failing


def log_handler(kind: type[BaseException]) -> Failure:
    """A handler that raises at every record, that of its own failure among them."""

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise kind("the handler's")

    @contextmanager
    def failing(loader: Loader) -> Iterator[None]:
        logger, handler = logging.getLogger("hybridload"), Raising()
        logger.addHandler(handler)
        yield
        logger.removeHandler(handler)

    return failing


def no_thread(name: str, times: int) -> Failure:
    """So many times no thread can be started whose name has that in it."""

    @contextmanager
    def failing(loader: Loader) -> Iterator[None]:
        start, left = threading.Thread.start, [None] * times

        def refusing(thread: threading.Thread) -> None:
            if name in thread.name and left:
                left.pop()
                raise RuntimeError("can't start new thread")
            start(thread)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", refusing)
            yield
        assert not left

    return failing


FAILURES: dict[str, Failure] = {
    **{f"listener: {kind.__name__}": listener(kind) for kind in RAISED},
    "listener at one event": listener(SystemExit, "crashed"),
    "stuck listener": stuck_listener(),
    **{f"log handler: {kind.__name__}": log_handler(kind) for kind in RAISED[:3]},
    "no thread for the supervisor": no_thread("worker supervisor", 3),
    "no thread for events": no_thread("events", 2),
    "no thread for the pipes": no_thread("worker pipes", 1),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_killed_plugin_comes_back_whatever_fails_around_it(employ: Employ, failure: Failure) -> None:
    work = employ("backoff = 0.01")
    with failure(work.loader):
        for _ in range(2):
            before = work.kill()
            wait_until(lambda before=before: work.status().pid not in (before, None))  # type: ignore[misc]
            assert answers(work)
    work.loader.close()


def answers(work: Workplace) -> bool:
    with deadline(PATIENCE):
        return bool(work.worker.double(2) == 4)


OWN_CODE = """
import os
import work_sdk

class Broken(Exception):
    \"\"\"Its text is of no use either.\"\"\"
    def __str__(self):
        raise ValueError("no text")

class Failing(work_sdk.Worker):
    constructed = closed = 0
    def __init__(self):
        super().__init__()
        if not self.is_child():
            Failing.constructed += 1
            if Failing.constructed == 1:
                CONSTRUCTOR
    def is_child(self):
        return os.environ["FAILING_HOST"] != str(os.getpid())
    def close(self):
        if not self.is_child():
            Failing.closed += 1
            CLOSE
"""
OWN_CONFIG = """
    [host]
    plugins = "work_sdk:PLUGINS"
    handshake = "work_sdk:HANDSHAKE"
    [plugins.worker]
    entry_point = "failing_sdk:Failing"
    isolation = ["subprocess", "in-process"]
    max_restarts = 0
    retry_after = 0.2
    """


@pytest.mark.parametrize("statement", ["raise SystemExit(3)", "raise Broken"])
@pytest.mark.parametrize("where", ["CONSTRUCTOR", "CLOSE"])
def test_what_an_object_raises_is_told_and_gone_on_from(
    write_module: Write, open_loader: Open, monkeypatch: pytest.MonkeyPatch, where: str, statement: str
) -> None:
    """It is to take over from a process, and to give its place back to one."""
    monkeypatch.setenv("FAILING_HOST", str(os.getpid()))
    write_module("work_sdk", WORK)
    statements = {"CONSTRUCTOR": "pass", "CLOSE": "pass", where: statement}
    write_module(
        "failing_sdk", OWN_CODE.replace("CONSTRUCTOR", statements["CONSTRUCTOR"]).replace("CLOSE", statements["CLOSE"])
    )
    loader = open_loader(config=OWN_CONFIG)
    worker = loader.load("worker")
    before = loader.status("worker").pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: loader.status("worker").pid not in (before, None, os.getpid()))
    with deadline(PATIENCE):
        assert worker.double(2) == 4
    failing = sys.modules["failing_sdk"].Failing
    assert failing.constructed == 1
    wait_until(lambda: failing.closed == (where == "CLOSE"))


def test_what_fails_is_done_again_and_told(caplog: pytest.LogCaptureFixture) -> None:
    loop, done, times = Loop(), threading.Event(), []

    def work() -> None:
        times.append(None)
        if len(times) < 3:
            raise SystemExit("not yet")
        done.set()

    loop.soon("work", work)
    assert done.wait(PATIENCE)
    loop.close()
    assert len(times) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "work failed; it is tried again in 0.1 s",
        "work failed; it is tried again in 0.2 s",
    ]


def test_a_loader_without_threads_says_so_and_works_later(
    employ: Employ, monkeypatch: pytest.MonkeyPatch, write_module: Write
) -> None:
    work = employ(isolation="in-process")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(PluginError, match="cannot start a thread"):
            work.loader.switch("worker", "subprocess")
        assert work.worker.double(1) == 2
        assert list(work.loader.load_all(["worker"])) == ["worker"]
    work.loader.switch("worker", "subprocess")
    assert work.worker.double(1) == 2
