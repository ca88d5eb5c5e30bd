"""Counting the calls in flight: somewhere, so that it can be left once they have ended; and altogether, so that there
are never too many.

A gate belongs to one running plugin. Who is refused at one that is shut or closed goes where the plugin is by then, so
that no call is lost, and none is sent twice.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Future


class Gate:
    """Counts the calls in flight in one running plugin. Open at first.

    Entering and leaving take no lock, for they are part of every call. A call counts itself first and looks whether the
    gate is open then; whoever closes it does so first and counts then. So one of them sees the other.
    """

    __slots__ = ("_changed", "_closed", "_inside", "_open")

    def __init__(self) -> None:
        # Reentrant: a stream that is collected may leave at any moment, also in a thread that is in here.
        self._changed = threading.Condition(threading.RLock())
        self._inside: deque[None] = deque()  # one for each call: appending and popping are atomic
        self._open = True
        self._closed = False

    def enter(self) -> bool:
        """Count one more call; false, and nothing counted, when the gate is not open."""
        self._inside.append(None)
        if self._open:
            return True
        self.leave()
        return False

    def leave(self) -> None:
        """Count one less; in a forked child maybe one that was counted before the fork, and is not any more."""
        if self._inside:
            self._inside.pop()
        if not self._open and not self._inside:
            with self._changed:
                self._changed.notify_all()

    @property
    def is_open(self) -> bool:
        """Whether calls may enter."""
        return self._open

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
        with self._changed:
            self._open, self._closed = False, True
            return self._changed.wait_for(lambda: not self._inside, timeout)


class Limit:
    """Lets so many calls in at once; the others take turns, first come, first served.

    Where there is no limit, entering takes no lock. Leaving takes one only when somebody waits: who leaves does so
    first and looks for turns then, who queues does so first and looks for room then, so one of them sees the other.

    :param most: calls; infinity for no limit.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self._lock = threading.RLock()  # as a gate's
        self._inside: deque[None] = deque()  # one for each call: appending and popping are atomic
        self._turns: deque[Future[None]] = deque()

    @property
    def inside(self) -> int:
        """How many calls are counted."""
        return len(self._inside)

    def enter(self) -> bool:
        """Count one more call; false, and nothing counted, when there are as many as may be."""
        if self.most == math.inf:
            self._inside.append(None)
            return True
        with self._lock:
            self._hand_out()
            if len(self._inside) >= self.most:
                return False
            self._inside.append(None)
            return True

    def queue(self) -> Future[None]:
        """A turn: done when it has come, and counted then. One that nobody waits for any more has to be cancelled; when
        that fails it has come, and `leave` has to give it back."""
        from concurrent.futures import Future

        turn: Future[None] = Future()
        with self._lock:
            self._turns.append(turn)
            self._hand_out()
        return turn

    def leave(self) -> None:
        """Count one less, as a gate does; the place is for whoever is next."""
        if self._inside:
            self._inside.pop()
        if self._turns:
            with self._lock:
                self._hand_out()

    def resize(self, most: float) -> None:
        """Let another number in from now on; who is inside stays."""
        with self._lock:
            self.most = most
            self._hand_out()

    def _hand_out(self) -> None:
        """Let in whoever waits and has room. Called with the lock held."""
        while self._turns and len(self._inside) < self.most:
            turn = self._turns.popleft()
            self._inside.append(None)  # first: a stream that is collected meanwhile comes through here as well
            if turn.set_running_or_notify_cancel():
                turn.set_result(None)
            else:
                self._inside.pop()


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
