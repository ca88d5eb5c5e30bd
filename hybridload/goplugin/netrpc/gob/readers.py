"""Compiles a type on the wire, and what the receiver wants, into a function that reads such a value from a cursor.

One function per pair, built when first met and kept by the decoder. They call each other, so reading a value looks
nothing up but the type numbers inside interfaces. Types on the wire may contain themselves, and so may receivers: a
pair that is met again while it is being built is entered through a reference that is filled in afterwards.

A receiver of `Interface()` takes whatever comes ("plain Python"); it is how unknown fields are passed over as well.
Every function that opens a value inside a value counts the depth; every list, map and filled-in struct counts elements.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from hybridload.goplugin.netrpc.gob import wire
from hybridload.goplugin.netrpc.gob.errors import GobCorrupt, GobError, Misfit
from hybridload.goplugin.netrpc.gob.moment import load_time
from hybridload.goplugin.netrpc.gob.names import Registry, is_spelling
from hybridload.goplugin.netrpc.gob.types import (
    ANYTHING,
    ZERO_TIME,
    Adapted,
    Array,
    Bool,
    Bytes,
    Complex,
    Deferred,
    Encoded,
    Float,
    GobData,
    GobValue,
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
from hybridload.goplugin.netrpc.gob.wire import (
    Cursor,
    Limits,
    WireArray,
    WireBasic,
    WireEncoded,
    WireMap,
    WireSlice,
    WireStruct,
    WireType,
    read_bytes,
    read_complex,
    read_float,
    read_int,
    read_string,
    read_uint,
    too_deep,
)

Read: TypeAlias = Callable[[Cursor], Any]
Maker: TypeAlias = Callable[[], Any]

_LEFT_OUT: Final = object()
_MAX_FLOAT32: Final = float.fromhex("0x1.fffffep+127")


class Readers:
    """The compiled readers of one stream.

    :param types: the stream's types; it grows while the stream goes on.
    :param registry: what the receiver knows of registered names.
    :param sequence: reads what may precede a value inside an interface, and returns the number of its type.
    :param keep_names: give every value of an interface as a `GobValue`.
    """

    def __init__(
        self,
        types: Mapping[int, WireType],
        registry: Registry,
        limits: Limits,
        sequence: Callable[[Cursor], int],
        keep_names: bool,
    ) -> None:
        self.types = types
        self.registry = registry
        self.limits = limits
        self.sequence = sequence
        self.keep_names = keep_names
        self.done: dict[tuple[int, GoType, bool], Read] = {}
        self._outermost: dict[tuple[int, GoType, bool], Read] = {}

    def outermost(self, type_id: int, want: GoType, as_key: bool = False) -> Read:
        """For a value that no other value surrounds: a message's own, or an interface's. All but structs follow a zero.

        :param as_key: make a value that can be a key of a `dict`.
        """
        key = (type_id, want, as_key)
        found = self._outermost.get(key)
        if found is None:
            found = self._outermost[key] = self._build_outermost(type_id, want, as_key)
        return found

    def _build_outermost(self, type_id: int, want: GoType, as_key: bool) -> Read:
        if not isinstance(want, GoType):
            raise GobError(f"{want!r} describes no Go type: give one of the gob descriptions, or from_hint(...).")
        try:
            read = _Compilation(self).reader(type_id, want, as_key)
            _refuse_strangers(self.types[type_id], want)
        except Misfit as misfit:
            return _refusal(str(misfit))
        return read if isinstance(self.types[type_id], WireStruct) else _after_zero(read)


class _Compilation:
    """One run of the compiler. Its results are kept only if all of it succeeds, since they refer to each other."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._types = readers.types
        self._limits = readers.limits
        self._fresh: dict[tuple[int, GoType, bool], Read] = {}
        self._depth = 0

    def reader(self, type_id: int, want: GoType, as_key: bool = False) -> Read:
        read = self._reader(type_id, want, as_key)
        self._readers.done.update(self._fresh)
        return read

    def _reader(self, type_id: int, want: GoType, as_key: bool) -> Read:
        key = (type_id, want, as_key)
        known = self._readers.done.get(key) or self._fresh.get(key)
        if known is not None:
            return known
        self._fresh[key], fill = _forward_reference()
        self._depth += 1
        if self._depth > self._limits.depth:
            raise too_deep(self._limits.depth)
        read = self._fresh[key] = fill(self._build(type_id, want, as_key))
        self._depth -= 1
        return read

    def _build(self, type_id: int, want: GoType, as_key: bool) -> Read:
        match want:
            case Pointer(target) if type_id == wire.INTERFACE:
                return self._interface(target, as_key, nil=True)
            case Pointer(target):
                return self._reader(type_id, target, as_key)
            case Deferred():
                return self._reader(type_id, want.type, as_key)
            case Adapted(inner, load, _):
                return _adapted(self._reader(type_id, inner, as_key), load, describe(inner))
            case Registered(_, inner) if type_id == wire.INTERFACE:
                return self._interface(inner, as_key, nil=True)
            case Registered(_, inner):
                return self._reader(type_id, inner, as_key)
        received = self._types.get(type_id)
        match received:
            case WireBasic("interface"):
                return self._interface(want, as_key, nil=isinstance(want, Interface))
            case WireBasic():
                read = _basic_reader(type_id, want)
            case WireEncoded():
                read = _encoded_reader(received, want)
            case WireSlice() | WireArray():
                read = self._sequence(received, want, as_key)
            case WireMap():
                read = self._map(received, want, as_key)
            case WireStruct():
                read = self._struct(received, want, as_key)
            case None:
                raise GobCorrupt(f"Not a gob stream: type {type_id} is used and was never defined.")
        if read is None:
            raise Misfit(f"expected {describe(want)}, received {wire.describe_wire(type_id, self._types)}")
        return read

    def _interface(self, want: GoType, as_key: bool, nil: bool) -> Read:
        readers, registry, sequence = self._readers, self._readers.registry, self._readers.sequence
        deepest, keep_names = self._limits.depth, self._readers.keep_names
        asked = None if isinstance(want, Interface) else want

        def read_interface(cursor: Cursor) -> Any:
            name = read_string(cursor)
            if not name and nil:
                return None
            if not name:
                raise Misfit(f"expected {describe(want)}, received a nil interface; Optional would take it")
            if len(name) > wire.LONGEST_NAME:
                raise GobCorrupt(f"Not a gob stream: a registered name of {len(name)} characters.")
            _go_deeper(cursor, deepest)
            type_id = sequence(cursor)
            read_uint(cursor)  # Its length, which is too short when a type is defined inside: no use.
            known = asked or registry.registered(name)
            value = readers.outermost(type_id, known or ANYTHING, as_key)(cursor)
            cursor.depth -= 1
            if asked is None and (keep_names or (known is None and not is_spelling(name))):
                return GobValue(name, value)
            return value

        return read_interface

    def _sequence(self, received: WireSlice | WireArray, want: GoType, as_key: bool) -> Read | None:
        length = received.length if isinstance(received, WireArray) else None
        match want:
            case Interface():
                elem: GoType = ANYTHING
            case Slice(elem):
                pass
            case Array(wanted, elem) if length in (wanted, None):
                length = wanted
            case Bytes():
                elem = Uint(8)
            case _:
                return None
        make = bytes if isinstance(want, Bytes) else tuple if as_key else None
        return _sequence_reader(self._reader(received.elem, elem, as_key), length, make, self._limits.depth)

    def _map(self, received: WireMap, want: GoType, as_key: bool) -> Read | None:
        match want:
            case Interface():
                key, elem = want, want
            case Map(key, elem):
                pass
            case _:
                return None
        read_key = self._reader(received.key, key, True)
        read_elem = self._reader(received.elem, elem, as_key)
        read = _map_reader(read_key, read_elem, received.key == wire.INTERFACE, self._limits.depth)
        return (lambda cursor: tuple(read(cursor).items())) if as_key else read

    def _struct(self, received: WireStruct, want: GoType, as_key: bool) -> Read | None:
        if isinstance(want, Interface):
            plan = self._plain_plan(received, as_key)
        elif isinstance(want, Struct):
            plan = self._plan(received, want, as_key)
        else:
            return None
        return _struct_reader(plan, self._limits.depth)

    def _plain_plan(self, received: WireStruct, as_key: bool) -> _StructPlan:
        names = [name for name, _ in received.fields]
        plan = _StructPlan(_pairs(names) if as_key else dict, names, fill=len(names))
        for name, type_id in received.fields:
            plan.slots.append((name, self._reader(type_id, ANYTHING, as_key)))
            plan.makers[name] = _wire_zero(self._types.get(type_id), as_key)
        return plan

    def _plan(self, received: WireStruct, want: Struct, as_key: bool) -> _StructPlan:
        names = [name for name, _ in received.fields]
        plan = _StructPlan(want.factory or (_pairs([field.key for field in want.fields]) if as_key else dict), names)
        defaulted = _defaulted(want.factory)
        plan.makers = {
            field.key: zero_maker(field.type)
            for field in want.fields
            if field.name in names or field.key not in defaulted
        }
        wanted = {field.name: field for field in want.fields}
        for name, type_id in received.fields:
            field = wanted.get(name)
            try:
                read = self._reader(type_id, field.type if field else ANYTHING, as_key)
            except Misfit as misfit:
                raise misfit.within(name) from None
            plan.slots.append((field.key if field else None, read))
        return plan


def _forward_reference() -> tuple[Read, Callable[[Read], Read]]:
    """A reader that calls another, and the function that tells it which."""
    target: list[Read] = []

    def read_through(cursor: Cursor) -> Any:
        return target[0](cursor)

    def fill(read: Read) -> Read:
        target.append(read)
        return read

    return read_through, fill


def _refusal(problem: str) -> Read:
    def refuse(_: Cursor) -> Any:
        raise Misfit(problem)

    return refuse


def _after_zero(read: Read) -> Read:
    def read_after_zero(cursor: Cursor) -> Any:
        if cursor.data[cursor.pos] == 0:
            cursor.pos += 1
        elif read_uint(cursor):
            raise GobCorrupt("Not a gob stream: a value that is no struct does not begin with a zero.")
        return read(cursor)

    return read_after_zero


def _refuse_strangers(received: WireType, want: GoType) -> None:
    """Go refuses a struct that shares no field with what is received, unless one of the two has none."""
    while isinstance(want, Pointer | Deferred):
        want = want.target if isinstance(want, Pointer) else want.type
    if isinstance(received, WireStruct) and isinstance(want, Struct) and received.fields and want.fields:
        theirs, ours = [name for name, _ in received.fields], [field.name for field in want.fields]
        if not set(theirs) & set(ours):
            raise Misfit(
                f"{describe(want)} has the fields {', '.join(ours)} and received are {', '.join(theirs)}: none in "
                f"common; Annotated[..., Name('Field')] gives a dataclass's field another Go name"
            )


def _go_deeper(cursor: Cursor, deepest: int) -> None:
    cursor.depth += 1
    if cursor.depth > deepest:
        raise too_deep(deepest)


def _spend(cursor: Cursor, elements: int) -> None:
    cursor.room -= elements
    if cursor.room < 0:
        raise GobCorrupt(f"A value has too many elements ({elements} more): raise Limits.elements.")


def _basic_reader(type_id: int, want: GoType) -> Read | None:
    match type_id, want:
        case wire.BOOL, Bool() | Interface():
            return _read_bool
        case wire.INT | wire.UINT, Interface() | Int(64) | Uint(64):
            return read_int if type_id == wire.INT else read_uint
        case wire.INT | wire.UINT, Int(bits):
            return _within(read_int if type_id == wire.INT else read_uint, -1 << bits - 1, (1 << bits - 1) - 1, want)
        case wire.INT | wire.UINT, Uint(bits):
            return _within(read_int if type_id == wire.INT else read_uint, 0, (1 << bits) - 1, want)
        case wire.FLOAT, Interface() | Float(64):
            return read_float
        case wire.FLOAT, Float():
            return _read_float32
        case wire.COMPLEX, Interface() | Complex(128):
            return read_complex
        case wire.COMPLEX, Complex():
            return lambda cursor: complex(_read_float32(cursor), _read_float32(cursor))
        case wire.STRING, Interface() | String():
            return read_string
        case wire.BYTES, Interface() | Bytes():
            return read_bytes
        case wire.BYTES, Slice(Int() | Uint()):
            return lambda cursor: list(read_bytes(cursor))
    return None


def _read_bool(cursor: Cursor) -> bool:
    return read_uint(cursor) != 0


def _read_float32(cursor: Cursor) -> float:
    number = read_float(cursor)
    if _MAX_FLOAT32 < abs(number) < float("inf"):
        raise Misfit(f"{number} is out of the range of float32")
    return number


def _within(read: Read, low: int, high: int, want: GoType) -> Read:
    def read_within(cursor: Cursor) -> int:
        number: int = read(cursor)
        if not low <= number <= high:
            raise Misfit(f"{number} is out of the range of {describe(want)}")
        return number

    return read_within


def _encoded_reader(received: WireEncoded, want: GoType) -> Read | None:
    name, form = received.name, received.form

    def read_data(cursor: Cursor) -> GobData:
        return GobData(name, read_bytes(cursor), form)

    def read_time(cursor: Cursor) -> Any:
        data = read_bytes(cursor)
        moment = load_time(data)
        if moment is None:
            raise Misfit(f"{data.hex()} is no time.Time that a datetime can hold")
        return moment

    def read_either(cursor: Cursor) -> Any:
        data = read_bytes(cursor)
        return load_time(data) or GobData(name, data, form)

    match want:
        case Time() if form == "gob":
            return read_time
        case Interface():
            # The name is missing when the process met the type as a pointer first, so it is the bytes that tell.
            return read_either if form == "gob" and name in ("", "Time") else read_data
        case Encoded() if want.form == form:
            return read_data
    return None


def _adapted(read: Read, load: Callable[[Any], Any], name: str) -> Read:
    def read_adapted(cursor: Cursor) -> Any:
        return _load(load, read(cursor), name)

    return read_adapted


def _load(load: Callable[[Any], Any], value: Any, name: str) -> Any:
    try:
        return load(value)
    except Exception as error:
        raise Misfit(f"{name} {value!r:.100} was received and refused: {error}") from error


def _sequence_reader(read: Read, length: int | None, make: Callable[[Any], Any] | None, deepest: int) -> Read:
    def read_sequence(cursor: Cursor) -> Any:
        count = read_uint(cursor)
        if length is not None and count != length:
            raise Misfit(f"expected an array of {length}, received {count} elements")
        _go_deeper(cursor, deepest)
        _spend(cursor, count)
        elements: list[Any] = []
        try:
            for _ in range(count):
                elements.append(read(cursor))
        except Misfit as misfit:
            raise misfit.within(f"[{len(elements)}]") from misfit.__cause__
        cursor.depth -= 1
        return elements if make is None else make(elements)

    return read_sequence


def _map_reader(read_key: Read, read_elem: Read, keys_vary: bool, deepest: int) -> Read:
    def read_map(cursor: Cursor) -> dict[Any, Any]:
        count = read_uint(cursor)
        _go_deeper(cursor, deepest)
        _spend(cursor, 2 * count)
        found: dict[Any, Any] = {}
        key = None
        try:
            for _ in range(count):
                key = None
                key = read_key(cursor)
                found[key] = read_elem(cursor)
        except Misfit as misfit:
            raise misfit.within(f"[{key!r:.50}]") from misfit.__cause__
        except TypeError as error:
            raise Misfit(f"a {type(key).__name__} cannot be the key of a dict: make it a frozen dataclass") from error
        if keys_vary and len(found) != count:
            raise Misfit("two keys of a map are equal in Python, such as 1 and True: decode with keep_names=True")
        cursor.depth -= 1
        return found

    return read_map


@dataclasses.dataclass(slots=True)
class _StructPlan:
    """How a struct is read.

    :param factory: makes the result from keywords.
    :param names: the fields on the wire, in order, as the sender calls them.
    :param slots: for each field on the wire: the keyword that it is for (`None` when nobody wants it) and its reader.
    :param makers: for each keyword, in order, what makes the value of a field that was left out.
    :param fill: how many elements a value counts for, because that many are filled in at the sender's will.
    """

    factory: Callable[..., Any]
    names: list[str]
    slots: list[tuple[str | None, Read]] = dataclasses.field(default_factory=list)
    makers: dict[str, Maker] = dataclasses.field(default_factory=dict)
    fill: int = 0


def _struct_reader(plan: _StructPlan, deepest: int) -> Read:
    slots, names, factory, fill = plan.slots, plan.names, plan.factory, plan.fill
    last = len(slots) - 1
    blank = {key: make() if make in _IMMUTABLE else _LEFT_OUT for key, make in plan.makers.items()}
    makers = [(key, make) for key, make in plan.makers.items() if make not in _IMMUTABLE]

    def read_struct(cursor: Cursor) -> Any:
        cursor.depth += 1
        if cursor.depth > deepest:
            raise too_deep(deepest)
        if fill:
            _spend(cursor, fill)
        values = blank.copy()
        index = -1
        try:
            while True:
                delta = cursor.data[cursor.pos]
                if delta < 128:
                    cursor.pos += 1
                else:
                    delta = read_uint(cursor)
                if not delta:
                    break
                index += delta
                if index > last:
                    raise GobCorrupt(f"Not a gob stream: field {index} of a struct of {last + 1}.")
                key, read = slots[index]
                if key is None:
                    read(cursor)
                else:
                    values[key] = read(cursor)
        except Misfit as misfit:
            raise misfit.within(names[index]) from misfit.__cause__
        for key, make in makers:
            if values[key] is _LEFT_OUT:
                values[key] = make()
        cursor.depth -= 1
        return values if factory is dict else _construct(factory, values)

    return read_struct


def _construct(factory: Callable[..., Any], values: dict[str, Any]) -> Any:
    try:
        return factory(**values)
    except Exception as error:
        name = getattr(factory, "__qualname__", repr(factory))
        raise Misfit(f"{name} refused its fields: {error}") from error


def _pairs(keys: list[str]) -> Callable[..., tuple[tuple[str, Any], ...]]:
    """What stands for a struct as a key: names and values, always in the same order."""
    return lambda **values: tuple((key, values[key]) for key in keys)


def _defaulted(factory: Callable[..., Any] | None) -> frozenset[str]:
    """The fields of a dataclass that have a default of their own, for when the sender's type knows no such field."""
    if factory is None or not dataclasses.is_dataclass(factory):
        return frozenset()
    missing = dataclasses.MISSING
    return frozenset(
        field.name
        for field in dataclasses.fields(factory)
        if field.default is not missing or field.default_factory is not missing
    )


def _nothing() -> None:
    return None


def _zero_time() -> Any:
    return ZERO_TIME


_IMMUTABLE: Final = frozenset({bool, int, float, complex, str, bytes, tuple, _nothing, _zero_time})


def _wire_zero(received: WireType | None, as_key: bool) -> Maker:
    """What a field that the sender left out stands for, as far as its type on the wire tells.

    Struct and array values are never left out: one that is missing was a nil pointer.
    """
    match received:
        case WireBasic(name):
            return _BASIC_ZEROS.get(name, _nothing)
        case WireSlice():
            return tuple if as_key else list
        case WireMap():
            return tuple if as_key else dict
    return _nothing


_BASIC_ZEROS: Final[Mapping[str, Maker]] = {
    "bool": bool,
    "int": int,
    "uint": int,
    "float": float,
    "bytes": bytes,
    "string": str,
    "complex": complex,
}


def zero_maker(go_type: GoType, depth: int = 0) -> Maker:
    """What makes the zero value of a type.

    :raises GobError: for a struct that contains itself other than through a pointer, a slice or a map.
    """
    match go_type:
        case Bool():
            return bool
        case Int() | Uint():
            return int
        case Float():
            return float
        case Complex():
            return complex
        case String():
            return str
        case Bytes():
            return bytes
        case Slice():
            return list
        case Map():
            return dict
        case Time():
            return _zero_time
        case Array(length, elem):
            make = zero_maker(elem, depth)
            return lambda: [make() for _ in range(length)]
        case Adapted(inner, load, _):
            make = zero_maker(inner, depth)
            return lambda: _load(load, make(), describe(inner))
        case Struct():
            return _zero_struct(go_type, depth)
        case Deferred():
            return zero_maker(go_type.type, depth)
    return _nothing


def _zero_struct(struct: Struct, depth: int) -> Maker:
    if depth > 100:
        raise GobError(
            f"{describe(struct)} contains itself: make the field that leads back Optional, a list or a dict."
        )
    makers = {field.key: zero_maker(field.type, depth + 1) for field in struct.fields}
    return lambda: _construct(struct.factory or dict, {key: make() for key, make in makers.items()})
