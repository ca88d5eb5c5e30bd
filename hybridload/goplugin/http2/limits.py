"""What a peer may make us hold or do before we close the connection. All sizes are bytes."""

from __future__ import annotations

from collections.abc import Callable

from hybridload.frozen import frozen


@frozen
class Limits:
    """Bounds of one connection. They exist against floods; a well-behaved gRPC peer meets none of them.

    :param max_streams: how many streams the peer may have open at once (a client's server pushes nothing: 0).
    :param stream_window: how much a stream may receive before somebody consumes it. A message that is known to be
        larger is granted its own size.
    :param max_frame: the largest frame accepted.
    :param max_headers: the largest header list, counted as RFC 9113 does (32 more for each field), and the largest
        encoded block.
    :param max_continuations: CONTINUATION frames in one block.
    :param max_control: bytes of answers (PING, SETTINGS, RST_STREAM, WINDOW_UPDATE) that wait because the peer does
        not read.
    :param resets: streams that the peer may open and reset, before anybody has begun to work on them, at once; as many
        are forgiven in ten seconds, and one for each stream that ends well. Work that goes on counts among the streams.
    :param cancellations: streams that a client resets on one connection before it takes no more of them, and the next
        goes on another: servers have budgets of this kind (nghttp2's is 1000 at once, Envoy's 500 in all, and they
        count what was worked on, too). 0 for any number.
    :param chatter: frames that carry nothing (PING, SETTINGS, WINDOW_UPDATE, PRIORITY, interim responses, empty DATA,
        unknown ones, headers of streams that are over) accepted at once; as many are forgiven in ten seconds, and some
        for each frame that does carry something, either way (Go's gRPC pings once in a round trip to measure it, which
        on a busy connection is thousands of times a second).
    """

    max_streams: int = 1000
    stream_window: int = 256 * 1024
    max_frame: int = 1024 * 1024
    max_headers: int = 64 * 1024
    max_continuations: int = 64
    max_control: int = 64 * 1024
    resets: int = 1000
    cancellations: int = 250
    chatter: int = 20000


class Budget:
    """How often something may happen: `size` times at once, and again as time passes (all of it in ten seconds).

    The clock is asked only once the first tenth is spent, which in ordinary use is never.
    """

    __slots__ = ("_clock", "_left", "_since", "_size")

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._size = size
        self._left = size
        self._clock = clock
        self._since = clock()

    def spend(self) -> bool:
        """Take one; False when there is none."""
        self._left -= 1
        if self._left * 10 < self._size * 9:
            self._refill()
        return self._left >= 0

    def earn(self, count: int) -> None:
        """Put `count` back."""
        self._left = min(self._size, self._left + count)

    def _refill(self) -> None:
        now = self._clock()
        earned = int((now - self._since) * self._size / 10)
        if earned > 0:
            self._left = min(self._size, max(self._left, 0) + earned)
            self._since = now
