"""What waits for its other half, by id: offers that nobody dialled, knocks that nobody accepts, ids that nobody opened.

The other side can cause any number of them. So they are bounded, and all of a kind wait equally long: the oldest is the
first whose time is over, and to forget what is stale costs no look at the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")

AT_MOST = 4096
"""How many of a kind are kept on one connection."""


class Pending(Generic[Value]):
    """Values that are good for so many seconds. Its user holds a lock; every operation takes constant time on average.

    :param patience: in seconds.
    :param clock: in seconds.
    """

    def __init__(self, patience: float, at_most: int = AT_MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._at_most = at_most
        self._clock = clock
        self._entries: dict[int, tuple[float, Value]] = {}  # and when they become stale, earliest first

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: int) -> bool:
        return key in self._entries

    @property
    def full(self) -> bool:
        """Whether one more makes the oldest be forgotten."""
        return len(self._entries) >= self._at_most

    @property
    def next_stale(self) -> float | None:
        """When the oldest becomes stale, on the clock; `None` without any."""
        return next((until for until, _ in self._entries.values()), None)

    def put(self, key: int, value: Value) -> list[int]:
        """Keep a value, in place of an older one of the same id. Returns the ids that were forgotten for it."""
        self._entries.pop(key, None)
        forgotten = self.forget_stale()
        if self.full:
            forgotten.append(oldest := next(iter(self._entries)))
            del self._entries[oldest]
        self._entries[key] = (self._clock() + self._patience, value)
        return forgotten

    def pop(self, key: int) -> Value | None:
        """Take a value out; `None` when there is none, or it is stale."""
        until, value = self._entries.pop(key, (0.0, None))
        return value if until > self._clock() else None

    def forget_stale(self) -> list[int]:
        """Forget those whose time is over, and return their ids."""
        now = self._clock()
        stale = []
        for key, (until, _) in self._entries.items():
            if until > now:
                break
            stale.append(key)
        for key in stale:
            del self._entries[key]
        return stale

    def clear(self) -> None:
        self._entries.clear()
