"""Receiving what is about to come, without going to sleep for it where that is quicker.

Whoever sleeps until bytes come has to be woken: a processor is raised from its rest, and what the thread needs is no
longer in the caches. That takes longer than a plugin takes for a small answer. So a caller looks again and again for a
while before it sleeps, as locks that spin do, and as Go's scheduler does for its own calls.

Looking is of no use where answers take longer, and does harm where the other side waits for the very processor that the
caller looks on. So it is given up when it often was in vain, and then tried now and then, which costs next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hybridload.goplugin.streams.base import Stream

LOOK = 2e-4  # seconds; a small call under TLS takes half of it on a machine that has other things to do
TRY = 32  # out of so many receives one looks when it has been given up
# Every success adds to the trust in looking, a failure takes twice as much; with half of the most, it is given up.
_MOST_TRUST = 8
_ENOUGH_TRUST = 4


class Spinning:
    """Receives from one stream, and remembers how it went. For one thread at a time.

    :param clock: in seconds.
    """

    def __init__(self, stream: Stream, clock: Callable[[], float] = time.perf_counter) -> None:
        self._stream = stream
        self._clock = clock
        self._looker: Callable[[], bool] | None = None
        self._trust = _MOST_TRUST
        self._slept = 0

    def receive(self, max_bytes: int, timeout: float | None) -> bytes:
        """As `Stream.receive`."""
        if self._trust < _ENOUGH_TRUST:
            self._slept = (self._slept + 1) % TRY
            if self._slept:
                return self._stream.receive(max_bytes, timeout)
        if self._look():
            if self._trust < _MOST_TRUST:
                self._trust += 1
        else:
            self._trust = max(self._trust - 2, 0)
        return self._stream.receive(max_bytes, timeout)

    def receive_rest(self, max_bytes: int, timeout: float | None) -> bytes:
        """As `Stream.receive`, for what the other side is sending already: it says nothing of how long answers take."""
        if self._trust >= _ENOUGH_TRUST:
            self._look()
        return self._stream.receive(max_bytes, timeout)

    def _look(self) -> bool:
        """Whether something came in time."""
        look = self._looker
        if look is None:
            look = self._looker = self._stream.looker()
        clock = self._clock
        until = clock() + LOOK
        while not look():
            if clock() >= until:
                return False
        return clock() < until
