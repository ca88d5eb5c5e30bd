"""Receives a gob stream: bytes in, values out, one at a time.

    decoder.feed(data)
    while (value := decoder.next_value(receiver)) is not NEED_DATA: ...

A value is one message, after messages that define types; or several, when types are defined inside its interfaces.
Then the value is first walked to its end (`Scan`), as far as the data goes, and only read when all of it is there.
Types that were defined on the way are forgotten in between, because reading meets their definitions again.

What happens on an error: after `GobMismatch` the value is passed over and the next call is about the next one; after
`GobCorrupt` the place in the stream is lost, and every further call raises the same again.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any, Final, TypeVar

from hybridload.goplugin.netrpc.gob import wire
from hybridload.goplugin.netrpc.gob.errors import GobCorrupt, GobMismatch, GobTooLarge, Misfit
from hybridload.goplugin.netrpc.gob.frames import Frames
from hybridload.goplugin.netrpc.gob.names import Registry
from hybridload.goplugin.netrpc.gob.readers import Read, Readers
from hybridload.goplugin.netrpc.gob.scan import Scan
from hybridload.goplugin.netrpc.gob.types import ANYTHING, GoType
from hybridload.goplugin.netrpc.gob.wire import (
    FIRST_USER_ID,
    FIXED_TYPES,
    Cursor,
    Limits,
    WireType,
    read_int,
    read_uint,
)

T = TypeVar("T")


class NeedData:
    """What is returned until more bytes are fed."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NEED_DATA"


NEED_DATA: Final = NeedData()


_BREAKS: Final = (GobCorrupt, IndexError, RecursionError)
"""What ends a stream. Reading past the end of a message is an `IndexError`, because each byte is read that way."""


class _MessageMissing(Exception):
    """The value goes on in a message that has not come."""


class Decoder:
    """The receiving end of one gob stream. Not thread-safe.

    :param registry: names and types that the receiver knows; by default none but Go's own.
    :param limits: what the sender may ask of this process.
    :param keep_names: give every value of an interface as a `GobValue`, also where plain Python would do. Then nothing
        about it is lost, and it can be sent again as it came.
    """

    def __init__(
        self, registry: Registry | None = None, *, limits: Limits | None = None, keep_names: bool = False
    ) -> None:
        self._limits = limits or Limits()
        self._frames = Frames(self._limits.message)
        self._types: dict[int, WireType] = dict(FIXED_TYPES)
        self._readers = Readers(self._types, registry or Registry(), self._limits, self._type_sequence, keep_names)
        self._definition_bytes = 0
        self._failure: GobCorrupt | None = None
        # The last reader; mostly it serves again.
        self._receiver: GoType | None = None
        self._received = 0
        self._read: Read
        # The value at hand: its messages so far, where in the first it begins, and what is done about it.
        self._cursor = Cursor()
        self._messages: list[bytes] = []
        self._message_number = 0
        self._type_id = 0
        self._start = 0
        self._defined: list[tuple[int, int]] = []
        self._scan: Iterator[None] | None = None
        self._skipping = False

    @property
    def at_boundary(self) -> bool:
        """Whether the stream could end here: nothing was fed that did not come out as a value."""
        return not self._messages and not self._frames.buffered

    def feed(self, data: bytes) -> None:
        """Take in what was received. Nothing is decoded, and nothing raised, before a value is asked for."""
        self._frames.feed(data)

    def next_value(self, receiver: GoType = ANYTHING) -> Any:
        """The next value, or `NEED_DATA`.

        :param receiver: the type that is expected; `Interface()`, the default, takes any and makes plain Python of it.
        :raises GobMismatch: when the value is of another type, or larger than the limit (`GobTooLarge`); it is skipped.
        :raises GobCorrupt: when the stream is broken; it cannot be read on.
        """
        try:
            try:
                if not self._prepare():
                    return NEED_DATA
                if receiver is not self._receiver or self._type_id != self._received:
                    self._read = self._readers.outermost(self._type_id, receiver)
                    self._receiver, self._received = receiver, self._type_id
                cursor = self._cursor
                value = self._read(cursor)
                if cursor.pos != len(cursor.data):
                    self._check_end()
            except _MessageMissing:
                self._begin_scan(skipping=False)
                return NEED_DATA
            except Misfit as misfit:
                self._begin_scan(skipping=True)
                self._continue_scan()  # Now if all of the value is there, else whenever more is asked for.
                raise GobMismatch(f"The received value does not fit: {misfit}.") from misfit.__cause__
        except _BREAKS as error:
            raise self._broken(error) from None
        self._messages.clear()
        if self._defined:
            self._defined.clear()
        return value

    def take_known(self, known: MutableMapping[bytes, T]) -> T | None:
        """What `known` has for the next message, taken from there, when the message is to the byte one of its keys.

        A shortcut for a value that is expected as it is: the message has to be a value, which is then not read at all.
        `None` when it is another message, or has not come; `next_value` is for what is next then.
        """
        if self._messages or self._failure is not None:
            return None
        try:
            message = self._frames.next_message()
        except (GobCorrupt, GobTooLarge) as error:
            raise self._broken(error) from None
        if message is None:
            return None
        found = known.pop(message, None)
        if found is None:
            self._frames.unread()
        return found

    def last_type(self) -> tuple[int, WireType]:
        """The number on the wire and the type of the value that was last asked for."""
        return self._type_id, self._types[self._type_id]

    def skip_value(self) -> bool:
        """Pass over the next value, whatever it is. False until more bytes are fed.

        :raises GobCorrupt: when the stream is broken; it cannot be read on.
        """
        try:
            if not self._prepare():
                return False
            self._begin_scan(skipping=True)
            if self._continue_scan():
                return True
            self._skipping = False  # It is still the value at hand, and the next call may want it after all.
            return False
        except GobTooLarge:
            return True
        except _BREAKS as error:
            raise self._broken(error) from None

    def _prepare(self) -> bool:
        """Put the cursor on a value that can be tried: only its first message may be there, or all are."""
        if self._failure is not None:
            raise self._failure
        if self._messages and not self._resume():
            return False
        cursor = self._cursor
        while not self._messages:
            message = self._frames.next_message()
            if message is None:
                return False
            cursor.data = message
            cursor.pos = cursor.depth = self._message_number = 0
            cursor.room = self._limits.elements
            type_id = read_int(cursor)
            if type_id >= 0:
                self._messages.append(message)
                self._type_id, self._start = type_id, cursor.pos
            else:
                self._define(cursor, -type_id)
                self._defined.clear()
                self._check_end()
        return True

    def _resume(self) -> bool:
        """Go on with a value that was begun. False when it needs more messages."""
        if self._scan is not None:
            return self._continue_scan()
        self._forget_definitions()
        self._rewind()
        return True

    def _rewind(self) -> None:
        cursor = self._cursor
        cursor.data, cursor.pos, cursor.depth, cursor.room = self._messages[0], self._start, 0, self._limits.elements
        self._message_number = 0

    def _finish(self) -> None:
        self._messages.clear()
        self._defined.clear()

    def _check_end(self) -> None:
        if self._cursor.pos != len(self._cursor.data):
            raise GobCorrupt("Not a gob stream: a message goes on after its end.")

    def _broken(self, error: Exception) -> GobCorrupt:
        if isinstance(error, IndexError):
            error = GobCorrupt("Not a gob stream: a message ends in the middle.")
        elif isinstance(error, RecursionError):
            error = GobCorrupt(
                "A value nests deeper than Python's stack: lower Limits.depth, or raise the stack's limit."
            )
        elif isinstance(error, GobTooLarge):
            error = GobCorrupt(f"Not where a value may be so large: {error}.")
        assert isinstance(error, GobCorrupt)
        self._failure = error
        return error

    # Going through a value in order to find its end

    def _begin_scan(self, skipping: bool) -> None:
        self._forget_definitions()
        self._rewind()
        self._skipping = skipping
        scan = Scan(self._cursor, self._types, self._define, self._advance, self._limits.depth)
        self._scan = scan.outermost(self._type_id)

    def _continue_scan(self) -> bool:
        """False when the end of the value was not reached; it goes on the next time."""
        assert self._scan is not None
        for _ in self._scan:
            return False
        self._scan = None
        self._check_end()
        if self._skipping:
            self._finish()
        else:
            self._forget_definitions()
            self._rewind()
        return True

    # Messages and types

    def _advance(self) -> bool:
        """Put the cursor on the value's next message."""
        if self._message_number + 1 == len(self._messages):
            before = sum(map(len, self._messages))
            try:
                message = self._frames.next_message(before)
            except GobTooLarge as error:
                # Where the value ends, nobody knows.
                size = before + error.size
                raise GobCorrupt(f"A value of {size} bytes in several messages is over max_message.") from error
            if message is None:
                return False
            self._messages.append(message)
        self._message_number += 1
        self._cursor.data, self._cursor.pos = self._messages[self._message_number], 0
        return True

    def _type_sequence(self, cursor: Cursor) -> int:
        """Read definitions that precede a value inside an interface, and the number of the value's type."""
        while True:
            while cursor.pos == len(cursor.data):
                if not self._advance():
                    raise _MessageMissing
            type_id = read_int(cursor)
            if type_id >= 0:
                return type_id
            self._define(cursor, -type_id)
            if cursor.pos < len(cursor.data):
                read_uint(cursor)  # The count of the next piece, when this one was nested in another interface.

    def _define(self, cursor: Cursor, type_id: int) -> None:
        if type_id < FIRST_USER_ID or type_id in self._types:
            raise GobCorrupt(f"Not a gob stream: type {type_id} is defined twice, or is one of gob's own.")
        if len(self._types) - len(FIXED_TYPES) >= self._limits.types:
            raise GobCorrupt(f"A stream defines more than {self._limits.types} types: raise Limits.types.")
        start = cursor.pos
        definition = self._readers.outermost(wire.WIRE_TYPE_ID, ANYTHING)(cursor)
        size = cursor.pos - start
        self._definition_bytes += size
        if self._definition_bytes > self._limits.definitions:
            limit = self._limits.definitions
            raise GobCorrupt(f"A stream defines types in more than {limit} bytes: raise Limits.definitions.")
        self._types[type_id] = wire.wire_type(definition)
        self._defined.append((type_id, size))

    def _forget_definitions(self) -> None:
        for type_id, size in self._defined:
            del self._types[type_id]
            self._definition_bytes -= size
        self._defined.clear()
