"""gRPC messages inside the body of a stream: a flag, four bytes of length, the message; maybe compressed.

Pure. A message is joined once, from the pieces as they were received: what arrives in one piece is sliced out, and what
arrives in many is not copied twice, unless it comes in crumbs or among much else.
"""

from __future__ import annotations

import math
import time
from struct import Struct
from typing import Any, Final

from hybridload.goplugin.message_limits import too_large

from .status import Status, StatusCode

PREFIX: Final = Struct(">BL")
PREFIX_SIZE: Final = 5
LARGEST_MESSAGE: Final = (1 << 32) - 1

_SMALL: Final = 4096
"""Bytes of a part, below which it is gathered with others: an object for each takes some hundred."""

_STEP: Final = 1 << 22
"""Bytes that are decompressed between two looks at the clock."""

IDENTITY: Final = "identity"
GZIP: Final = "gzip"
ACCEPTED: Final = b"identity,gzip"
"""What is said in ``grpc-accept-encoding``."""


class MessageError(Exception):
    """A message that cannot be read or sent.

    :param status: what the call ends with.
    """

    def __init__(self, code: StatusCode, details: str) -> None:
        super().__init__(details)
        self.status = Status(code, details)


class Compressed(bytes):
    """A message as it came, in gzip."""

    __slots__ = ()


class MessageReader:
    """Takes the pieces of one stream's body and gives its messages.

    :param max_size: of one message, in bytes, before and after decompression; `None` for no limit.
    :param receiver: ``"CLIENT"`` or ``"SERVER"``, for errors.
    """

    __slots__ = (
        "_buffer",
        "_compressed",
        "_first",
        "_missing",
        "_parts",
        "_prefix",
        "_used",
        "encoding",
        "max_size",
        "receiver",
    )

    def __init__(self, max_size: int | None, receiver: str = "CLIENT") -> None:
        self.max_size = max_size
        self.receiver = receiver
        self.encoding = IDENTITY
        """The peer's ``grpc-encoding``."""
        self._prefix = b""  # of a message whose length is not known yet
        self._parts: list[bytes | bytearray | memoryview] = []
        # What the latest parts are views of, from which part on, and how much of it they are.
        self._buffer: Any = None
        self._first = 0
        self._used = 0
        self._missing = 0  # of a message whose length is known
        self._compressed = 0

    @property
    def missing(self) -> int:
        """How many bytes the message that has begun still needs, as far as that is known."""
        return self._missing

    @property
    def inside(self) -> bool:
        """Whether a message has begun and not ended: a stream must not end here."""
        return bool(self._missing or self._prefix)

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """The messages that these bytes complete; `Compressed` ones are for `plain` to read.

        :raises MessageError: too large, or compressed in another way.
        """
        if not self._missing and not self._prefix and len(data) >= PREFIX_SIZE:
            # By far the most frequent: one small message in one piece.
            flag, size = PREFIX.unpack_from(data)
            if len(data) == PREFIX_SIZE + size and not flag:
                self._check_size(size)
                return [bytes(data[PREFIX_SIZE:])]
        return self._feed(data)

    def _feed(self, data: bytes | memoryview) -> list[bytes]:
        messages: list[bytes] = []
        position = 0
        end = len(data)
        view = data if isinstance(data, memoryview) else memoryview(data)
        while position < end:
            if self._missing:
                piece = view[position : position + self._missing]
                self._keep(piece)
                self._missing -= len(piece)
                position += len(piece)
            else:
                taken = min(PREFIX_SIZE - len(self._prefix), end - position)
                self._prefix += bytes(view[position : position + taken])
                position += taken
                if len(self._prefix) < PREFIX_SIZE:
                    break
                self._compressed, self._missing = PREFIX.unpack(self._prefix)
                self._prefix = b""
                self._check_size(self._missing)
            if not self._missing:
                parts, self._parts, self._buffer = self._parts, [], None
                messages.append(self._finish(b"".join(parts)))
        return messages

    def _keep(self, piece: memoryview) -> None:
        """Keep a part of a message for not much more than its size, however the peer cut it up."""
        if len(piece) < _SMALL:
            last = self._parts[-1] if self._parts else None
            if isinstance(last, bytearray):
                last += piece
            else:
                self._parts.append(bytearray(piece))
            return
        if piece.obj is not self._buffer:
            self._let_go_of_the_rest()
            self._buffer, self._first, self._used = piece.obj, len(self._parts), 0
        self._parts.append(piece)
        self._used += len(piece)

    def _let_go_of_the_rest(self) -> None:
        """A buffer that is mostly about something else is not kept alive for the message's part of it."""
        if self._buffer is not None and self._used * 2 < len(self._buffer):
            self._parts[self._first :] = [b"".join(self._parts[self._first :])]

    def _check_size(self, size: int) -> None:
        if self.max_size is not None and size > self.max_size:
            raise MessageError(StatusCode.RESOURCE_EXHAUSTED, too_large(self.receiver, size, self.max_size))

    def _finish(self, message: bytes) -> bytes:
        if not self._compressed:
            return message
        if self._compressed != 1 or self.encoding == IDENTITY:
            raise MessageError(StatusCode.INTERNAL, "a compressed message, but no grpc-encoding was named")
        if self.encoding != GZIP:
            raise MessageError(StatusCode.UNIMPLEMENTED, f"grpc-encoding {self.encoding!r} is not supported")
        return Compressed(message)


def plain(message: bytes, max_size: int | None, receiver: str = "CLIENT", deadline: float | None = None) -> bytes:
    """A message as it was before it was compressed, if it was.

    :param max_size, receiver: as `MessageReader` has them.
    :param deadline: of the call, on the clock of `time.monotonic`: a few bytes may be the work of seconds.
    :raises MessageError: too large, no gzip, or too late. No more than the limit is made of it.
    """
    if not isinstance(message, Compressed):
        return message
    import zlib

    reader = zlib.decompressobj(wbits=31)
    parts: list[bytes] = []
    # One byte more than allowed is enough to know that it is too much.
    rest, room = bytes(message), math.inf if max_size is None else max_size + 1
    while not reader.eof and room:
        try:
            made = reader.decompress(rest, int(min(_STEP, room)))
        except zlib.error as error:
            raise MessageError(StatusCode.INTERNAL, f"a gzip message that cannot be read: {error}") from error
        rest = reader.unconsumed_tail
        if not made and not rest and not reader.eof:
            raise MessageError(StatusCode.INTERNAL, "a gzip message that is cut short")
        if deadline is not None and len(made) == _STEP and time.monotonic() >= deadline:
            raise MessageError(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        parts.append(made)
        room -= len(made)
    if not room:
        # How large it would have become, nobody knows.
        raise MessageError(StatusCode.RESOURCE_EXHAUSTED, too_large(receiver, f"over {max_size}", max_size or 0))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def compress(message: bytes) -> bytes:
    """A message in gzip."""
    import zlib

    writer = zlib.compressobj(wbits=31)
    return writer.compress(message) + writer.flush()


def check_size(message: bytes, max_size: int | None) -> None:
    """:raises MessageError: larger than may be sent."""
    size = len(message)
    if size > LARGEST_MESSAGE or (max_size is not None and size > max_size):
        raise MessageError(
            StatusCode.RESOURCE_EXHAUSTED,
            f"a message of {size} bytes is too large to send; at most {max_size or LARGEST_MESSAGE} are allowed",
        )
