"""What contracts take from protobuf: pools, message classes, and .proto files as data.

protobuf's public modules for these (`descriptor_pool`, `message_factory`, `descriptor_pb2`) import its pure Python
implementation whether or not it is in use, which is a fifth of all that a Python plugin's start takes. Where protobuf
has an extension module, the types are that module's own, and what the public modules give is the same; so they are
taken from there. Without one, or in a release that has put it elsewhere, they come from the public modules.

A file as data is the bytes of its `FileDescriptorProto`, written here field by field, in the order and form in which
protobuf writes them. The numbers are those of google/protobuf/descriptor.proto.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from google.protobuf.internal import api_implementation
from google.protobuf.message import Message

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.descriptor_pool import DescriptorPool

_EXTENSION: Any = getattr(api_implementation, "_c_module", None)


def new_pool() -> DescriptorPool:
    """An empty pool."""
    if hasattr(_EXTENSION, "DescriptorPool"):
        pool: DescriptorPool = _EXTENSION.DescriptorPool()
        return pool
    from google.protobuf.descriptor_pool import DescriptorPool

    return DescriptorPool()


def class_of(descriptor: Descriptor) -> Any:
    """The class of a message; the same one each time, and the same as `message_factory.GetMessageClass` gives."""
    known = getattr(descriptor, "_concrete_class", None)
    if known is not None:
        return known
    metaclass = _metaclass()
    if metaclass is None or descriptor.extensions:
        from google.protobuf.message_factory import GetMessageClass

        return GetMessageClass(descriptor)
    made = metaclass(descriptor.name, (Message,), {"DESCRIPTOR": descriptor, "__module__": None})
    for field in descriptor.fields:  # they are looked up where they are needed, not made
        if field.message_type is not None:
            class_of(field.message_type)
    return made


@functools.cache
def _metaclass() -> Any:
    """What makes message classes of the extension module; `None` without one."""
    if _EXTENSION is None:
        return None
    try:
        from google.protobuf.pyext.cpp_message import (  # type: ignore[import-not-found]
            GeneratedProtocolMessageType,
        )
    except ImportError:
        return None
    return GeneratedProtocolMessageType


# Any message as data


def integer(number: int, value: int) -> bytes:
    """A field of an integer type, a bool or an enum; ``value`` is not written when it is 0."""
    return _varint(number << 3) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF) if value else b""


def content(number: int, value: bytes | str) -> bytes:
    """A field that is a string, bytes or a message, empty or not."""
    return wrapped(tag_of(number), value.encode() if isinstance(value, str) else value)


def tag_of(number: int) -> bytes:
    """What begins a field that is a string, bytes or a message."""
    return _varint(number << 3 | 2)


def wrapped(tag: bytes, value: bytes) -> bytes:
    """A message that is one field of bytes: the only copy that is made of them."""
    return tag + _varint(len(value)) + value


def unwrapped(tag: bytes, data: bytes) -> bytes | None:
    """The bytes of such a message, as `wrapped` makes it; `None` of any other, which need not be an error."""
    for length in range(1, 6):  # of what says how many bytes there are
        size = len(data) - len(tag) - length
        if size >= 0 and data.startswith(head := tag + _varint(size)) and len(head) == len(tag) + length:
            return data[len(head) :]
    return None


def contents(number: int, values: Iterable[bytes | str]) -> bytes:
    """A repeated field of such."""
    return b"".join(content(number, value) for value in values)


def read_contents(data: bytes) -> Iterator[bytes]:
    """The items of a message that has nothing but one repeated field of such, as a `FileDescriptorSet` has.

    :raises ValueError: it has something else.
    """
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        size, position = _read_varint(data, position)
        if tag != 1 << 3 | 2 or position + size > len(data):
            raise ValueError("not a list of messages")
        yield data[position : position + size]
        position += size


def _varint(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("cut off")


# Files


class FieldType:
    """`FieldDescriptorProto.Type`, as far as it is written here."""

    DOUBLE, INT64, INT32, BOOL, STRING, MESSAGE, BYTES, UINT32, ENUM = 1, 3, 5, 8, 9, 11, 12, 13, 14


OPTIONAL, REPEATED = 1, 3
"""`FieldDescriptorProto.Label`."""


class MessageData:
    """A message that is being described.

    :param map_entry: whether it is the entry of a map.
    """

    def __init__(self, name: str, *, map_entry: bool = False) -> None:
        self.name = name
        self._fields: list[bytes] = []
        self._nested: list[MessageData] = []
        self._oneofs: list[str] = []
        self._map_entry = map_entry

    def oneof(self, name: str) -> int:
        """Declare a oneof; its index."""
        self._oneofs.append(name)
        return len(self._oneofs) - 1

    def entry(self, name: str) -> MessageData:
        """Declare the entry of a map."""
        self._nested.append(MessageData(name, map_entry=True))
        return self._nested[-1]

    def field(
        self,
        name: str,
        number: int,
        kind: int,
        type_name: str = "",
        *,
        label: int = OPTIONAL,
        oneof: int | None = None,
        maybe: bool = False,
    ) -> None:
        """Declare a field.

        :param kind: of `FieldType`.
        :param type_name: the full name, with a dot in front, of a message or enum.
        :param oneof: the index of the oneof that it is in.
        :param maybe: whether it is optional in the sense of proto3.
        """
        self._fields.append(
            content(1, name)
            + integer(3, number)
            + integer(4, label)
            + integer(5, kind)
            + (content(6, type_name) if type_name else b"")
            + (b"" if oneof is None else b"\x48" + _varint(oneof))  # 9, and 0 is written
            + integer(17, maybe)
        )

    def data(self) -> bytes:
        """Its `DescriptorProto`."""
        return (
            content(1, self.name)
            + contents(2, self._fields)
            + contents(3, (nested.data() for nested in self._nested))
            + (content(7, integer(7, 1)) if self._map_entry else b"")
            + contents(8, (content(1, name) for name in self._oneofs))
        )


def enum_data(name: str, values: Iterable[tuple[str, int]]) -> bytes:
    """An `EnumDescriptorProto`.

    :param values: name and number of each.
    """
    items = (content(1, item) + b"\x10" + _varint(number & 0xFFFF_FFFF_FFFF_FFFF) for item, number in values)
    return content(1, name) + contents(2, items)


def method_data(name: str, request: str, response: str, *, streams_in: bool, streams_out: bool) -> bytes:
    """A `MethodDescriptorProto`.

    :param request: the full name of the message, with a dot in front; as `response`.
    """
    return (
        content(1, name) + content(2, request) + content(3, response) + integer(5, streams_in) + integer(6, streams_out)
    )


def file_data(
    name: str,
    package: str,
    messages: Iterable[MessageData],
    *,
    dependencies: Iterable[str] = (),
    enums: Iterable[bytes] = (),
    services: Iterable[tuple[str, Iterable[bytes]]] = (),
) -> bytes:
    """A `FileDescriptorProto` in proto3.

    :param enums: each as `enum_data` has it.
    :param services: name and methods of each, these as `method_data` has them.
    """
    return (
        content(1, name)
        + (content(2, package) if package else b"")
        + contents(3, dependencies)
        + contents(4, (message.data() for message in messages))
        + contents(5, enums)
        + contents(6, (content(1, service) + contents(2, methods) for service, methods in services))
        + content(12, "proto3")
    )
