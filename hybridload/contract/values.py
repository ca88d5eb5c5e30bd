"""Python values into protobuf messages and back, compiled once for each pair of a shape and a field.

A *slot* is a field with both its directions, `put(message, value, objects)` and `take(message, objects)`; an *element*
is one item of it. Everything that can be known beforehand is decided while compiling, so a call only runs closures.

Rules:

- Compiling refuses, with `Misfit`, a shape that the field cannot carry; both sides are named.
- A list (or dict, or `T | None`) where protobuf allows only a single value travels in a message with a single field.
- Values that protobuf itself checks are handed to it as they are; what it refuses is looked at again for the wording.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from hybridload.contract.elements import (
    Body,
    Convert,
    Put,
    Scalar,
    Take,
    Unfit,
    entry_of,
    enumeration,
    field_named,
    fill_duration,
    fill_timestamp,
    is_map,
    is_repeated,
    listed,
    message_class,
    mismatch,
    plain_scalar,
    read_duration,
    read_timestamp,
    reference,
    wrong_type,
)
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
from hybridload.contract.protobuf import tag_of
from hybridload.contract.service import Objects
from hybridload.frozen import frozen

_BOXES = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)


@frozen
class Slot:
    """A field of a message, both ways.

    :param attribute: the field's name when `take` would only read that attribute.
    :param oneof: full name of the oneof that the field is part of.
    :param tag: the field's tag when it is bytes, and all that its message has: large ones go past protobuf, which would
        copy them twice more in each direction. Otherwise empty.
    """

    name: str
    put: Put
    take: Take
    attribute: str | None = None
    oneof: str | None = None
    tag: bytes = b""


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
            message = field.containing_type
            alone = element.native is bytes and oneof is None and message is not None and len(message.fields) == 1
            return Slot(
                name,
                *_scalar_slot(name, element),
                attribute=name if element.native else None,
                oneof=oneof,
                tag=tag_of(field.number) if alone else b"",
            )
        return Slot(name, *_body_slot(name, element), oneof=oneof)

    def element(self, shape: Shape, field: FieldDescriptor) -> Scalar | Body:
        """Compile one item of a field.

        :raises Misfit: when it cannot carry the shape.
        """
        match shape:
            case Plain():
                return self._plain(shape, field)
            case Enumeration():
                return enumeration(shape, field)
            case Reference():
                return reference(shape, field)
            case Record() | MessageClass():
                if field.message_type is None:
                    raise mismatch(shape, field)
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
                return message_class(python, message)
            case Plain(python=python) if python is datetime and message.full_name == "google.protobuf.Timestamp":
                return Body(fill_timestamp, read_timestamp)
            case Plain(python=python) if python is timedelta and message.full_name == "google.protobuf.Duration":
                return Body(fill_duration, read_duration)
            case _:
                raise Misfit(f"{describe_shape(shape)} does not fit the message {message.full_name}")

    def _plain(self, shape: Plain, field: FieldDescriptor) -> Scalar | Body:
        python = shape.python
        if python in (datetime, timedelta) and field.message_type is not None:
            return self.body(shape, field.message_type)
        scalar = plain_scalar(python, field.type)
        if scalar is not None:
            return scalar
        if field.message_type is not None and field.message_type.full_name in _BOXES:
            return _boxed(self.slot(shape, field.message_type.fields_by_name["value"]))
        raise mismatch(shape, field)

    def _wrapped(self, shape: Shape, field: FieldDescriptor) -> Body:
        """A list, dict or optional value where the field holds a single one: a message with a single field."""
        message = field.message_type
        if message is None or len(message.fields) != 1:
            raise mismatch(shape, field)
        try:
            return _boxed(self.slot(shape, message.fields[0]))
        except Misfit as error:
            raise mismatch(shape, field) from error

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
            raise mismatch(shape, field)
        element = self.element(shape.item, field)
        if isinstance(element, Scalar):
            return Slot(field.name, *_repeated_scalar(field.name, shape, element))
        return Slot(field.name, *_repeated_body(field.name, shape, element))

    def _map(self, shape: Shape, field: FieldDescriptor) -> Slot:
        if not isinstance(shape, Table):
            raise mismatch(shape, field)
        entry = entry_of(field)
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


def _oneof(field: FieldDescriptor) -> str | None:
    oneof = field.containing_oneof
    # `optional` in proto3 is a oneof of one, which needs no attention.
    return oneof.full_name if oneof is not None and len(oneof.fields) > 1 else None


def _optional_reference(slot: Slot) -> Slot:
    """A service id that may be missing: broker ids count from 1, so 0 is none."""
    name, put_value, take_value = slot.name, slot.put, slot.take

    def put(message: Any, value: Any, objects: Objects | None) -> None:
        if value is not None:
            put_value(message, value, objects)

    def take(message: Any, objects: Objects | None) -> Any:
        return take_value(message, objects) if getattr(message, name) else None

    return Slot(name, put, take)


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
