"""Exceptions that signal handlers raise (Ctrl-C, soft time limits) come only where nothing can be lost by them.

Python runs signal handlers in the main thread, between any two steps of it. One that raises while a caller has received
bytes and not handed them out yet, or has counted what it has not sent, spoils a connection that others share, though
nothing was lost on the wire. So while the main thread works on a shared session, the handlers that the program has set
are replaced by one that notes what came. It is handed on where the thread waits, or when it leaves the session; what it
raises then ends that call and nothing else. (Trio protects itself from KeyboardInterrupt in the same way, by a handler
that looks where it is.)

- `with held:` in other threads does nothing: no handler runs there.
- A place that may wait for long says so: `held.wait` for a gate, `held.acquire` for a lock that may be held for long,
  `held.pause` for anything else. What comes while such a place waits is handed on at once.
- Whatever is noted for longer than `_PATIENCE` is not: the next signal is handed on wherever the thread is.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

_NAMES = (
    *("SIGINT", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"),
    "SIGBREAK",
)
_SIGNALS = tuple(int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name))
_PATIENCE = 1.0  # seconds
_SLICE = 0.05  # seconds
_FRESH = 0.01  # seconds until it is seen that a handler was set for a signal that had none

# `signal` makes enumerations of what it takes and gives, which takes ten times as long as the functions below it.
_fast: Any = getattr(signal, "_signal", signal)
_get, _set = _fast.getsignal, _fast.signal
_here, _now = threading.get_ident, time.monotonic


class Held:
    """Holds back what signal handlers raise. There is one for the process; it is reentrant."""

    def __init__(self) -> None:
        self._main: int | None = threading.main_thread().ident
        self._depth = 0
        self._waiting = False
        self._arrived: deque[tuple[int, FrameType | None]] = deque()
        self._since = 0.0  # when the first of them came
        self._known_until = 0.0  # on the monotonic clock: so long the next two are taken for right
        self._raising: list[int] = []  # those of the signals that a handler is set for
        self._handlers: dict[int, Any] = {}  # those that were replaced
        self._replacement = self._arrive
        self.harmless = False
        """Whether what was raised in here last came at a wait, where nothing is lost."""

    @property
    def here(self) -> bool:
        """Whether the calling thread is the one in a section."""
        return self._depth > 0 and _here() == self._main

    def __enter__(self) -> None:
        if _here() != self._main:
            return
        if self._depth:
            self._depth += 1
            return
        if _now() >= self._known_until:
            self._look_again()
        handlers, replacement = self._handlers, self._replacement
        try:
            for number in self._raising:
                if _get(number) is not handlers[number]:
                    self._look_again()
                    break
            for number in self._raising:
                handler = _set(number, replacement)
                if handler is not handlers[number] and handler is not replacement:
                    handlers[number] = handler  # a handler has set another just now
            self.harmless = False
            self._depth = 1
        except BaseException as error:
            self._depth = 0
            self._put_back()
            if not isinstance(error, ValueError) or not error.__traceback__ or error.__traceback__.tb_next:
                raise  # a handler has raised it, maybe one that is not replaced yet
            self._main = None  # a subinterpreter's: it may set none

    def __exit__(self, *_: object) -> None:
        if not self._depth or _here() != self._main:
            return
        if self._depth > 1:
            self._depth -= 1
            return
        try:
            # A call: what a handler raises at the end of a loop's step gets past `finally` on 3.13 (cpython#130279).
            self._put_back()
        finally:  # a handler that is set again may have raised already
            self._depth = 0
            if self._arrived:
                self._hand_on()

    def wait(self, gate: threading.Lock, timeout: float | None = None) -> bool:
        """Acquire what another thread releases to wake this one. A handler may raise here.

        :param timeout: in seconds.
        """
        timeout = -1 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)
        if not self.here:
            return gate.acquire(timeout=timeout)
        woken: bool = self.pause(gate.acquire, True, timeout)
        return woken

    def acquire(self, lock: threading.Lock) -> None:
        """Acquire a lock that others may hold for long. A handler may raise here, and then the lock is not held."""
        if not self.here:
            lock.acquire()
            return
        while not lock.acquire(True, _SLICE):
            self.pause(int)  # so that what has come meanwhile is handed on

    def pause(self, wait: Callable[..., Any], *args: Any) -> Any:
        """What ``wait(*args)`` returns, during which a handler may raise; it changes nothing that would be lost then.

        Called in a section, see `here`.
        """
        try:
            self._waiting = True
            if self._arrived:
                self._hand_on()
            return wait(*args)
        except BaseException:
            self.harmless = True
            raise
        finally:
            self._waiting = False

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        if self._depth and not self._waiting:
            if not self._arrived:
                self._since = time.monotonic()
            if time.monotonic() - self._since < _PATIENCE:
                self._arrived.append((number, frame))
                return
        # What it does here itself is held back again.
        waiting, self._waiting = self._waiting, False
        try:
            self._handlers[number](number, frame)
        finally:
            self._waiting = waiting

    def _hand_on(self) -> None:
        try:
            while self._arrived:
                number, frame = self._arrived.popleft()
                self._handlers[number](number, frame)
        except BaseException:
            self._hand_on()  # what else has come may be for somebody who waits for it
            raise

    def _look_again(self) -> None:
        set_now = [(number, _get(number)) for number in _SIGNALS]
        # asyncio's raise nothing, and to set them again would undo what it has had the system do with them.
        self._raising = [
            number
            for number, handler in set_now
            if callable(handler) and getattr(handler, "__module__", None) != "asyncio.unix_events"
        ]
        for number, handler in set_now:
            if handler is not self._replacement:  # else it was not put back
                self._handlers[number] = handler
        self._known_until = _now() + _FRESH

    def _put_back(self) -> None:
        """Set the handlers again that were replaced, but not where somebody has set another meanwhile."""
        try:
            for number in self._raising:
                handler = _set(number, self._handlers[number])
                if handler is not self._replacement:
                    _set(number, handler)  # somebody has set another meanwhile
        except BaseException:  # raised by one of those that are set again: the others have to be as well
            self._put_back()
            raise

    def _begin_anew(self) -> None:
        """In a forked child, whose main thread is the one that forked: it may not be the one in the section."""
        if self._main != _here():
            self._put_back()
            self.__init__()  # type: ignore[misc]


held = Held()


def take_back(lock: threading.Lock) -> None:
    """Acquire a lock that was let go for a moment, and that whoever is above takes for held.

    What signal handlers raise meanwhile comes when it is held: to wait for a lock is otherwise what they cut short.
    """
    if not lock.acquire(False):
        with held:
            lock.acquire()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=held._begin_anew)
