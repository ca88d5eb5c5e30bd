"""The few threads there are: workers, and the one for deadlines."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

import pytest

from hybridload.goplugin.http2.server import Server
from hybridload.goplugin.http2.timers import Timers
from hybridload.goplugin.http2.watchdog import Watchdog
from hybridload.goplugin.http2.workers import Workers, WorkersClosed
from hybridload.goplugin.streams.base import StreamClosed
from hybridload.goplugin.streams.sockets import listen_unix
from hybridload.goplugin.threads import OutOfThreads
from tests.goplugin.http2.conftest import open_channel
from tests.running_out import no_more_threads


def test_a_job_gets_a_thread_at_once_however_many_are_busy() -> None:
    workers = Workers("test")
    barrier = threading.Barrier(21)
    for _ in range(20):
        workers.submit(lambda: barrier.wait(5) and None)
    barrier.wait(5)
    assert workers.close(5)


def test_idle_threads_are_used_again() -> None:
    workers = Workers("test")
    names = set()
    for _ in range(30):
        done = threading.Event()

        def job(done: threading.Event = done) -> None:
            names.add(threading.current_thread().name)
            done.set()

        workers.submit(job)
        assert done.wait(5)
        while not workers._idle:  # the job has ended, and its thread is on its way to wait for the next
            time.sleep(0.001)
    assert names == {"test-1"}
    assert workers.close(5)


def test_an_idle_thread_keeps_nothing_of_its_first_job() -> None:
    workers = Workers("test")
    done = threading.Event()

    class Job:
        def __call__(self) -> None:
            done.set()

    job = Job()
    kept = weakref.ref(job)
    workers.submit(job)
    del job
    assert done.wait(10)
    deadline = time.monotonic() + 10
    while kept() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    workers.close()


def test_a_job_that_fails_costs_nothing_but_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers("test")
    workers.submit(lambda: 1 // 0 and None)
    assert workers.close(5)
    assert "ZeroDivisionError" in caplog.text


def test_where_no_thread_can_be_started_a_job_is_refused_and_a_patient_one_waits() -> None:
    workers = Workers("test")
    release, patient, later = threading.Event(), threading.Event(), threading.Event()
    workers.submit(lambda: release.wait(10) and None)
    with no_more_threads():
        with pytest.raises(OutOfThreads):
            workers.submit(lambda: None)
        workers.submit(patient.set, patient=True)
        assert not patient.is_set()
        release.set()
        assert patient.wait(10)
    workers.submit(later.set)
    assert later.wait(10)
    assert workers.close(10)


def test_a_timer_without_a_thread_is_refused_and_the_next_one_gets_it() -> None:
    timers, due = Timers("test"), threading.Event()
    with no_more_threads(), pytest.raises(OutOfThreads):
        timers.at(0, due.set)
    timers.at(0, due.set)
    assert due.wait(10)
    timers.close()


def test_the_watchdog_tries_again_when_nobody_can_overtake() -> None:
    class Held:
        busy_since, served = time.monotonic(), 1
        looks = 0
        overtaken = threading.Event()

        def overtake(self, since: float) -> None:
            self.looks += 1
            if self.looks < 3:
                raise OutOfThreads("none")
            self.overtaken.set()

    held = Held()
    watchdog = Watchdog("test", lambda: [held])
    watchdog.start()
    watchdog.wake()
    assert held.overtaken.wait(10)
    watchdog.close()


def test_closed_workers_take_nothing_and_say_whether_all_are_done() -> None:
    workers = Workers("test")
    release = threading.Event()
    workers.submit(lambda: release.wait(5) and None)
    assert not workers.close(0.01)
    with pytest.raises(WorkersClosed):
        workers.submit(lambda: None)
    release.set()
    assert workers.close(5)


def test_actions_run_in_the_order_in_which_they_are_due() -> None:
    timers = Timers("test")
    ran: list[int] = []
    done = threading.Event()
    now = time.monotonic()
    timers.at(now + 0.04, done.set)
    timers.at(now + 0.03, lambda: ran.append(3))
    timers.at(now + 0.01, lambda: ran.append(1))
    cancelled = timers.at(now + 0.02, lambda: ran.append(2))
    cancelled.cancel()
    cancelled.cancel()
    assert done.wait(5)
    assert ran == [1, 3]
    timers.close()


def test_cancelled_timers_do_not_pile_up() -> None:
    timers = Timers("test")
    for _ in range(5000):
        timers.at(time.monotonic() + 1000, lambda: None).cancel()
    assert len(timers._heap) < 200
    timers.close()


def test_an_action_that_fails_does_not_stop_the_next(caplog: pytest.LogCaptureFixture) -> None:
    timers = Timers("test")
    done = threading.Event()
    timers.at(0, lambda: 1 // 0 and None)
    timers.at(0, done.set)
    assert done.wait(5)
    timers.close()
    timers.close()
    assert "ZeroDivisionError" in caplog.text


def test_a_listener_that_comes_to_a_server_that_stops_is_closed_and_waited_on_by_nobody() -> None:
    server = Server(())
    server.start()
    assert server.stop(0).wait(10)
    before, listener = threading.active_count(), listen_unix()
    server.add_listener(listener)
    with pytest.raises(StreamClosed):
        listener.accept(0)
    assert threading.active_count() == before


class Lingering:
    """A stream that takes its time to close."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.may_close = threading.Event()

    def send(self, data: bytes) -> None:
        """Nobody is there to take it, which is not what this is about."""

    def close(self) -> None:
        self.may_close.wait(10)
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_a_handler_hears_of_the_end_before_the_connection_is_cleared_away(ours: Any, service: Any) -> None:
    server, address = ours
    with open_channel(address, max_connections=1) as channel:
        assert channel.unary_unary("/t.T/Echo")(b"x") == b"x"  # what a connection begins with is done
        channel.unary_unary("/t.T/Hang").future(b"")
        assert service.hanging.acquire(timeout=5)
        (link,) = server._links
        link.stream = lingering = Lingering(link.stream)
    try:
        assert service.event("hung").wait(5)  # a server that stops meanwhile takes no callbacks any more
    finally:
        lingering.may_close.set()
