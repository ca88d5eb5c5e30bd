"""Who reads a connection that several threads wait on: a role, not a thread.

A thread that waits for something takes the role when it is free, reads the connection itself, and hands out what comes
for others. So a caller that is alone writes its request and reads its answer without any other thread being woken. The
rules:

- Whoever began to wait less than a moment ago is *impatient*, probably a caller whose answer is near. Only the
  impatient read for themselves. When its moment is over, a reader leaves the role to the watching thread and sleeps,
  so that it can be woken by what does not come over the connection, such as a `close` from another thread.
- A reader that has what it wants passes the role to the impatient waiter that came last, if there is one.
- Whoever is interrupted (Ctrl-C) neither keeps the role nor loses the lock, nor anything that was read: it is
  interrupted where it sleeps (see `hybridload.interrupts`). Other exceptions may come from any call, so a lock is let
  go inside the `try` that takes it back, and the role is given up before anybody is called to pass it on.
- The watching thread reads while nobody is impatient: it answers pings, serves those who wait for long (a copier of
  standard output, a server between requests) and notices the end. It gives the role up when it has handed something to
  an impatient waiter, or sees one waiting: callers are active, and reading for them would cost them a change of threads
  per call. It takes a role that has been free for a moment, without anybody having to wake it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from hybridload.goplugin.threads import Thread
from hybridload.interrupts import held

MOMENT = 0.02  # seconds


class Waiter:
    """A thread that waits. All but waiting at `gate` happens with the lock of the `Reading` held."""

    __slots__ = ("awake", "gate", "impatient_until")

    def __init__(self, impatient_until: float) -> None:
        self.impatient_until = impatient_until
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
    :param on_failure: ends the connection, because `read` was interrupted and some bytes may be lost, or the watching
        thread failed in a way that nobody foresaw and nothing would be read any more; called without the lock.
    :param name: of the watching thread.
    """

    def __init__(
        self,
        lock: threading.Lock,
        read: Callable[[float], None],
        on_time: Callable[[], float],
        on_failure: Callable[[BaseException], object],
        name: str,
    ) -> None:
        self._lock = lock
        self._read = read
        self._on_time = on_time
        self._on_failure = on_failure
        self._reader: Waiter | None = None
        self._asleep: set[Waiter] = set()
        self._callers: dict[Waiter, None] = {}  # those of them who were impatient when they went to sleep, in order
        self._turns = 0  # how often somebody has read
        self._served_impatient = False  # since the reader began to read
        self._over = False
        self._watcher = Waiter(impatient_until=0)
        self._passer_by = Waiter(impatient_until=0)  # stands for whoever took the role with `take`
        # Blocks on the connection, and on its gate. `end` and the end of the connection let it go, `join` waits for it.
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to watch; from here on, `read` and `on_time` may be called."""
        self._thread.start()

    @property
    def taken(self) -> bool:
        """Whether somebody reads just now."""
        return self._reader is not None

    def wait(self, ready: Callable[[], object], waiters: list[Waiter], deadline: float | None = None) -> bool:
        """Wait until `ready`, and read meanwhile if nobody else does. Called with the lock held, which it lets go.

        :param waiters: where whoever makes `ready` come true finds this waiter to `wake` it.
        :param deadline: on the monotonic clock.
        :return: whether `ready` came true in time.
        """
        now = time.monotonic()
        me = Waiter(now + MOMENT)
        waiters.append(me)
        try:
            while not ready():
                if deadline is not None and now >= deadline:
                    return False
                if now < me.impatient_until and (self._reader is None or self._reader is me):
                    self._reader = me
                    until = me.impatient_until if deadline is None else min(me.impatient_until, deadline)
                    self._read_as(until - now)
                else:
                    if self._reader is me:
                        self._pass_on(self._watcher)
                    self._sleep(me, None if deadline is None else deadline - now)
                now = time.monotonic()
            return True
        finally:
            if self._reader is me:
                self._reader = None
                self._pass_on()
            waiters.remove(me)

    def take(self) -> bool:
        """Take the role if nobody has it, in order to read for at most a `MOMENT`; `give_back` it after that.

        For a caller whose answer is near, in place of `wait`. Called with the lock held.
        """
        if self._reader is not None or self._over:
            return False
        self._reader = self._passer_by
        self._served_impatient = False
        return True

    def give_back(self) -> None:
        """Called with the lock held."""
        self._reader = None
        self._turns += 1
        self._pass_on()

    def wake(self, waiters: Iterable[Waiter]) -> None:
        """There is news for these. Called with the lock held."""
        for waiter in waiters:
            if waiter in self._asleep:  # else it looks before it sleeps
                self._asleep.discard(waiter)
                if time.monotonic() < waiter.impatient_until:
                    self._served_impatient = True
                waiter.wake()

    def try_read(self) -> bool:
        """Read what is there, without waiting, unless somebody else reads. Called with the lock held.

        :return: whether it was read.
        """
        if self._reader is not None or self._over:
            return False
        self._reader = me = Waiter(0)
        try:
            self._read_as(0)
        finally:
            if self._reader is me:
                self._reader = None
                self._pass_on()
        return True

    def end(self) -> None:
        """Nothing more will be read; `ready` must be true for everybody. Called with the lock held. Idempotent."""
        self._over = True
        self.wake(list(self._asleep))

    def join(self) -> None:
        """Wait for the watching thread to end. Called without the lock, after `end`, when the connection is closed."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _read_as(self, timeout: float) -> None:
        self._served_impatient = False
        try:
            self._lock.release()
            self._read(timeout)
        except BaseException as error:
            self._on_failure(error)
            raise
        finally:
            self._lock.acquire()
            self._turns += 1

    def _sleep(self, me: Waiter, timeout: float | None) -> None:
        """Wait at the gate until woken. Being woken may mean news, the role, or the end."""
        self._asleep.add(me)
        if time.monotonic() < me.impatient_until:
            self._callers[me] = None
        try:
            self._lock.release()
            woken = held.wait(me.gate, timeout)
        finally:
            self._lock.acquire()
            self._asleep.discard(me)
            self._callers.pop(me, None)
        if me.awake and not woken:  # just when it ran out of time
            me.gate.acquire()
        me.awake = False

    def _heir(self) -> Waiter | None:
        while self._callers:
            newest = next(reversed(self._callers))
            if newest in self._asleep and time.monotonic() < newest.impatient_until:
                return newest
            del self._callers[newest]
        return None

    def _pass_on(self, otherwise: Waiter | None = None) -> None:
        """Give the role to an impatient waiter; when there is none, to this one, or nobody."""
        self._reader = heir = self._heir() or otherwise
        if heir is not None:
            self._asleep.discard(heir)
            heir.wake()

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException as error:
            self._on_failure(error)
            raise

    def _watch(self) -> None:
        me, turns = self._watcher, -1
        while True:
            due = self._on_time()
            with self._lock:
                if self._over:
                    return
                if self._reader is me or (self._reader is None and self._turns == turns):
                    self._reader = me
                    self._read_as(due)
                    if self._served_impatient or self._heir() is not None:
                        self._pass_on()
                    turns = -1
                else:
                    turns = self._turns
                    self._sleep(me, min(due, MOMENT))
