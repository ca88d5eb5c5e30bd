"""Sees to it that a handler which takes long does not hold up its connection.

One thread for a server. While handlers are being run by the threads that read, it looks every `INTERVAL` whether one is
still in the handler it was in before, and lets another thread read that connection. When nothing has been called for a
while it rests, and costs nothing until a reader wakes it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from hybridload.goplugin.threads import SMALL_STACK, OutOfThreads, Thread

logger = logging.getLogger(__name__)

INTERVAL: Final = 0.003
"""Seconds. A handler is overtaken when two looks in a row find it, so it holds its connection up for at most three
times as long, and only the first time that it is slow. One look would do on a quiet machine; on a busy one it finds
threads that only wait for a processor."""

_QUIET_LOOKS: Final = 20


class Led(Protocol):
    """A connection that one thread leads: it reads, and runs what it read."""

    busy_since: float
    """When the leader entered the handler it is in (`time.monotonic`); 0 while it is in none."""
    served: int
    """How many handlers leaders have run."""

    def overtake(self, since: float) -> None:
        """Let another thread lead, if the leader is still inside the handler that it entered at `since`.

        :raises OutOfThreads: there is none; nothing has changed, and the next look tries it again.
        """


class Watchdog:
    """Started with `start`, joined by `close`.

    :param links: the connections there are.
    """

    def __init__(self, name: str, links: Callable[[], Iterable[Led]]) -> None:
        self.resting = True
        """Whether it has to be woken when a reader enters a handler."""
        self._links = links
        self._awake = threading.Event()
        self._closing = threading.Event()
        self._thread = Thread(target=self._run, name=name, daemon=True, stack=SMALL_STACK)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self.resting = False
        self._awake.set()

    def close(self) -> None:
        """Safe to call twice."""
        self._closing.set()
        self._awake.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._awake.wait()
            self._awake.clear()
            self._watch()

    def _watch(self) -> None:
        """Look until nothing has happened for a while."""
        quiet = 0
        served = -1
        seen: dict[Led, float] = {}
        while quiet < _QUIET_LOOKS:
            if self._closing.wait(INTERVAL):
                return
            before = served
            served, seen = self._look(seen)
            quiet = quiet + 1 if served == before else 0
        # A reader that enters a handler from here on wakes us; one that just did is seen by this last look.
        self.resting = True
        if self._anybody_busy():
            self.wake()

    def _look(self, seen: dict[Led, float]) -> tuple[int, dict[Led, float]]:
        """Overtake who is still where the last look has `seen` it.

        Returns a number that changes when anything was called, and what this look has seen.
        """
        served = 0
        busy: dict[Led, float] = {}
        now = time.monotonic()
        for link in self._links():
            since = link.busy_since
            if since and now - since >= INTERVAL and seen.get(link) == since:
                try:
                    link.overtake(since)
                except OutOfThreads as error:
                    logger.debug("a handler holds up its connection: %s", error)
                    busy[link] = since
            elif since:
                busy[link] = since
            served += link.served
        return served, busy

    def _anybody_busy(self) -> bool:
        return any(link.busy_since for link in self._links())
