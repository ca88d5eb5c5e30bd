"""How many calls are in flight, for whoever ends a plugin and waits for the last of them."""

from __future__ import annotations

import threading
from collections import deque


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
