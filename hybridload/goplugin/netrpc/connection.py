"""A host's connection to a plugin that speaks net/rpc: go-plugin's `ClientProtocol`.

It owns the raw connection, the yamux session on it, and all that is in there: control, the plugin's output, the broker.
What became of the process is not its business: it asks `fate` when a call fails in a way that a dead plugin explains.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from hybridload.contract import Contract
from hybridload.deadlines import limited
from hybridload.errors import CallTimeout, ConfigError, HandshakeError, PluginCrashed, RemoteError, StartTimeout
from hybridload.goplugin.event_loop import EventLoop
from hybridload.goplugin.netrpc import failures
from hybridload.goplugin.netrpc.broker import MuxBroker
from hybridload.goplugin.netrpc.client import NetRPCClient
from hybridload.goplugin.netrpc.gob import Bool, Int, Limits, String, Uint
from hybridload.goplugin.netrpc.objects import MuxObjects
from hybridload.goplugin.netrpc.rpc import Reply
from hybridload.goplugin.netrpc.server import NetRPCServer
from hybridload.goplugin.netrpc.stdio import StdioStreams
from hybridload.goplugin.output import OutputSink
from hybridload.goplugin.plugins import NetRPCPlugin, Plugin
from hybridload.goplugin.streams.base import Stream, StreamError
from hybridload.goplugin.streams.mux import Mux
from hybridload.handle import Methods
from hybridload.limits import MAX_MESSAGE

log = logging.getLogger(__name__)

# Seconds. How long a plugin may take to be gone after its connection broke, or to flush its output at its end.
_SETTLE = 1.0
# Seconds that finding out why a call failed may take beyond its deadline.
_LATE = 0.2
# Seconds that a dispense may take beyond what the calls of the plugin may.
_DISPENSE = 60.0

Fate = Callable[[float], Exception | None]
"""Seconds to wait -> why the plugin is gone, or `None` when it is still there after them."""


class NetRPCConnection:
    """Connects to a plugin, and drains its output from then on.

    :param connect: makes the raw connection, under TLS or plain.
    :param where: where that leads, for messages.
    :param kinds: the plugin set of the negotiated version.
    :param call_timeout: seconds that a call may take; `None` for no limit.
    :param connect_timeout: seconds to connect in.
    :param broken: told that the plugin has broken its connection, though its process runs.
    :param max_message: the largest message that is taken, in bytes.
    :raises HandshakeError: nobody answers at the address; its message continues a sentence that names the plugin.
    :raises PluginCrashed, PluginClosed: the process ended meanwhile.
    """

    def __init__(
        self,
        connect: Callable[[], Stream],
        where: str,
        kinds: Mapping[str, Plugin],
        *,
        name: str,
        fate: Fate,
        stdout: OutputSink,
        stderr: OutputSink,
        call_timeout: float | None,
        connect_timeout: float,
        max_message: int = MAX_MESSAGE,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        self._broken = broken
        self._in_use = False  # from the greeting to the parting
        self._kinds = kinds
        self._name = name
        self._fate = fate
        self._call_timeout = call_timeout
        self._loop = EventLoop()
        deadline = time.monotonic() + connect_timeout
        self._mux = self._connect(connect, where, deadline)
        with ExitStack() as begun:
            begun.callback(self._mux.close)
            try:
                # All three before anything is waited for: a plugin accepts them first.
                control, out, err = (self._mux.open(max(0.0, deadline - time.monotonic())) for _ in range(3))
            except (StreamError, TimeoutError) as error:
                raise self._unanswered(where, error, deadline) from error
            self._stdio = StdioStreams(out, err, (stdout, stderr), name=name)
            limits = Limits(message=max_message)
            self._control = NetRPCClient(control, limits=limits, name=f"{name} control")
            self._server = NetRPCServer(name)
            self._broker = MuxBroker(self._mux, self._server, name=name, limits=limits, on_lost=self._lost)
            self._objects = MuxObjects(self._broker, self._loop, self._calls, self._is_detailed, lends=True)
            begun.callback(self._close)
            self._detailed = self._greet(where, deadline)
            self._in_use = True
            begun.pop_all()

    def dispense(self, kind: str) -> Methods | Any:
        """What the host calls for a kind: a contract's methods, or what a hand-written plugin makes of the client.

        :raises ConfigError: the plugin set has no such kind.
        :raises ContractError: the contract's methods cannot travel over net/rpc.
        :raises RemoteError: the plugin has no such kind, or could not make it.
        """
        plugin = self._kinds.get(kind)
        if plugin is None:
            raise ConfigError(
                f"Plugin {self._name!r}: the plugin set has no kind {kind!r}; it has {', '.join(sorted(self._kinds))}.",
                plugin=self._name,
            )
        if isinstance(plugin, Contract):
            self._objects.conventions(plugin)  # before the plugin makes an object for nothing
            return self._objects.methods(self._dispensed(kind), plugin)
        if isinstance(plugin, NetRPCPlugin):
            return plugin.netrpc_client(self._broker, self._broker.client(self._dispensed(kind)))
        raise ConfigError(
            f"Plugin {self._name!r} speaks net/rpc, and the kind {kind!r} is a hand-written plugin for gRPC alone: "
            "give it netrpc_client and netrpc_server, or use a contract.",
            plugin=self._name,
        )

    def _lost(self) -> None:
        """The session broke off. All there is travels on it: a plugin that is still there after a moment is of no use.

        Called on a thread of the broker's.
        """
        if self._in_use and self._fate(_SETTLE) is None and self._in_use:
            self._broken()

    def offers(self, kind: str, timeout: float) -> bool:
        """Whether the plugin has a kind, be it in the plugin set or not. The plugin makes an object for it.

        :raises PluginCrashed, PluginClosed, CallTimeout: it does not answer.
        """
        try:
            self._dispensed(kind, timeout)
        except RemoteError:
            return False
        return True

    def ping(self, timeout: float) -> None:
        """Check that the plugin answers, as go-plugin's `Ping` does.

        :raises CallTimeout: no answer within `timeout` seconds.
        :raises PluginCrashed, PluginClosed: the plugin is gone.
        :raises RemoteError: it answers, and says that it does not serve.
        """
        self._ask("Control.Ping", True, Bool(), None, timeout)

    def shutdown(self, timeout: float) -> bool:
        """Ask the plugin to end; whether it can be expected to.

        A plugin that drops the connection instead of answering has done as it was asked. One that says nothing for
        `timeout` seconds, or does not know the call, has not.
        """
        self._in_use = False
        try:
            reply = self._control.exchange("Control.Quit", True, Bool(), None, timeout)
        except StreamError:
            return True
        except TimeoutError:
            return False
        return reply.error is None

    def close(self) -> None:
        """Take the output that is still on its way and close the connection. Safe to call twice."""
        self._in_use = False
        self._stdio.join(_SETTLE)
        self._close()

    def _close(self) -> None:
        self._mux.close()
        self._control.close()
        self._broker.close()
        self._stdio.close()
        self._server.close(_SETTLE)
        self._loop.close(_SETTLE)

    def timeout(self) -> float | None:
        """Seconds that the next call may take.

        :raises CallTimeout: the caller's deadline has passed.
        """
        return limited(self._call_timeout, self._name)

    def translate(self, error: Exception, timeout: float | None) -> Exception:
        """The exception that the caller of a plugin's method sees for one of the connection's."""
        if isinstance(error, StreamError):
            left = _SETTLE if error.deadline is None else error.deadline - time.monotonic()
            return (
                self._fate(0)
                or self._fate(min(_SETTLE, max(_LATE, left)))
                or PluginCrashed(
                    f"Plugin {self._name!r} broke its connection, though its process still runs: {error}. "
                    "Its log may say more; load it again to start a new process.",
                    plugin=self._name,
                )
            )
        limit = "in time"
        if timeout is not None:
            limit = f"within {round(timeout, 3):g} s (call_timeout, or the caller's deadline)"
        return CallTimeout(f"Plugin {self._name!r} did not answer {limit}.", plugin=self._name)

    # Calls of the protocol's own

    def _dispensed(self, kind: str, timeout: float = _DISPENSE) -> int:
        service_id: int = self._ask("Dispenser.Dispense", kind, String(), Uint(32), timeout)
        return service_id

    def _ask(self, method: str, argument: Any, argument_type: Any, reply_type: Any, timeout: float) -> Any:
        try:
            reply = self._control.exchange(method, argument, argument_type, reply_type, timeout)
        except (StreamError, TimeoutError) as error:
            failure = self.translate(error, timeout)
        else:
            if reply.error is None and reply.mismatch is None:
                return reply.value
            failure = RemoteError(reply.error or str(reply.mismatch), plugin=self._name)
        raise failure

    def _calls(self, contract: Contract[Any]) -> _ContractCalls:
        return _ContractCalls(self, contract)

    def _is_detailed(self) -> bool:
        return self._detailed

    # Connecting

    def _connect(self, connect: Callable[[], Stream], where: str, deadline: float) -> Mux:
        try:
            stream = connect()
            return Mux(stream, client=True, name=f"hybridload {self._name} yamux")
        except (OSError, TimeoutError) as error:
            raise self._unanswered(where, error, deadline) from error

    def _greet(self, where: str, deadline: float) -> bool:
        """See that somebody answers, if only that it does not know the call, and whether it is a hybridload."""
        left = max(0.0, deadline - time.monotonic())
        try:
            reply = self._control.exchange(failures.HELLO, failures.VERSION, Int(), Int(), left)
        except (StreamError, TimeoutError) as error:
            raise self._unanswered(where, error, deadline) from error
        return reply.error is None

    def _unanswered(self, where: str, error: Exception, deadline: float) -> Exception:
        gone = self._fate(min(_SETTLE, max(0.0, deadline - time.monotonic())))
        if gone is not None:
            return gone
        late = isinstance(error, TimeoutError)
        return (StartTimeout if late else HandshakeError)(
            f"says that it listens on {where}, but no go-plugin server answers net/rpc there: "
            + ("nothing came within the start timeout" if late else f"{error}"),
            plugin=self._name,
        )


class _ContractCalls:
    """What the stubs of one contract need to know of the connection."""

    def __init__(self, connection: NetRPCConnection, contract: Contract[Any]) -> None:
        self.timeout = connection.timeout
        self.translate = connection.translate
        self._connection = connection
        self._contract = contract

    def failed(self, reply: Reply, method: str) -> Exception:
        connection = self._connection
        return failures.failure_of(reply, method, self._contract, connection._name, connection._detailed)
