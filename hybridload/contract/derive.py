"""Messages and a service made from type hints.

Rules:

- Each method has a `<Method>Request` with the parameters as its fields, and a `<Method>Response` whose only field is
  `result` (none for `-> None`).
- A client stream's first request message carries the other parameters, if there are any, and each one after that one
  item, in the field of the iterator parameter.
- A dataclass is a message and an Enum an enum of the same name; when two share a name, the later ones get a number.
- What protobuf cannot say in place gets a message with a single field: ``list[list[str]]`` repeats a `ListOfString`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from hybridload.contract.descriptors import Given, private_pool, well_known_files
from hybridload.contract.elements import plain_name
from hybridload.contract.hints import (
    Enumeration,
    Maybe,
    Plain,
    Record,
    Reference,
    Repeated,
    Shape,
    Table,
)
from hybridload.contract.wire import RESULT, Wire, given_wire
from hybridload.errors import ContractError

if TYPE_CHECKING:
    from hybridload.contract.service import Method, Service

_SCALARS = {
    str: FieldDescriptorProto.TYPE_STRING,
    int: FieldDescriptorProto.TYPE_INT64,
    float: FieldDescriptorProto.TYPE_DOUBLE,
    bool: FieldDescriptorProto.TYPE_BOOL,
    bytes: FieldDescriptorProto.TYPE_BYTES,
}
_WELL_KNOWN = {
    datetime: (".google.protobuf.Timestamp", "google/protobuf/timestamp.proto"),
    timedelta: (".google.protobuf.Duration", "google/protobuf/duration.proto"),
}
_NAMES = {str: "String", int: "Int64", float: "Double", bool: "Bool", bytes: "Bytes"}


def derived_wire(service: Service) -> Wire:
    """The wire form of a service that has hints alone.

    :raises ContractError: when protobuf refuses what the hints say.
    """
    file = derive(service)
    files = [*well_known_files(), file]
    try:
        pool = private_pool(files)
    except TypeError as error:
        raise ContractError(f"{service.interface.__qualname__}: protobuf refuses its messages: {error}") from error
    given = Given(pool.FindServiceByName(service.full_name), tuple(files), pool)
    wire, mismatches = given_wire(service, given, derived=True)
    if mismatches:
        raise ContractError(
            "\n  ".join((f"The interface {service.interface.__qualname__} cannot travel:", *mismatches))
        )
    return wire


def derive(service: Service) -> FileDescriptorProto:
    """The .proto file of a service, as data."""
    return _Derivation(service).file


class _Derivation:
    def __init__(self, service: Service) -> None:
        package, _, name = service.full_name.rpartition(".")
        self.package = f".{package}." if package else "."
        self.file = FileDescriptorProto(name=f"{service.full_name.replace('.', '/')}.proto", syntax="proto3")
        if package:
            self.file.package = package
        self.taken = {name}
        self.named: dict[object, str] = {}
        requests = {method: self._claim(f"{method.wire_name}Request", method) for method in service.methods}
        responses = {
            method: self._claim(f"{method.wire_name}Response", method, "response") for method in service.methods
        }
        rpcs = self.file.service.add(name=name)
        for method in service.methods:
            self._request(requests[method], method)
            self._response(responses[method], method)
            rpcs.method.add(
                name=method.wire_name,
                input_type=self.package + requests[method],
                output_type=self.package + responses[method],
                client_streaming=method.kind.streams_arguments or None,  # as protoc leaves out what is false
                server_streaming=method.kind.streams_result or None,
            )

    def _claim(self, wanted: str, *key: object) -> str:
        name, count = wanted, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}{count}"
        self.taken.add(name)
        self.named[key] = name
        return name

    def _request(self, name: str, method: Method) -> None:
        message = self.file.message_type.add(name=name)
        for parameter in method.parameters:
            self._field(message, parameter.name, parameter.number, parameter.shape)

    def _response(self, name: str, method: Method) -> None:
        message = self.file.message_type.add(name=name)
        if method.result_shape is not None:
            self._field(message, RESULT, method.result_number, method.result_shape)

    def _field(self, message: DescriptorProto, name: str, number: int, shape: Shape) -> None:
        field = message.field.add(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
        if isinstance(shape, Repeated):
            field.label = FieldDescriptorProto.LABEL_REPEATED
            self._type(field, shape.item)
        elif isinstance(shape, Table):
            field.label = FieldDescriptorProto.LABEL_REPEATED
            field.type = FieldDescriptorProto.TYPE_MESSAGE
            field.type_name = f"{self.package}{message.name}.{self._entry(message, name, shape)}"
        elif isinstance(shape, Maybe):
            self._type(field, shape.item)
            if field.type != FieldDescriptorProto.TYPE_MESSAGE:
                field.proto3_optional = True
                field.oneof_index = len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{name}")
        else:
            self._type(field, shape)

    def _entry(self, message: DescriptorProto, name: str, shape: Table) -> str:
        entry = message.nested_type.add(name=camel(name) + "Entry")
        entry.options.map_entry = True
        self._field(entry, "key", 1, shape.key)
        value = entry.field.add(name="value", number=2, label=FieldDescriptorProto.LABEL_OPTIONAL)
        self._type(value, shape.value)
        return entry.name

    def _type(self, field: FieldDescriptorProto, shape: Shape) -> None:
        """Give a field the type of one item."""
        if isinstance(shape, Plain) and shape.python in _SCALARS:
            field.type = _SCALARS[shape.python]
        elif isinstance(shape, Reference):
            field.type = FieldDescriptorProto.TYPE_UINT32
        elif isinstance(shape, Enumeration):
            field.type = FieldDescriptorProto.TYPE_ENUM
            field.type_name = self.package + self._enum(shape)
        else:
            field.type = FieldDescriptorProto.TYPE_MESSAGE
            field.type_name = self._message(shape)

    def _message(self, shape: Shape) -> str:
        match shape:
            case Plain(python=python):
                name, file = _WELL_KNOWN[python]
                if file not in self.file.dependency:
                    self.file.dependency.append(file)
                return name
            case Record():
                return self.package + self._record(shape)
            case Repeated():
                return self.package + self._wrapper(shape, "items")
            case Table():
                return self.package + self._wrapper(shape, "entries")
            case _:
                return self.package + self._wrapper(shape, "value")

    def _record(self, shape: Record) -> str:
        key = (shape.python,)
        if key not in self.named:
            name = self._claim(camel(shape.python.__name__), *key)
            message = self.file.message_type.add(name=name)
            for item in shape.fields:
                self._field(message, item.name, item.number, item.shape)
        return self.named[key]

    def _wrapper(self, shape: Shape, field: str) -> str:
        key = ("wrapper", self._name_of(shape))
        if key not in self.named:
            name = self._claim(key[1], *key)
            self._field(self.file.message_type.add(name=name), field, 1, shape)
        return self.named[key]

    def _name_of(self, shape: Shape) -> str:
        match shape:
            case Repeated(item=item):
                return f"ListOf{self._name_of(item)}"
            case Table(key=key, value=value):
                return f"MapOf{self._name_of(key)}To{self._name_of(value)}"
            case Maybe(item=item):
                return f"Optional{self._name_of(item)}"
            case Plain(python=python) if python in _WELL_KNOWN:
                return _WELL_KNOWN[python][0].rpartition(".")[2]
            case Plain(python=python):
                return _NAMES[python]
            case Record():
                return self._record(shape)
            case Enumeration():
                return self._enum(shape)
            case Reference(contract=contract):
                return camel(contract.interface.__name__)
            case _:
                raise AssertionError(shape)  # message classes are refused before

    def _enum(self, shape: Enumeration) -> str:
        key = (shape.python,)
        if key not in self.named:
            name = self._claim(camel(shape.python.__name__), *key)
            enum = self.file.enum_type.add(name=name)
            numbers = [int(m.value) for m in shape.python] if shape.by_number else range(len(shape.python))
            _enum_values(enum, [member.name for member in shape.python], numbers)
        return self.named[key]


def _enum_values(enum: EnumDescriptorProto, names: list[str], numbers: Iterable[int]) -> None:
    """Fill an enum. Its values share their scope with other enums' in protobuf, so each carries the enum's name."""
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper()
    values = sorted(zip(numbers, names, strict=True), key=lambda value: value[0] != 0)  # proto3 wants the zero first
    if values[0][0] != 0:
        values.insert(0, (0, "UNSPECIFIED"))
    used: set[str] = set()
    for number, name in values:
        unique = name if plain_name(name) not in used else f"{name}_{abs(number)}"
        used.add(plain_name(unique))
        enum.value.add(name=f"{prefix}_{unique}", number=number)


def camel(name: str) -> str:
    """A Python name as protobuf's messages are written: ``key_value`` is ``KeyValue``."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))
