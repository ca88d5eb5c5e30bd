"""One thread that waits for what is due. The work itself is done on threads that end with it.

A piece of work has a key. What is asked for while the work of that key is running is done once more after it, so no
news is lost and no two threads do the same at once. The thread starts when something is asked for the first time: a
host that asks for nothing has none.

Nothing that goes wrong ends it. Work that raises, and work that no thread can be started for, is told of in the log and
tried again, each time a while later; so work looks at what there is to do, and may be done twice.

Nobody but the thread touches what is due and what runs. The others leave it messages in a queue that may be written to
at any moment, also by a signal handler or a finalizer that runs amid another message of the same thread.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from hybridload.complain import complain
from hybridload.errors import PluginError

log = logging.getLogger(__name__)

Work = Callable[[], object]

_TRY_AGAIN = 0.1
"""Seconds until what failed is tried again; twice as many each further time in a row."""
_TRY_AGAIN_MAX = 30.0


class Loop:
    """Timers and the threads that do what they are for. Safe from any thread, signal handler and finalizer."""

    def __init__(self) -> None:
        self._closed = False
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._messages: SimpleQueue[Callable[[], None]] = SimpleQueue()
        # Blocks on nothing but what is due next and messages; `close` joins it.
        self._thread: threading.Thread | None = None
        self._role = threading.Lock()  # held for ever by the one thread that is the loop's
        self._starting = threading.Lock()
        self._workers: set[int] = set()
        # The loop's own.
        self._due: dict[str, float] = {}
        self._work: dict[str, Work] = {}
        self._again: set[str] = set()
        self._failures: dict[str, int] = {}
        self._running: dict[str, threading.Thread] = {}

    def start(self) -> None:
        """Have the thread that waits, so that nothing that is asked for later can lack it.

        :raises PluginError: no thread can be started.
        """
        if self._thread is not None or not self._starting.acquire(blocking=False):
            return
        try:
            thread = threading.Thread(target=self._run, name="hybridload supervisor", daemon=True)
            thread.start()
            self._thread = thread
        except (RuntimeError, MemoryError) as error:
            raise PluginError(
                f"The host cannot start a thread to look after its plugins ({error}): it has as many as it may have, "
                "or is ending."
            ) from error
        finally:
            self._starting.release()

    @property
    def started(self) -> bool:
        """Whether there is a thread of it."""
        return self._thread is not None

    def at(self, key: str, when: float, work: Work) -> None:
        """Do `work` at a time of `time.monotonic`, in place of what was due for the key; when that was due earlier, at
        that time. Work looks at what there is to do: it may come too early, but nobody may put it off.

        :raises PluginError: as `start`; it is done once the loop is started.
        """
        if not self._closed:
            self._messages.put(functools.partial(self._ask, key, when, work))
            self.start()

    def soon(self, key: str, work: Work) -> None:
        """Do `work` now, on another thread.

        :raises PluginError: as `start`.
        """
        self.at(key, 0.0, work)

    def works_here(self) -> bool:
        """Whether this thread is one that does the loop's work."""
        return threading.get_ident() in self._workers

    def stop(self) -> None:
        """Begin nothing more."""
        self._closed = True
        self._messages.put(_nothing)

    def close(self) -> None:
        """Begin nothing more, and wait for what is running. Safe to call twice; called by work of its own, it does not
        wait for that."""
        self.stop()
        if self._thread is not None:
            _join(self._thread)
        for thread in list(self._running.values()):
            _join(thread)

    def forked(self) -> None:
        """In a forked child, where none of the threads is: begin anew."""
        self._begin_anew()

    # -- the loop's thread

    def _run(self) -> None:
        if not self._role.acquire(blocking=False):
            return  # an interrupt came between another one's start and its being noted
        self._thread = threading.current_thread()
        while not self._closed:
            now = time.monotonic()
            for key in [key for key, when in self._due.items() if when <= now]:
                del self._due[key]
                self._begin(key)
            try:
                message = self._messages.get(timeout=self._patience())
            except Empty:
                continue
            if not self._closed:
                message()

    def _patience(self) -> float | None:
        return max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None

    def _ask(self, key: str, when: float, work: Work) -> None:
        self._due[key], self._work[key] = min(when, self._due.get(key, when)), work

    def _begin(self, key: str) -> None:
        if key in self._running:
            self._again.add(key)
            return
        thread = threading.Thread(target=self._do, args=(key, self._work[key]), name=f"hybridload {key}", daemon=True)
        self._running[key] = thread
        try:
            thread.start()
        except Exception as error:  # there are as many threads as there may be, or no memory for one
            del self._running[key]
            delay = self._put_off(key)
            complain(log, "%s: no thread can be started (%s); it is tried again in %.1f s", key, error, delay)

    def _put_off(self, key: str) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(_TRY_AGAIN_MAX, _TRY_AGAIN * 2.0 ** min(failures - 1, 30))
        self._ask(key, time.monotonic() + delay, self._work[key])
        return delay

    def _ended(self, key: str, error: BaseException | None) -> None:
        self._running.pop(key).join()
        if error is None:
            self._failures.pop(key, None)
        else:
            delay = self._put_off(key)
            complain(log, "%s failed; it is tried again in %.1f s", key, delay, error=error)
        if key in self._again:
            self._again.discard(key)
            self._begin(key)
        elif key not in self._due:
            self._work.pop(key, None)

    # -- a thread of its own for each

    def _do(self, key: str, work: Work) -> None:
        self._workers.add(threading.get_ident())
        failure: BaseException | None = None
        try:
            work()
        except BaseException as error:  # whatever it is, it came from the work: nobody interrupts this thread
            failure = error
        finally:
            self._workers.discard(threading.get_ident())
            self._messages.put(functools.partial(self._ended, key, failure))


def _join(thread: threading.Thread) -> None:
    if thread is not threading.current_thread():
        thread.join()


def _nothing() -> None:
    """Wakes the loop, which looks whether it is closed."""
