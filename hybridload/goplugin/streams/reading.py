"""Who reads a connection that several threads wait on: a role, not a thread.

A thread that waits for something takes the role when it is free, reads the connection itself, and hands out what comes
for others. So a caller that is alone writes its request and reads its answer without any other thread being woken. When
it has what it wants, it passes the role on. The rules:

- Whoever began to wait less than a moment ago is *impatient*: probably a caller whose answer is near. Whoever waits for
  longer is *patient*: a copier of standard output, a server between requests, a call that takes its time.
- A free role is taken by impatient waiters only. A reader that leaves passes it to the one that came last, if any.
- A patient reader gives the role up when it has handed something to an impatient waiter, or sees one waiting: callers
  are active, and reading for them would cost them a change of threads per call.
- A watching thread takes the role when it has been free for a moment. It is patient, and it is what answers pings and
  notices the end of the connection while nobody waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

MOMENT = 0.02  # seconds
_QUIET_LOOKS = 5  # moments without a change after which the watching thread sleeps until it is woken


class Waiter:
    """A thread that waits. All but waiting at `gate` happens with the lock of the `Reading` held."""

    __slots__ = ("awake", "gate", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.gate = threading.Lock()
        self.gate.acquire()
        self.awake = False

    def wake(self) -> None:
        if not self.awake:
            self.awake = True
            self.gate.release()


class Reading:
    """The role of reading one connection, and those who wait for what is read.

    :param lock: guards this object and all that the waiters look at.
    :param read: receives once, for at most so many seconds, and hands out what came; called without the lock.
    :param on_time: does what is due by the clock and returns the seconds until something is due again; called without
        the lock, by the watching thread.
    :param name: of the watching thread.
    """

    def __init__(
        self, lock: threading.Lock, read: Callable[[float | None], None], on_time: Callable[[], float], name: str
    ) -> None:
        self._lock = lock
        self._read = read
        self._on_time = on_time
        self._reader: Waiter | None = None
        self._waiting: dict[Waiter, None] = {}  # asleep, in the order in which they came
        self._turns = 0  # how often somebody has read
        self._served_impatient = False  # since the reader last looked
        self._over = False
        self._watcher = Waiter(float("-inf"))
        self._watcher_sleeps = False
        # Blocks on the connection, and on its gate; ends with `end`. Joined by `join`.
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
        self._thread.start()

    def wait(self, ready: Callable[[], object], waiters: list[Waiter], deadline: float | None = None) -> bool:
        """Wait until `ready`, and read meanwhile if nobody else does. Called with the lock held, which it lets go.

        :param waiters: where whoever makes `ready` come true finds this waiter to `wake` it.
        :param deadline: on the monotonic clock.
        :return: whether `ready` came true in time.
        """
        me = Waiter(time.monotonic())
        waiters.append(me)
        try:
            while not ready():
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    return False
                if self._reader is me or (self._reader is None and _impatient(me)):
                    self._reader = me
                    self._read_as(me, remaining)
                else:
                    self._sleep(me, remaining)
            return True
        finally:
            waiters.remove(me)
            self._waiting.pop(me, None)
            if self._reader is me:
                self._pass_on()

    def wake(self, waiters: Iterable[Waiter]) -> None:
        """There is news for these. Called with the lock held."""
        for waiter in waiters:
            if waiter is not self._reader:
                self._waiting.pop(waiter, None)
                self._served_impatient = self._served_impatient or _impatient(waiter)
                waiter.wake()

    def try_read(self) -> bool:
        """Read what is there, without waiting, unless somebody else reads. Called with the lock held.

        :return: whether it was read.
        """
        if self._reader is not None or self._over:
            return False
        self._reader = me = Waiter(time.monotonic())
        try:
            self._read_as(me, 0)
        finally:
            if self._reader is me:
                self._pass_on()
        return True

    def end(self) -> None:
        """Nothing more will be read; `ready` must be true for everybody. Called with the lock held. Idempotent."""
        self._over = True
        for waiter in self._waiting:
            waiter.wake()
        self._waiting.clear()
        self._watcher.wake()

    def join(self) -> None:
        """Wait for the watching thread to end. Called without the lock, after `end`."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _read_as(self, me: Waiter, timeout: float | None) -> None:
        self._served_impatient = False
        self._lock.release()
        try:
            self._read(timeout)
        finally:
            self._lock.acquire()
            self._turns += 1
        if not _impatient(me) and (self._served_impatient or self._heir() is not None):
            self._pass_on()

    def _sleep(self, me: Waiter, timeout: float | None) -> None:
        """Wait at the gate until woken. Being woken may mean news, the role, or the end."""
        self._waiting[me] = None
        self._lock.release()
        try:
            woken = me.gate.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        finally:
            self._lock.acquire()
            self._waiting.pop(me, None)
        if me.awake and not woken:  # while it ran out of time
            me.gate.acquire()
        me.awake = False

    def _heir(self) -> Waiter | None:
        newest = next(reversed(self._waiting), None)
        return newest if newest is not None and _impatient(newest) else None

    def _pass_on(self) -> None:
        self._reader = heir = self._heir()
        if heir is not None:
            self._waiting.pop(heir)
            heir.wake()
        elif self._watcher_sleeps:
            self._watcher.wake()

    def _watch(self) -> None:
        turns, quiet = -1, 0
        while not self._over:
            due = self._on_time()
            with self._lock:
                if self._over:
                    return
                unchanged, turns = self._turns == turns, self._turns
                quiet = quiet + 1 if unchanged else 0
                if unchanged and self._reader is None:
                    self._read_while_quiet(due)
                    turns = -1
                elif quiet >= _QUIET_LOOKS:  # somebody else reads, and has been waiting for long
                    self._watcher_sleeps = True
                    self._sleep_watching(due)
                    self._watcher_sleeps = False
                else:
                    self._sleep_watching(min(due, MOMENT))

    def _read_while_quiet(self, due: float) -> None:
        self._reader = self._watcher
        deadline = time.monotonic() + due
        try:
            while self._reader is self._watcher and not self._over and (left := deadline - time.monotonic()) > 0:
                self._read_as(self._watcher, left)
        finally:
            if self._reader is self._watcher:
                self._pass_on()

    def _sleep_watching(self, timeout: float) -> None:
        self._sleep(self._watcher, timeout)


def _impatient(waiter: Waiter) -> bool:
    return time.monotonic() - waiter.since < MOMENT
