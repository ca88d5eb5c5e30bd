"""What serves a plugin set in one of the two protocols, as `serve` sees it.

`serve` knows the process: signals, logging, what is printed, when the end comes. What is behind the handshake line,
from the socket to the implementations' methods, is a `Serving`: one for gRPC (`grpc/serving.py`), one for net/rpc
(`netrpc/serving.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hybridload.contract import Contract
from hybridload.errors import ConfigError
from hybridload.goplugin.plugins import GRPCPlugin, NetRPCPlugin

if TYPE_CHECKING:
    import ssl

    from hybridload.goplugin.host_environment import HostEnvironment
    from hybridload.goplugin.line import HandshakeLine
    from hybridload.goplugin.served_output import OutputBuffer
    from hybridload.goplugin.socket_folder import SocketFolder
    from hybridload.goplugin.transport import TLS


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How a plugin is reached, beyond what its host asks for; see `serve`."""

    tls: TLS | ssl.SSLContext | None = None
    network: str = "unix"
    server_options: tuple[tuple[str, Any], ...] = ()
    engine: str | None = None

    def __post_init__(self) -> None:
        if self.network not in ("unix", "tcp"):
            raise ConfigError(f"network is {self.network!r}: give 'unix' or 'tcp'.")


@dataclass(frozen=True, slots=True)
class Served:
    """One kind: a contract and the object that implements it, or a hand-written plugin and no object."""

    plugin: Contract[Any] | GRPCPlugin | NetRPCPlugin
    implementation: object | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the process gives to whatever serves in it.

    :param environment: what the host asks for.
    :param folder: where sockets go.
    :param output: what is printed, to be delivered to the host.
    :param end: asks for the end of the plugin; returns when the host may be told that it has come.
    :param ending: set once the end was asked for.
    """

    environment: HostEnvironment
    folder: SocketFolder
    output: OutputBuffer
    options: ServeOptions
    end: Callable[[], None]
    ending: threading.Event


class Serving(Protocol):
    """A plugin set that is served. Made listening, but it answers nobody before `start`."""

    def line(self, app_version: int) -> HandshakeLine:
        """The handshake line that leads here."""

    def start(self) -> None:
        """Serve, on threads of its own, until `close`."""

    def refuse_calls(self) -> None:
        """Let new calls of the user's methods fail; those in flight, and the protocol's own, go on."""

    def wait_for_calls(self, timeout: float) -> bool:
        """Wait until no call of the user's methods is in flight; whether that came within `timeout` seconds."""

    def wait_for_streams(self, timeout: float) -> bool:
        """The same for calls that stream."""

    def wait_for_answers(self, timeout: float) -> bool:
        """The same for the protocol's own calls: the one that asked for the end has its answer then."""

    def close(self) -> None:
        """End all connections and threads. Safe to call twice."""
