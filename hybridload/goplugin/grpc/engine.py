"""What carries gRPC: the seam between go-plugin's services and the library that moves their bytes.

A channel has the shape of `grpc.Channel` and a server that of `grpc.Server`, as far as generated code uses them, so
that `*_pb2_grpc.py` runs on any engine. Who reads and writes the bytes is the engine's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from hybridload.frozen import frozen
from hybridload.goplugin.line import Network
from hybridload.goplugin.streams.base import Listener, Stream


@frozen
class Endpoint:
    """Where a channel's connections lead.

    :param open: opens one more connection, in so many seconds at the most; called whenever the channel needs one.
    :param plain: network and address, when what is on the wire is nothing but gRPC, for engines that connect by
        themselves; `None` under TLS or yamux.
    :param name: for messages.
    :param costly: whether a connection takes milliseconds to open, as the handshake of TLS does.
    :param connections: how many a channel may have at most, for engines that use several.
    """

    open: Callable[[float | None], Stream]
    name: str
    plain: tuple[Network, str] | None = None
    costly: bool = False
    connections: int = 8


class Server(Protocol):
    """A gRPC server; to generated code it is a `grpc.Server`."""

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any]) -> None:
        """Serve what the handlers know; earlier ones are asked first."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """Serve a service's methods; what generated code calls besides the former."""

    def abort(
        self, context: Any, code: str, message: str, trailing_metadata: Sequence[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        """End a call with a status; never returns.

        :param code: the status code's name, e.g. ``"NOT_FOUND"``.
        """

    @property
    def services(self) -> tuple[str, ...]:
        """The full names of the services that were added, as far as their handlers tell."""

    binds_sockets: bool
    """Whether it can listen on plain sockets by itself, and does so better than through `serve`."""

    def listen(self, network: str, address: str) -> str:
        """Listen on a socket's path, or ``host:port`` where port 0 means any; only where `binds_sockets`.

        :returns: the address with its port.
        :raises OSError: the address cannot be had.
        """

    def start(self) -> None:
        """Serve what was bound."""

    def serve(self, listener: Listener) -> None:
        """Serve every stream that a listener accepts, from now until `stop`. Returns at once; the server closes it."""

    @property
    def connected(self) -> bool:
        """Whether anybody is connected."""

    def wait_idle(self, lane: str, timeout: float) -> bool:
        """Wait until no call of a lane is in flight; whether that came within `timeout` seconds."""

    def refuse_calls(self) -> None:
        """Answer new calls of the user's methods with UNAVAILABLE; those in flight, and the protocol's own, go on."""

    def stop(self, grace: float) -> bool:
        """Take no new calls, give those in flight `grace` seconds, end the others; whether the end came in time."""


class Lanes(Protocol):
    """The threads that servers run calls on."""

    def close(self, timeout: float) -> bool:
        """Join all threads; whether all of them ended in time."""


class Engine(Protocol):
    """Opens channels and makes servers."""

    name: str
    rpc_error: Any
    """A tuple of what calls on a channel raise, with `code()`, `details()` and `trailing_metadata()`."""

    def channel(self, endpoint: Endpoint, options: Sequence[tuple[str, Any]] = ()) -> Any:
        """A channel, shaped as `grpc.Channel`, that connects at the first call."""

    def why(self, channel: Any, error: Any) -> str:
        """Why the first call on a channel failed with an error of `rpc_error`, as the part of a sentence."""

    def lost(self, error: Any) -> bool:
        """Whether an error of `rpc_error` tells that the connection broke, and no server has said it."""

    def lanes(self) -> Any:
        """The threads that servers of this engine run calls on; they start when they are first needed."""

    def server(
        self, lanes: Any, options: Sequence[tuple[str, Any]] = (), *, on_idle: Callable[[], None] | None = None
    ) -> Server:
        """A server that runs calls on the threads of `lanes`.

        :param on_idle: called each time the last of its connections has ended.
        """
