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
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

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
from hybridload.contract.protobuf import REPEATED, FieldType, MessageData, enum_data, file_data, method_data
from hybridload.contract.wire import RESULT, Wire, given_wire
from hybridload.errors import ContractError

if TYPE_CHECKING:
    from hybridload.contract.service import Method, Service

_SCALARS = {
    str: FieldType.STRING,
    int: FieldType.INT64,
    float: FieldType.DOUBLE,
    bool: FieldType.BOOL,
    bytes: FieldType.BYTES,
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
    derivation = _Derivation(service)
    files = (*well_known_files(derivation.dependencies), derivation.file)
    try:
        pool = private_pool(files)
    except TypeError as error:
        raise ContractError(f"{service.interface.__qualname__}: protobuf refuses its messages: {error}") from error
    given = Given(pool.FindServiceByName(service.full_name), files, pool)
    wire, mismatches = given_wire(service, given, derived=True)
    if mismatches:
        raise ContractError(
            "\n  ".join((f"The interface {service.interface.__qualname__} cannot travel:", *mismatches))
        )
    return wire


class _Derivation:
    def __init__(self, service: Service) -> None:
        package, _, name = service.full_name.rpartition(".")
        self.package = f".{package}." if package else "."
        self.messages: list[MessageData] = []
        self.enums: list[bytes] = []
        self.dependencies: list[str] = []
        self.taken = {name}
        self.named: dict[object, str] = {}
        requests = {method: self._claim(f"{method.wire_name}Request", method) for method in service.methods}
        responses = {
            method: self._claim(f"{method.wire_name}Response", method, "response") for method in service.methods
        }
        rpcs: list[bytes] = []
        for method in service.methods:
            self._request(requests[method], method)
            self._response(responses[method], method)
            rpcs.append(
                method_data(
                    method.wire_name,
                    self.package + requests[method],
                    self.package + responses[method],
                    streams_in=method.kind.streams_arguments,
                    streams_out=method.kind.streams_result,
                )
            )
        self.file = file_data(
            f"{service.full_name.replace('.', '/')}.proto",
            package,
            self.messages,
            dependencies=self.dependencies,
            enums=self.enums,
            services=[(name, rpcs)],
        )
        """The .proto file of the service, as data."""

    def _claim(self, wanted: str, *key: object) -> str:
        name, count = wanted, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}{count}"
        self.taken.add(name)
        self.named[key] = name
        return name

    def _request(self, name: str, method: Method) -> None:
        message = self._new_message(name)
        for parameter in method.parameters:
            self._field(message, parameter.name, parameter.number, parameter.shape)

    def _response(self, name: str, method: Method) -> None:
        message = self._new_message(name)
        if method.result_shape is not None:
            self._field(message, RESULT, method.result_number, method.result_shape)

    def _new_message(self, name: str) -> MessageData:
        self.messages.append(MessageData(name))
        return self.messages[-1]

    def _field(self, message: MessageData, name: str, number: int, shape: Shape) -> None:
        if isinstance(shape, Repeated):
            message.field(name, number, *self._type(shape.item), label=REPEATED)
        elif isinstance(shape, Table):
            entry = f"{self.package}{message.name}.{self._entry(message, name, shape)}"
            message.field(name, number, FieldType.MESSAGE, entry, label=REPEATED)
        elif isinstance(shape, Maybe):
            kind, type_name = self._type(shape.item)
            if kind == FieldType.MESSAGE:
                message.field(name, number, kind, type_name)
            else:
                message.field(name, number, kind, type_name, oneof=message.oneof(f"_{name}"), maybe=True)
        else:
            message.field(name, number, *self._type(shape))

    def _entry(self, message: MessageData, name: str, shape: Table) -> str:
        entry = message.entry(camel(name) + "Entry")
        entry.field("key", 1, *self._type(shape.key))
        entry.field("value", 2, *self._type(shape.value))
        return entry.name

    def _type(self, shape: Shape) -> tuple[int, str]:
        """The type of a field that holds one item."""
        if isinstance(shape, Plain) and shape.python in _SCALARS:
            return _SCALARS[shape.python], ""
        if isinstance(shape, Reference):
            return FieldType.UINT32, ""
        if isinstance(shape, Enumeration):
            return FieldType.ENUM, self.package + self._enum(shape)
        return FieldType.MESSAGE, self._message(shape)

    def _message(self, shape: Shape) -> str:
        match shape:
            case Plain(python=python):
                name, file = _WELL_KNOWN[python]
                if file not in self.dependencies:
                    self.dependencies.append(file)
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
            message = self._new_message(name)
            for item in shape.fields:
                self._field(message, item.name, item.number, item.shape)
        return self.named[key]

    def _wrapper(self, shape: Shape, field: str) -> str:
        key = ("wrapper", self._name_of(shape))
        if key not in self.named:
            name = self._claim(key[1], *key)
            self._field(self._new_message(name), field, 1, shape)
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
            numbers = [int(m.value) for m in shape.python] if shape.by_number else range(len(shape.python))
            self.enums.append(enum_data(name, _enum_values(name, [member.name for member in shape.python], numbers)))
        return self.named[key]


def _enum_values(enum: str, names: list[str], numbers: Iterable[int]) -> Iterator[tuple[str, int]]:
    """The values of an enum. They share their scope with other enums' in protobuf, so each carries the enum's name."""
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum).upper()
    values = sorted(zip(numbers, names, strict=True), key=lambda value: value[0] != 0)  # proto3 wants the zero first
    if values[0][0] != 0:
        values.insert(0, (0, "UNSPECIFIED"))
    used: set[str] = set()
    for number, name in values:
        unique = name if plain_name(name) not in used else f"{name}_{abs(number)}"
        used.add(plain_name(unique))
        yield f"{prefix}_{unique}", number


def camel(name: str) -> str:
    """A Python name as protobuf's messages are written: ``key_value`` is ``KeyValue``."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))
