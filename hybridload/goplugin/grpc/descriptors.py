"""What a server can tell of its services: the files that describe them, looked up by name, symbol or extension.

Each contract's descriptors live in a pool of their own, and two contracts may have files, or messages, of one name that
differ: every go-plugin tutorial has a `greeter.proto` and a `proto.Empty`. So files are kept by who brought them, a
service is described by its own, and a file whose name is taken already gets another one here, together with the
imports that mean it: whoever asks keeps files by their names.

Pure: descriptors as data, no pool but the default one, in which generated code has put what hand-written plugins serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto

from hybridload.contract.descriptors import file_with_dependencies

Files = Sequence[FileDescriptorProto]
"""Files that belong together, each after those that it imports."""

# Everybody's are the same, but for comments and options that differ by release.
_WELL_KNOWN = "google/protobuf/"


@dataclass(slots=True)
class DescriptorIndex:
    """The files behind the services of one server.

    :param services: full names of all services, whether or not anything describes them.
    """

    services: tuple[str, ...]
    _files: dict[str, FileDescriptorProto] = field(default_factory=dict)
    _symbols: dict[str, str] = field(default_factory=dict)
    _extensions: dict[str, dict[int, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, services: Iterable[str], described: Iterable[Files]) -> DescriptorIndex:
        """Index what is served.

        :param described: for each source of descriptors its files. Of a symbol that several have, the first one counts.
        """
        index = cls(tuple(sorted(set(services))))
        for files in described:
            index._add(files)
        for service in index.services:
            if service not in index._symbols:
                index._add(_from_default_pool(service))
        return index

    def file(self, name: str) -> FileDescriptorProto | None:
        """The file of a name."""
        return self._files.get(name)

    def file_of_symbol(self, symbol: str) -> FileDescriptorProto | None:
        """The file that declares a service, method, message, field, enum, enum value, oneof or extension."""
        return self._files.get(self._symbols.get(symbol.removeprefix("."), ""))

    def file_of_extension(self, message: str, number: int) -> FileDescriptorProto | None:
        """The file that declares an extension of a message."""
        return self._files.get(self._extensions.get(message.removeprefix("."), {}).get(number, ""))

    def extension_numbers(self, message: str) -> list[int] | None:
        """The numbers of a message's extensions; `None` when there is no such message."""
        message = message.removeprefix(".")
        if message not in self._symbols:
            return None
        return sorted(self._extensions.get(message, {}))

    def with_dependencies(self, file: FileDescriptorProto) -> Iterator[FileDescriptorProto]:
        """A file and everything that it imports, directly or not, itself first and none twice."""
        seen: set[str] = set()
        waiting = [file.name]
        while waiting:
            name = waiting.pop(0)
            found = self._files.get(name)
            if found is not None and name not in seen:
                seen.add(name)
                waiting += found.dependency
                yield found

    def _add(self, files: Files) -> None:
        renamed: dict[str, str] = {}
        for file in files:
            kept = self._named(file, renamed)
            renamed[file.name] = kept.name
            if kept.name in self._files:
                continue
            self._files[kept.name] = kept
            for symbol in _symbols(kept):
                self._symbols.setdefault(symbol, kept.name)
            for extended, number in _extensions(kept):
                self._extensions.setdefault(extended, {}).setdefault(number, kept.name)

    def _named(self, file: FileDescriptorProto, renamed: Mapping[str, str]) -> FileDescriptorProto:
        """The file under a name that is its own here."""
        copy = FileDescriptorProto()
        copy.CopyFrom(file)
        copy.dependency[:] = [renamed.get(name, name) for name in file.dependency]
        if file.name.startswith(_WELL_KNOWN) and file.name in self._files:
            return self._files[file.name]
        number = 2
        while (known := self._files.get(copy.name)) is not None and known != copy:
            copy.name = f"{number}/{file.name}"
            number += 1
        return copy


def _from_default_pool(service: str) -> Files:
    """The files of a service whose generated code was imported; none when it was not."""
    try:
        descriptor = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        return ()
    return file_with_dependencies(descriptor.file)


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    prefix = f"{file.package}." if file.package else ""
    for service in file.service:
        yield f"{prefix}{service.name}"
        for method in service.method:
            yield f"{prefix}{service.name}.{method.name}"
    for extension in file.extension:
        yield f"{prefix}{extension.name}"
    for enum in file.enum_type:
        yield from _enum_symbols(enum, prefix)
    for message in file.message_type:
        yield from _message_symbols(message, prefix)


def _message_symbols(message: DescriptorProto, prefix: str) -> Iterator[str]:
    name = f"{prefix}{message.name}"
    yield name
    parts: tuple[Any, ...] = (*message.field, *message.oneof_decl, *message.extension)
    for part in parts:
        yield f"{name}.{part.name}"
    for enum in message.enum_type:
        yield from _enum_symbols(enum, f"{name}.")
    for nested in message.nested_type:
        yield from _message_symbols(nested, f"{name}.")


def _enum_symbols(enum: EnumDescriptorProto, prefix: str) -> Iterator[str]:
    yield f"{prefix}{enum.name}"
    for value in enum.value:  # whose names are in the scope around the enum, as in C
        yield f"{prefix}{value.name}"


def _extensions(file: FileDescriptorProto) -> Iterator[tuple[str, int]]:
    declared = list(file.extension)
    messages = list(file.message_type)
    while messages:
        message = messages.pop()
        declared += message.extension
        messages += message.nested_type
    for extension in declared:
        yield extension.extendee.removeprefix("."), extension.number
