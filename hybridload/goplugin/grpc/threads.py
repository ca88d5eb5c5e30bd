"""Threads that run calls: as many as there are calls at once, up to a limit, and none that keeps the process alive.

grpcio asks for a `ThreadPoolExecutor`, but the standard one's threads are joined when the interpreter exits: one call
that never ends would keep a plugin alive after its host told it to go. Ours are daemons; `close` joins those that end.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from hybridload.goplugin.threads import OutOfThreads, Thread

# Seconds that a thread waits for work before it ends.
_IDLE = 30.0

_Task = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class CallThreads(ThreadPoolExecutor):
    """Runs calls on threads of its own, each of which may block on whatever the call blocks on.

    :param name: begins the threads' names.
    :param limit: threads at once; `None` for as many as there are calls. Calls beyond it wait for their turn.
    """

    def __init__(self, name: str, limit: int | None) -> None:
        # The base class is there to be recognised; none of its own machinery is used.
        super().__init__(max_workers=1)
        self._name = name
        self._limit = limit
        self._work: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)
        self._unfinished = 0
        self._running: set[threading.Thread] = set()
        self._started = 0
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call. Where no thread can be started it waits for one of the others.

        :raises RuntimeError: after `close`.
        :raises OutOfThreads: there are no others.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name}: closed")
            self._unfinished += 1
            if self._unfinished > len(self._running) and self._may_grow():
                try:
                    self._start_thread()
                except OutOfThreads:
                    if not self._running:
                        self._unfinished -= 1
                        raise
        self._work.put((future, fn, args, kwargs))
        return future

    def make_room(self) -> None:
        """See to it that a call which comes now waits for none but those before it.

        :raises OutOfThreads: no thread can be started, and all there are run calls.
        """
        with self._lock:
            if not self._closed and self._unfinished >= len(self._running) and self._may_grow():
                self._start_thread()

    def wait_idle(self, timeout: float) -> bool:
        """Wait until no call runs or waits for its turn; whether that came within `timeout` seconds."""
        with self._quiet:
            return self._quiet.wait_for(lambda: not self._unfinished, timeout)

    def close(self, timeout: float) -> bool:
        """Take no more calls and join the threads; whether all of them ended within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._closed = True
            threads = list(self._running)
        for _ in threads:
            self._work.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `close`, for whoever takes this for what its base class is."""
        self.close(60.0 if wait else 0.0)

    def _may_grow(self) -> bool:
        return self._limit is None or len(self._running) < self._limit

    def _start_thread(self) -> None:
        self._started += 1
        thread = Thread(target=self._run, name=f"{self._name} {self._started}", daemon=True)
        self._running.add(thread)
        try:
            thread.start()
        except BaseException:
            self._running.discard(thread)
            raise

    def _run(self) -> None:
        while True:
            try:
                task = self._work.get(timeout=_IDLE)
            except queue.Empty:
                if self._may_leave():
                    return
                continue
            if task is None:
                with self._lock:
                    self._running.discard(threading.current_thread())
                return
            _finish(*task)
            del task
            with self._quiet:
                self._unfinished -= 1
                if not self._unfinished:
                    self._quiet.notify_all()

    def _may_leave(self) -> bool:
        with self._lock:
            # What was submitted is counted before it is queued, so the threads that stay are enough for it.
            if self._unfinished >= len(self._running):
                return False
            self._running.discard(threading.current_thread())
            return True


def _finish(future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(fn(*args, **kwargs))
    except BaseException as error:
        future.set_exception(error)
