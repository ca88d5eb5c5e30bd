"""A .proto file printed from its descriptor, so that authors in other languages can compile it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

_SCALARS = {
    getattr(FieldDescriptorProto, name): name[5:].lower()
    for name in FieldDescriptorProto.Type.keys()  # noqa: SIM118 - an enum wrapper is no dict
}
_LABELS = {FieldDescriptorProto.LABEL_REPEATED: "repeated ", FieldDescriptorProto.LABEL_REQUIRED: "required "}


def file_text(file: FileDescriptorProto, methods: Mapping[str, Any] | None = None) -> str:
    """Print a file.

    :param file: a proto2 or proto3 file; custom options and extensions are left out.
    :param methods: by service method name, the interface's methods, whose docstrings become comments.
    """
    syntax = file.syntax or "proto2"
    lines = [f'syntax = "{syntax}";', ""]
    if file.package:
        lines += [f"package {file.package};", ""]
    if file.options.go_package:
        lines += [f'option go_package = "{file.options.go_package}";', ""]
    if file.dependency:
        lines += [*(f'import "{dependency}";' for dependency in file.dependency), ""]
    for service in file.service:
        lines += [*_service(service, methods or {}), ""]
    for message in file.message_type:
        lines += [*_message(message, syntax), ""]
    for enum in file.enum_type:
        lines += [*_enum(enum), ""]
    return "\n".join(lines).rstrip() + "\n"


def _service(service: ServiceDescriptorProto, methods: Mapping[str, Any]) -> Iterator[str]:
    yield f"service {service.name} {{"
    for method in service.method:
        declared = methods.get(method.name)
        documentation = getattr(getattr(declared, "function", None), "__doc__", None) or ""
        yield from (f"  // {line.strip()}".rstrip() for line in documentation.strip().splitlines())
        request = ("stream " if method.client_streaming else "") + method.input_type
        response = ("stream " if method.server_streaming else "") + method.output_type
        yield f"  rpc {method.name}({request}) returns ({response});"
    yield "}"


def _message(message: DescriptorProto, syntax: str) -> Iterator[str]:
    yield f"message {message.name} {{"
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    for nested in message.nested_type:
        if nested.name not in entries:
            yield from (f"  {line}" for line in _message(nested, syntax))
    for enum in message.enum_type:
        yield from (f"  {line}" for line in _enum(enum))
    opened: set[int] = set()
    for field in message.field:
        if not field.HasField("oneof_index") or field.proto3_optional:
            yield f"  {_field(field, entries, syntax)}"
        elif field.oneof_index not in opened:
            opened.add(field.oneof_index)
            yield f"  oneof {message.oneof_decl[field.oneof_index].name} {{"
            for member in message.field:
                if member.HasField("oneof_index") and member.oneof_index == field.oneof_index:
                    yield f"    {_type(member)} {member.name} = {member.number};"
            yield "  }"
    for reserved in message.reserved_range:
        yield f"  reserved {reserved.start} to {reserved.end - 1};"
    for name in message.reserved_name:
        yield f'  reserved "{name}";'
    yield "}"


def _field(field: FieldDescriptorProto, entries: Mapping[str, DescriptorProto], syntax: str) -> str:
    entry = entries.get(field.type_name.rpartition(".")[2])
    if entry is not None and field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"map<{_type(entry.field[0])}, {_type(entry.field[1])}> {field.name} = {field.number};"
    label = _LABELS.get(field.label, "optional " if field.proto3_optional or syntax == "proto2" else "")
    return f"{label}{_type(field)} {field.name} = {field.number};"


def _type(field: FieldDescriptorProto) -> str:
    return field.type_name or _SCALARS[field.type]


def _enum(enum: EnumDescriptorProto) -> Iterator[str]:
    yield f"enum {enum.name} {{"
    if enum.options.allow_alias:
        yield "  option allow_alias = true;"
    yield from (f"  {value.name} = {value.number};" for value in enum.value)
    yield "}"
