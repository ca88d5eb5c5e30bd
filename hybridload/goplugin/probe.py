"""What a plugin speaks that nobody here has ever seen: it is started, asked, perhaps called, and ended.

A host knows its plugins' cookie, versions, kinds and messages beforehand; here none of that is known. So the plugin
gets to choose among a hundred versions and whatever it chooses is right; it is asked for AutoMTLS, and once more
without when it cannot do it; and what can be called is what its server reflection tells, or a .proto file does. Whether
it can multiplex it tells when it is asked with a value that does not mean it.

What a plugin has besides its own services, it tells by reflection as well. One that has none is asked with calls that
do no harm: the broker's stream is opened and ended at once, and the controller is called last, since it ends the
plugin.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from hybridload.errors import ConfigError, HandshakeError, PluginCrashed, PluginError, RemoteError
from hybridload.goplugin.client import Client
from hybridload.goplugin.host_environment import MULTIPLEX
from hybridload.goplugin.line import CORE_VERSION, HandshakeLine
from hybridload.goplugin.plugins import AnyVersion
from hybridload.handshake import Handshake

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

    from hybridload.goplugin.grpc.reflection_client import ReflectionClient

_TIMEOUT = 10.0
_ALTOGETHER = 60.0
_PROTOCOL_PACKAGES = ("plugin.", "grpc.health.", "grpc.reflection.")
_BROKER, _STDIO, _CONTROLLER = "plugin.GRPCBroker", "plugin.GRPCStdio", "plugin.GRPCController"


@dataclass(frozen=True, slots=True)
class MethodReport:
    """One method of a service.

    :param path: how it is called on the wire, e.g. ``"/proto.GreeterService/Greet"``.
    :param kind: ``"unary"``, ``"server stream"``, ``"client stream"`` or ``"bidirectional stream"``.
    :param request: full name of its request message.
    :param response: the same of its response.
    """

    name: str
    path: str
    kind: str
    request: str
    response: str


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """One service.

    :param protocol: whether it is go-plugin's or gRPC's own, and not what the plugin is there for.
    :param described: whether its methods are known.
    :param problem: why not, where the plugin's reflection describes it in a way that cannot be used.
    """

    name: str
    protocol: bool
    described: bool
    methods: tuple[MethodReport, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What a plugin speaks. What nobody could tell is `None`.

    :param line: the handshake line as it was printed.
    :param tls: ``"auto-mtls"``; ``"refused"`` when it was asked for and there is none; ``"off"`` when it was not asked.
    :param tls_refusal: why it was refused, in words.
    :param certificate: what is known of the plugin's certificate, in words.
    :param multiplex: whether it can have all connections share one socket; `None` when it does not know of that.
    :param health: ``"SERVING"`` or another status of gRPC's health service; ``"none"`` when it has no such service;
        over net/rpc ``"answers"``, to a ping.
    :param reflection: the versions of server reflection that it knows.
    :param services: as reflection or a .proto file tells.
    :param messages: what these services' methods take and give: message -> field -> type.
    :param kinds: over net/rpc, which of the kinds that were asked for it dispenses.
    """

    command: tuple[str, ...]
    line: str
    core_version: int
    app_version: int
    network: str
    address: str
    protocol: str
    tls: str
    tls_refusal: str | None = None
    certificate: str | None = None
    multiplex: bool | None = None
    health: str | None = None
    broker: bool | None = None
    stdio: bool | None = None
    controller: bool | None = None
    reflection: tuple[str, ...] = ()
    services: tuple[ServiceReport, ...] = ()
    messages: Mapping[str, Mapping[str, str]] | None = None
    kinds: Mapping[str, bool] | None = None


class Probe:
    """Starts a plugin and asks it. A context manager that ends the plugin.

    :param command: its program, or program and arguments.
    :param cookie: the variable and value that its host would set; `None` tries without.
    :param app_version: the only version to offer; a hundred of them by default.
    :param auto_mtls: whether to ask for TLS.
    :param proto: a .proto file that describes its services, for a plugin without server reflection.
    :param kinds: what to ask a net/rpc plugin for, since it does not tell by itself what it dispenses.
    :param start_timeout: seconds.
    :param env: added to its environment.
    :param stderr: gets every byte of its raw standard error.
    :raises ConfigError, ContractError: an argument is wrong.
    """

    def __init__(
        self,
        command: str | os.PathLike[str] | Sequence[str],
        *,
        cookie: tuple[str, str] | None = None,
        app_version: int | None = None,
        auto_mtls: bool = True,
        proto: str | os.PathLike[str] | None = None,
        kinds: Sequence[str] = (),
        start_timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        stderr: IO[bytes] | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "plugins": AnyVersion(range(100) if app_version is None else [app_version]),
            "handshake": None if cookie is None else Handshake(*cookie),
            "start_timeout": start_timeout,
            # False, but asked: see host_environment.
            "env": {MULTIPLEX: "false", **(env or {})},
            "stderr": stderr,
            "logger": logger,
        }
        self._command = command
        self._auto_mtls = auto_mtls
        self._kinds = tuple(kinds)
        self._described = {} if proto is None else _services_of(Path(proto))
        self._refusal: str | None = None
        self._reflection: ReflectionClient | None = None
        self._deadline = math.inf
        self._client: Client = self._new_client(auto_mtls)

    def __enter__(self) -> Probe:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the plugin, once more without TLS when it came as far as its handshake line and not further.

        :raises PluginError: as `Client.start`.
        """
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the plugin. Safe to call twice."""
        self._client.kill()

    def report(self, timeout: float = _ALTOGETHER) -> ProbeReport:
        """Ask the plugin for everything. May end it, so it comes last.

        :param timeout: seconds for all answers.
        :raises PluginError: it does not answer; `CallTimeout` when not in time.
        """
        self._deadline = time.monotonic() + timeout
        client, announced = self._client, self._client.announced
        assert announced is not None
        facts: dict[str, Any] = {
            "command": client.command,
            "line": client.printed_line or "",
            "core_version": CORE_VERSION,
            "app_version": announced.app_version,
            "network": announced.network,
            "address": announced.address,
            "protocol": announced.protocol,
            "tls": self._tls(announced),
            "tls_refusal": self._refusal,
            "certificate": None if announced.certificate is None else _describe_certificate(announced.certificate),
            "multiplex": announced.multiplex,
        }
        return ProbeReport(**facts, **(self._ask_grpc() if announced.protocol == "grpc" else self._ask_netrpc()))

    def call(self, method: str, data: Any, timeout: float | None = None) -> Iterator[dict[str, Any]]:
        """Call a method.

        :param method: ``"package.Service/Method"``.
        :param data: the request as JSON has it; a list of requests where the method takes a stream.
        :param timeout: seconds, for a stream from its start to its end; `None` for no limit.
        :returns: the responses as JSON has them, with fields that are not set.
        :raises ConfigError: there is no such method, or the data do not fit its request.
        :raises RemoteError: the call fails, or the plugin tells nothing of its services.
        :raises CallTimeout: it took longer.
        """
        self._deadline = time.monotonic() + (_ALTOGETHER if timeout is None else timeout)
        announced = self._client.announced
        if announced is not None and announced.protocol != "grpc":
            raise RemoteError(
                f"Plugin {self._client.name!r} speaks net/rpc, which has no services that could be called by name.",
                plugin=self._client.name,
            )
        found = self._method(method)
        requests = self._requests(found, data)
        yield from self._call(found, requests, None if timeout is None else self._left(timeout))

    # -- starting

    def _new_client(self, auto_mtls: bool) -> Client:
        return Client(self._command, auto_mtls=auto_mtls, **self._options)

    def _start(self) -> None:
        try:
            self._client.start()
            return
        except (HandshakeError, PluginCrashed) as error:
            # Without a line, TLS had no part in it.
            if not self._auto_mtls or self._client.announced is None:
                raise
            self._refusal = _first_sentence(error)
        self._client.kill()
        self._client = self._new_client(False)
        self._client.start()

    def _tls(self, announced: HandshakeLine) -> str:
        if self._refusal is None and announced.certificate is not None:
            return "auto-mtls"
        return "refused" if self._auto_mtls else "off"

    # -- asking

    def _left(self, most: float = _TIMEOUT) -> float:
        """Seconds that the next question may take."""
        return max(0.0, min(most, self._deadline - time.monotonic()))

    def _ask_grpc(self) -> dict[str, Any]:
        health = self._ask_health()
        reflection = self._reflected().versions()
        listed = self._reflected().services() if reflection else sorted(self._described)
        services = {name: self._describe(name) for name in listed}
        if reflection:
            has = {name: name in services for name in (_BROKER, _STDIO, _CONTROLLER)}
        else:
            has = {_BROKER: self._has_broker(), _STDIO: self._has_stdio(), _CONTROLLER: self._has_controller()}
        own = [
            service
            for name, service in services.items()
            if service is not None and not isinstance(service, str) and not _is_protocols(name)
        ]
        return {
            "health": health,
            "broker": has[_BROKER],
            "stdio": has[_STDIO],
            "controller": has[_CONTROLLER],
            "reflection": reflection,
            "services": tuple(_service_report(name, service) for name, service in services.items()),
            "messages": _messages_of(own),
        }

    def _ask_netrpc(self) -> dict[str, Any]:
        """Nothing lists what a net/rpc plugin has. Every one has the mux broker and streams its output."""
        self._client.ping(self._left())
        kinds = {kind: bool(self._client.offers(kind, self._left())) for kind in self._kinds}
        return {"health": "answers", "broker": True, "stdio": True, "controller": True, "kinds": kinds}

    def _ask_health(self) -> str:
        from hybridload.goplugin.grpc import messages

        check = self._client.channel.unary_unary(
            messages.HEALTH_CHECK,
            request_serializer=messages.HealthCheckRequest.SerializeToString,
            response_deserializer=messages.HealthCheckResponse.FromString,
        )
        timeout = self._left()
        try:
            answer = check(messages.HealthCheckRequest(service=messages.HEALTH_SERVICE), timeout=timeout)
        except self._client.rpc_error as error:
            code = _code(error)
            if code in ("UNIMPLEMENTED", "NOT_FOUND"):
                return "none" if code == "UNIMPLEMENTED" else f"nothing known of {messages.HEALTH_SERVICE!r}"
            raise self._client.explain(error, timeout) from error
        names = messages.HealthCheckResponse.DESCRIPTOR.fields_by_name["status"].enum_type.values_by_number
        return str(names[answer.status].name) if answer.status in names else str(answer.status)

    def _reflected(self) -> ReflectionClient:
        from hybridload.goplugin.grpc.reflection_client import ReflectionClient

        if self._reflection is None:
            client = self._client
            self._reflection = ReflectionClient(client.channel, client.rpc_error, plugin=client.name, timeout=_TIMEOUT)
        self._reflection.deadline = self._deadline
        return self._reflection

    def _describe(self, name: str) -> ServiceDescriptor | str | None:
        """A service; `None` where it is not described, and what is wrong where it is not described as it should be."""
        from hybridload.goplugin.grpc.reflection_client import BadReflection

        if name in self._described:
            return self._described[name]
        try:
            return self._reflected().service(name)
        except BadReflection as error:
            return str(error)
        except RemoteError as error:
            if error.code in ("NOT_FOUND", "UNIMPLEMENTED"):
                return None
            raise

    def _has_stdio(self) -> bool:
        return not self._client.lacks_stdio()

    def _has_broker(self) -> bool:
        from hybridload.goplugin.grpc import messages

        call = self._client.channel.stream_stream(
            messages.START_STREAM,
            request_serializer=messages.ConnInfo.SerializeToString,
            response_deserializer=messages.ConnInfo.FromString,
        )
        try:
            for _ in call(iter(()), timeout=self._left()):
                break
        except self._client.rpc_error as error:
            return _code(error) != "UNIMPLEMENTED"
        return True

    def _has_controller(self) -> bool:
        from hybridload.goplugin.grpc import messages

        shutdown = self._client.channel.unary_unary(
            messages.SHUTDOWN,
            request_serializer=messages.Empty.SerializeToString,
            response_deserializer=messages.Empty.FromString,
        )
        try:
            shutdown(messages.Empty(), timeout=self._left())
        except self._client.rpc_error as error:
            return _code(error) != "UNIMPLEMENTED"
        return True

    # -- calling

    def _method(self, method: str) -> MethodDescriptor:
        service_name, slash, method_name = method.removeprefix("/").rpartition("/")
        if not slash:
            service_name, _, method_name = method.rpartition(".")
        if not service_name or not method_name:
            raise ConfigError(f"{method!r} is no method: give package.Service/Method.")
        try:
            service = self._described.get(service_name) or self._reflected().service(service_name)
        except RemoteError as error:
            raise self._no_service(service_name, error) from error
        if method_name not in service.methods_by_name:
            known = ", ".join(sorted(service.methods_by_name))
            raise ConfigError(f"{service_name} has no method {method_name!r}; it has {known}.")
        return service.methods_by_name[method_name]

    def _no_service(self, name: str, error: RemoteError) -> PluginError:
        if error.code == "UNIMPLEMENTED":
            return RemoteError(
                f"{error} Give the .proto file of {name} (--proto FILE).", plugin=error.plugin, code=error.code
            )
        if error.code != "NOT_FOUND":
            return error
        known = [each for each in (*self._described, *self._reflected().services()) if not _is_protocols(each)]
        return ConfigError(f"Plugin {error.plugin!r} has no service {name!r}; it has {', '.join(known) or 'none'}.")

    def _requests(self, method: MethodDescriptor, data: Any) -> list[Any]:
        from google.protobuf import json_format
        from google.protobuf.message_factory import GetMessageClass

        given = data if method.client_streaming and isinstance(data, list) else [data]
        message = GetMessageClass(method.input_type)
        pool = method.input_type.file.pool
        try:
            return [json_format.ParseDict(each, message(), descriptor_pool=pool) for each in given]
        except (json_format.ParseError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"The data do not fit {method.input_type.full_name}: {error}") from error

    def _call(self, method: MethodDescriptor, requests: list[Any], timeout: float | None) -> Iterator[dict[str, Any]]:
        from google.protobuf.message_factory import GetMessageClass

        streams = "stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary"
        make = getattr(self._client.channel, "_".join(streams))
        service = method.containing_service
        call = make(
            f"/{service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        try:
            answer = call(iter(requests) if method.client_streaming else requests[0], timeout=timeout)
            for response in answer if method.server_streaming else (answer,):
                yield self._shown(response, method)
        except self._client.rpc_error as error:
            raise _with_code(self._client.explain(error, timeout)) from error

    def _shown(self, response: Any, method: MethodDescriptor) -> dict[str, Any]:
        from google.protobuf import json_format

        try:
            return json_format.MessageToDict(
                response,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
                descriptor_pool=method.output_type.file.pool,
            )
        except (json_format.Error, TypeError, ValueError) as error:
            raise RemoteError(
                f"Plugin {self._client.name!r} answered {method.full_name} with what JSON cannot hold: {error}.",
                plugin=self._client.name,
            ) from error


def _with_code(error: Exception) -> Exception:
    """An error that tells the status code in its words: whoever reads them has no other place to see it."""
    if not isinstance(error, RemoteError) or not error.code:
        return error
    return RemoteError(f"{error.code}: {error}", plugin=error.plugin, code=error.code)


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0]


def _code(error: Any) -> str:
    code = getattr(error, "code", None)
    return "" if code is None else str(code().name)


def _is_protocols(service: str) -> bool:
    return service.startswith(_PROTOCOL_PACKAGES)


def _services_of(path: Path) -> dict[str, ServiceDescriptor]:
    from hybridload.contract.descriptors import compile_proto, private_pool, read_files

    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise ConfigError(f"{path} {what}: give the path of a .proto file.")
    files = read_files(compile_proto(path, "--proto"), "--proto")
    pool = private_pool(file.SerializeToString() for file in files)
    names = [".".join(filter(None, (file.package, each.name))) for file in files for each in file.service]
    return {name: pool.FindServiceByName(name) for name in names}


def _service_report(name: str, service: ServiceDescriptor | str | None) -> ServiceReport:
    if service is None or isinstance(service, str):
        return ServiceReport(name, _is_protocols(name), described=False, problem=service)
    return ServiceReport(name, _is_protocols(name), True, tuple(_method_report(method) for method in service.methods))


def _method_report(method: MethodDescriptor) -> MethodReport:
    from hybridload.contract import Kind

    kind = {
        (False, False): Kind.UNARY,
        (False, True): Kind.SERVER_STREAM,
        (True, False): Kind.CLIENT_STREAM,
        (True, True): Kind.BIDI,
    }[bool(method.client_streaming), bool(method.server_streaming)]
    return MethodReport(
        method.name,
        f"/{method.containing_service.full_name}/{method.name}",
        kind.value,
        method.input_type.full_name,
        method.output_type.full_name,
    )


def _messages_of(services: Sequence[ServiceDescriptor]) -> dict[str, dict[str, str]]:
    """The messages that services take and give, and those inside these."""
    found: dict[str, dict[str, str]] = {}
    waiting: list[Descriptor] = []
    for service in services:
        for method in service.methods:
            waiting += (method.input_type, method.output_type)
    while waiting:
        message = waiting.pop(0)
        if message.full_name in found or message.full_name.startswith("google.protobuf."):
            continue
        found[message.full_name] = {field.name: _type_of(field) for field in message.fields}
        waiting += [each for field in message.fields if (each := _message_inside(field)) is not None]
    return found


def _message_inside(field: FieldDescriptor) -> Descriptor | None:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        inside: Descriptor | None = message.fields_by_name["value"].message_type
        return inside
    return message


def _type_of(field: Any) -> str:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto

    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        key, value = message.fields_by_name["key"], message.fields_by_name["value"]
        return f"map<{_type_of(key)}, {_type_of(value)}>"
    named = message or field.enum_type
    name = named.full_name if named is not None else FieldDescriptorProto.Type.Name(field.type)[5:].lower()
    # protobuf 6 has the former, and 7 no longer the latter.
    repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
    return f"repeated {name}" if repeated else name


def _describe_certificate(der: bytes) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        kind = f"ECDSA {key.curve.name}" if isinstance(key, EllipticCurvePublicKey) else type(key).__name__.strip("_")
        return f"{kind}, {certificate.subject.rfc4514_string()}, until {certificate.not_valid_after_utc:%Y-%m-%d}"
    except Exception as error:  # most of it is read only now, and refused in as many ways as a plugin finds
        return f"unreadable ({error})"
