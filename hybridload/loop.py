"""One thread that waits for what is due. The work itself is done on threads that end with it.

A piece of work has a key. What is asked for while the work of that key is running is done once more after it, so no
news is lost and no two threads do the same at once. The thread starts when something is asked for the first time: a
host that asks for nothing has none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

Work = Callable[[], None]


class Loop:
    """Timers and the threads that do what they are for. Safe from any thread."""

    def __init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._due: dict[str, float] = {}
        self._work: dict[str, Work] = {}
        self._again: set[str] = set()
        self._running: dict[str, threading.Thread] = {}
        self._ended: list[threading.Thread] = []
        self._closed = False
        # Blocks on nothing but what is due next and news; `close` joins it.
        self._thread: threading.Thread | None = None

    def at(self, key: str, when: float, work: Work) -> None:
        """Do `work` at a time of `time.monotonic`, in place of what was due for the key; when that was due earlier, at
        that time. Work looks at what there is to do: it may come too early, but nobody may put it off."""
        with self._changed:
            if self._closed:
                return
            self._due[key], self._work[key] = min(when, self._due.get(key, when)), work
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hybridload supervisor", daemon=True)
                self._thread.start()

    def soon(self, key: str, work: Work) -> None:
        """Do `work` now, on another thread."""
        self.at(key, 0.0, work)

    def forget(self, key: str) -> None:
        """Drop what is due for a key; what is running goes on."""
        with self._changed:
            self._due.pop(key, None)
            self._again.discard(key)

    def stop(self) -> None:
        """Begin nothing more."""
        with self._changed:
            self._closed = True
            self._due.clear()
            self._again.clear()
            self._changed.notify()

    def close(self) -> None:
        """Begin nothing more, and wait for what is running. Safe to call twice; called by work of its own, it does not
        wait for that."""
        self.stop()
        with self._changed:
            threads = [*self._running.values(), *self._ended]
            if self._thread is not None:
                threads.append(self._thread)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def forked(self) -> None:
        """In a forked child, where none of the threads is: begin anew."""
        closed = self._closed
        self._begin_anew()
        self._closed = closed

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for key in [key for key, when in self._due.items() if when <= now]:
                    del self._due[key]
                    self._begin(key)
                while self._ended:
                    self._ended.pop().join()
                self._changed.wait(min(self._due.values()) - now if self._due else None)

    def _begin(self, key: str) -> None:
        if key in self._running:
            self._again.add(key)
            return
        thread = threading.Thread(target=self._do, args=(key,), name=f"hybridload {key}", daemon=True)
        self._running[key] = thread
        thread.start()

    def _do(self, key: str) -> None:
        while True:
            with self._changed:
                work = self._work[key]
            try:
                work()
            except Exception:
                log.exception("%s failed", key)
            with self._changed:
                if key in self._again:
                    self._again.discard(key)
                    continue
                if key not in self._due:
                    self._work.pop(key, None)
                self._ended.append(self._running.pop(key))
                self._changed.notify()
                return
