"""The messages of a call's incoming half: those that are there, and how much more the peer may send.

What nobody consumes stays within the stream's window. Only a message that has begun and is larger than the window is
helped to come, and only while no other waits before it. One that came compressed is decompressed when it is the first
that waits: a window holds a thousand times its size in gzip.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .messages import PREFIX, PREFIX_SIZE, Compressed, MessageError, MessageReader, plain

if TYPE_CHECKING:
    from .link import Link
    from .status import Status


class Inbox:
    """What the two sides' calls have in common. Everything here is called with the link's lock held."""

    # What most calls never change stands on the class: a call is made in a microsecond.
    link: Link
    stream_id = 0
    messages: deque[bytes]
    max_receive: int | None
    deadline: float | None
    _reader: MessageReader | None = None
    """Made when a message does not come in one piece, as most do."""
    _helped = False
    """Whether the message that has begun was let through whole."""
    _uncredited = 0
    _first_size = 0
    """What the first of the messages was on the wire, when it came compressed."""
    receiver = "CLIENT"
    """For errors; see `MessageReader`."""

    def spoil(self, status: Status) -> None:
        """No further message can be given out: the call ends with this, though its peer may have said all."""
        raise NotImplementedError

    @property
    def inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._reader is not None and self._reader.inside

    def put(self, data: bytes | memoryview, encoding: str) -> None:
        """Take a piece of the body.

        :param encoding: the peer's ``grpc-encoding``.
        :raises MessageError: the call cannot go on.
        """
        size = len(data)
        self._uncredited += size
        if self._reader is None and size >= PREFIX_SIZE:
            flag, length = PREFIX.unpack_from(data)
            whole = length + PREFIX_SIZE == size and not flag
            if whole and (self.max_receive is None or length <= self.max_receive):
                self.messages.append(bytes(data[PREFIX_SIZE:]))
                return
        reader = self._reader
        if reader is None:
            reader = self._reader = MessageReader(self.max_receive, self.receiver)
            reader.encoding = encoding
        arrived = reader.feed(data)
        if arrived:
            first = not self.messages
            self.messages += arrived
            self._helped = False
            if first and type(arrived[0]) is Compressed:
                self._decompress_first()
        if reader.missing:
            self._expect_the_rest()
        elif not reader.inside:
            self._reader = None  # the next message may come in one piece again

    def take_message(self) -> bytes:
        """The first of the messages that are there.

        Lets the peer send as much again: all that came, when nothing is left to consume.
        """
        message = self.messages.popleft()
        size = self._uncredited
        first, self._first_size = self._first_size or len(message), 0
        if self.messages:
            size = min(first + PREFIX_SIZE, size)
            if type(self.messages[0]) is Compressed:
                try:
                    self._decompress_first()
                except MessageError as error:
                    self.spoil(error.status)
                    return message
        self._uncredited -= size
        self.link.connection.consumed(self.stream_id, size)
        self._expect_the_rest()
        return message

    def _decompress_first(self) -> None:
        """:raises MessageError: it is too large, or no gzip."""
        compressed = self.messages[0]
        try:
            self.messages[0] = plain(compressed, self.max_receive, self.receiver, self.deadline)
        except MessageError:
            self.messages.clear()
            raise
        self._first_size = len(compressed)

    def _expect_the_rest(self) -> None:
        if not self.messages and self._reader is not None and self._reader.missing and not self._helped:
            self._helped = True
            self.link.connection.expect(self.stream_id, self._reader.missing)
