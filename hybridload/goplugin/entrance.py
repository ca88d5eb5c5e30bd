"""How a plugin's host gets in: the socket that the plugin listens on, TLS, and whether one socket carries everything.

What the host asked for in the environment decides, as in go-plugin: a certificate in PLUGIN_CLIENT_CERT means AutoMTLS,
PLUGIN_MULTIPLEX_GRPC one yamux session. Multiplexed, exactly one raw connection is accepted, within five seconds of the
handshake line; a stream in it that nobody knocked for is for the main server.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from hybridload.errors import ConfigError
from hybridload.goplugin.event_loop import EventLoop
from hybridload.goplugin.grpc.broker import KnockedListener
from hybridload.goplugin.host_environment import HostEnvironment
from hybridload.goplugin.line import HandshakeLine, Protocol
from hybridload.goplugin.streams.base import Listener, StreamError
from hybridload.goplugin.streams.sockets import UnixAccess, listen_tcp, listen_unix
from hybridload.goplugin.threads import Thread
from hybridload.goplugin.transport import TLS, MultiplexedTransport, MutualTLS, SocketTransport, Transport, alpn_of

if TYPE_CHECKING:
    import ssl

    from hybridload.goplugin.certificates import Certificate
    from hybridload.goplugin.grpc.engine import Server
    from hybridload.goplugin.serving import Surroundings
    from hybridload.goplugin.socket_folder import SocketFolder

log = logging.getLogger(__name__)

FIRST_CONNECTION = 5.0
"""Seconds in which a multiplexed host has to connect."""
JOIN = 0.5
"""Seconds for threads that do what cannot be interrupted, when a plugin ends."""


def open_entrance(around: Surroundings, stack: ExitStack, protocol: Protocol) -> tuple[Entrance, EventLoop]:
    """What a plugin that is served in either protocol begins with: the way in, and what runs asynchronous methods.

    :param stack: closes both.
    :raises ConfigError, StreamError: as `Entrance`.
    """
    loop = EventLoop()
    stack.callback(loop.close, JOIN)
    options = around.options
    entrance = Entrance(around.environment, around.folder, tls=options.tls, network=options.network, protocol=protocol)
    stack.callback(entrance.close)
    return entrance, loop


class Entrance:
    """Listens for the host. Whoever made it closes it, after the servers.

    :param environment: what the host asks for.
    :param folder: where unix sockets go.
    :param tls: own TLS material, which wins over the host's certificate.
    :param network: ``"unix"`` or ``"tcp"``.
    :param protocol: what is spoken: net/rpc is never multiplexed in this way, as it always is in its own.
    :raises ConfigError: the host's certificate is none, or TLS is asked for in a way that cannot be had.
    :raises StreamError: nothing can be listened on.
    """

    def __init__(
        self,
        environment: HostEnvironment,
        folder: SocketFolder,
        *,
        tls: TLS | ssl.SSLContext | None = None,
        network: str = "unix",
        protocol: Protocol = "grpc",
    ) -> None:
        self._stack = ExitStack()
        self._protocol: Protocol = protocol
        self._certificate: Certificate | None = None
        self._tls = self._own_tls(tls) if tls is not None else self._auto_mtls(environment)
        self._folder = folder
        self._group = environment.socket_group
        self._asked_multiplex = environment.multiplex
        self._ports = environment.min_port, environment.max_port
        self._network = network
        self._address = ""
        self.transport: Transport = SocketTransport(self._tls, make_listener=self._unix)
        if environment.multiplex and protocol == "grpc":
            late = _LateTransport(self._tls)
            self._stack.callback(late.close)
            self.transport = late

    @property
    def plain(self) -> bool:
        """Whether what is on the wire is nothing but gRPC."""
        return self._tls is None and not self.transport.multiplexed

    def line(self, app_version: int) -> HandshakeLine:
        """The handshake line that leads here; after `serve` or `listen`."""
        return HandshakeLine(
            app_version=app_version,
            network=self._network,  # type: ignore[arg-type]
            address=self._address,
            protocol=self._protocol,
            certificate=None if self._certificate is None else self._certificate.der,
            # Not whether it will be done, but whether it can: Go's answer is the same for whatever value is asked with.
            multiplex=None if self._asked_multiplex is None else True,
        )

    def serve(self, server: Server) -> None:
        """Have a server serve whoever comes in."""
        if self.plain and server.binds_sockets and self._network == "unix":
            self._address = server.listen("unix", self._folder.new_path())
            self._folder.share(self._address)
            return
        if isinstance(self.transport, _LateTransport):
            listener = self._listen()
            server.serve(self.transport.main)
            self.transport.begin(listener)
        else:
            server.serve(self.listen())

    def listen(self) -> Listener:
        """Listen for raw connections, under TLS where it was asked for."""
        listener = self._listen()
        if self._tls is None:
            return listener
        from hybridload.goplugin.streams.tls import TLSListener

        return TLSListener(listener, self._tls.server)

    def _listen(self) -> Listener:
        listener = self._unix() if self._network == "unix" else listen_tcp("127.0.0.1", *self._ports)
        self._stack.callback(listener.close)
        self._address = listener.address
        return listener

    def close(self) -> None:
        """Listen no more. Safe to call twice."""
        self._stack.close()

    def _unix(self) -> Listener:
        access = UnixAccess() if self._group is None else UnixAccess.for_group(self._group)
        return listen_unix(self._folder.path, access)

    def _auto_mtls(self, environment: HostEnvironment) -> TLS | None:
        if environment.client_certificate is None:
            return None
        from hybridload.goplugin.certificates import generate_certificate

        host = os.fsencode(environment.client_certificate)  # as it was: what is not UTF-8 is no certificate
        own = self._certificate = generate_certificate()
        try:
            made = MutualTLS(own, host, alpn_of(self._protocol))
            made.server  # noqa: B018  # a certificate that is none is found out here
            return made
        except (OSError, ValueError) as error:  # ssl.SSLError is the former
            raise ConfigError(f"The host's certificate in PLUGIN_CLIENT_CERT cannot be read: {error}.") from error

    @staticmethod
    def _own_tls(tls: TLS | ssl.SSLContext) -> TLS:
        return tls if isinstance(tls, TLS) else TLS(tls, tls)


class _LateTransport:
    """A multiplexed transport whose one connection is yet to come."""

    multiplexed = True

    def __init__(self, tls: TLS | None) -> None:
        self._tls = tls
        self._listener: Listener | None = None
        self.main = KnockedListener(0, lambda _: None)
        self._connected = threading.Event()
        self._below: MultiplexedTransport | None = None
        self._thread: threading.Thread | None = None

    def begin(self, listener: Listener) -> None:
        """Wait for the host on a thread."""
        self._listener = listener
        self._thread = Thread(target=self._accept, args=(listener,), name="hybridload first connection", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the session. Safe to call twice."""
        if self._listener is not None and self._thread is not None:
            self._listener.close()
            self._thread.join()
        self.main.close()
        if self._below is not None:
            self._below.close()

    def listen(self) -> Listener:
        raise NotImplementedError("a multiplexed plugin listens nowhere else")

    def translated(self, listener: Listener) -> tuple[str, str]:
        return listener.network, listener.address

    def connect(self, network: str, address: str, timeout: float) -> Any:
        raise NotImplementedError("a multiplexed plugin has no other addresses")

    def open(self, timeout: float | None = None) -> Any:
        return self._session().open(timeout)

    def expect(self, listener: Any) -> bool:
        return self._session().expect(listener)

    def _session(self) -> MultiplexedTransport:
        if not self._connected.wait(FIRST_CONNECTION) or self._below is None:
            raise StreamError("the host has not connected")
        return self._below

    def _accept(self, listener: Listener) -> None:
        from hybridload.goplugin.streams.mux import Mux, MuxConfig

        try:
            stream = listener.accept(FIRST_CONNECTION)
        except (StreamError, TimeoutError) as error:
            log.debug("the host did not connect in time: %s", error)
        else:
            session = Mux(stream, client=False, config=MuxConfig(half_close=False))
            self._below = MultiplexedTransport(session, self._tls, name="plugin", main=self.main.put)
        finally:
            listener.close()
            self._connected.set()
