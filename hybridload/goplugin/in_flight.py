"""How many calls are in flight, for whoever ends a plugin and waits for them; and whether this is part of one."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

lent: ContextVar[bool] = ContextVar("hybridload_lent", default=False)
"""Whether the code that runs is that of an object which was lent to a plugin: a call of the plugin's waits for it."""


class Lent:
    """An object that was lent to a plugin: what its methods do knows that it is part of a call."""

    def __init__(self, implementation: object) -> None:
        self._implementation = implementation

    def __getattr__(self, name: str) -> Any:
        import inspect

        method = getattr(self._implementation, name)
        return _lent_coroutine(method) if inspect.iscoroutinefunction(method) else _lent(method)


def _lent(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        before = lent.set(True)
        try:
            return method(*args, **kwargs)
        finally:
            lent.reset(before)

    return call


def _lent_coroutine(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def call(*args: Any, **kwargs: Any) -> Any:
        lent.set(True)  # in the context of the task that it is
        return await method(*args, **kwargs)

    return call


class InFlight:
    """A count of calls.

    Entering and leaving take no lock, for they are part of every call: who waits says so first and counts then, who
    leaves does so first and looks for waiters then, so one of them sees the other.
    """

    __slots__ = ("_awaited", "_changed", "_inside")

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside: deque[None] = deque()  # one for each call: appending and popping are atomic
        self._awaited = False

    def enter(self) -> None:
        self._inside.append(None)

    def leave(self) -> None:
        self._inside.pop()
        if self._awaited and not self._inside:
            with self._changed:
                self._changed.notify_all()

    def wait_for_none(self, timeout: float) -> bool:
        """Whether there came to be none within `timeout` seconds."""
        with self._changed:
            self._awaited = True
            return self._changed.wait_for(lambda: not self._inside, timeout)
