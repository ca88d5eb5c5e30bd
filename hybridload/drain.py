"""Counting the calls in flight: somewhere, so that it can be left once they have ended; and altogether, so that there
are never too many.

A gate belongs to one running plugin. Who is refused at one that is shut or closed goes where the plugin is by then, so
that no call is lost, and none is sent twice.

A call is counted by what it holds: a reference to the `token` of the gate and of the limit. So none stays counted that
is interrupted (Ctrl-C) at whatever step, as happens to counters that are raised and lowered.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hybridload import interrupts

if TYPE_CHECKING:
    from concurrent.futures import Future

_LOOK = 0.1
"""Seconds. Who was interrupted while it left may have told nobody."""


class Gate:
    """Counts the calls in flight in one running plugin. Open at first.

    Entering and leaving take no lock, for they are part of every call. A call counts itself first and looks whether the
    gate is open then; whoever closes it does so first and counts then. So one of them sees the other.
    """

    __slots__ = ("_changed", "_closed", "_open", "_unheld", "token")

    def __init__(self) -> None:
        # Reentrant: a stream that is collected may leave at any moment, also in a thread that is in here.
        self._changed = threading.Condition(threading.RLock())
        self.token = object()
        """Whoever holds it is counted."""
        self._unheld = sys.getrefcount(self.token)
        self._open = True
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether calls may enter."""
        return self._open

    @property
    def inside(self) -> int:
        """How many calls are counted."""
        return sys.getrefcount(self.token) - self._unheld

    def left(self) -> None:
        """Somebody has let go of the token."""
        if not self._open and not self.inside:
            with self._changed:
                self._changed.notify_all()

    def shut(self) -> None:
        """Let nobody in, for the time being."""
        with self._changed:
            self._open = False

    def reopen(self) -> None:
        """Let calls in again, unless the gate was closed."""
        with self._changed:
            self._open = not self._closed

    def close(self, timeout: float) -> bool:
        """Let nobody in any more and wait for those inside; whether all left within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._open, self._closed = False, True
            while self.inside:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                self._changed.wait(min(remaining, _LOOK))
            return True


class Limit:
    """Lets so many calls in at once; the others take turns, first come, first served.

    Where there is no limit, entering takes no lock. Leaving takes one only when somebody waits: who leaves does so
    first and looks for turns then, who queues does so first and looks for room then, so one of them sees the other.

    :param most: calls; infinity for no limit.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self.token = object()
        """Whoever holds it is counted. Where there is a limit, it is to be had from `seat` and `queue` alone."""
        self._unheld = sys.getrefcount(self.token)
        self._lock = threading.RLock()  # as a gate's
        self._turns: deque[Future[list[object]]] = deque()

    @property
    def inside(self) -> int:
        """How many calls are counted."""
        return sys.getrefcount(self.token) - self._unheld

    def seat(self) -> list[object]:
        """What counts one more call until it is cleared or dropped; empty when there are as many as may be."""
        if self.most == math.inf:
            return [self.token]
        with interrupts.held, self._lock:
            self._hand_out()
            return [self.token] if self.inside < self.most else []

    def queue(self) -> Future[list[object]]:
        """A turn, whose result is a seat. One that nobody waits for any more has to be cancelled; when that fails the
        seat has come, and has to be cleared."""
        from concurrent.futures import Future

        turn: Future[list[object]] = Future()
        with interrupts.held, self._lock:
            self._turns.append(turn)
            self._hand_out()
        return turn

    def left(self) -> None:
        """Somebody has let go of a seat; it is for whoever is next."""
        if self._turns:
            with interrupts.held, self._lock:
                self._hand_out()

    def resize(self, most: float) -> None:
        """Let another number in from now on; who is inside stays."""
        with interrupts.held, self._lock:
            self.most = most
            self._hand_out()

    def _hand_out(self) -> None:
        """Let in whoever waits and has room. Called with the lock held."""
        while self._turns and self.inside < self.most:
            turn, seat = self._turns.popleft(), [self.token]
            # Counted first: a stream that is collected meanwhile comes through here as well.
            if turn.set_running_or_notify_cancel():
                turn.set_result(seat)
            else:
                seat.clear()


class Permit:
    """A call in flight in one place.

    :param seat: of the limit; holds the gate's token as well.
    """

    __slots__ = ("_gate", "_limit", "_seat", "place")

    def __init__(self, place: Any, gate: Gate, limit: Limit, seat: list[object]) -> None:
        self.place = place
        self._gate = gate
        self._limit = limit
        self._seat = seat

    def leave(self) -> None:
        """Be counted no more. Safe to call twice."""
        self._seat.clear()
        if not self._gate.is_open:
            self._gate.left()
        self._limit.left()


class CountedStream:
    """The results of an in-process generator, counted as one call until they end, are closed or dropped."""

    def __init__(self, stream: Any, leave: Callable[[], None]) -> None:
        self._stream = stream
        self._count = _Count(leave)

    def __iter__(self) -> CountedStream:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._stream)
        except BaseException:
            self._count.end()
            raise

    def close(self) -> None:
        """End it. Safe to call twice."""
        try:
            close = getattr(self._stream, "close", None)
            if close is not None:
                close()
        finally:
            self._count.end()


class CountedAsyncStream:
    """The same for `async for`."""

    def __init__(self, stream: Any, leave: Callable[[], None]) -> None:
        self._stream = stream
        self._count = _Count(leave)

    def __aiter__(self) -> CountedAsyncStream:
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._stream)
        except BaseException:
            self._count.end()
            raise

    async def aclose(self) -> None:
        """End it. Safe to call twice."""
        try:
            close = getattr(self._stream, "aclose", None)
            if close is not None:
                await close()
        finally:
            self._count.end()


class _Count:
    """One call's count, given back once: when it is told to, or when the stream that has it is dropped."""

    __slots__ = ("_leave",)

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def end(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    __del__ = end
