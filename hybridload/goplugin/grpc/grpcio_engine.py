"""The engine that is grpcio. Where more than sockets carries the bytes, a bridge stands between them and grpcio."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc

from hybridload.goplugin.grpc.bridge import ClientBridge
from hybridload.goplugin.grpc.engine import Endpoint
from hybridload.goplugin.grpc.grpcio_channel import BridgedChannel, bridged_channel, open_channel
from hybridload.goplugin.grpc.server import GrpcioServer, Lanes

_BROKEN: Final = re.compile(
    "Socket closed|Stream removed|GOAWAY|Connection reset|Broken pipe|Endpoint|Transport closed|[Ff]ailed to connect"
)
"""What grpc's core calls a connection that broke; a server's own UNAVAILABLE differs in nothing but the text."""


class GrpcioEngine:
    """Opens channels and makes servers of grpcio."""

    name = "grpcio"
    rpc_error: Any = (grpc.RpcError,)

    def channel(self, endpoint: Endpoint, options: Sequence[tuple[str, Any]] = ()) -> Any:
        if endpoint.plain is not None:
            return open_channel(*endpoint.plain, options)
        return bridged_channel(ClientBridge(lambda: endpoint.open(None), endpoint.name), options)

    def why(self, channel: Any, error: Any) -> str:
        if isinstance(channel, BridgedChannel) and channel.failure is not None:
            return str(channel.failure)
        return str(error.details())

    def lost(self, error: Any) -> bool:
        return error.code() is grpc.StatusCode.UNAVAILABLE and _BROKEN.search(error.details() or "") is not None

    def lanes(self) -> Lanes:
        return Lanes()

    def server(
        self, lanes: Lanes, options: Sequence[tuple[str, Any]] = (), *, on_idle: Callable[[], None] | None = None
    ) -> GrpcioServer:
        return GrpcioServer(lanes, options, on_idle)
