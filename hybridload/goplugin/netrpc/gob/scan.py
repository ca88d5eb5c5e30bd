"""Finds the end of a value without making anything of it, and waits wherever the next message is not there yet.

A type that is first met inside an interface is defined on the spot, and that ends the message; the value goes on in
the next one. So where a value ends is known only by going through it. Reading it again from the start for each
message that comes late would let a hostile sender make one large message be read a thousand times. This walk keeps
its place, being a generator: it yields when it needs a message, and every byte is passed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from hybridload.goplugin.netrpc.gob.errors import GobCorrupt
from hybridload.goplugin.netrpc.gob.wire import (
    Cursor,
    WireArray,
    WireBasic,
    WireEncoded,
    WireMap,
    WireSlice,
    WireStruct,
    WireType,
    read_bytes,
    read_int,
    read_uint,
    too_deep,
)


class Scan:
    """A walk over one value.

    :param types: the stream's types.
    :param define: reads the definition of a type, whose number is given, at the cursor.
    :param advance: puts the cursor on the next message, or returns False when there is none yet.
    """

    def __init__(
        self,
        cursor: Cursor,
        types: Mapping[int, WireType],
        define: Callable[[Cursor, int], None],
        advance: Callable[[], bool],
        deepest: int,
    ) -> None:
        self._cursor = cursor
        self._types = types
        self._define = define
        self._advance = advance
        self._deepest = deepest

    def outermost(self, type_id: int, depth: int = 0) -> Iterator[None]:
        if not isinstance(self._type(type_id), WireStruct):
            read_uint(self._cursor)
        yield from self._walk(type_id, depth)

    def _walk(self, type_id: int, depth: int) -> Iterator[None]:
        if depth > self._deepest:
            raise too_deep(self._deepest)
        match self._type(type_id):
            case WireBasic("interface"):
                yield from self._interface(depth)
            case WireBasic("string" | "bytes") | WireEncoded():
                read_bytes(self._cursor)
            case WireBasic(name):
                read_uint(self._cursor)
                if name == "complex":
                    read_uint(self._cursor)
            case WireSlice(_, elem) | WireArray(_, elem, _):
                for _ in range(read_uint(self._cursor)):
                    yield from self._walk(elem, depth + 1)
            case WireMap(_, key, elem):
                for _ in range(read_uint(self._cursor)):
                    yield from self._walk(key, depth + 1)
                    yield from self._walk(elem, depth + 1)
            case WireStruct(_, fields):
                yield from self._struct(fields, depth)

    def _struct(self, fields: tuple[tuple[str, int], ...], depth: int) -> Iterator[None]:
        index = -1
        while delta := read_uint(self._cursor):
            index += delta
            if index >= len(fields):
                raise GobCorrupt(f"Not a gob stream: field {index} of a struct of {len(fields)}.")
            yield from self._walk(fields[index][1], depth + 1)

    def _interface(self, depth: int) -> Iterator[None]:
        if not read_bytes(self._cursor):
            return
        while True:
            while self._cursor.pos == len(self._cursor.data):
                if not self._advance():
                    yield
            type_id = read_int(self._cursor)
            if type_id >= 0:
                break
            self._define(self._cursor, -type_id)
            if self._cursor.pos < len(self._cursor.data):
                read_uint(self._cursor)
        read_uint(self._cursor)
        yield from self.outermost(type_id, depth + 1)

    def _type(self, type_id: int) -> WireType:
        try:
            return self._types[type_id]
        except KeyError:
            raise GobCorrupt(f"Not a gob stream: type {type_id} is used and was never defined.") from None
