"""Compiles a declared Go type into a function that appends a value of it to a message.

Inside a struct, what is zero in Go is left out: false, 0, 0.0 (and -0.0), empty strings and slices, `None` for pointers
and interfaces. Anywhere else everything is written. Arrays, structs and maps, even empty ones, are always written. What
a pointer points to is as well: Go's own encoder leaves a zero out there, which then arrives as nil, but its decoder
takes it for what it is.
Values are checked as they are written: gob would carry a wrong one silently, or Go would refuse it with less to say.
"""

from __future__ import annotations

import datetime
import operator
import struct
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

from hybridload.goplugin.netrpc.gob.errors import GobError, Misfit
from hybridload.goplugin.netrpc.gob.moment import dump_time
from hybridload.goplugin.netrpc.gob.types import (
    Adapted,
    Array,
    Bool,
    Bytes,
    Complex,
    Deferred,
    Encoded,
    Field,
    Float,
    GobData,
    GoType,
    Int,
    Interface,
    Map,
    Pointer,
    Registered,
    Slice,
    String,
    Struct,
    Time,
    Uint,
    describe,
)
from hybridload.goplugin.netrpc.gob.wire import put_bytes, put_float, put_int, put_uint

Write: TypeAlias = Callable[[bytearray, Any], None]
PutInterface: TypeAlias = Callable[[bytearray, Any, Registered | None], None]
Adapt: TypeAlias = Callable[[Any], Any]

_FieldWriter: TypeAlias = tuple[tuple[type, ...], Adapt | None, Write, str]
"""What is zero when false, what adapts the value, what writes it, and its name."""

_NONE: Final = type(None)
_LEFT_OUT: Final = object()
_SINGLE: Final = struct.Struct("<f")


class Writers:
    """The compiled writers of one stream.

    :param put_interface: writes the value of an interface, which takes the stream's own types and names.
    """

    def __init__(self, put_interface: PutInterface) -> None:
        self._put_interface = put_interface
        self._writers: dict[GoType, Write] = {}

    def writer(self, go_type: GoType) -> Write:
        """:raises GobError: when the type itself makes no sense to Go."""
        found = self._writers.get(go_type)
        if found is not None:
            return found
        target: list[Write] = []
        self._writers[go_type] = lambda out, value: target[0](out, value)  # For a type that contains itself.
        try:
            write = self._writers[go_type] = self._build(go_type)
        except BaseException:
            self._writers.clear()  # Some may refer to what was not finished.
            raise
        target.append(write)
        return write

    def _build(self, go_type: GoType) -> Write:
        match go_type:
            case Bool():
                return _put_bool
            case Int(bits):
                return _integer(put_int, -1 << bits - 1, (1 << bits - 1) - 1, describe(go_type))
            case Uint(bits):
                return _integer(put_uint, 0, (1 << bits) - 1, describe(go_type))
            case Float(bits):
                return _put_float64 if bits == 64 else _put_float32
            case Complex(bits):
                return _complex(_put_float64 if bits == 128 else _put_float32)
            case String():
                return _put_string
            case Bytes() | Slice(Uint(8)):
                return _put_bytes
            case Slice(elem):
                return _sequence(self.writer(elem), None)
            case Array(length, elem):
                return _sequence(self.writer(elem), length)
            case Map(key, elem):
                return _map(self.writer(key), self.writer(elem))
            case Pointer(target):
                return _never_none(self.writer(target), describe(go_type))
            case Interface():
                return lambda out, value: self._put_interface(out, value, None)
            case Registered():
                return lambda out, value: self._put_interface(out, value, go_type)
            case Time():
                return _put_time
            case Encoded():
                return _encoded(go_type)
            case Adapted(inner, _, dump):
                write = self.writer(inner)
                return lambda out, value: write(out, _dumped(dump, inner, value))
            case Struct():
                return self._struct(go_type)
            case Deferred():
                return self.writer(go_type.type)
        raise GobError(f"{go_type!r} describes no Go type: give one of the gob descriptions, or from_hint(...).")

    def _struct(self, go_type: Struct) -> Write:
        fields = go_type.fields
        names = [field.name for field in fields]
        if len(set(names)) < len(names) or not all(name[:1].isupper() for name in names):
            raise GobError(f"{describe(go_type)}: its fields are {names}; Go needs distinct names in capitals.")
        return _struct(describe(go_type), fields, [self._field(field) for field in fields])

    def _field(self, field: Field) -> _FieldWriter:
        # Whether an adapted field is zero can only be told from what travels.
        match field.type:
            case Adapted(inner, _, dump):
                adapt: Adapt | None = partial(_dumped, dump, inner)
            case Pointer(Adapted(target, _, dump)):
                inner, adapt = Pointer(target), _unless_none(dump, target)
            case inner:
                adapt = None
        return (_empty(inner), adapt, self.writer(inner), field.name)


def _empty(go_type: GoType) -> tuple[type, ...]:
    """The Python types of which a false value is the Go type's zero value, which a struct leaves out."""
    match go_type:
        case Adapted(inner, _, _):
            return _empty(inner)
        case Deferred():
            return _empty(go_type.type)
        case Pointer() | Interface() | Registered() | Encoded():
            return (_NONE,)
        case Bool():
            return (bool,)
        case Int() | Uint():
            return (int,)
        case Float():
            return (float, int)
        case Complex():
            return (complex, float, int)
        case String():
            return (str,)
        case Bytes() | Slice():
            return (bytes, bytearray, list, tuple)
    return ()


def _struct(name: str, fields: tuple[Field, ...], writers: list[_FieldWriter]) -> Write:
    take = _attributes([field.key for field in fields])
    names = [field.name for field in fields]

    def put_struct(out: bytearray, value: Any) -> None:
        items = _items(names, value, name) if isinstance(value, dict) else None
        if items is None:
            try:
                items = take(value)
            except AttributeError:
                items = _items(names, value, name)
        skipped = 1
        for (empty, adapt, write, field), item in zip(writers, items, strict=True):
            if item is _LEFT_OUT:
                skipped += 1
                continue
            try:
                if adapt is not None:
                    item = adapt(item)
                if isinstance(item, empty) and not item:
                    skipped += 1
                    continue
                put_uint(out, skipped)
                skipped = 1
                write(out, item)
            except Misfit as misfit:
                raise misfit.within(field) from misfit.__cause__
        out.append(0)

    return put_struct


def _attributes(keys: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if not keys:
        return lambda value: ()
    take: Callable[[Any], Any] = operator.attrgetter(*keys)
    return take if len(keys) > 1 else lambda value: (take(value),)


def _items(names: list[str], value: Any, struct_name: str) -> tuple[Any, ...]:
    """The fields in a mapping by their Go names, or in a tuple of pairs, which stands for one as a key."""
    try:
        given = dict(value)
    except (TypeError, ValueError):
        raise Misfit(f"expected {struct_name} with the fields {', '.join(names)}; got {value!r:.100}") from None
    if unknown := given.keys() - set(names):
        raise Misfit(f"{struct_name} has no fields {sorted(map(str, unknown))}; it has {', '.join(names)}")
    return tuple(given.get(name, _LEFT_OUT) for name in names)


def _sequence(write: Write, length: int | None) -> Write:
    def put_sequence(out: bytearray, value: Any) -> None:
        if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Collection):
            raise _unexpected("a list", value)
        if length is not None and len(value) != length:
            raise Misfit(f"expected {length} elements, got {len(value)}")
        put_uint(out, len(value))
        for index, item in enumerate(value):
            try:
                write(out, item)
            except Misfit as misfit:
                raise misfit.within(f"[{index}]") from misfit.__cause__

    return put_sequence


def _map(write_key: Write, write_elem: Write) -> Write:
    def put_map(out: bytearray, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise _unexpected("a dict", value)
        put_uint(out, len(value))
        for key, item in value.items():
            try:
                write_key(out, key)
                write_elem(out, item)
            except Misfit as misfit:
                raise misfit.within(f"[{key!r:.50}]") from misfit.__cause__

    return put_map


def _never_none(write: Write, name: str) -> Write:
    def put_target(out: bytearray, value: Any) -> None:
        if value is None:
            raise Misfit(f"None where gob must have a value; Go can send a nil {name} only as a field of a struct")
        write(out, value)

    return put_target


def _put_bool(out: bytearray, value: Any) -> None:
    if not isinstance(value, bool):
        raise _unexpected("a bool", value)
    out.append(value)


def _integer(put: Callable[[bytearray, int], None], low: int, high: int, name: str) -> Write:
    def put_integer(out: bytearray, value: Any) -> None:
        if not isinstance(value, int):
            raise _unexpected("an int", value)
        if not low <= value <= high:
            raise Misfit(f"{value} is out of the range of {name}, {low} to {high}")
        put(out, value)

    return put_integer


def _put_float64(out: bytearray, value: Any) -> None:
    put_float(out, _float(value))


def _put_float32(out: bytearray, value: Any) -> None:
    number = _float(value)
    try:
        put_float(out, _SINGLE.unpack(_SINGLE.pack(number))[0])
    except OverflowError:
        raise Misfit(f"{number} is out of the range of float32") from None


def _float(value: Any) -> float:
    if not isinstance(value, float | int):
        raise _unexpected("a float", value)
    try:
        return float(value)
    except OverflowError:
        raise Misfit(f"{value!r:.50} is out of the range of float64") from None


def _complex(put_part: Write) -> Write:
    def put_complex(out: bytearray, value: Any) -> None:
        if not isinstance(value, complex | float | int):
            raise _unexpected("a complex", value)
        put_part(out, value.real)
        put_part(out, value.imag)

    return put_complex


def _put_string(out: bytearray, value: Any) -> None:
    if not isinstance(value, str):
        raise _unexpected("a str", value)
    try:
        data = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise Misfit(f"{value!r:.100} cannot be written as UTF-8: {error.reason}") from None
    put_bytes(out, data)


def _put_bytes(out: bytearray, value: Any) -> None:
    if isinstance(value, list | tuple):
        try:
            value = bytes(value)
        except (TypeError, ValueError):
            raise _unexpected("bytes, or a list of numbers from 0 to 255", value) from None
    if not isinstance(value, bytes | bytearray | memoryview):
        raise _unexpected("bytes", value)
    put_bytes(out, bytes(value))


def _put_time(out: bytearray, value: Any) -> None:
    if not isinstance(value, datetime.datetime):
        raise _unexpected("a datetime", value)
    put_bytes(out, dump_time(value))


def _encoded(go_type: Encoded) -> Write:
    def put_encoded(out: bytearray, value: Any) -> None:
        if isinstance(value, GobData) and value.form != go_type.form:
            raise Misfit(f"expected data in the form {go_type.form!r}, got {value.form!r}")
        _put_bytes(out, value.data if isinstance(value, GobData) else value)

    return put_encoded


def _unless_none(dump: Adapt, inner: GoType) -> Adapt:
    return lambda value: None if value is None else _dumped(dump, inner, value)


def _dumped(dump: Adapt, inner: GoType, value: Any) -> Any:
    try:
        return dump(value)
    except Exception as error:
        raise Misfit(f"{value!r:.100} cannot be turned into {describe(inner)}: {error}") from error


def _unexpected(expected: str, value: Any) -> Misfit:
    return Misfit(f"expected {expected}, got the {type(value).__name__} {value!r:.100}")
