"""What a peer's calls look like on the wire, learned from one to read the next by.

The requests of a method, and the answers to it, are the same bytes again and again but for stream ids and the message,
and for what grpc-go sends before each: how much it can receive, and a ping that measures the round trip. So what was
once read frame by frame is kept as a *pattern*: bytes of the same length are taken apart with one format and compared
all at once, which takes a third of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from . import frames
from .events import Headers

LARGEST: Final = 4096
"""Bytes of what is kept as a pattern: reading larger ones is not what takes the time."""
MOST: Final = 64
"""Patterns of one connection."""

CONTROL: Final = Struct(">9sL9s8s")
"""WINDOW_UPDATE of the connection and PING: header, increment; header, payload."""
UPDATE_HEADER: Final = frames.header(4, frames.WINDOW_UPDATE, 0, 0)
PING_HEADER: Final = frames.header(8, frames.PING, 0, 0)


class Pattern:
    """A unary request or answer: what is alike in all of them, and how to take one apart.

    :param data: one of them: HEADERS, DATA with one message, and for an answer HEADERS.
    :param position: where the first HEADERS is: 0, or behind what `CONTROL` describes.
    :param block: the length of the first header block.
    :param message: the length of the message.
    :param headers: what the first header block means.
    :param trailers: the same for the second; `None` in a request.
    """

    __slots__ = ("headers", "length", "like", "position", "size", "trailers", "unpack")

    def __init__(
        self, data: bytes, position: int, block: int, message: int, headers: Headers, trailers: Headers | None = None
    ) -> None:
        self.position = position
        self.size = message
        self.length = message + 5
        """Of the DATA frame: what counts against the windows."""
        self.headers = headers
        self.trailers: Any = trailers
        layout = f">5sL{block + 5}sL5s{message}s"
        if trailers is not None:
            last = len(data) - position - 2 * 9 - block - self.length - 9
            layout += f"5sL{last}s"
        self.unpack: Callable[[bytes, int], tuple[Any, ...]] = Struct(layout).unpack_from
        """Start of HEADERS, stream id, block and start of DATA, stream id, start of the message, message; and for an
        answer start of HEADERS, stream id, block."""
        self.like = self.unpack(data, position)[::2]
        """Those that are no stream id and not the message."""


def control_before(data: bytes, position: int) -> bool:
    """Whether what is before the first HEADERS, at `position`, is what `CONTROL` describes, or nothing."""
    if not position:
        return True
    return position == CONTROL.size and data.startswith(UPDATE_HEADER) and data.startswith(PING_HEADER, 13)
