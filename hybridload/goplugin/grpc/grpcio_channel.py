"""The calling half of the grpcio engine. Only this file and `server.py` import grpc."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import grpc

from hybridload.goplugin.grpc.bridge import ClientBridge
from hybridload.goplugin.line import Network
from hybridload.limits import RECEIVE_OPTION

RpcError: Any = grpc.RpcError
_LARGEST = 2**31 - 1  # that grpc's core can hold

_OPTIONS: tuple[tuple[str, Any], ...] = (
    # grpcio's default is 4 MiB; who opens a channel for a plugin says what is taken.
    (RECEIVE_OPTION, -1),
    ("grpc.max_send_message_length", -1),
    # No client keepalive: a Go server's default enforcement answers it with GOAWAY too_many_pings.
    ("grpc.keepalive_time_ms", 2**31 - 1),
    # A plugin's process has one life; a connection that broke is never worth waiting for.
    ("grpc.enable_retries", 0),
    # Nor is one that was closed for want of calls: it may be the only one that the other side accepts.
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
    # Two plugins may share an address over time; no connection is shared between channels.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy from the environment must not get between a host and a plugin on tcp.
    ("grpc.enable_http_proxy", 0),
    # Unix sockets have no host name; Go servers take this one.
    ("grpc.default_authority", "localhost"),
)


def open_channel(network: Network, address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
    """A channel to a plugin's address; connects at the first call.

    :param address: a socket's path, or ``host:port``.
    :param options: grpc channel arguments, which win over ours.
    """
    # A target is a URI: `%`, `?` and `#` in a path mean something else there.
    target = f"unix:{quote(address)}" if network == "unix" else f"dns:///{address}"
    return grpc.insecure_channel(target, options=arguments(_OPTIONS, options))


def arguments(ours: Sequence[tuple[str, Any]], given: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """grpc's arguments: the given ones win over ours."""
    # Of an argument that is given twice, grpc's core may take either.
    merged = {**dict(ours), **dict(given)}
    if merged[RECEIVE_OPTION] > _LARGEST:
        merged[RECEIVE_OPTION] = -1  # no message of protobuf is that large
    return list(merged.items())


def bridged_channel(bridge: ClientBridge, options: Sequence[tuple[str, Any]] = ()) -> BridgedChannel:
    """A channel whose connections cross a bridge, which it owns."""
    return BridgedChannel(open_channel("unix", bridge.address, options), bridge)


class BridgedChannel(grpc.Channel):  # type: ignore[misc]  # grpc has no types
    """A channel of grpcio that closes its bridge with itself."""

    def __init__(self, channel: grpc.Channel, bridge: ClientBridge) -> None:
        self._channel = channel
        self._bridge = bridge

    @property
    def failure(self) -> Exception | None:
        """What ended the last connection that did not end well."""
        return self._bridge.failure

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.unary_unary(*args, **kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.unary_stream(*args, **kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.stream_unary(*args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.stream_stream(*args, **kwargs)

    def subscribe(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.subscribe(*args, **kwargs)

    def unsubscribe(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.unsubscribe(*args, **kwargs)

    def close(self) -> None:
        """Close the channel and its bridge. Safe to call twice."""
        self._channel.close()
        self._bridge.close()

    def __enter__(self) -> BridgedChannel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
