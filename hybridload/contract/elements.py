"""What protobuf holds in one place: a scalar, an enum's number, a service id, or a message of its own.

Rules:

- Packing refuses, with `Unfit`, a value that is not of its type: nothing is converted that type checkers would refuse.
- int may stand for float, and bool for int, as in Python's type system.
- Instants come back in UTC: a Timestamp has no zone. Nanoseconds beyond microseconds are cut off.
- Enums with int values are matched by number, others by name (with or without the enum's own name in front).
"""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from hybridload.contract.hints import Enumeration, Misfit, Reference, Shape, describe, describe_shape
from hybridload.contract.protobuf import class_of
from hybridload.contract.service import Objects
from hybridload.errors import ContractError
from hybridload.frozen import frozen

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


@frozen
class Scalar:
    """One value that protobuf holds by itself.

    :param native: the type whose instances protobuf takes and gives as they are, refusing with ValueError those that
        do not fit; `pack` is then only needed for others, and to word the refusal. `unpack` returns what it is given.
    """

    pack: Convert
    unpack: Convert
    native: type | None = None


@frozen
class Body:
    """One value that is a message: `fill` writes it into one, `read` makes it from one."""

    fill: Put
    read: Take


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
    message, holder = field.message_type, field.containing_type
    if message is None or holder is None or not message.has_options or not is_repeated(field):
        return False
    # What reads the options takes 40 ms to import; only what holds a map knows a class for its entries.
    return hasattr(getattr(class_of(holder)(), field.name), "GetEntryClass")


def entry_of(field: FieldDescriptor) -> Any:
    """The fields of a map's entries, by name."""
    assert field.message_type is not None  # a map's entries are messages
    return field.message_type.fields_by_name


def wrong_type(expected: str, value: Any) -> Unfit:
    """The error for a value of another type than the hint says."""
    return Unfit(TypeError, f"must be {expected}, not {describe(type(value))}")


def mismatch(shape: Shape, field: FieldDescriptor) -> Misfit:
    """The refusal of a shape that a field cannot carry."""
    return Misfit(f"{describe_shape(shape)} does not fit the field {field.full_name}, which is {field_type(field)}")


def field_type(field: FieldDescriptor) -> str:
    """A field's type as a .proto file has it."""
    if is_map(field):
        entry = entry_of(field)
        return f"map<{field_type(entry['key'])}, {field_type(entry['value'])}>"
    label = "repeated " if is_repeated(field) else ""
    named = field.message_type or field.enum_type
    return label + (named.full_name if named is not None else _TYPE_NAMES[field.type])


def plain_scalar(python: type, kind: int) -> Scalar | None:
    """How a field of a kind holds a plain Python type, or `None` when it does not."""
    if python is int and kind in _INTEGERS:
        return Scalar(_integer(*_INTEGERS[kind]), _same, int)
    if python is float and kind in _FLOATS:
        return Scalar(_pack_float, _same, float)
    if python is str and kind == FieldDescriptor.TYPE_STRING:
        return Scalar(_pack_str, _same, str)
    if python is bytes and kind == FieldDescriptor.TYPE_BYTES:
        return Scalar(_pack_bytes, _same, bytes)
    if python is bool and kind == FieldDescriptor.TYPE_BOOL:
        return Scalar(_pack_bool, _same, bool)
    return None


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


def enumeration(shape: Enumeration, field: FieldDescriptor) -> Scalar:
    """Compile an enum.

    :raises Misfit: when the field has no number for a member.
    """
    python = shape.python
    if shape.by_number and field.type in _INTEGERS:
        return Scalar(_enum_packer(python, lambda member: int(member.value)), _by_value(python))
    if field.enum_type is None:
        raise mismatch(shape, field)
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


def reference(shape: Reference, field: FieldDescriptor) -> Scalar:
    """Compile an object that is called back.

    :raises Misfit: when the field cannot hold a service id.
    """
    contract = shape.contract
    if field.type not in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_FIXED32):
        raise Misfit(
            f"{describe_shape(shape)} is an interface and travels as a service id, which is uint32; "
            f"the field {field.full_name} is {field_type(field)}"
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


def message_class(python: type[Message], message: Descriptor) -> Body:
    """Compile a generated message class.

    :raises Misfit: when it is another message.
    """
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


def fill_timestamp(message: Any, value: Any, objects: Objects | None) -> None:
    if not isinstance(value, datetime):
        raise wrong_type("datetime", value)
    if value.utcoffset() is None:
        raise Unfit(ValueError, "is a naive datetime, which is no instant; give it a zone, e.g. value.astimezone()")
    since = value - _EPOCH
    message.seconds = since.days * 86400 + since.seconds
    message.nanos = since.microseconds * 1000
    message.SetInParent()


def read_timestamp(message: Any, objects: Objects | None) -> Any:
    try:
        return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
    except OverflowError:
        raise Unfit(ValueError, f"is {message.seconds} s from 1970, out of datetime's range") from None


def fill_duration(message: Any, value: Any, objects: Objects | None) -> None:
    if not isinstance(value, timedelta):
        raise wrong_type("timedelta", value)
    seconds, microseconds = value.days * 86400 + value.seconds, value.microseconds
    if seconds < 0 and microseconds:  # both parts have one sign
        seconds, microseconds = seconds + 1, microseconds - 1_000_000
    message.seconds = seconds
    message.nanos = microseconds * 1000
    message.SetInParent()


def read_duration(message: Any, objects: Objects | None) -> Any:
    nanos = message.nanos
    try:
        return timedelta(seconds=message.seconds, microseconds=nanos // 1000 if nanos >= 0 else -(-nanos // 1000))
    except OverflowError:
        raise Unfit(ValueError, f"is {message.seconds} s, out of timedelta's range") from None
