"""Receiving what is about to come, without going to sleep for it.

Whoever sleeps until bytes come has to be woken: a processor is raised from its rest, or taken from somebody else, and
what the thread needs is no longer in the caches. That takes longer than a plugin takes for a small answer. So a caller
looks again and again for a while before it sleeps, as locks that spin do, and as Go's scheduler does for its own calls.

When nothing came while it looked, answers take longer than that, and the next receive sleeps at once; after the second
time in a row the next two do, then four, and so on. So looking in vain costs next to nothing where calls are slow, or
where the other side has no processor of its own to run on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hybridload.goplugin.streams.base import Stream

LOOK = 1e-4  # seconds; a small call over a unix socket takes half of it
_MOST_SLEEPS = 64  # in a row, between two times of looking in vain


class Spinning:
    """Remembers how it went on one stream. For one thread at a time.

    :param clock: in seconds.
    """

    def __init__(self, stream: Stream, clock: Callable[[], float] = time.perf_counter) -> None:
        self._stream = stream
        self._clock = clock
        self._sleeps = 0  # how many are due
        self._next_sleeps = 1

    def receive(self, max_bytes: int, timeout: float | None) -> bytes:
        """As `Stream.receive`."""
        if self._sleeps:
            self._sleeps -= 1
        else:
            data = self._look(max_bytes)
            if data is not None:
                self._next_sleeps = 1
                return data
            self._sleeps = self._next_sleeps
            self._next_sleeps = min(2 * self._next_sleeps, _MOST_SLEEPS)
        return self._stream.receive(max_bytes, timeout)

    def receive_rest(self, max_bytes: int, timeout: float | None) -> bytes:
        """As `Stream.receive`, for what the other side is sending already."""
        data = self._look(max_bytes)
        return self._stream.receive(max_bytes, timeout) if data is None else data

    def _look(self, max_bytes: int) -> bytes | None:
        until = self._clock() + LOOK
        while True:
            try:
                return self._stream.receive(max_bytes, 0)
            except TimeoutError:
                if self._clock() >= until:
                    return None
