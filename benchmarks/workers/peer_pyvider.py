"""The PyPI package `pyvider-rpcplugin`: its host with its own plugin, or with the Go one.

peer_pyvider.py [--mtls] [COMMAND...]        the host
peer_pyvider.py --serve                      the plugin
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from typing import Any

os.environ.update(
    PLUGIN_MAGIC_COOKIE_KEY="BASIC_PLUGIN",
    PLUGIN_MAGIC_COOKIE_VALUE="hello",
    BASIC_PLUGIN="hello",
    PLUGIN_AUTO_MTLS=str("--mtls" in sys.argv).lower(),
    PLUGIN_LOG_LEVEL="ERROR",
    PROVIDE_LOG_LEVEL="ERROR",
)

import grpc
from pyvider.rpcplugin import RPCPluginProtocol, plugin_client, plugin_server

from benchmarks.workers.messages import ECHO, GREET, Data, Empty, GreetResponse
from benchmarks.workers.worker import measure_async, obey


class Protocol(RPCPluginProtocol):  # type: ignore[type-arg]
    service_name = "proto.GreeterService"

    async def get_grpc_descriptors(self) -> tuple[Any, str]:
        return None, self.service_name

    async def add_to_server(self, server: Any, handler: Any) -> None:
        server.add_generic_rpc_handlers([handler])

    def get_method_type(self, method_name: str) -> str:
        return "unary_unary"


class Handlers(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        unary = grpc.unary_unary_rpc_method_handler
        self._handlers = {
            GREET: unary(self.greet, Empty.FromString, GreetResponse.SerializeToString),
            ECHO: unary(self.echo, Data.FromString, Data.SerializeToString),
        }

    def service(self, details: Any) -> Any:
        return self._handlers.get(details.method)

    async def greet(self, request: Any, context: Any) -> Any:
        return GreetResponse(message="Hello from Python!")

    async def echo(self, request: Any, context: Any) -> Any:
        return request


class Host:
    """Its API is asynchronous: threads are tasks here."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._open())
        self._greet, self._echo = self._methods(self._client)

    async def _open(self) -> Any:
        client = plugin_client(self._command, config={"env": dict(os.environ)})
        await client.start()
        return client

    def _methods(self, client: Any) -> tuple[Any, Any]:
        channel = client.grpc_channel
        greet = channel.unary_unary(GREET, Empty.SerializeToString, GreetResponse.FromString)
        return greet, channel.unary_unary(ECHO, Data.SerializeToString, Data.FromString)

    def call(self, method: str, size: int, calls: int, threads: int) -> dict[str, float]:
        return self._runner.run(self._call(method, size, calls, threads))

    async def _call(self, method: str, size: int, calls: int, threads: int) -> dict[str, float]:
        data = b"x" * size

        async def greet() -> Any:
            return await self._greet(Empty())

        async def echo() -> Any:
            return await self._echo(Data(data=data))

        return await measure_async(greet if method == "greet" else echo, calls, threads)

    def start(self) -> dict[str, float]:
        return self._runner.run(self._start())

    async def _start(self) -> dict[str, float]:
        began = time.perf_counter()
        client = await self._open()
        await self._methods(client)[0](Empty())
        took = time.perf_counter() - began
        await client.close()
        return {"seconds": took}

    def pid(self) -> dict[str, Any]:
        return {"pid": self._client._process.pid}

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


async def serve() -> None:
    await plugin_server(protocol=Protocol(), handler=Handlers()).serve()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mtls", action="store_true")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("command", nargs="*")
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve())
        return
    own = [sys.executable, "-m", "benchmarks.workers.peer_pyvider", "--serve"]
    host = Host(given.command or own)
    try:
        obey(host)
    finally:
        host.close()


if __name__ == "__main__":
    main()
