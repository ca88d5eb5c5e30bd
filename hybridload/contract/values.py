"""Python values into protobuf messages and back, compiled once for each pair of a shape and a field.

A *slot* is a field with both its directions, `put(message, value, objects)` and `take(message, objects)`; an *element*
is one item of it. Everything that can be known beforehand is decided while compiling, so a call only runs closures.

Rules:

- Compiling refuses, with `Misfit`, a shape that the field cannot carry; both sides are named.
- Encoding refuses, with `Unfit`, a value that is not of its type: nothing is converted that type checkers would refuse.
- int may stand for float, and bool for int, as in Python's type system.
- Instants come back in UTC: a Timestamp has no zone. Nanoseconds beyond microseconds are cut off.
- A list (or dict, or `T | None`) where protobuf allows only a single value travels in a message with a single field.
- Enums with int values are matched by number, others by name (with or without the enum's own name in front).
"""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from hybridload.contract.hints import (
    Enumeration,
    Maybe,
    MessageClass,
    Misfit,
    Plain,
    Record,
    Reference,
    Repeated,
    Shape,
    Table,
    describe,
    describe_shape,
)
from hybridload.contract.service import Objects
from hybridload.errors import ContractError

Put = Callable[[Any, Any, Objects | None], None]
Take = Callable[[Any, Objects | None], Any]
Convert = Callable[[Any, Objects | None], Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INTEGERS: dict[int, tuple[str, int, int]] = {
    **dict.fromkeys(
        (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SFIXED32),
        ("int32", -(2**31), 2**31 - 1),
    ),
    **dict.fromkeys(
        (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_SINT64, FieldDescriptor.TYPE_SFIXED64),
        ("int64", -(2**63), 2**63 - 1),
    ),
    **dict.fromkeys((FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_FIXED32), ("uint32", 0, 2**32 - 1)),
    **dict.fromkeys((FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64), ("uint64", 0, 2**64 - 1)),
    FieldDescriptor.TYPE_ENUM: ("enum", -(2**31), 2**31 - 1),
}
_FLOATS = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)
_TYPE_NAMES = {getattr(FieldDescriptor, name): name[5:].lower() for name in dir(FieldDescriptor) if name[:5] == "TYPE_"}
_BOXES = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)


class Unfit(Exception):
    """A value that cannot be sent, or was received and is none. Gets its path while it climbs out of the containers.

    :param error: the exception that the caller gets.
    :param text: the end of a sentence that begins with the value's path.
    """

    def __init__(self, error: type[Exception], text: str) -> None:
        super().__init__(text)
        self.error = error
        self.text = text
        self.path = ""

    def within(self, step: str) -> Unfit:
        self.path = step + self.path
        return self


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value that protobuf holds by itself.

    :param native: the type whose instances protobuf takes and gives as they are, refusing with ValueError those that
        do not fit; `pack` is then only needed for others, and to word the refusal. `unpack` returns what it is given.
    """

    pack: Convert
    unpack: Convert
    native: type | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """One value that is a message: `fill` writes it into one, `read` makes it from one."""

    fill: Put
    read: Take


@dataclass(frozen=True, slots=True)
class Slot:
    """A field of a message, both ways.

    :param attribute: the field's name when `take` would only read that attribute.
    :param oneof: full name of the oneof that the field is part of.
    """

    name: str
    put: Put
    take: Take
    attribute: str | None = None
    oneof: str | None = None


class Codecs:
    """Compiles shapes against descriptors; one for each contract, so that each dataclass is compiled once."""

    def __init__(self) -> None:
        self._records: dict[tuple[type, str], _RecordCodec] = {}

    def slot(self, shape: Shape, field: FieldDescriptor) -> Slot:
        """Compile a field.

        :raises Misfit: when it cannot carry the shape.
        """
        oneof = _oneof(field)
        if is_map(field):
            return self._map(shape, field)
        if is_repeated(field):
            return self._repeated(shape, field)
        if isinstance(shape, Maybe):
            return self._optional(shape, field, oneof)
        element = self.element(shape, field)
        name = field.name
        if isinstance(element, Scalar):
            return Slot(name, *_scalar_slot(name, element), attribute=name if element.native else None, oneof=oneof)
        return Slot(name, *_body_slot(name, element), oneof=oneof)

    def element(self, shape: Shape, field: FieldDescriptor) -> Scalar | Body:
        """Compile one item of a field.

        :raises Misfit: when it cannot carry the shape.
        """
        match shape:
            case Plain():
                return self._plain(shape, field)
            case Enumeration():
                return _enumeration(shape, field)
            case Reference():
                return _reference(shape, field)
            case Record() | MessageClass():
                if field.message_type is None:
                    raise _mismatch(shape, field)
                return self.body(shape, field.message_type)
            case _:
                return self._wrapped(shape, field)

    def body(self, shape: Shape, message: Descriptor) -> Body:
        """Compile a whole message.

        :raises Misfit: when it is not what the shape says.
        """
        match shape:
            case Record():
                return self._record(shape, message)
            case MessageClass(python=python):
                return _message(python, message)
            case Plain(python=python) if python is datetime and message.full_name == "google.protobuf.Timestamp":
                return Body(_fill_timestamp, _read_timestamp)
            case Plain(python=python) if python is timedelta and message.full_name == "google.protobuf.Duration":
                return Body(_fill_duration, _read_duration)
            case _:
                raise Misfit(f"{describe_shape(shape)} does not fit the message {message.full_name}")

    def _plain(self, shape: Plain, field: FieldDescriptor) -> Scalar | Body:
        python, kind = shape.python, field.type
        if python in (datetime, timedelta) and field.message_type is not None:
            return self.body(shape, field.message_type)
        if python is str and kind == FieldDescriptor.TYPE_STRING:
            return Scalar(_pack_str, _same, str)
        if python is bytes and kind == FieldDescriptor.TYPE_BYTES:
            return Scalar(_pack_bytes, _same, bytes)
        if python is bool and kind == FieldDescriptor.TYPE_BOOL:
            return Scalar(_pack_bool, _same, bool)
        if python is float and kind in _FLOATS:
            return Scalar(_pack_float, _same, float)
        if python is int and kind in _INTEGERS:
            return Scalar(_integer(*_INTEGERS[kind]), _same, int)
        if field.message_type is not None and field.message_type.full_name in _BOXES:
            return _boxed(self.slot(shape, field.message_type.fields_by_name["value"]))
        raise _mismatch(shape, field)

    def _wrapped(self, shape: Shape, field: FieldDescriptor) -> Body:
        """A list, dict or optional value where the field holds a single one: a message with a single field."""
        message = field.message_type
        if message is None or len(message.fields) != 1:
            raise _mismatch(shape, field)
        try:
            return _boxed(self.slot(shape, message.fields[0]))
        except Misfit as error:
            raise _mismatch(shape, field) from error

    def _optional(self, shape: Maybe, field: FieldDescriptor, oneof: str | None) -> Slot:
        name, inner = field.name, shape.item
        if isinstance(inner, Reference) and not field.has_presence:
            return _optional_reference(self.slot(inner, field))
        if not field.has_presence:
            raise Misfit(
                f"{describe_shape(shape)} does not fit the field {field.full_name}, which cannot be absent; "
                "drop `| None`, or mark the field `optional`"
            )
        slot = self.slot(inner, field)
        put_value, take_value = slot.put, slot.take

        def put(message: Any, value: Any, objects: Objects | None) -> None:
            if value is not None:
                put_value(message, value, objects)

        def take(message: Any, objects: Objects | None) -> Any:
            return take_value(message, objects) if message.HasField(name) else None

        return Slot(name, put, take, oneof=oneof)

    def _repeated(self, shape: Shape, field: FieldDescriptor) -> Slot:
        if not isinstance(shape, Repeated):
            raise _mismatch(shape, field)
        element = self.element(shape.item, field)
        if isinstance(element, Scalar):
            return Slot(field.name, *_repeated_scalar(field.name, shape, element))
        return Slot(field.name, *_repeated_body(field.name, shape, element))

    def _map(self, shape: Shape, field: FieldDescriptor) -> Slot:
        if not isinstance(shape, Table):
            raise _mismatch(shape, field)
        entry = _entry(field)
        key = self.element(shape.key, entry["key"])
        value = self.element(shape.value, entry["value"])
        assert isinstance(key, Scalar)  # the hint language has no other keys
        if isinstance(value, Scalar):
            return Slot(field.name, *_map_scalar(field.name, shape, key, value))
        return Slot(field.name, *_map_body(field.name, shape, key, value))

    def _record(self, shape: Record, message: Descriptor) -> Body:
        key = (shape.python, message.full_name)
        codec = self._records.get(key)
        if codec is None:
            codec = self._records[key] = _RecordCodec(shape.python)
            try:
                codec.compile(shape, message, self)
            except Misfit:
                del self._records[key]
                raise
        return Body(codec.fill, codec.read)


class _RecordCodec:
    """A dataclass and the message that it is; compiled after it is made, because either may contain itself."""

    __slots__ = ("_checks", "_names", "_positional", "_puts", "_python", "_takes")

    def __init__(self, python: type) -> None:
        self._python = python

    def compile(self, shape: Record, message: Descriptor, codecs: Codecs) -> None:
        slots = []
        for item in shape.fields:
            field = field_named(message, item.name)
            if field is None:
                raise Misfit(
                    f"{describe(shape.python)}.{item.name} has no field in the message {message.full_name}, "
                    f"which has {listed(field.name for field in message.fields)}"
                )
            try:
                slots.append(codecs.slot(item.shape, field))
            except Misfit as error:
                raise Misfit(f"{describe(shape.python)}.{item.name}: {error}") from error
        pairs = sorted(zip(shape.fields, slots, strict=True), key=lambda pair: pair[0].keyword_only)
        self._names = tuple(item.name for item, _ in pairs)
        self._puts = tuple((item.name, slot.put) for item, slot in pairs)
        self._takes = tuple(slot.take for _, slot in pairs)
        self._positional = sum(not item.keyword_only for item in shape.fields)
        self._checks = exclusive([(item.name, slot) for item, slot in pairs])

    def fill(self, message: Any, value: Any, objects: Objects | None) -> None:
        if not isinstance(value, self._python):
            raise wrong_type(describe(self._python), value)
        name = ""
        try:
            for names in self._checks:
                check_exclusive(names, [getattr(value, name) for name in names])
            for name, put in self._puts:
                put(message, getattr(value, name), objects)
        except Unfit as unfit:
            raise unfit.within(f".{name}" if name else "") from None

    def read(self, message: Any, objects: Objects | None) -> Any:
        values: list[Any] = []
        try:
            for take in self._takes:
                values.append(take(message, objects))
        except Unfit as unfit:
            raise unfit.within(f".{self._names[len(values)]}") from None
        positional = self._positional
        if positional == len(values):
            return self._python(*values)
        return self._python(
            *values[:positional], **dict(zip(self._names[positional:], values[positional:], strict=True))
        )


def field_named(message: Descriptor, name: str) -> FieldDescriptor | None:
    """The field of a Python name; ``from_`` also stands for ``from``, which is no name in Python."""
    fields = message.fields_by_name
    return fields.get(name) or fields.get(name.rstrip("_"))


def listed(names: Any) -> str:
    """Names for a message to humans."""
    return ", ".join(names) or "none"


def is_repeated(field: FieldDescriptor) -> bool:
    """Whether a field is repeated; maps are, too."""
    known = getattr(field, "is_repeated", None)
    if known is None:  # before protobuf 6, which deprecates `label`
        known = getattr(field, "label") == FieldDescriptor.LABEL_REPEATED  # noqa: B009
    return bool(known)


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    message = field.message_type
    return message is not None and is_repeated(field) and bool(message.GetOptions().map_entry)


def _entry(field: FieldDescriptor) -> Any:
    assert field.message_type is not None  # a map's entries are messages
    return field.message_type.fields_by_name


def exclusive(slots: list[tuple[str, Slot]]) -> tuple[tuple[str, ...], ...]:
    """The groups of names of which at most one may be given, because their fields are in one oneof."""
    groups: dict[str, list[str]] = {}
    for name, slot in slots:
        if slot.oneof is not None:
            groups.setdefault(slot.oneof, []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def check_exclusive(names: tuple[str, ...], values: list[Any]) -> None:
    """Refuse two values for one oneof.

    :raises Unfit: naming those that are given.
    """
    given = [name for name, value in zip(names, values, strict=True) if value is not None]
    if len(given) > 1:
        raise Unfit(ValueError, f"has {' and '.join(given)}, of which at most one may be given (a oneof)")


def wrong_type(expected: str, value: Any) -> Unfit:
    """The error for a value of another type than the hint says."""
    return Unfit(TypeError, f"must be {expected}, not {describe(type(value))}")


def _mismatch(shape: Shape, field: FieldDescriptor) -> Misfit:
    return Misfit(f"{describe_shape(shape)} does not fit the field {field.full_name}, which is {_field_type(field)}")


def _field_type(field: FieldDescriptor) -> str:
    if is_map(field):
        entry = _entry(field)
        return f"map<{_field_type(entry['key'])}, {_field_type(entry['value'])}>"
    label = "repeated " if is_repeated(field) else ""
    named = field.message_type or field.enum_type
    return label + (named.full_name if named is not None else _TYPE_NAMES[field.type])


def _oneof(field: FieldDescriptor) -> str | None:
    oneof = field.containing_oneof
    # `optional` in proto3 is a oneof of one, which needs no attention.
    return oneof.full_name if oneof is not None and len(oneof.fields) > 1 else None


def _same(value: Any, objects: Objects | None) -> Any:
    return value


def _pack_str(value: Any, objects: Objects | None) -> Any:
    if not isinstance(value, str):
        raise wrong_type("str", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Unfit(
                ValueError, f"has a lone surrogate at {error.start}, which no UTF-8 text can hold; send bytes instead"
            ) from None
    return value


def _pack_bytes(value: Any, objects: Objects | None) -> Any:
    if not isinstance(value, bytes):
        raise wrong_type("bytes", value)
    return value


def _pack_bool(value: Any, objects: Objects | None) -> Any:
    if not isinstance(value, bool):
        raise wrong_type("bool", value)
    return value


def _pack_float(value: Any, objects: Objects | None) -> Any:
    if not isinstance(value, (float, int)):
        raise wrong_type("float", value)
    try:
        return float(value)
    except OverflowError:
        raise Unfit(OverflowError, "is too large for a float") from None


def _integer(kind: str, low: int, high: int) -> Convert:
    def pack(value: Any, objects: Objects | None) -> Any:
        if type(value) is not int:
            value = _as_int(value)
        if low <= value <= high:
            return value
        raise Unfit(OverflowError, f"must be from {low} to {high} ({kind}), not {_short(value)}")

    return pack


def _as_int(value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise wrong_type("int", value) from None


def _short(value: int) -> str:
    if value.bit_length() <= 256:
        return str(value)
    return f"about {'-' if value < 0 else ''}10**{int(value.bit_length() * math.log10(2))}"


def _enumeration(shape: Enumeration, field: FieldDescriptor) -> Scalar:
    python = shape.python
    if shape.by_number and field.type in _INTEGERS:
        return Scalar(_enum_packer(python, lambda member: int(member.value)), _by_value(python))
    if field.enum_type is None:
        raise _mismatch(shape, field)
    numbers = _numbers_by_name(python, field.enum_type)
    members = {number: member for member, number in numbers.items()}

    def unpack(number: Any, objects: Objects | None) -> Any:
        try:
            return members[number]
        except KeyError:
            raise _no_member(python, number) from None

    return Scalar(_enum_packer(python, numbers.__getitem__), unpack)


def _enum_packer(python: type[enum.Enum], number: Callable[[Any], int]) -> Convert:
    numbers = {member: number(member) for member in python}

    def pack(value: Any, objects: Objects | None) -> Any:
        if not isinstance(value, python):
            raise wrong_type(describe(python), value)
        known = numbers.get(value)
        return int(value.value) if known is None else known  # a Flag's combinations are no members of it

    return pack


def _by_value(python: type[enum.Enum]) -> Convert:
    def unpack(number: Any, objects: Objects | None) -> Any:
        try:
            return python(number)
        except ValueError:
            raise _no_member(python, number) from None

    return unpack


def _no_member(python: type[enum.Enum], number: int) -> Unfit:
    return Unfit(ValueError, f"is {number}, which is no member of {describe(python)}")


def _numbers_by_name(python: type[enum.Enum], descriptor: EnumDescriptor) -> dict[enum.Enum, int]:
    prefix = plain_name(descriptor.name)
    numbers: dict[str, int] = {}
    for value in descriptor.values:
        numbers.setdefault(plain_name(value.name).removeprefix(prefix), value.number)
    numbers |= {plain_name(value.name): value.number for value in descriptor.values}
    missing = [member.name for member in python if plain_name(member.name) not in numbers]
    if missing:
        raise Misfit(
            f"{describe(python)}.{missing[0]} is not in the enum {descriptor.full_name}, "
            f"which has {listed(value.name for value in descriptor.values)}"
        )
    return {member: numbers[plain_name(member.name)] for member in python}


def plain_name(name: str) -> str:
    """A name without what spellings differ in: ``COLOR_RED``, ``Color_Red`` and ``colorRed`` are one."""
    return name.replace("_", "").lower()


def _reference(shape: Reference, field: FieldDescriptor) -> Scalar:
    contract = shape.contract
    if field.type not in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_FIXED32):
        raise Misfit(
            f"{describe_shape(shape)} is an interface and travels as a service id, which is uint32; "
            f"the field {field.full_name} is {_field_type(field)}"
        )

    def pack(value: Any, objects: Objects | None) -> Any:
        if value is None:
            raise wrong_type(describe_shape(shape), value)
        if objects is None:
            raise Unfit(ContractError, "is an object to call back, and there is no broker here to reach it")
        return objects.export(value, contract)

    def unpack(service_id: Any, objects: Objects | None) -> Any:
        if not service_id:
            raise Unfit(ValueError, f"has no service id, so there is no {describe_shape(shape)} to call")
        if objects is None:
            raise Unfit(ContractError, "is an object to call back, and there is no broker here to reach it")
        return objects.adopt(service_id, contract)

    return Scalar(pack, unpack)


def _optional_reference(slot: Slot) -> Slot:
    """A service id that may be missing: broker ids count from 1, so 0 is none."""
    name, put_value, take_value = slot.name, slot.put, slot.take

    def put(message: Any, value: Any, objects: Objects | None) -> None:
        if value is not None:
            put_value(message, value, objects)

    def take(message: Any, objects: Objects | None) -> Any:
        return take_value(message, objects) if getattr(message, name) else None

    return Slot(name, put, take)


def _message(python: type[Message], message: Descriptor) -> Body:
    if python.DESCRIPTOR.full_name != message.full_name:
        raise Misfit(f"{describe(python)} is the message {python.DESCRIPTOR.full_name}, not {message.full_name}")

    def fill(target: Any, value: Any, objects: Objects | None) -> None:
        if not isinstance(value, python):
            raise wrong_type(describe(python), value)
        target.MergeFromString(value.SerializeToString())  # the two classes live in different pools
        target.SetInParent()

    def read(source: Any, objects: Objects | None) -> Any:
        return python.FromString(source.SerializeToString())

    return Body(fill, read)


def _fill_timestamp(message: Any, value: Any, objects: Objects | None) -> None:
    if not isinstance(value, datetime):
        raise wrong_type("datetime", value)
    if value.utcoffset() is None:
        raise Unfit(ValueError, "is a naive datetime, which is no instant; give it a zone, e.g. value.astimezone()")
    since = value - _EPOCH
    message.seconds = since.days * 86400 + since.seconds
    message.nanos = since.microseconds * 1000
    message.SetInParent()


def _read_timestamp(message: Any, objects: Objects | None) -> Any:
    try:
        return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
    except OverflowError:
        raise Unfit(ValueError, f"is {message.seconds} s from 1970, out of datetime's range") from None


def _fill_duration(message: Any, value: Any, objects: Objects | None) -> None:
    if not isinstance(value, timedelta):
        raise wrong_type("timedelta", value)
    seconds, microseconds = value.days * 86400 + value.seconds, value.microseconds
    if seconds < 0 and microseconds:  # both parts have one sign
        seconds, microseconds = seconds + 1, microseconds - 1_000_000
    message.seconds = seconds
    message.nanos = microseconds * 1000
    message.SetInParent()


def _read_duration(message: Any, objects: Objects | None) -> Any:
    nanos = message.nanos
    try:
        return timedelta(seconds=message.seconds, microseconds=nanos // 1000 if nanos >= 0 else -(-nanos // 1000))
    except OverflowError:
        raise Unfit(ValueError, f"is {message.seconds} s, out of timedelta's range") from None


def _boxed(slot: Slot) -> Body:
    put, take = slot.put, slot.take

    def fill(message: Any, value: Any, objects: Objects | None) -> None:
        put(message, value, objects)
        message.SetInParent()

    return Body(fill, take)


def _scalar_slot(name: str, element: Scalar) -> tuple[Put, Take]:
    pack, unpack, native = element.pack, element.unpack, element.native

    def put(message: Any, value: Any, objects: Objects | None) -> None:
        if type(value) is native:
            try:
                setattr(message, name, value)
                return
            except ValueError:  # worded by pack
                pass
        setattr(message, name, pack(value, objects))

    def take(message: Any, objects: Objects | None) -> Any:
        return unpack(getattr(message, name), objects)

    def take_as_is(message: Any, objects: Objects | None) -> Any:
        return getattr(message, name)

    return put, take_as_is if native else take


def _body_slot(name: str, element: Body) -> tuple[Put, Take]:
    fill, read = element.fill, element.read

    def put(message: Any, value: Any, objects: Objects | None) -> None:
        inner = getattr(message, name)
        fill(inner, value, objects)
        inner.SetInParent()  # an empty message is there all the same

    def take(message: Any, objects: Objects | None) -> Any:
        return read(getattr(message, name), objects)

    return put, take


def _repeated_scalar(name: str, shape: Repeated, element: Scalar) -> tuple[Put, Take]:
    pack, unpack, builds, natives = element.pack, element.unpack, shape.builds, {element.native}
    check = _container_check(shape)

    def put(message: Any, value: Any, objects: Objects | None) -> None:
        check(value)
        if set(map(type, value)) == natives:
            try:
                getattr(message, name).extend(value)
                return
            except ValueError:  # worded by pack
                message.ClearField(name)
        packed: list[Any] = []
        try:
            for item in value:
                packed.append(pack(item, objects))
        except Unfit as unfit:
            raise unfit.within(f"[{len(packed)}]") from None
        getattr(message, name).extend(packed)

    def take(message: Any, objects: Objects | None) -> Any:
        return builds([unpack(item, objects) for item in getattr(message, name)])

    def take_as_is(message: Any, objects: Objects | None) -> Any:
        return builds(getattr(message, name))

    return put, take_as_is if element.native else take


def _repeated_body(name: str, shape: Repeated, element: Body) -> tuple[Put, Take]:
    fill, read, builds = element.fill, element.read, shape.builds
    check = _container_check(shape)

    def put(message: Any, value: Any, objects: Objects | None) -> None:
        check(value)
        items = getattr(message, name)
        try:
            for item in value:
                fill(items.add(), item, objects)
        except Unfit as unfit:
            raise unfit.within(f"[{len(items) - 1}]") from None

    def take(message: Any, objects: Objects | None) -> Any:
        return builds([read(item, objects) for item in getattr(message, name)])

    return put, take


def _container_check(shape: Repeated) -> Callable[[Any], None]:
    accepts, expected = shape.accepts, shape.accepts.__name__

    def check(value: Any) -> None:
        if not isinstance(value, accepts) or isinstance(value, (str, bytes)):
            raise wrong_type(expected, value)

    return check


def _map_scalar(name: str, shape: Table, key: Scalar, element: Scalar) -> tuple[Put, Take]:
    pack, unpack, pack_key = element.pack, element.unpack, key.pack
    native_keys, natives = {key.native}, {element.native}
    accepts: Any = shape.accepts

    def put(message: Any, value: Any, objects: Objects | None) -> None:
        if not isinstance(value, accepts):
            raise wrong_type(accepts.__name__, value)
        entries = getattr(message, name)
        if set(map(type, value)) == native_keys and set(map(type, value.values())) == natives:
            try:
                for own_key, item in value.items():
                    entries[own_key] = item
                return
            except ValueError:  # worded by pack
                entries.clear()
        for own_key, item in value.items():
            packed_key = _pack_key(pack_key, own_key)
            try:
                entries[packed_key] = pack(item, objects)
            except Unfit as unfit:
                raise unfit.within(f"[{own_key!r}]") from None

    def take(message: Any, objects: Objects | None) -> Any:
        return {own_key: unpack(item, objects) for own_key, item in getattr(message, name).items()}

    def take_as_is(message: Any, objects: Objects | None) -> Any:
        return dict(getattr(message, name).items())

    return put, take_as_is if element.native else take


def _map_body(name: str, shape: Table, key: Scalar, element: Body) -> tuple[Put, Take]:
    fill, read, pack_key = element.fill, element.read, key.pack
    accepts: Any = shape.accepts

    def put(message: Any, value: Any, objects: Objects | None) -> None:
        if not isinstance(value, accepts):
            raise wrong_type(accepts.__name__, value)
        entries = getattr(message, name)
        for own_key, item in value.items():
            packed_key = _pack_key(pack_key, own_key)
            try:
                fill(entries[packed_key], item, objects)  # reading a missing entry makes it
            except Unfit as unfit:
                raise unfit.within(f"[{own_key!r}]") from None

    def take(message: Any, objects: Objects | None) -> Any:
        return {own_key: read(item, objects) for own_key, item in getattr(message, name).items()}

    return put, take


def _pack_key(pack: Convert, key: Any) -> Any:
    try:
        return pack(key, None)
    except Unfit as unfit:
        raise unfit.within(f" key {key!r}") from None
