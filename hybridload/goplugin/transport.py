"""How connections between a host and its plugin are made: sockets, TLS on them, or streams of one yamux session.

A transport knows one plugin process. The broker and the main connection ask it; nobody else opens a socket.
"""

from __future__ import annotations

import collections
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hybridload.frozen import frozen
from hybridload.goplugin.addresses import local_address
from hybridload.goplugin.streams.base import Listener, Stream, StreamError
from hybridload.goplugin.streams.sockets import connect, listen_unix
from hybridload.goplugin.threads import Thread

if TYPE_CHECKING:
    import ssl

    from hybridload.goplugin.certificates import Certificate

log = logging.getLogger(__name__)

SERVER_NAME = "localhost"
"""Whom every certificate of go-plugin is for."""
_EXPECTATION = 10.0
"""Seconds after which a knocked stream that never came is no longer expected."""
_EXPECTED = 256
"""How many knocked streams are expected at once; yamux keeps no more that are not accepted."""
_ACCEPTANCE = 5.0
"""Seconds that the other side may take to accept a stream."""


def alpn_of(protocol: str) -> tuple[str, ...]:
    """What TLS names as the protocol inside: h2 for gRPC, nothing for net/rpc, as in go-plugin."""
    return ("h2",) if protocol == "grpc" else ()


class Transport(Protocol):
    """How connections are made, apart from the first."""

    @property
    def multiplexed(self) -> bool:
        """Whether all connections share one socket."""

    def listen(self) -> Listener:
        """A fresh listener for the other side's connections; not when multiplexed."""

    def translated(self, listener: Listener) -> tuple[str, str]:
        """A listener's network and address as the other side knows them."""

    def connect(self, network: str, address: str, timeout: float) -> Stream:
        """Connect to an address that the other side told; not when multiplexed.

        :raises AddressRefused: it is none that it may send this side to.
        """

    def open(self, timeout: float | None = None) -> Stream:
        """Open one more stream to the other side, and wait until that accepted it; only when multiplexed.

        :param timeout: in seconds; at most five in any case.
        """

    def expect(self, listener: Any) -> bool:
        """Give the next stream that the other side opens to `listener.put`; only when multiplexed.

        :returns: false when as many are expected as may be, and the other side opens none of them.
        """


@frozen
class TLS:
    """The two contexts of one side: it serves with the one and connects with the other.

    :param server_name: whom the other side's certificate is for: a host's name, or an IP address.
    """

    client: ssl.SSLContext
    server: ssl.SSLContext
    server_name: str = SERVER_NAME

    def connected(self, stream: Stream) -> Stream:
        """TLS as the client on a stream that leads to the other side."""
        from hybridload.goplugin.streams.tls import TLSStream

        return TLSStream(stream, self.client, self.server_name)

    def accepted(self, stream: Stream) -> Stream:
        """TLS as the server on a stream that the other side opened."""
        from hybridload.goplugin.streams.tls import TLSStream

        return TLSStream(stream, self.server)

    def listener(self, listener: Listener) -> Listener:
        """Whoever connects there gets TLS."""
        from hybridload.goplugin.streams.tls import TLSListener

        return TLSListener(listener, self.server)


class MutualTLS(TLS):
    """The contexts of AutoMTLS, each made when it is first needed: most hosts never serve anything.

    :param own: shown to the other side.
    :param trusted: the only certificate (DER or PEM) that the other side may show.
    """

    server_name = SERVER_NAME

    def __init__(self, own: Certificate, trusted: bytes, alpn: Sequence[str]) -> None:
        self._made_of: tuple[Certificate, bytes, Sequence[str]]
        self.__dict__["_made_of"] = (own, trusted, alpn)

    @functools.cached_property
    def client(self) -> ssl.SSLContext:
        from hybridload.goplugin.streams.tls import client_context

        return client_context(*self._made_of)

    @functools.cached_property
    def server(self) -> ssl.SSLContext:
        from hybridload.goplugin.streams.tls import server_context

        return server_context(*self._made_of)


@frozen
class SocketTransport:
    """Every connection is a socket of its own, under TLS or plain.

    :param make_listener: opens a listener for brokered connections; a unix socket in a private folder by default.
    :param outwards: an address of this side as the other side knows it.
    :param inwards: an address of the other side as this side knows it.
    """

    tls: TLS | None = None
    make_listener: Callable[[], Listener] = listen_unix
    outwards: Callable[[str, str], tuple[str, str]] = lambda network, address: (network, address)
    inwards: Callable[[Any, str], tuple[str, str]] = lambda network, address: (network, local_address(network, address))

    @property
    def multiplexed(self) -> bool:
        return False

    def listen(self) -> Listener:
        listener = self.make_listener()
        return listener if self.tls is None else self.tls.listener(listener)

    def translated(self, listener: Listener) -> tuple[str, str]:
        return self.outwards(listener.network, listener.address)

    def connect(self, network: str, address: str, timeout: float) -> Stream:
        stream = connect(*self.inwards(network, address), timeout)
        return stream if self.tls is None else self.tls.connected(stream)

    def open(self, timeout: float | None = None) -> Stream:
        raise NotImplementedError("a plugin that is not multiplexed has an address for each connection")

    def expect(self, listener: Any) -> bool:
        raise NotImplementedError("a plugin that is not multiplexed has an address for each connection")


class MultiplexedTransport:
    """Every connection is a stream of one yamux session, with TLS inside each stream.

    One thread accepts the streams that the other side opens: a stream that was knocked for goes to whoever accepts its
    id, any other to `main`.

    :param session: a yamux session over the one raw connection; the transport owns it.
    :param main: takes streams that nobody knocked for; `None` refuses them (a host serves nothing else).
    """

    multiplexed = True

    def __init__(
        self, session: Any, tls: TLS | None, *, name: str, main: Callable[[Stream], None] | None = None
    ) -> None:
        self._session = session
        self._tls = tls
        self._main = main
        self._lock = threading.Lock()
        self._expected: collections.deque[tuple[float, Any]] = collections.deque()
        self._thread = Thread(target=self._accept, name=f"hybridload {name} streams", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # there is no thread to be had
            session.close()
            raise

    def listen(self) -> Listener:
        raise NotImplementedError("a multiplexed plugin listens nowhere else")

    def translated(self, listener: Listener) -> tuple[str, str]:
        return listener.network, listener.address

    def connect(self, network: str, address: str, timeout: float) -> Stream:
        raise NotImplementedError("a multiplexed plugin has no other addresses")

    def open(self, timeout: float | None = None) -> Stream:
        patience = _ACCEPTANCE if timeout is None else min(timeout, _ACCEPTANCE)
        deadline = time.monotonic() + patience
        stream = self._session.open(patience)
        # Go hosts accept for several ids at once, and a stream is for whoever comes first: before the next one is
        # knocked for, this one must be in its hands.
        try:
            stream.wait_accepted(max(0.0, deadline - time.monotonic()))
        except BaseException:
            stream.close()
            raise
        return stream if self._tls is None else self._tls.connected(stream)

    def expect(self, listener: Any) -> bool:
        with self._lock:
            now = self._forget_stale()
            if len(self._expected) >= _EXPECTED:
                return False
            self._expected.append((now, listener))
            return True

    def close(self) -> None:
        """End the session and its thread. Safe to call twice."""
        self._session.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _accept(self) -> None:
        refused = False
        while True:
            try:
                stream: Stream = self._session.accept()
            except StreamError:
                return
            taker = self._taker()
            if taker is None:
                # Told once: whoever opens them may open any number.
                log.log(logging.DEBUG if refused else logging.WARNING, "a stream that nobody knocked for is refused")
                refused = True
                stream.close()
                continue
            taker(stream if self._tls is None else self._tls.accepted(stream))

    def _taker(self) -> Callable[[Stream], None] | None:
        with self._lock:
            self._forget_stale()
            if self._expected:
                put: Callable[[Stream], None] = self._expected.popleft()[1].put
                return put
        return self._main

    def _forget_stale(self) -> float:
        """Called with the lock held. Returns the time that it is."""
        now = time.monotonic()
        while self._expected and now - self._expected[0][0] >= _EXPECTATION:
            self._expected.popleft()
        return now
