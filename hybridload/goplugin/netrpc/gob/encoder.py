"""Sends a gob stream: values and their declared Go types in, bytes out.

A type is numbered when it is first met and defined in a message of its own before the first value that needs it, and
so are the types inside interfaces, which Go would define in the middle of the value. A value that cannot be sent
leaves the stream as it was: nothing counts as sent before all of the value is encoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from hybridload.goplugin.netrpc.gob import wire
from hybridload.goplugin.netrpc.gob.errors import GobError, Misfit
from hybridload.goplugin.netrpc.gob.names import Registry
from hybridload.goplugin.netrpc.gob.types import (
    Adapted,
    Array,
    Bool,
    Bytes,
    Complex,
    Deferred,
    Encoded,
    Float,
    GoType,
    Int,
    Interface,
    Map,
    Pointer,
    Registered,
    Slice,
    String,
    Struct,
    Uint,
    describe,
)
from hybridload.goplugin.netrpc.gob.wire import (
    DEFINITION,
    FIRST_USER_ID,
    LARGEST_MESSAGE,
    LONGEST_NAME,
    put_bytes,
    put_int,
)
from hybridload.goplugin.netrpc.gob.writers import Write, Writers

_SMALL_COUNTS: Final = tuple(bytes((count,)) for count in range(128))
_FORM_FIELDS: Final = {form: field for field, form in wire.FORM_FIELDS.items()}


@dataclass(frozen=True, slots=True)
class _Definition:
    """:param inner: the types that this one is made of, by number."""

    message: bytes
    inner: tuple[int, ...]


@dataclass(slots=True)
class _Plan:
    """How values of one type are sent.

    :param number: the encoded number of the type.
    :param lead: the zero that precedes all but structs when no other value surrounds them.
    :param definitions: the types that must have been defined, by number.
    :param sent: whether they were.
    :param start: what a message of its own begins with: number and lead.
    """

    number: bytes
    lead: bytes
    write: Write
    definitions: tuple[int, ...]
    sent: bool
    start: bytes


class Encoder:
    """The sending end of one gob stream. Not thread-safe: what it returns must go out in the order of the calls.

    :param registry: names of the types that may travel inside interfaces; by default none but Go's own.
    """

    def __init__(self, registry: Registry | None = None) -> None:
        self._registry = registry or Registry()
        self._writers = Writers(self._put_interface)
        self._free_ids = itertools.count(FIRST_USER_ID)
        self._ids: dict[GoType, int] = {}
        self._by_content: dict[str, int] = {}
        self._definitions: dict[int, _Definition] = {}
        self._sent: set[int] = set()
        self._plans: dict[GoType, _Plan] = {}
        self._needed: list[_Plan] = []

    def encode(self, value: Any, go_type: GoType) -> bytes:
        """The value's message, after those that define what is new to the stream.

        :param go_type: the declared type of the value.
        :raises GobError: when the value is not of that type, or cannot be sent; nothing of it was.
        """
        body, needed = self._encoded(value, go_type)
        if not needed and len(body) < 128:
            return _SMALL_COUNTS[len(body)] + body
        return self._messages([(body, needed)])

    def encode_all(self, *values: tuple[Any, GoType]) -> bytes:
        """Several values, each with its declared type, as one: all of them are sent or none.

        :raises GobError: when one of the values is not of its type, or cannot be sent.
        """
        return self._messages([self._encoded(value, go_type) for value, go_type in values])

    def _encoded(self, value: Any, go_type: GoType) -> tuple[bytearray, list[_Plan]]:
        """A message without its count, and the types that are to be defined before it."""
        self._needed = needed = []
        try:
            plan = self._plans.get(go_type) or self._plan(go_type)
            if not plan.sent:
                needed.append(plan)
            body = bytearray(plan.start)
            plan.write(body, value)
        except Misfit as misfit:
            raise GobError(f"The value cannot be sent as {describe(go_type)}: {misfit}.") from misfit.__cause__
        except RecursionError:
            raise GobError("The value nests too deeply to be sent: does it contain itself?") from None
        if len(body) > LARGEST_MESSAGE:
            raise GobError(f"A message of {len(body)} bytes is over the limit of {LARGEST_MESSAGE}.")
        return body, needed

    def _messages(self, encoded: list[tuple[bytearray, list[_Plan]]]) -> bytes:
        """The messages, each after the definitions that it needs. From here on nothing fails."""
        out = bytearray()
        for body, needed in encoded:
            for plan in needed:
                self._put_definitions(out, plan)
            put_bytes(out, body)
        return bytes(out)

    def _put_definitions(self, out: bytearray, plan: _Plan) -> None:
        for type_id in plan.definitions:
            if type_id not in self._sent:
                self._sent.add(type_id)
                put_bytes(out, self._definitions[type_id].message)
        plan.sent = True

    def prepare(self, go_type: GoType) -> int:
        """Number a type and all inside it, whichever value will be sent first, and return the type's number."""
        self._plan(go_type)
        return self._number(go_type)

    def _put_interface(self, out: bytearray, value: Any, registered: Registered | None) -> None:
        """Name, type number, length and value, as though the value were a message of its own."""
        if value is None:
            out.append(0)
            return
        if registered is None:
            name, go_type, value = self._registry.concrete(value)
        else:
            name, go_type = registered.name, registered.type
        plan = self._plans.get(go_type) or self._plan(go_type)
        if not plan.sent:
            self._needed.append(plan)
        put_bytes(out, _checked_name(name))
        out += plan.number
        body = bytearray(plan.lead)
        plan.write(body, value)
        put_bytes(out, body)

    def _plan(self, go_type: GoType) -> _Plan:
        write = self._writers.writer(go_type)
        number = bytearray()
        type_id = self._number(go_type)
        put_int(number, type_id)
        definitions = tuple(self._reachable(type_id))
        lead = b"" if isinstance(_bare(go_type), Struct) else b"\0"
        start = bytes(number) + lead
        plan = self._plans[go_type] = _Plan(bytes(number), lead, write, definitions, not definitions, start)
        return plan

    def _number(self, go_type: GoType) -> int:
        """The type's number on this stream. One that is new gets its definition, and so do the types inside it."""
        bare = _bare(go_type)
        fixed = _fixed_number(bare)
        if fixed is not None:
            return fixed
        known = self._ids.get(bare)
        if known is not None:
            return known
        type_id = self._ids[bare] = next(self._free_ids)
        field, name, body, inner = self._body(bare)
        # Two descriptions of one Go type must share its number: within a value, Go takes two numbers for two types.
        type_id = self._ids[bare] = self._by_content.setdefault(repr((field, name, body)), type_id)
        if type_id in self._definitions:
            return type_id
        body["CommonType"] = {"Name": name, "Id": type_id}
        definition = bytearray()
        put_int(definition, -type_id)
        self._writers.writer(DEFINITION)(definition, {field: body})
        self._definitions[type_id] = _Definition(bytes(definition), inner)
        return type_id

    def _body(self, go_type: GoType) -> tuple[str, str, dict[str, Any], tuple[int, ...]]:
        """The field of `wireType` for this kind of type, the type's name, its particulars, and the types inside."""
        match go_type:
            case Slice(elem):
                number = self._number(elem)
                return "SliceT", "", {"Elem": number}, (number,)
            case Array(length, elem):
                number = self._number(elem)
                return "ArrayT", "", {"Elem": number, "Len": length}, (number,)
            case Map(key, elem):
                pair = self._number(key), self._number(elem)
                return "MapT", "", {"Key": pair[0], "Elem": pair[1]}, pair
            case Struct():
                numbers = tuple(self._number(field.type) for field in go_type.fields)
                fields = [
                    {"Name": field.name, "Id": number} for field, number in zip(go_type.fields, numbers, strict=True)
                ]
                return "StructT", go_type.name, {"Field": fields}, numbers
            case Encoded(name, form):
                return _FORM_FIELDS[form], name, {}, ()
        return "GobEncoderT", "Time", {}, ()

    def _reachable(self, type_id: int) -> Iterator[int]:
        """The types that must be defined before a value of this one: itself first, then those inside, as Go does."""
        seen: set[int] = set()
        waiting = [type_id]
        while waiting:
            number = waiting.pop()
            if number >= FIRST_USER_ID and number not in seen:
                seen.add(number)
                yield number
                waiting += reversed(self._definitions[number].inner)


def _checked_name(name: str) -> bytes:
    data = name.encode("utf-8", "surrogateescape")
    if not 0 < len(data) <= LONGEST_NAME:
        raise Misfit(f"the registered name {name!r:.100} has {len(data)} bytes; Go takes 1 to {LONGEST_NAME}")
    return data


def _bare(go_type: GoType) -> GoType:
    """The type without what is not on the wire."""
    while isinstance(go_type, Pointer | Adapted | Deferred):
        go_type = go_type.target if isinstance(go_type, Pointer) else go_type.type
    return go_type


def _fixed_number(go_type: GoType) -> int | None:
    match go_type:
        case Bool():
            return wire.BOOL
        case Int():
            return wire.INT
        case Uint():
            return wire.UINT
        case Float():
            return wire.FLOAT
        case Complex():
            return wire.COMPLEX
        case String():
            return wire.STRING
        case Bytes() | Slice(Uint(8)):
            return wire.BYTES
        case Interface() | Registered():
            return wire.INTERFACE
    return None
