"""The calling half of the grpcio engine. Only this file and `server.py` import grpc."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import grpc

from hybridload.goplugin.line import Network

RpcError: Any = grpc.RpcError

_OPTIONS: tuple[tuple[str, Any], ...] = (
    # As in Go's host: no limit of our own (grpcio's default is 4 MiB).
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # No client keepalive: a Go server's default enforcement answers it with GOAWAY too_many_pings.
    ("grpc.keepalive_time_ms", 2**31 - 1),
    # A plugin's process has one life; a connection that broke is never worth waiting for.
    ("grpc.enable_retries", 0),
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
    return grpc.insecure_channel(target, options=[*_OPTIONS, *options])
