"""A host's connection to a plugin that speaks gRPC: go-plugin's `ClientProtocol`.

It owns the channel and the stdio stream. What became of the process is not its business: it asks `fate` when a call
fails in a way that a dead plugin explains.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hybridload.contract import Contract
from hybridload.contract.exceptions import Status, decode_exception
from hybridload.control_characters import escape_controls
from hybridload.deadlines import limited
from hybridload.errors import CallTimeout, ConfigError, HandshakeError, PluginCrashed, RemoteError, StartTimeout
from hybridload.frozen import replace
from hybridload.goplugin.event_loop import EventLoop
from hybridload.goplugin.grpc import messages
from hybridload.goplugin.grpc.broker import GRPCBroker
from hybridload.goplugin.grpc.contract_client import contract_methods
from hybridload.goplugin.grpc.engine import Endpoint, Engine
from hybridload.goplugin.grpc.objects import BrokerObjects
from hybridload.goplugin.grpc.stdio_client import StdioStream
from hybridload.goplugin.lifetime import Lifetime
from hybridload.goplugin.message_limits import explained
from hybridload.goplugin.output import OutputSink
from hybridload.goplugin.plugins import GRPCPlugin, Plugin
from hybridload.goplugin.threads import Thread
from hybridload.goplugin.transport import Transport
from hybridload.handle import Methods
from hybridload.limits import MAX_MESSAGE, receive_option

log = logging.getLogger(__name__)

_DETAILS = "grpc-status-details-bin"
# Seconds. How long a plugin may take to be gone after its connection broke, or to flush its output at its end.
_SETTLE = 1.0
# Seconds that finding out why a call failed may take beyond its deadline.
_LATE = 0.2
_PAUSE = 0.05

Fate = Callable[[float], Exception | None]
"""Seconds to wait -> why the plugin is gone, or `None` when it is still there after them."""


class GRPCConnection:
    """Connects to a plugin, and drains its output from then on.

    :param endpoint: where the plugin serves.
    :param transport: how brokered connections are made.
    :param engine: what carries gRPC.
    :param kinds: the plugin set of the negotiated version.
    :param call_timeout: seconds that a call may take; `None` for no limit.
    :param connect_timeout: seconds to connect in.
    :param options: grpc channel arguments, without the next.
    :param max_message: the largest message that is taken, in bytes.
    :param lifetime: the plugin's, as hand-written plugins are told it through their broker.
    :param broken: told that the plugin has broken its connection and cannot be reached any more.
    :raises HandshakeError: nobody answers at the address; its message continues a sentence that names the plugin.
    :raises PluginCrashed, PluginClosed: the process ended meanwhile.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        transport: Transport,
        engine: Engine,
        kinds: Mapping[str, Plugin],
        *,
        name: str,
        fate: Fate,
        stdout: OutputSink,
        stderr: OutputSink,
        call_timeout: float | None,
        connect_timeout: float,
        options: Sequence[tuple[str, Any]] = (),
        max_message: int = MAX_MESSAGE,
        lifetime: Lifetime | None = None,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._broken = broken
        # A channel that was closed raises ValueError, as grpcio's does.
        self.rpc_error: tuple[type[Exception], ...] = (*engine.rpc_error, ValueError)
        self._kinds = kinds
        self._name = name
        self._fate = fate
        self._call_timeout = call_timeout
        self._lanes = engine.lanes()
        self._loop = EventLoop()
        limit = receive_option(max_message)
        self._broker = GRPCBroker(transport, engine, self._lanes, name=name, lifetime=lifetime, options=[limit])
        self._objects = BrokerObjects(
            self._broker, self._loop, lambda contract: _ContractCalls(self, contract), lends=True
        )
        self._broker_stream: BrokerStream | None = None
        brokers = any(_needs_broker(plugin) for plugin in kinds.values())
        if brokers and transport.multiplexed:
            # Go takes whatever stream comes next for the one that was knocked for: there must be no others.
            endpoint = replace(endpoint, connections=1)
        self.channel = engine.channel(endpoint, (*options, limit))
        try:
            self._check = self.channel.unary_unary(
                messages.HEALTH_CHECK,
                request_serializer=messages.HealthCheckRequest.SerializeToString,
                response_deserializer=messages.HealthCheckResponse.FromString,
            )
            self._connect(endpoint, connect_timeout)
            self._stdio = StdioStream(
                self.channel, engine.rpc_error, stdout, stderr, name=name, survived=self._survived
            )
            if brokers:
                self._broker_stream = BrokerStream(
                    self.channel, engine.rpc_error, self._broker, name=name, lost=self._lost_broker
                )
        except BaseException:
            self.channel.close()
            self._broker.close()
            raise

    def dispense(self, kind: str) -> Methods | Any:
        """What the host calls for a kind: a contract's methods, or what a hand-written plugin makes of the channel.

        :raises ConfigError: the plugin set has no such kind.
        """
        plugin = self._kinds.get(kind)
        if plugin is None:
            raise ConfigError(
                f"Plugin {self._name!r}: the plugin set has no kind {kind!r}; it has {', '.join(sorted(self._kinds))}.",
                plugin=self._name,
            )
        if isinstance(plugin, Contract):
            return contract_methods(plugin.complete(), self.channel, _ContractCalls(self, plugin), self._objects)
        if isinstance(plugin, GRPCPlugin):
            return plugin.grpc_client(self._broker, self.channel)
        raise ConfigError(
            f"Plugin {self._name!r} speaks gRPC, and the kind {kind!r} is a hand-written plugin for net/rpc alone: "
            "give it grpc_client and grpc_server, or use a contract.",
            plugin=self._name,
        )

    def ping(self, timeout: float) -> None:
        """Check the plugin's health, as go-plugin's `Ping` does.

        :raises CallTimeout: no answer within `timeout` seconds.
        :raises PluginCrashed, PluginClosed: the plugin is gone.
        :raises RemoteError: it answers, and says that it does not serve.
        """
        try:
            answer = self._check(messages.HealthCheckRequest(service=messages.HEALTH_SERVICE), timeout=timeout)
        except self.rpc_error as error:
            if (
                isinstance(error, self._engine.rpc_error)
                and self._engine.lost(error)
                and self._answers(min(_SETTLE, timeout))
            ):
                return
            failure = self.translate(error, timeout)
        else:
            if answer.status == messages.SERVING:
                return
            failure = RemoteError(
                f"Plugin {self._name!r} answers, but its health is {answer.status}, not SERVING ({messages.SERVING}).",
                plugin=self._name,
                code="UNAVAILABLE",
            )
        raise failure

    def shutdown(self, timeout: float) -> bool:
        """Ask the plugin to end; whether it can be expected to.

        A plugin that drops the connection instead of answering has done as it was asked. One that says nothing for
        `timeout` seconds, or does not know the call, has not.
        """
        ask = self.channel.unary_unary(
            messages.SHUTDOWN,
            request_serializer=messages.Empty.SerializeToString,
            response_deserializer=messages.Empty.FromString,
        )
        try:
            ask(messages.Empty(), timeout=timeout)
        except self.rpc_error as error:
            refused = isinstance(error, self._engine.rpc_error) and error.code().name
            return refused not in ("DEADLINE_EXCEEDED", "UNIMPLEMENTED")
        return True

    def close(self) -> None:
        """Take the output that is still on its way and close the connection. Safe to call twice."""
        self._broker.close()
        self._stdio.join(_SETTLE)
        self._stdio.close()
        self.channel.close()
        if self._broker_stream is not None:
            self._broker_stream.join()
        self._lanes.close(_SETTLE)
        self._loop.close(_SETTLE)

    def lacks_stdio(self) -> bool:
        """Whether the plugin has told that it has no stdio service; waits a moment for it to do so."""
        self._stdio.join(0.2)
        return self._stdio.absent

    def timeout(self) -> float | None:
        """Seconds that the next call may take.

        :raises CallTimeout: the caller's deadline has passed.
        """
        return limited(self._call_timeout, self._name)

    def translate(
        self, error: Any, timeout: float | None, contract: Contract[Any] | None = None, stream: bool = False
    ) -> Exception:
        """The exception that the caller of a plugin's method sees for one of the channel's.

        :param contract: says which exception classes are known; `None` when no contract's method was called.
        """
        if not isinstance(error, self._engine.rpc_error):
            return self._fate(0) or error
        code, message = error.code().name, error.details() or ""
        details = next((value for key, value in error.trailing_metadata() or () if key == _DETAILS), None)
        if details is None:
            if code == "RESOURCE_EXHAUSTED":
                message = explained(message, calls="host") or message
            lost = message if self._engine.lost(error) else None
            if (
                code in ("UNAVAILABLE", "CANCELLED", "INTERNAL", "UNKNOWN")
                and (gone := self._gone(code, error, timeout, lost)) is not None
            ):
                return gone
            if code == "DEADLINE_EXCEEDED" and timeout is not None:
                return CallTimeout(
                    f"Plugin {self._name!r} did not answer within {round(timeout, 3):g} s "
                    "(call_timeout, or the caller's deadline).",
                    plugin=self._name,
                )
        if contract is None:
            return RemoteError(message, plugin=self._name, code=code)
        return decode_exception(Status(code, message, details), contract, self._name, stream=stream)

    def _gone(self, code: str, error: Any, timeout: float | None, lost: str | None) -> Exception | None:
        """Why the plugin is gone, or its connection, if one is: the latter comes a moment before the process's end is
        known.

        :param lost: why the call's connection broke, if it did.
        """
        gone = self._fate(0)
        if gone is not None or code in ("INTERNAL", "UNKNOWN"):
            return gone
        deadline = getattr(error, "deadline", None)  # grpcio's errors do not tell
        left = timeout if deadline is None else deadline - time.monotonic()
        settle = _SETTLE if left is None else min(_SETTLE, max(_LATE, left / 2))
        if self._answers(settle):
            if lost is None:
                return None
            return PluginCrashed(
                f"Plugin {self._name!r} runs, but the connection broke that the call was on: {lost}. Nobody knows "
                "whether the call was carried out; only methods marked idempotent are sent again.",
                plugin=self._name,
            )
        return self._fate(settle) or PluginCrashed(
            f"Plugin {self._name!r} broke its connection, though its process still runs. "
            "Its log may say why; load it again to start a new process.",
            plugin=self._name,
        )

    def _survived(self, error: Any) -> bool:
        """Whether a stream that accompanies the plugin ended because its connection broke, and the plugin lives."""
        if not self._engine.lost(error) or self._fate(0) is not None:
            return False
        if self._answers(2 * _SETTLE):
            return True
        if self._fate(_SETTLE) is None:
            self._broken()
        return False

    def _lost_broker(self, error: Any) -> None:
        """A plugin's broker ends with its stream, and no callback reaches it any more."""
        if self._survived(error):
            self._broken()

    def _answers(self, timeout: float) -> bool:
        """Whether the plugin can be reached within `timeout` seconds: connections that broke at the same time may not
        have been noticed yet, and grpcio waits a second before it opens another."""
        deadline = time.monotonic() + timeout
        while True:
            left = min(_SETTLE, max(0.0, deadline - time.monotonic()))
            try:
                self._check(messages.HealthCheckRequest(service=messages.HEALTH_SERVICE), timeout=left)
            except self._engine.rpc_error as error:
                if not self._engine.lost(error):
                    code: str = error.code().name
                    return code not in ("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED")
            except ValueError:  # the channel was closed meanwhile
                return False
            else:
                return True
            if self._fate(0) is not None or time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE)

    def _connect(self, endpoint: Endpoint, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        try:
            self._check(messages.HealthCheckRequest(service=messages.HEALTH_SERVICE), timeout=timeout)
        except self._engine.rpc_error as error:
            code: str = error.code().name
            if code in ("UNIMPLEMENTED", "NOT_FOUND"):
                return  # It has no health service, but it answers gRPC.
            gone = self._fate(min(_SETTLE, max(0.0, deadline - time.monotonic())))
            if gone is not None:
                raise gone from None
            late = code == "DEADLINE_EXCEEDED"
            raise (StartTimeout if late else HandshakeError)(
                f"says that it listens on {endpoint.name}, but no gRPC server answers there: "
                + ("nothing came within the start timeout" if late else self._engine.why(self.channel, error)),
                plugin=self._name,
            ) from error


class BrokerStream:
    """The broker's own stream, moved on a thread that ends with it."""

    def __init__(
        self, channel: Any, rpc_error: Any, broker: GRPCBroker, *, name: str, lost: Callable[[Any], None]
    ) -> None:
        self._rpc_error = rpc_error
        self._lost = lost
        self._broker = broker
        self._name = name
        self._call = channel.stream_stream(
            messages.START_STREAM,
            request_serializer=messages.ConnInfo.SerializeToString,
            response_deserializer=messages.ConnInfo.FromString,
        )(broker.outgoing())
        self._thread = Thread(target=self._run, name=f"hybridload {name} broker stream", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the stream's end, which closing the channel brings about."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._broker.receive(self._call)
        except self._rpc_error as error:
            code: str = error.code().name
            if code == "UNIMPLEMENTED":
                log.debug("plugin %s has no broker", self._name)
            elif code not in ("CANCELLED", "UNAVAILABLE"):
                log.warning("plugin %s: its broker's stream broke: %s", self._name, escape_controls(str(error)))
            self._lost(error)


def _needs_broker(plugin: Plugin) -> bool:
    return plugin.complete().calls_back if isinstance(plugin, Contract) else isinstance(plugin, GRPCPlugin)


class _ContractCalls:
    """What the stubs of one contract need to know of the connection."""

    def __init__(self, connection: GRPCConnection, contract: Contract[Any]) -> None:
        self.rpc_error = connection.rpc_error
        self.timeout = connection.timeout
        self._connection = connection
        self._contract = contract

    def translate(self, error: Any, timeout: float | None, *, stream: bool = False) -> Exception:
        return self._connection.translate(error, timeout, self._contract, stream)
