"""The plugin set that a host and a plugin share: kind -> how an interface travels.

What may stand for an interface: a `Contract`, a bare `Protocol` or ABC (which becomes a contract), or a hand-written
plugin, for people who have generated stubs: an object with the methods of `GRPCPlugin`.

A set is either one set, whose version is the handshake's, or one set per application version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

from hybridload.contract import Contract, as_contract
from hybridload.errors import ConfigError
from hybridload.handshake import Handshake


@runtime_checkable
class GRPCPlugin(Protocol):
    """A hand-written plugin over gRPC, as in go-plugin: both halves in one object.

    What Go hands to `GRPCClient` as a context is `broker.lifetime`, which ends with the plugin.

    `channel` and `server` are what `*_pb2_grpc.py` expects of `grpc.Channel` and `grpc.Server`; `broker` opens further
    connections in either direction.
    """

    def grpc_client(self, broker: Any, channel: Any) -> Any:
        """The host's half: wrap the channel in whatever object the host calls."""

    def grpc_server(self, broker: Any, server: Any) -> None:
        """The plugin's half: register servicers on the server."""


@runtime_checkable
class NetRPCPlugin(Protocol):
    """A hand-written plugin over net/rpc, as in go-plugin: both halves in one object."""

    def netrpc_client(self, broker: Any, client: Any) -> Any:
        """The host's half: wrap the client in whatever object the host calls."""

    def netrpc_server(self, broker: Any) -> Any:
        """The plugin's half: the object whose methods are served as ``Plugin.<Method>``."""


Plugin: TypeAlias = Contract[Any] | GRPCPlugin | NetRPCPlugin
"""What a kind stands for once a set has been read."""

# Callable[..., Any] and not type[Any]: type checkers refuse a Protocol for the latter.
PluginSet: TypeAlias = (
    Mapping[str, Contract[Any] | GRPCPlugin | NetRPCPlugin | Callable[..., Any]]
    | Mapping[int, Mapping[str, Contract[Any] | GRPCPlugin | NetRPCPlugin | Callable[..., Any]]]
)
"""kind -> contract, interface or hand-written plugin; or version -> such a mapping."""

VersionedPlugins: TypeAlias = dict[int, dict[str, Plugin]]


class AnyVersion(VersionedPlugins):
    """The plugin set of a host that knows none: every version is in it, and no version has kinds.

    :param offered: the versions that a plugin which has several may choose from; it takes the highest.
    """

    def __init__(self, offered: Iterable[int] = range(100)) -> None:
        super().__init__({version: {} for version in offered})

    def __contains__(self, version: object) -> bool:
        return True

    def __missing__(self, version: int) -> dict[str, Plugin]:
        return {}


def is_hand_written(value: object) -> TypeGuard[GRPCPlugin | NetRPCPlugin]:
    """Whether `value` is a hand-written plugin: an instance, since a class has nobody to call its methods on."""
    return not isinstance(value, type) and isinstance(value, GRPCPlugin | NetRPCPlugin)


def read_plugin_set(plugins: PluginSet, handshake: Handshake | None) -> VersionedPlugins:
    """Read a plugin set into version -> kind -> plugin, and complete its contracts.

    :raises ConfigError: when it is neither of the two shapes, or is empty.
    :raises ContractError: when an interface cannot travel.
    """
    if isinstance(plugins, AnyVersion):
        return plugins
    if not isinstance(plugins, Mapping) or not plugins:
        raise ConfigError(
            f"The plugin set is {plugins!r}: give a mapping such as {{'greeter': GREETER}}, "
            "or one per version, {1: {'greeter': GREETER}}."
        )
    versions = [key for key in plugins if isinstance(key, int) and not isinstance(key, bool)]
    if not versions:
        return {1 if handshake is None else handshake.protocol_version: _read_kinds(plugins, "")}
    read: VersionedPlugins = {}
    for version, kinds in plugins.items():
        if version not in versions or not isinstance(version, int) or version < 0:
            raise ConfigError(f"The plugin set mixes versions and kinds: {version!r} is not a version (0, 1, 2, ...).")
        if not isinstance(kinds, Mapping) or not kinds:
            raise ConfigError(f"Version {version} of the plugin set is {kinds!r}: give a mapping of kind to contract.")
        read[version] = _read_kinds(kinds, f" of version {version}")
    return read


def _read_kinds(kinds: Mapping[Any, Any], where: str) -> dict[str, Plugin]:
    read: dict[str, Plugin] = {}
    for kind, value in kinds.items():
        if not isinstance(kind, str) or not kind:
            raise ConfigError(f"The plugin set{where} has the kind {kind!r}: give a name, such as 'greeter'.")
        if not isinstance(value, Contract) and is_hand_written(value):  # which takes long to find out
            read[kind] = value
            continue
        if not isinstance(value, Contract | type):
            raise ConfigError(
                f"The kind {kind!r}{where} is {value!r}: give a Contract, a Protocol or ABC, "
                "or an object with grpc_client and grpc_server, or netrpc_client and netrpc_server (an instance, not "
                "the class)."
            )
        contract = as_contract(value)
        contract.complete()
        read[kind] = contract
    return read
