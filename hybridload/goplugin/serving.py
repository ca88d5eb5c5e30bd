"""What serves a plugin set in one of the two protocols, as `serve` sees it.

`serve` knows the process: signals, logging, what is printed, when the end comes. What is behind the handshake line,
from the socket to the implementations' methods, is a `Serving`: one for gRPC (`grpc/serving.py`), one for net/rpc
(`netrpc/serving.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from hybridload.contract import Contract
from hybridload.errors import ConfigError
from hybridload.frozen import field, frozen
from hybridload.goplugin.plugins import GRPCPlugin, NetRPCPlugin
from hybridload.limits import MAX_MESSAGE

if TYPE_CHECKING:
    import ssl

    from hybridload.goplugin.host_environment import HostEnvironment
    from hybridload.goplugin.line import HandshakeLine
    from hybridload.goplugin.reattach import ReattachConfig
    from hybridload.goplugin.served_output import OutputBuffer
    from hybridload.goplugin.socket_folder import SocketFolder
    from hybridload.goplugin.transport import TLS


PROTOCOLS = ("grpc", "netrpc")
Protocols: TypeAlias = "str | Sequence[str] | Mapping[int, str | Sequence[str]]"
"""One or both of `PROTOCOLS`, in the order of preference; or that for each version of a plugin set."""


@frozen
class ServeOptions:
    """How a plugin is reached, beyond what its host asks for; see `serve`.

    :param server_options: without `max_message`, which is in bytes here.
    """

    tls: TLS | ssl.SSLContext | None = None
    network: str = "unix"
    server_options: tuple[tuple[str, Any], ...] = ()
    max_message: int = MAX_MESSAGE
    engine: str | None = None
    protocols: Protocols = PROTOCOLS

    def __post_init__(self) -> None:
        by_version = self.protocols.values() if isinstance(self.protocols, Mapping) else (self.protocols,)
        if not all(_named(protocols) and set(_named(protocols)) <= set(PROTOCOLS) for protocols in by_version):
            raise ConfigError(
                f"protocols is {self.protocols!r}: give one or both of 'grpc' and 'netrpc', "
                "or a mapping of version to such."
            )
        if self.network not in ("unix", "tcp"):
            raise ConfigError(f"network is {self.network!r}: give 'unix' or 'tcp'.")

    def protocols_of(self, version: int) -> tuple[str, ...]:
        """What a version of the plugin set may be served over, in the order of preference."""
        if isinstance(self.protocols, Mapping):
            return _named(self.protocols.get(version, PROTOCOLS))
        return _named(self.protocols)


def _named(protocols: str | Sequence[str]) -> tuple[str, ...]:
    return (protocols,) if isinstance(protocols, str) else tuple(protocols)


@frozen
class ServeTest:
    """Test mode: a plugin is served in a process that is not its own, under a test or a debugger (go-plugin's
    `ServeTestConfig`).

    No host started that process, so there is no cookie, no handshake line, nothing of the environment is read, no
    signal is handled, and descriptor 1 and `logging` are left alone. A host takes the plugin up by its reattach config,
    and never ends it. `serve` runs in whatever thread it is called in, and returns.

    :param on_reattach: called once, from that thread, when the plugin can be reached: e.g. the `put` of a queue.
    :param cancel: set it to end serving. `serve` sets it when the end comes from elsewhere.
    :param closed: set by `serve` when everything has ended, be it with an exception.
    :param sync_stdio: let the host have what is printed, besides the place where it goes already.
    :param version: the version to serve; the lowest by default, as in go-plugin.
    """

    on_reattach: Callable[[ReattachConfig], object] | None = None
    cancel: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    sync_stdio: bool = False
    version: int | None = None


@frozen
class Served:
    """One kind: a contract and the object that implements it, or a hand-written plugin and no object."""

    plugin: Contract[Any] | GRPCPlugin | NetRPCPlugin
    implementation: object | None = None


@frozen
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


def choose_protocol(kinds: Mapping[str, Served], protocols: Sequence[str]) -> str:
    """The first of the author's protocols over which every kind of a plugin set can be served.

    As in go-plugin the set decides, and a host that does not speak what was chosen says so: its environment tells the
    plugin nothing about it. A contract can be served over either, unless it holds what net/rpc cannot carry; a
    hand-written plugin over those whose halves it has.

    :param protocols: in the order of preference.
    :raises ConfigError: there is no such protocol.
    """
    refused = ""
    for protocol in protocols:  # what the first can do is not asked of the next: each has much to import
        refusals = list(_refusals(kinds, protocol))
        if not refusals:
            return protocol
        refused += "".join(f"\n  over {protocol}: {words}" for words in refusals)
    raise ConfigError(
        f"The plugin set ({', '.join(kinds)}) cannot be served: all its kinds share one protocol.{refused}"
    )


def _refusals(kinds: Mapping[str, Served], protocol: str) -> Iterator[str]:
    """Why a set cannot be served in a protocol, one sentence for each kind that cannot."""
    half: Any = GRPCPlugin if protocol == "grpc" else NetRPCPlugin
    for kind, served in kinds.items():
        if not isinstance(served.plugin, Contract):
            if not isinstance(served.plugin, half):
                yield f"{kind!r} is a hand-written plugin without {protocol}_client and {protocol}_server"
        elif refused := _refused(served.plugin, protocol):
            yield f"{kind!r}: {refused}"


def _refused(contract: Contract[Any], protocol: str) -> str | None:
    if protocol == "grpc":
        return contract.complete().netrpc_alone()
    from hybridload.goplugin.netrpc.conventions import untravelling

    return untravelling(contract)
