"""Asks a server that one has never seen which services it has, by server reflection v1, or v1alpha where it lacks that.

Each service's descriptors go into a pool of their own: a server may serve files that contradict each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from hybridload.contract.descriptors import file_proto, private_pool
from hybridload.errors import RemoteError
from hybridload.goplugin.grpc import messages
from hybridload.goplugin.grpc.reflection_server import VERSIONS

_TIMEOUT = 10.0
_MOST_FILES = 10_000
"""Files that one service may need; a server that never ends is not followed for ever."""


class NoReflection(RemoteError):
    """The server has no server reflection."""


class ReflectionClient:
    """Reads services over a channel.

    :param channel: shaped as `grpc.Channel`.
    :param rpc_error: what its calls raise.
    :param timeout: seconds for each question.
    """

    def __init__(self, channel: Any, rpc_error: Any, *, plugin: str, timeout: float = _TIMEOUT) -> None:
        self._channel = channel
        self._rpc_error = rpc_error
        self._plugin = plugin
        self._timeout = timeout
        self._version: str | None = None

    @property
    def version(self) -> str:
        """The version that the server knows, ``"v1"`` or ``"v1alpha"``.

        :raises NoReflection: it knows neither.
        :raises RemoteError: it cannot be asked.
        """
        if self._version is None:
            self._version = self._find_version()
        return self._version

    def versions(self) -> tuple[str, ...]:
        """All versions that the server knows.

        :raises RemoteError: it cannot be asked.
        """
        return tuple(version for version in VERSIONS if self._knows(version))

    def services(self) -> list[str]:
        """The full names of all services.

        :raises RemoteError: it cannot be asked; `NoReflection` when it has none.
        """
        answer = self._ask(self.version, list_services="*")
        return sorted(service.name for service in answer.list_services_response.service)

    def service(self, name: str) -> ServiceDescriptor:
        """A service with all that it needs, in a pool of its own.

        :raises RemoteError: the server does not describe it, or not completely.
        """
        files: dict[str, Any] = {}
        answer = self._ask(self.version, file_containing_symbol=name)
        missing = deque(self._take(answer, files))
        while missing and len(files) < _MOST_FILES:
            wanted = missing.popleft()
            if wanted not in files:
                missing.extend(self._take(self._file(wanted), files))
        try:
            return private_pool(file.SerializeToString() for file in _in_order(files)).FindServiceByName(name)
        except (KeyError, TypeError) as error:
            raise RemoteError(
                f"Plugin {self._plugin!r}: what its server reflection says of {name} does not fit together: {error}.",
                plugin=self._plugin,
            ) from error

    def _file(self, name: str) -> Any:
        try:
            return self._ask(self.version, file_by_filename=name)
        except RemoteError:
            # Some servers leave out what everybody has.
            try:
                known = file_proto(descriptor_pool.Default().FindFileByName(name))
            except KeyError:
                raise
            kinds = messages.reflection(self.version)
            answer = kinds.response()
            answer.file_descriptor_response.file_descriptor_proto.append(known.SerializeToString())
            return answer

    def _take(self, answer: Any, files: dict[str, Any]) -> list[str]:
        """Keep the files of an answer, and tell which ones they import."""
        needed: list[str] = []
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            files.setdefault(file.name, file)
            needed += file.dependency
        return [name for name in needed if name not in files]

    def _find_version(self) -> str:
        for version in VERSIONS:
            if self._knows(version):
                return version
        raise NoReflection(
            f"Plugin {self._plugin!r} has no server reflection, so it does not tell which services it has.",
            plugin=self._plugin,
            code="UNIMPLEMENTED",
        )

    def _knows(self, version: str) -> bool:
        try:
            self._ask(version, list_services="*")
        except RemoteError as error:
            if error.code == "UNIMPLEMENTED":
                return False
            raise
        return True

    def _ask(self, version: str, **question: Any) -> Any:
        kinds = messages.reflection(version)
        call = self._channel.stream_stream(
            f"/{messages.reflection_service(version)}/ServerReflectionInfo",
            request_serializer=kinds.request.SerializeToString,
            response_deserializer=kinds.response.FromString,
        )
        try:
            answer = next(call(iter([kinds.request(**question)]), timeout=self._timeout), None)
        except self._rpc_error as error:
            raise RemoteError(
                f"Plugin {self._plugin!r} does not answer server reflection ({version}): "
                f"{error.code().name} {error.details() or ''}".rstrip(),
                plugin=self._plugin,
                code=error.code().name,
            ) from error
        what = "".join(map(str, question.values()))
        if answer is None:
            raise RemoteError(f"Plugin {self._plugin!r} answers nothing about {what}.", plugin=self._plugin)
        if answer.HasField("error_response"):
            raise RemoteError(
                f"Plugin {self._plugin!r} does not describe {what}: {answer.error_response.error_message}.",
                plugin=self._plugin,
                code="NOT_FOUND",
            )
        return answer


def _in_order(files: dict[str, Any]) -> Iterable[Any]:
    """The files, each after those that it imports."""
    done: dict[str, Any] = {}

    def visit(name: str) -> None:
        file = files.pop(name, None)
        if file is not None:
            for dependency in file.dependency:
                visit(dependency)
            done[name] = file

    for name in list(files):
        visit(name)
    return done.values()
