"""Gob's numbers, and the types that a stream defines for itself.

An unsigned integer below 128 is one byte; any other is a byte that holds minus the count of bytes to come, and then
as few bytes as will do, big-endian. A signed one is shifted left by one, complemented first when negative, with the
low bit telling so. A float's eight bytes are reversed and sent as an unsigned integer, so that round numbers are
short.

Types have numbers on a stream: those below 64 are fixed, a sender chooses the others and defines each in a message of
its own, or in the middle of an interface value. A definition is itself a gob value, of the fixed type `wireType`; the
table at the end is what makes that possible, and the only bootstrap there is.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from hybridload.goplugin.netrpc.gob.errors import GobCorrupt
from hybridload.goplugin.netrpc.gob.types import Field, Form, Int, Pointer, Slice, String, Struct
from hybridload.limits import MAX_MESSAGE

FIRST_USER_ID: Final = 64
LARGEST_MESSAGE: Final = 1 << 32
"""Bytes in a message that is sent, or worth passing over; Go takes twice as much, and gRPC as much as this."""
LONGEST_NAME: Final = 1024
"""Bytes in a registered name; Go refuses more."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one stream may ask of this process. What is over a limit is a `GobCorrupt`, or a `GobError` when sending.

    :param message: bytes in the messages of one value that is received. A larger one is a `GobTooLarge`.
    :param depth: how deep values and types may nest; each level takes up to four of Python's own stack frames.
    :param elements: elements of slices, arrays and maps, and fields filled in for the sender, in one value.
    :param types: types defined by one stream.
    :param definitions: bytes in all type definitions of one stream.
    """

    message: int = MAX_MESSAGE
    depth: int = 200
    elements: int = 1 << 24
    types: int = 10_000
    definitions: int = 1 << 20


@dataclass(slots=True)
class Cursor:
    """A place in a message. Reading past the end of `data` is an `IndexError` or a `GobCorrupt`.

    :param depth: how many values are open around this place.
    :param room: how many more elements the value may have.
    """

    data: bytes = b""
    pos: int = 0
    depth: int = 0
    room: int = 0


def too_deep(deepest: int) -> GobCorrupt:
    return GobCorrupt(f"A value or a type nests more than {deepest} levels: raise Limits.depth.")


def read_uint(cursor: Cursor) -> int:
    data = cursor.data
    pos = cursor.pos
    first = data[pos]
    if first < 128:
        cursor.pos = pos + 1
        return first
    end = pos + 257 - first
    if first < 248 or end > len(data):
        raise GobCorrupt("Not a gob stream: an integer is longer than eight bytes, or than its message.")
    cursor.pos = end
    return int.from_bytes(data[pos + 1 : end], "big")


def read_int(cursor: Cursor) -> int:
    number = cursor.data[cursor.pos]
    if number < 128:
        cursor.pos += 1
    else:
        number = read_uint(cursor)
    return ~(number >> 1) if number & 1 else number >> 1


def read_float(cursor: Cursor) -> float:
    reversed_bits: tuple[float] = _DOUBLE.unpack(read_uint(cursor).to_bytes(8, "big"))
    return reversed_bits[0]


def read_complex(cursor: Cursor) -> complex:
    real = read_float(cursor)
    return complex(real, read_float(cursor))


def read_bytes(cursor: Cursor) -> bytes:
    data = cursor.data
    length = data[cursor.pos]
    if length < 128:
        start = cursor.pos + 1
    else:
        length = read_uint(cursor)
        start = cursor.pos
    end = start + length
    if end > len(data):
        raise GobCorrupt(f"Not a gob stream: {length} bytes were announced in a message that does not have them.")
    cursor.pos = end
    return data[start:end]


def read_string(cursor: Cursor) -> str:
    data = cursor.data
    start = cursor.pos + 1
    length = data[start - 1]
    end = start + length
    if length > 127 or end > len(data):
        return str(read_bytes(cursor), "utf-8", "surrogateescape")
    cursor.pos = end
    return str(data[start:end], "utf-8", "surrogateescape")


def put_uint(out: bytearray, number: int) -> None:
    """Append an integer from 0 to 2**64 - 1."""
    if number < 128:
        out.append(number)
    else:
        size = (number.bit_length() + 7) >> 3
        out.append(256 - size)
        out += number.to_bytes(size, "big")


def put_int(out: bytearray, number: int) -> None:
    """Append an integer from -2**63 to 2**63 - 1."""
    number = (~number << 1) | 1 if number < 0 else number << 1
    if number < 128:
        out.append(number)
    else:
        put_uint(out, number)


def put_float(out: bytearray, number: float) -> None:
    put_uint(out, int.from_bytes(_DOUBLE.pack(number), "big"))


def put_bytes(out: bytearray, data: bytes | bytearray) -> None:
    put_uint(out, len(data))
    out += data


_DOUBLE: Final = struct.Struct("<d")


@dataclass(frozen=True, slots=True)
class WireBasic:
    """A fixed type that is not made of others: bool, int, uint, float, bytes, string, complex or interface."""

    name: str


@dataclass(frozen=True, slots=True)
class WireArray:
    name: str
    elem: int
    length: int


@dataclass(frozen=True, slots=True)
class WireSlice:
    name: str
    elem: int


@dataclass(frozen=True, slots=True)
class WireMap:
    name: str
    key: int
    elem: int


@dataclass(frozen=True, slots=True)
class WireStruct:
    """:param fields: names and type numbers, in the order of the field numbers."""

    name: str
    fields: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class WireEncoded:
    """A type whose values are the bytes that its own method wrote."""

    name: str
    form: Form


WireType: TypeAlias = WireBasic | WireArray | WireSlice | WireMap | WireStruct | WireEncoded

FORM_FIELDS: Final[Mapping[str, Form]] = {
    "GobEncoderT": "gob",
    "BinaryMarshalerT": "binary",
    "TextMarshalerT": "text",
}


def wire_type(definition: Mapping[str, Any]) -> WireType:
    """The type that a definition, decoded as a `wireType`, stands for.

    :raises GobCorrupt: when it defines nothing, or more than one thing.
    """
    given = [(field, body) for field, body in definition.items() if body is not None]
    if len(given) != 1:
        raise GobCorrupt(f"Not a gob stream: a type definition with {len(given)} types in it, in place of one.")
    [(field, body)] = given
    name = (body["CommonType"] or {"Name": ""})["Name"]
    match field:
        case "ArrayT":
            return WireArray(name, body["Elem"], body["Len"])
        case "SliceT":
            return WireSlice(name, body["Elem"])
        case "MapT":
            return WireMap(name, body["Key"], body["Elem"])
        case "StructT":
            return WireStruct(name, tuple((item["Name"], item["Id"]) for item in body["Field"]))
    return WireEncoded(name, FORM_FIELDS[field])


def describe_wire(type_id: int, types: Mapping[int, WireType]) -> str:
    """The type's name as far as the sender told it, for messages."""
    match types.get(type_id):
        case WireBasic(name):
            return {"bytes": "[]byte", "interface": "interface{}"}.get(name, name)
        case WireStruct(name, _):
            return f"struct {name}".rstrip()
        case WireEncoded(name, form):
            return f"{name} (which encodes itself as {form})"
        case WireSlice(name, _):
            return name or "slice"
        case WireArray(name, _, length):
            return name or f"array of {length}"
        case WireMap(name, _, _):
            return name or "map"
    return f"undefined type {type_id}"


BOOL, INT, UINT, FLOAT, BYTES, STRING, COMPLEX, INTERFACE = range(1, 9)
WIRE_TYPE_ID: Final = 16

FIXED_TYPES: Final[Mapping[int, WireType]] = {
    BOOL: WireBasic("bool"),
    INT: WireBasic("int"),
    UINT: WireBasic("uint"),
    FLOAT: WireBasic("float"),
    BYTES: WireBasic("bytes"),
    STRING: WireBasic("string"),
    COMPLEX: WireBasic("complex"),
    INTERFACE: WireBasic("interface"),
    WIRE_TYPE_ID: WireStruct(
        "wireType",
        (
            ("ArrayT", 17),
            ("SliceT", 19),
            ("StructT", 20),
            ("MapT", 23),
            ("GobEncoderT", 24),
            ("BinaryMarshalerT", 24),
            ("TextMarshalerT", 24),
        ),
    ),
    17: WireStruct("arrayType", (("CommonType", 18), ("Elem", INT), ("Len", INT))),
    18: WireStruct("CommonType", (("Name", STRING), ("Id", INT))),
    19: WireStruct("sliceType", (("CommonType", 18), ("Elem", INT))),
    20: WireStruct("structType", (("CommonType", 18), ("Field", 22))),
    21: WireStruct("fieldType", (("Name", STRING), ("Id", INT))),
    22: WireSlice("[]fieldType", 21),
    23: WireStruct("mapType", (("CommonType", 18), ("Key", INT), ("Elem", INT))),
    24: WireStruct("gobEncoderType", (("CommonType", 18),)),
}

# The same types once more, as descriptions, so that definitions are encoded by the ordinary encoder.
_COMMON: Final = Field("CommonType", Struct("CommonType", (Field("Name", String()), Field("Id", Int()))))
_FIELD_TYPE: Final = Struct("fieldType", (Field("Name", String()), Field("Id", Int())))
_ENCODER_TYPE: Final = Pointer(Struct("gobEncoderType", (_COMMON,)))
DEFINITION: Final = Struct(
    "wireType",
    (
        Field("ArrayT", Pointer(Struct("arrayType", (_COMMON, Field("Elem", Int()), Field("Len", Int()))))),
        Field("SliceT", Pointer(Struct("sliceType", (_COMMON, Field("Elem", Int()))))),
        Field("StructT", Pointer(Struct("structType", (_COMMON, Field("Field", Slice(_FIELD_TYPE)))))),
        Field("MapT", Pointer(Struct("mapType", (_COMMON, Field("Key", Int()), Field("Elem", Int()))))),
        Field("GobEncoderT", _ENCODER_TYPE),
        Field("BinaryMarshalerT", _ENCODER_TYPE),
        Field("TextMarshalerT", _ENCODER_TYPE),
    ),
)
