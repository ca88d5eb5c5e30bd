"""Cuts a byte stream into gob messages: a count, then that many bytes.

What was fed is kept once. A chunk that holds whole messages is sliced as it is; only a message that arrives in pieces
is gathered in a buffer, so that a large one costs time in proportion to its size however small the pieces are.
"""

from __future__ import annotations

from hybridload.goplugin.netrpc.gob.errors import GobCorrupt, GobTooLarge
from hybridload.goplugin.netrpc.gob.wire import LARGEST_MESSAGE, Cursor, read_uint

LONGEST_COUNT = 9


class Frames:
    """:param limit: the largest message, in bytes; a larger one is refused when its count is read, and not kept."""

    __slots__ = ("_at", "_before", "_data", "_limit", "_skipped")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data: bytes | bytearray = b""
        self._at = self._before = 0
        self._skipped = 0  # bytes of a message that was refused and are still to come

    @property
    def buffered(self) -> int:
        """Bytes that belong to no message that was handed out."""
        return len(self._data) - self._at + self._skipped

    def feed(self, data: bytes) -> None:
        if self._skipped:
            # All that came before belonged to that message.
            passed = min(self._skipped, len(data))
            self._skipped -= passed
            data = data[passed:]
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

    def next_message(self, before: int = 0) -> bytes | None:
        """The next message without its count, or `None` until more is fed. Empty messages are passed over, as in Go.

        :param before: bytes of the same value in earlier messages.
        :raises GobTooLarge: the message is over the limit; the next one is what comes after it.
        :raises GobCorrupt: when the count is no number.
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
            if length + before > self._limit:
                self._skip(start, length)
            end = start + length
            if end > len(data):
                return None
            self._at = end
            if length:
                return data[start:end] if isinstance(data, bytes) else bytes(memoryview(data)[start:end])
        return None

    def _skip(self, start: int, length: int) -> None:
        """Pass over a message that is too large, whose count ends at `start`.

        :raises GobTooLarge, GobCorrupt: always.
        """
        if length > LARGEST_MESSAGE:
            raise GobCorrupt(f"A message of {length} bytes is over the limit of {self._limit}.")
        here = min(length, len(self._data) - start)
        self._at = start + here
        self._skipped = length - here
        raise GobTooLarge(length, self._limit)
