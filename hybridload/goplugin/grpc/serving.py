"""A plugin set served over gRPC: go-plugin's own services beside the user's, on one server."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from hybridload.contract import Contract
from hybridload.goplugin.entrance import JOIN, open_entrance
from hybridload.goplugin.grpc.broker import GRPCBroker
from hybridload.goplugin.grpc.broker_server import broker_service
from hybridload.goplugin.grpc.contract_server import contract_service
from hybridload.goplugin.grpc.controller import controller_service
from hybridload.goplugin.grpc.engine import Server
from hybridload.goplugin.grpc.engines import engine_named
from hybridload.goplugin.grpc.handlers import CALLS, CONTROL, STREAMS
from hybridload.goplugin.grpc.health import health_service
from hybridload.goplugin.grpc.host_calls import HostCalls
from hybridload.goplugin.grpc.objects import BrokerObjects
from hybridload.goplugin.grpc.reflection_server import reflection_services
from hybridload.goplugin.grpc.stdio_server import stdio_service
from hybridload.goplugin.line import HandshakeLine
from hybridload.goplugin.plugins import GRPCPlugin
from hybridload.goplugin.serving import Served, Surroundings
from hybridload.limits import receive_option

if TYPE_CHECKING:
    from hybridload.goplugin.grpc.descriptors import DescriptorIndex

# Seconds for answers that are still on their way.
_ANSWER_GRACE = 0.25


class GRPCServing:
    """Serves kinds over gRPC; see `Serving`.

    :raises ConfigError, StreamError: it cannot be reached in the way that the host or the options ask for.
    """

    def __init__(self, served: Mapping[str, Served], around: Surroundings) -> None:
        options = around.options
        self._stack = stack = ExitStack()
        try:
            engine = engine_named(options.engine)
            lanes = engine.lanes()
            stack.callback(lanes.close, JOIN)
            self._entrance, self._loop = open_entrance(around, stack, "grpc")
            limit = receive_option(options.max_message)
            self._broker = GRPCBroker(self._entrance.transport, engine, lanes, name="plugin", options=[limit])
            stack.callback(self._broker.close)
            self._server: Server = engine.server(lanes, (*options.server_options, limit))
            stack.callback(self._server.stop, _ANSWER_GRACE)
            self._register(served, around)
            self._entrance.serve(self._server)
        except BaseException:
            stack.close()
            raise

    def line(self, app_version: int) -> HandshakeLine:
        return self._entrance.line(app_version)

    def start(self) -> None:
        self._server.start()

    def refuse_calls(self) -> None:
        self._server.refuse_calls()

    def wait_for_calls(self, timeout: float) -> bool:
        return self._server.wait_idle(CALLS, timeout)

    def wait_for_streams(self, timeout: float) -> bool:
        return self._server.wait_idle(STREAMS, timeout)

    def wait_for_answers(self, timeout: float) -> bool:
        return self._server.wait_idle(CONTROL, timeout)

    def close(self) -> None:
        self._stack.close()

    def _register(self, kinds: Mapping[str, Served], around: Surroundings) -> None:
        server = self._server
        objects = BrokerObjects(
            self._broker, self._loop, lambda contract: HostCalls(contract, self._broker.engine.rpc_error)
        )
        server.add_generic_rpc_handlers(
            (
                health_service(server, around.ending),
                controller_service(around.end),
                stdio_service(around.output),
                broker_service(self._broker),
                *reflection_services(server, lambda: _described(server, kinds)),
            )
        )
        for served in kinds.values():
            if isinstance(served.plugin, Contract):
                service = contract_service(
                    served.plugin.complete(), served.implementation, engine=server, loop=self._loop, objects=objects
                )
                server.add_generic_rpc_handlers((service,))
            else:
                assert isinstance(served.plugin, GRPCPlugin)  # else it would not be served over gRPC
                served.plugin.grpc_server(self._broker, server)


def _described(server: Server, kinds: Mapping[str, Served]) -> DescriptorIndex:
    """What server reflection tells."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    from hybridload.goplugin.grpc import messages
    from hybridload.goplugin.grpc.descriptors import DescriptorIndex

    contracts = [served.plugin for served in kinds.values() if isinstance(served.plugin, Contract)]
    files = [[*map(FileDescriptorProto.FromString, contract.complete().wire().files)] for contract in contracts]
    return DescriptorIndex.of(server.services, [messages.protocol_files(), *files])
