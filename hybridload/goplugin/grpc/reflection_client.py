"""Asks a server that one has never seen which services it has, by server reflection v1, or v1alpha where it lacks that.

Each service's descriptors go into a pool of their own: a server may serve files that contradict each other. Nothing is
taken on trust: descriptors of a few mebibytes become a gigabyte of objects, and files may import each other without
end. So there are bounds on how many files a service needs, on the bytes of all answers, and on the time of all
questions. What a server describes beyond them, or wrongly, is a `BadReflection`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError

from hybridload.contract.descriptors import file_proto, private_pool
from hybridload.errors import CallTimeout, RemoteError
from hybridload.goplugin.grpc import messages
from hybridload.goplugin.grpc.reflection_server import VERSIONS

_TIMEOUT = 10.0
_MOST_FILES = 2000
"""Files that one service may need."""
_MOST_SERVICES = 1000
"""Services that are listed."""
_MOST_BYTES = 16 << 20
"""Bytes of all that is told of services; protobuf makes up to a hundred times as much of them."""
_MOST_LISTED = 1 << 20
"""Bytes of a list of services."""


class NoReflection(RemoteError):
    """The server has no server reflection."""


class BadReflection(RemoteError):
    """What the server describes is too much, or does not fit together."""


class ReflectionClient:
    """Reads services over a channel.

    :param channel: shaped as `grpc.Channel`.
    :param rpc_error: what its calls raise.
    :param timeout: seconds for each question.
    :param deadline: of `time.monotonic`, for all questions.
    """

    def __init__(
        self, channel: Any, rpc_error: Any, *, plugin: str, timeout: float = _TIMEOUT, deadline: float = math.inf
    ) -> None:
        self.deadline = deadline
        self._bytes_left = _MOST_BYTES
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
        :raises CallTimeout: it did not answer in time.
        """
        services = self._ask(self.version, list_services="*").list_services_response.service
        if len(services) > _MOST_SERVICES:
            raise self._bad(f"it lists {len(services)} services, and at most {_MOST_SERVICES} are taken")
        return sorted(service.name for service in services)

    def service(self, name: str) -> ServiceDescriptor:
        """A service with all that it needs, in a pool of its own.

        :raises RemoteError: the server does not describe it; `BadReflection` when not as it should.
        :raises CallTimeout: it did not answer in time.
        """
        files: dict[str, Any] = {}
        needed = self._take(self._ask(self.version, file_containing_symbol=name), files)
        waiting = list(needed)
        while waiting:
            wanted = waiting.pop()
            if wanted in files:
                continue
            more = self._take(self._file(wanted), files) - needed
            if wanted not in files:
                raise self._bad(f"it answers for the file {wanted!r}, which {name} needs, with another")
            needed |= more
            waiting += more
        try:
            pool = private_pool(file.SerializeToString() for file in _in_order(files))
            return pool.FindServiceByName(name)
        except (KeyError, TypeError) as error:
            raise self._bad(f"what it says of {name} does not fit together: {error}") from error

    def _file(self, name: str) -> Any:
        try:
            return self._ask(self.version, file_by_filename=name)
        except RemoteError as error:
            # Some servers leave out what everybody has.
            try:
                known = file_proto(descriptor_pool.Default().FindFileByName(name))
            except KeyError:
                raise error from None
            kinds = messages.reflection(self.version)
            answer = kinds.response()
            answer.file_descriptor_response.file_descriptor_proto.append(known.SerializeToString())
            return answer

    def _take(self, answer: Any, files: dict[str, Any]) -> set[str]:
        """Keep the files of an answer, and tell which ones they import."""
        needed: set[str] = set()
        for data in answer.file_descriptor_response.file_descriptor_proto:
            try:
                file = descriptor_pb2.FileDescriptorProto.FromString(data)
                if file.name not in files:
                    files[file.name] = file
                    needed.update(file.dependency)
            except (DecodeError, UnicodeDecodeError) as error:
                raise self._bad(f"it answers with what is no file descriptor: {error}") from error
        if len(files.keys() | needed) > _MOST_FILES:
            raise self._bad(f"it answers with files that need more than {_MOST_FILES} others")
        return needed

    def _bad(self, what: str) -> BadReflection:
        return BadReflection(
            f"Plugin {self._plugin!r} has a server reflection that cannot be used: {what}.", plugin=self._plugin
        )

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
        )
        timeout = min(self._timeout, self.deadline - time.monotonic())
        try:
            answers = call(iter([kinds.request(**question)]), timeout=max(0.0, timeout))
            try:
                data = next(answers, None)
            finally:
                answers.cancel()
        except self._rpc_error as error:
            if error.code().name == "DEADLINE_EXCEEDED":
                raise CallTimeout(
                    f"Plugin {self._plugin!r} did not answer server reflection ({version}) in time.",
                    plugin=self._plugin,
                ) from error
            raise RemoteError(
                f"Plugin {self._plugin!r} does not answer server reflection ({version}): "
                f"{error.code().name} {error.details() or ''}".rstrip(),
                plugin=self._plugin,
                code=error.code().name,
            ) from error
        what = "".join(map(str, question.values()))
        if data is None:
            raise RemoteError(f"Plugin {self._plugin!r} answers nothing about {what}.", plugin=self._plugin)
        answer = self._read(data, kinds.response, what, _MOST_LISTED if "list_services" in question else None)
        if answer.HasField("error_response"):
            raise RemoteError(
                f"Plugin {self._plugin!r} does not describe {what}: {answer.error_response.error_message}.",
                plugin=self._plugin,
                code="NOT_FOUND",
            )
        return answer

    def _read(self, data: bytes, kind: Any, what: str, most: int | None) -> Any:
        """An answer, within the bounds for it.

        :param most: bytes of it; `None` for what is left of all.
        """
        if most is None:
            most = self._bytes_left
            self._bytes_left = max(0, self._bytes_left - len(data))
        if len(data) > most:
            raise self._bad(f"it tells more than {_MOST_BYTES >> 20} MiB about its services")
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise self._bad(f"its answer about {what} cannot be read: {error}") from error


def _in_order(files: dict[str, Any]) -> Iterable[Any]:
    """The files, each after those that it imports, as far as there is such an order."""
    done: dict[str, Any] = {}
    seen: set[str] = set()
    waiting = [(name, False) for name in files]
    while waiting:
        name, imported = waiting.pop()
        if imported:
            done[name] = files[name]
        elif name not in seen:
            seen.add(name)
            waiting.append((name, True))
            waiting += ((each, False) for each in files[name].dependency)
    return done.values()
