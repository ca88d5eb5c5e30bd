"""Deadlines of calls that no thread is waiting for: one thread, started when the first is set."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable

from hybridload.goplugin.threads import SMALL_STACK, Thread

logger = logging.getLogger(__name__)


class Timer:
    """Something that is due at a point in time, unless it is cancelled before."""

    __slots__ = ("action", "owner")

    def __init__(self, owner: Timers, action: Callable[[], None]) -> None:
        self.owner = owner
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Don't. Safe to call twice, and too late."""
        if self.action is not None:
            self.action = None
            self.owner._forget_one()


class Timers:
    """Runs actions when they are due, one after the other; they must be short.

    Its thread waits for time and for `at`, nothing else; `close` joins it.

    :param name: the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Timer]] = []
        self._number = 0
        self._cancelled = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def at(self, deadline: float, action: Callable[[], None]) -> Timer:
        """Run `action` at `deadline` (of `time.monotonic`). After `close`, never.

        :raises OutOfThreads: there is no thread yet, and none can be started.
        """
        timer = Timer(self, action)
        with self._changed:
            if self._thread is None and not self._closed:
                thread = Thread(target=self._run, name=self._name, daemon=True, stack=SMALL_STACK)
                thread.start()
                self._thread = thread
            self._number += 1
            heapq.heappush(self._heap, (deadline, self._number, timer))
            if self._heap[0][2] is timer:
                self._changed.notify()
        return timer

    def close(self) -> None:
        """Forget all that is to come and join the thread. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _forget_one(self) -> None:
        """Calls end long before their deadlines: what is cancelled must not pile up."""
        with self._changed:
            self._cancelled += 1
            if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2].action is not None]
                heapq.heapify(self._heap)
                self._cancelled = 0

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                if not self._heap:
                    self._changed.wait()
                    continue
                remaining = self._heap[0][0] - time.monotonic()
                if remaining > 0:
                    self._changed.wait(min(remaining, threading.TIMEOUT_MAX))
                    continue
                _, _, timer = heapq.heappop(self._heap)
            action, timer.action = timer.action, None
            if action is not None:
                try:
                    action()
                except Exception:
                    logger.exception("an action that was due failed")
