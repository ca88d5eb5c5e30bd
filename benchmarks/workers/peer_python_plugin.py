"""The PyPI package `python-plugin` (module `pyplugin`): its host with its own plugin, or with the Go one.

peer_python_plugin.py [--mtls] [COMMAND...]        the host
peer_python_plugin.py --serve                      the plugin
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from typing import Any

from grpclib.client import UnaryUnaryMethod
from grpclib.const import Cardinality, Handler
from pyplugin import Client, ClientConfig, HandshakeConfig, Plugin, ServeConfig, serve

from benchmarks.workers.messages import ECHO, GREET, Data, Empty, GreetResponse
from benchmarks.workers.worker import measure_async, obey

HANDSHAKE = HandshakeConfig(1, "BASIC_PLUGIN", "hello")


class Servicer:
    async def greet(self, stream: Any) -> None:
        await stream.recv_message()
        await stream.send_message(GreetResponse(message="Hello from Python!"))

    async def echo(self, stream: Any) -> None:
        await stream.send_message(await stream.recv_message())

    def __mapping__(self) -> dict[str, Handler]:
        return {
            GREET: Handler(self.greet, Cardinality.UNARY_UNARY, Empty, GreetResponse),
            ECHO: Handler(self.echo, Cardinality.UNARY_UNARY, Data, Data),
        }


class Greeter(Plugin):
    def servicers(self, broker: Any) -> list[Any]:
        return [Servicer()]

    def stub(self, broker: Any, channel: Any) -> Any:
        greet = UnaryUnaryMethod(channel, GREET, Empty, GreetResponse)
        return greet, UnaryUnaryMethod(channel, ECHO, Data, Data)


class Host:
    """Its API is asynchronous: threads are tasks here."""

    def __init__(self, command: list[str], mtls: bool) -> None:
        self._runner = asyncio.Runner()
        self._config = ClientConfig(
            handshake_config=HANDSHAKE, plugins={"greeter": Greeter()}, cmd=command, auto_mtls=mtls
        )
        self._client = Client(self._config)
        self._runner.run(self._client.start())
        self._greet, self._echo = self._client.dispense("greeter")

    def call(self, method: str, size: int, calls: int, threads: int) -> dict[str, float]:
        if method == "greet":
            return self._runner.run(measure_async(lambda: self._greet(Empty()), calls, threads))
        data = b"x" * size
        return self._runner.run(measure_async(lambda: self._echo(Data(data=data)), calls, threads))

    def start(self) -> dict[str, float]:
        return self._runner.run(self._start())

    async def _start(self) -> dict[str, float]:
        began = time.perf_counter()
        client = Client(self._config)
        await client.start()
        await client.dispense("greeter")[0](Empty())
        took = time.perf_counter() - began
        await client.kill()
        return {"seconds": took}

    def pid(self) -> dict[str, Any]:
        return {"pid": self._client.pid}

    def close(self) -> None:
        self._runner.run(self._client.kill())
        self._runner.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mtls", action="store_true")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("command", nargs="*")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if given.serve:
        serve(ServeConfig(handshake_config=HANDSHAKE, plugins={"greeter": Greeter()}))
        return
    own = [sys.executable, "-m", "benchmarks.workers.peer_python_plugin", "--serve"]
    host = Host(given.command or own, given.mtls)
    try:
        obey(host)
    finally:
        host.close()


if __name__ == "__main__":
    main()
