"""A plugin set served over net/rpc: control, output and brokered connections, for each host that connects.

A host opens one raw connection, under TLS or plain, and on it a yamux session whose first three streams are control,
stdout and stderr, in that order (rpc_server.go of go-plugin v1.8.0). Control is a net/rpc connection with the services
``Control`` (Ping, Quit) and ``Dispenser`` (Dispense): dispensing a kind has its object served under a fresh id of the
broker. A host that reattaches is one more connection.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from hybridload.contract import Contract
from hybridload.contract.exceptions import message_of
from hybridload.deadlines import limited
from hybridload.errors import CallTimeout, PluginClosed
from hybridload.goplugin.entrance import JOIN, open_entrance
from hybridload.goplugin.http2.workers import WorkersClosed
from hybridload.goplugin.line import HandshakeLine
from hybridload.goplugin.netrpc import failures
from hybridload.goplugin.netrpc.broker import MuxBroker
from hybridload.goplugin.netrpc.gob import Bool, Int, Limits, Registry, String, Uint
from hybridload.goplugin.netrpc.objects import MuxObjects
from hybridload.goplugin.netrpc.plugin_service import plugin_service
from hybridload.goplugin.netrpc.rpc import EMPTY, Reply
from hybridload.goplugin.netrpc.server import Behavior, NetRPCServer, Refused, Services
from hybridload.goplugin.netrpc.stdio import Delivery
from hybridload.goplugin.plugins import NetRPCPlugin
from hybridload.goplugin.serving import Served, Surroundings
from hybridload.goplugin.streams.base import Stream, StreamError
from hybridload.goplugin.streams.mux import Mux
from hybridload.goplugin.threads import OutOfThreads, Thread

log = logging.getLogger(__name__)

# Seconds that a host may take to open its first streams.
_OPENING = 10.0


class NetRPCServing:
    """Serves kinds over net/rpc; see `Serving`.

    :raises ConfigError, StreamError: it cannot be reached in the way that the host or the options ask for.
    """

    def __init__(self, served: Mapping[str, Served], around: Surroundings) -> None:
        self.served = served
        self.around = around
        self.limits = Limits(message=around.options.max_message)
        self._stack = stack = ExitStack()
        self._lock = threading.Lock()
        self._sessions: set[HostSession] = set()
        self._closed = False
        try:
            self._entrance, self.loop = open_entrance(around, stack, "netrpc")
            self.server = NetRPCServer("plugin")
            stack.callback(self.server.close, JOIN)
            stack.callback(self._end_sessions)
            self._listener = self._entrance.listen()
            # Blocks on the listener, which is closed before it is joined.
            self._accepting = Thread(target=self._accept, name="hybridload accept", daemon=True)
        except BaseException:
            stack.close()
            raise

    def line(self, app_version: int) -> HandshakeLine:
        return self._entrance.line(app_version)

    def start(self) -> None:
        self._accepting.start()
        self._stack.callback(self._accepting.join)
        self._stack.callback(self._listener.close)

    def refuse_calls(self) -> None:
        self.server.refusing = True

    def wait_for_calls(self, timeout: float) -> bool:
        return self.server.calls.wait_for_none(timeout)

    def wait_for_streams(self, timeout: float) -> bool:
        return True

    def wait_for_answers(self, timeout: float) -> bool:
        return self.server.protocol_calls.wait_for_none(timeout)

    def close(self) -> None:
        self._stack.close()

    def _accept(self) -> None:
        while True:
            try:
                stream = self._listener.accept()
            except StreamError:
                return
            try:
                self.server.workers.submit(partial(self._serve, stream))
            except (WorkersClosed, OutOfThreads) as error:
                log.debug("a host is refused: %s", error)
                stream.close()

    def _serve(self, stream: Stream) -> None:
        session = HostSession(stream, self)
        with self._lock:
            closed = self._closed
            if not closed:
                self._sessions.add(session)
        if closed:
            session.close()
        else:
            session.run()

    def ended(self, session: HostSession) -> None:
        """A host went away."""
        with self._lock:
            self._sessions.discard(session)

    def _end_sessions(self) -> None:
        with self._lock:
            self._closed = True
            sessions = list(self._sessions)
        for session in sessions:
            session.close()


class HostSession:
    """One host's connection. Owns everything on it."""

    def __init__(self, stream: Stream, serving: NetRPCServing) -> None:
        self._serving = serving
        self._mux = Mux(stream, client=False, name="hybridload yamux")
        self._broker: MuxBroker | None = None
        self._delivery: Delivery | None = None
        self._lock = threading.Lock()
        self._closed = False
        self.detailed = False
        """Whether the host is a hybridload; see `failures`."""

    def run(self) -> None:
        """Serve the host, on the calling thread to begin with."""
        try:
            control, stdout, stderr = (self._mux.accept(_OPENING) for _ in range(3))
        except (StreamError, TimeoutError) as error:
            log.warning("a host that connected did not open its streams: %s", error)
            self.close()
            return
        with self._lock:
            if self._closed:
                return
            self._broker = broker = MuxBroker(
                self._mux, self._serving.server, name="plugin", limits=self._serving.limits
            )
            self._objects = MuxObjects(
                broker, self._serving.loop, lambda contract: HostCalls(contract, self._is_detailed), self._is_detailed
            )
            self._delivery = Delivery(self._serving.around.output, stdout, stderr)
        self._serving.server.serve(control, self._services(broker), limits=self._serving.limits, on_end=self._hung_up)

    def close(self) -> None:
        """End the session and its threads. Safe to call twice, but not from a thread of the broker's."""
        with self._lock:
            self._closed = True
        self._mux.close()
        if self._broker is not None:
            self._broker.close()
        if self._delivery is not None:
            self._delivery.close()
        self._serving.ended(self)

    def _hung_up(self) -> None:
        try:
            self._serving.server.workers.submit(self.close, patient=True)
        except WorkersClosed:
            pass  # whoever closed them closes this as well
        except OutOfThreads:
            self.close()

    def _services(self, broker: MuxBroker) -> Services:
        def quit_(_: bool) -> dict[str, Any]:
            self._serving.around.end()
            return {}

        return {
            "Control": {
                "Ping": Behavior(lambda _: {}, Bool(), EMPTY, protocol=True),
                "Quit": Behavior(quit_, Bool(), EMPTY, waits=True, protocol=True),
            },
            "Dispenser": {
                "Dispense": Behavior(partial(self._dispense, broker), String(), Uint(32), waits=True, protocol=True)
            },
            failures.SERVICE: {failures.METHOD: Behavior(self._hello, Int(), Int(), protocol=True)},
        }

    def _hello(self, version: int) -> int:
        self.detailed = True
        return failures.VERSION

    def _is_detailed(self) -> bool:
        return self.detailed

    def _dispense(self, broker: MuxBroker, kind: str) -> int:
        served = self._serving.served.get(kind)
        if served is None:
            raise Refused(f"unknown plugin type: {kind}")
        loop = self._serving.loop
        if isinstance(served.plugin, Contract):
            service_id = broker.next_id()
            self._objects.serve(service_id, served.implementation, served.plugin)
            return service_id
        assert isinstance(served.plugin, NetRPCPlugin)  # else it would not be served over net/rpc
        made = served.plugin.netrpc_server(broker)
        registry = Registry()
        service_id = broker.next_id()
        broker.accept_and_serve(service_id, plugin_service(made, registry, loop), registry, failure=message_of)
        return service_id


class HostCalls:
    """What a plugin's stubs for its host's objects need to know; see `contract_client.CallContext`."""

    def __init__(self, contract: Contract[Any], detailed: Callable[[], bool]) -> None:
        self._contract = contract
        self._detailed = detailed

    def timeout(self) -> float | None:
        """No limit of the plugin's own, but the deadline that its code may have set."""
        return limited(None, "host")

    def translate(self, error: Exception, timeout: float | None) -> Exception:
        if isinstance(error, StreamError):
            return PluginClosed(f"The host's object can no longer be called: {error}.")
        return CallTimeout("The host's object did not answer in time.")

    def failed(self, reply: Reply, method: str) -> Exception:
        return failures.failure_of(reply, method, self._contract, "host", self._detailed())
