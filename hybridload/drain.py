"""Counting the calls in flight somewhere, so that a switch can wait for their end before it closes the place.

A gate is open at first. Once it is closing nobody enters any more: who comes too late is told so, and goes where the
slots now point, so that no call is lost, and none is sent twice.

In-process calls pass no gate: their slot is the object's own bound method.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from hybridload.handle import Methods


class Gate:
    """Counts the calls in flight in one running plugin."""

    __slots__ = ("_closing", "_condition", "_inside")

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._inside = 0
        self._closing = False

    def enter(self) -> bool:
        """Count one more call; false, and nothing counted, when the gate is closing."""
        with self._condition:
            if self._closing:
                return False
            self._inside += 1
            return True

    def leave(self) -> None:
        """Count one less."""
        with self._condition:
            self._inside -= 1
            if self._closing and not self._inside:
                self._condition.notify_all()

    def close(self, timeout: float) -> bool:
        """Let nobody in any more and wait for those inside; whether all left within `timeout` seconds."""
        with self._condition:
            self._closing = True
            return self._condition.wait_for(lambda: not self._inside, timeout)


def gated(methods: Methods, gate: Gate, current: Callable[[str], Callable[..., Any]]) -> Methods:
    """The same methods, each call of which passes the gate.

    :param current: the method that is in the slot now, for a call that came when the gate was closing already.
    """
    return {name: _gated(name, method, gate, current) for name, method in methods.items()}


def _gated(
    name: str, method: Callable[..., Any], gate: Gate, current: Callable[[str], Callable[..., Any]]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not gate.enter():
            return current(name)(*args, **kwargs)
        try:
            result = method(*args, **kwargs)
        except BaseException:
            gate.leave()
            raise
        # A stream, or a coroutine that is yet to be awaited, is in flight until it ends.
        when_done = getattr(result, "add_done_callback", None)
        if when_done is not None:
            when_done(gate.leave)
        elif hasattr(result, "__await__"):
            return _awaited(result, gate)
        else:
            gate.leave()
        return result

    for attribute in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__"):
        setattr(call, attribute, getattr(method, attribute, None))
    call.__signature__ = getattr(method, "__signature__", None)  # type: ignore[attr-defined]
    return call


async def _awaited(result: Any, gate: Gate) -> Any:
    try:
        return await result
    finally:
        gate.leave()
