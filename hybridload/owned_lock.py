"""A lock that refuses a thread at once where it would wait for itself.

That happens to user code which runs amid something that the lock is held for: a signal handler, a finalizer that the
garbage collector runs, a plugin's own constructor. And to two threads each of which holds what the other one waits for,
or more of them in a circle.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Taken = dict[int, "OwnedLock"]
"""Thread -> the lock that it waits for, or the last one that it has got."""


class OwnedLock:
    """A lock that knows its owner.

    :param taken: shared by all the locks that one thread may hold at once.
    :param refusal: makes the exception for a thread that would wait for itself.
    """

    def __init__(self, taken: Taken, refusal: Callable[[], Exception]) -> None:
        # Reentrant for the moment between having it and being noted as its owner, when nothing is begun yet.
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._taken = taken
        self._refusal = refusal

    def is_mine(self) -> bool:
        """Whether this thread holds it."""
        return self._owner == threading.get_ident()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for it and hold it."""
        me = threading.get_ident()
        before = self._taken.get(me)
        # Noted first and looked at then: of those that close a circle, the last one to come sees all of it.
        self._taken[me] = self
        try:
            if self._leads_to(me):
                raise self._refusal()
            with self._lock:
                self._owner = me
                try:
                    yield
                finally:
                    self._owner = None
        finally:
            if before is None:
                self._taken.pop(me, None)
            else:
                self._taken[me] = before

    def _leads_to(self, me: int) -> bool:
        """Whether the owner waits for this thread, by way of others maybe."""
        seen: set[int] = set()
        lock: OwnedLock | None = self
        while lock is not None:
            owner = lock._owner
            if owner == me:
                return True
            if owner is None or owner in seen:
                return False
            seen.add(owner)
            lock = self._taken.get(owner)
        return False
