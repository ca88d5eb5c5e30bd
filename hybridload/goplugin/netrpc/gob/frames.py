"""Cuts a byte stream into gob messages: a count, then that many bytes.

What was fed is kept once. A chunk that holds whole messages is sliced as it is; only a message that arrives in pieces
is gathered in a buffer, so that a large one costs time in proportion to its size however small the pieces are.
"""

from __future__ import annotations

from hybridload.goplugin.netrpc.gob.errors import GobCorrupt
from hybridload.goplugin.netrpc.gob.wire import Cursor, read_uint

LONGEST_COUNT = 9


class Frames:
    """:param limit: the largest message, in bytes; a larger one is refused when its count is read."""

    __slots__ = ("_at", "_before", "_data", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data: bytes | bytearray = b""
        self._at = self._before = 0

    @property
    def buffered(self) -> int:
        """Bytes that belong to no message that was handed out."""
        return len(self._data) - self._at

    def feed(self, data: bytes) -> None:
        if self._at == len(self._data):
            self._data = bytes(data)
        elif isinstance(self._data, bytearray):
            del self._data[: self._at]
            self._data += data
        else:
            self._data = bytearray(memoryview(self._data)[self._at :])
            self._data += data
        self._at = 0

    def unread(self) -> None:
        """Hand out the last message once more. Nothing may have been fed since."""
        self._at = self._before

    def next_message(self) -> bytes | None:
        """The next message without its count, or `None` until more is fed. Empty messages are passed over, as in Go.

        :raises GobCorrupt: when the count is no number, or over the limit.
        """
        data = self._data
        while (available := len(data) - self._at) > 0:
            self._before = self._at
            first = data[self._at]
            start = self._at + 1
            if first < 128:
                length = first
            else:
                if 256 - first < LONGEST_COUNT and available < 257 - first:
                    return None
                head = Cursor(bytes(data[self._at : self._at + LONGEST_COUNT]))
                length = read_uint(head)
                start = self._at + head.pos
            if length > self._limit:
                raise GobCorrupt(
                    f"A message of {length} bytes is over the limit of {self._limit}: raise Limits.message."
                )
            end = start + length
            if end > len(data):
                return None
            self._at = end
            if length:
                return data[start:end] if isinstance(data, bytes) else bytes(memoryview(data)[start:end])
        return None
