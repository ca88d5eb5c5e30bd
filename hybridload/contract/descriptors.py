"""Private descriptor pools, and services that are given by descriptors instead of being derived from hints.

Rules:

- Each contract has a pool of its own and never uses protobuf's default one: every go-plugin tutorial calls its package
  `proto` and has an `Empty` in it, so a shared pool collides.
- A compiled `ServiceDescriptor` is copied, with all files that it depends on.
- A .proto file is compiled by grpcio-tools in a process of its own, whose messages become the error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor

from hybridload.contract.elements import listed, plain_name
from hybridload.contract.hints import Misfit
from hybridload.contract.protobuf import new_pool
from hybridload.errors import ContractError
from hybridload.frozen import frozen

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool

    from hybridload.contract.service import Contract

COMPILE_TIMEOUT = 60.0
"""Seconds that the compiler of .proto files may take."""


@frozen
class Given:
    """A service in a private pool.

    :param files: every file that it needs as a serialized `FileDescriptorProto`, each after those that it imports.
    """

    descriptor: ServiceDescriptor
    files: tuple[bytes, ...]
    pool: DescriptorPool

    def method_name(self, name: str) -> str:
        """The service's name for a Python method: ``get_url`` is ``get_url``, ``GetUrl`` or ``GetURL``.

        :raises Misfit: when the service has no such method.
        """
        methods = [method.name for method in self.descriptor.methods]
        if name in methods:
            return name
        alike = [candidate for candidate in methods if plain_name(candidate) == plain_name(name)]
        if len(alike) != 1:
            raise Misfit(
                f"the service {self.descriptor.full_name} has no method for {name}(); it has {listed(methods)}"
            )
        return alike[0]

    def service_for(self, interface: str) -> ServiceDescriptor | None:
        """The service of the same package that is called like an interface, for objects that are called back."""
        package = self.descriptor.file.package
        for name in (interface, f"{interface}Service"):
            try:
                return self.pool.FindServiceByName(f"{package}.{name}".lstrip("."))
            except KeyError:
                continue
        return None


def private_pool(files: Iterable[bytes]) -> DescriptorPool:
    """A new pool with the given files, each of which comes after those that it imports.

    :param files: each as a serialized `FileDescriptorProto`.
    :raises TypeError: when they contradict each other (this is what protobuf raises).
    """
    pool = new_pool()
    for file in files:
        pool.AddSerializedFile(file)
    return pool


def well_known_files(names: Iterable[str]) -> list[bytes]:
    """Those of Timestamp and Duration that are named, serialized."""
    found = []
    for name in names:
        module = import_module(f"{name.removesuffix('.proto').replace('/', '.')}_pb2")
        found.append(bytes(module.DESCRIPTOR.serialized_pb))
    return found


def file_proto(file: FileDescriptor) -> FileDescriptorProto:
    """A compiled file as data."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    return FileDescriptorProto.FromString(file.serialized_pb)


def given_service(contract: Contract[Any]) -> Given:
    """Find the service that a contract is given, and copy it into a pool of its own.

    :raises ContractError: when it is not there, or the .proto file cannot be compiled.
    """
    service = contract.service
    if not isinstance(service, (str, type(None))):
        if not isinstance(service, ServiceDescriptor):
            raise ContractError(
                f"{contract!r}: service is {service!r}; give a full name or a ServiceDescriptor, "
                'e.g. greeter_pb2.DESCRIPTOR.services_by_name["GreeterService"].'
            )
        return _find(contract, service.full_name, file_with_dependencies(service.file))
    if contract.proto is not None:
        compiled = compile_proto(_locate(contract), repr(contract))
        return _find(contract, service, read_files(compiled, repr(contract)))
    return _find(contract, service, read_files(contract.descriptor_set or b"", repr(contract)))


def _find(contract: Contract[Any], name: str | None, files: list[FileDescriptorProto]) -> Given:
    services = {
        ".".join(filter(None, (file.package, service.name))): service.name for file in files for service in file.service
    }
    if name is None:
        name = _likely(contract.interface.__name__, services)
    if name not in services:
        raise ContractError(
            f"{contract!r}: there is no service {name or 'of its name'} in the descriptors, which have "
            f"{listed(services)}; give its full name as `service`."
        )
    serialized = tuple(file.SerializeToString() for file in files)
    try:
        pool = private_pool(serialized)
    except TypeError as error:
        raise ContractError(f"{contract!r}: the descriptors contradict each other: {error}") from error
    return Given(pool.FindServiceByName(name), serialized, pool)


def _likely(interface: str, services: dict[str, str]) -> str | None:
    if f"proto.{interface}Service" in services:
        return f"proto.{interface}Service"
    alike = [full for full, short in services.items() if short in (interface, f"{interface}Service")]
    if len(alike) == 1:
        return alike[0]
    return next(iter(services)) if len(services) == 1 else None


def file_with_dependencies(file: FileDescriptor) -> list[FileDescriptorProto]:
    """A compiled file and all that it imports as data, imports first."""
    found: dict[str, FileDescriptorProto] = {}

    def visit(current: FileDescriptor) -> None:
        if current.name not in found:
            for dependency in current.dependencies:
                visit(dependency)
            found[current.name] = file_proto(current)

    visit(file)
    return list(found.values())


def read_files(data: bytes, whose: str) -> list[FileDescriptorProto]:
    """The files of a serialized `FileDescriptorSet`, each after those that it imports.

    :param whose: begins an error's message.
    :raises ContractError: it is none, or lacks an import.
    """
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    try:
        files = {file.name: file for file in FileDescriptorSet.FromString(data).file}
    except Exception as error:
        raise ContractError(f"{whose}: descriptor_set is no serialized FileDescriptorSet: {error}") from error
    found: dict[str, FileDescriptorProto] = {}

    def visit(name: str, by: str) -> None:
        if name in found:
            return
        if name not in files:
            raise ContractError(
                f"{whose}: {by} imports {name}, which the descriptors lack; make them with --include_imports."
            )
        file = files.pop(name)
        for dependency in file.dependency:
            visit(dependency, name)
        found[name] = file

    for name in list(files):
        visit(name, "")
    return list(found.values())


def compile_proto(path: Path, whose: str) -> bytes:
    """Compile a .proto file, whose imports are looked up in its folder.

    :param whose: begins an error's message.
    :returns: a serialized `FileDescriptorSet`, imports included.
    :raises ContractError: it does not compile, or there is no compiler.
    """
    try:
        import grpc_tools
    except ImportError as error:
        raise ContractError(
            f"{whose}: to compile {path} grpcio-tools is needed: pip install 'hybridload[proto]'."
        ) from error
    import subprocess
    import tempfile
    from pathlib import Path

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory(prefix="hybridload-proto-") as folder:
        output = Path(folder) / "descriptors"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{path.parent}", f"-I{well_known}"]
        command += ["--include_imports", f"--descriptor_set_out={output}", path.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ContractError(f"{whose}: {path} could not be compiled: {error}") from error
        if done.returncode or not output.exists():
            raise ContractError(f"{whose}: {path} does not compile:\n{done.stderr.strip()}")
        return output.read_bytes()


def _locate(contract: Contract[Any]) -> Path:
    from pathlib import Path

    path = Path(os.fspath(contract.proto or ""))
    module = sys.modules.get(contract.interface.__module__)
    beside = Path(getattr(module, "__file__", None) or ".").parent / path
    for candidate in (path, beside):
        if candidate.is_file():
            return candidate.resolve()
    tried = " or ".join(str(place) for place in dict.fromkeys((path.absolute(), beside.absolute())))
    raise ContractError(f"{contract!r}: there is no file {tried}; give proto= the path of the .proto file.")
