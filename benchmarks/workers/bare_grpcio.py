"""grpcio's client and grpcio's server in two Python processes, without a plugin protocol around them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from benchmarks.workers.messages import COUNT, ECHO, GREET, CountRequest, Data, Empty, GreetResponse, Item
from benchmarks.workers.worker import measure, obey

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Handlers(grpc.GenericRpcHandler):
    """The three calls."""

    def __init__(self) -> None:
        unary = grpc.unary_unary_rpc_method_handler
        self._handlers = {
            GREET: unary(self._greet, Empty.FromString, GreetResponse.SerializeToString),
            ECHO: unary(lambda request, context: request, Data.FromString, Data.SerializeToString),
            COUNT: grpc.unary_stream_rpc_method_handler(self._count, CountRequest.FromString, Item.SerializeToString),
        }

    def service(self, details: Any) -> Any:
        return self._handlers.get(details.method)

    def _greet(self, request: Any, context: Any) -> Any:
        return GreetResponse(message="Hello from Python!")

    def _count(self, request: Any, context: Any) -> Any:
        return (Item(number=number) for number in range(request.count))


def serve(path: str) -> None:
    server = grpc.server(ThreadPoolExecutor(20), options=UNLIMITED)
    server.add_generic_rpc_handlers([Handlers()])
    server.add_insecure_port(f"unix:{path}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


class Caller:
    """The client."""

    def __init__(self, path: str, server: subprocess.Popen[bytes]) -> None:
        self._channel = grpc.insecure_channel(f"unix:{path}", options=UNLIMITED)
        self._greet = self._channel.unary_unary(GREET, Empty.SerializeToString, GreetResponse.FromString)
        self._echo = self._channel.unary_unary(ECHO, Data.SerializeToString, Data.FromString)
        self._count = self._channel.unary_stream(COUNT, CountRequest.SerializeToString, Item.FromString)
        self._server = server

    def call(self, method: str, size: int, calls: int, threads: int) -> dict[str, float]:
        if method == "greet":
            return measure(lambda: self._greet(Empty()).message, calls, threads)
        data = b"x" * size
        return measure(lambda: self._echo(Data(data=data)).data, calls, threads)

    def stream(self, count: int) -> dict[str, float]:
        began = time.perf_counter()
        deque(self._count(CountRequest(count=count)), maxlen=0)
        return {"rate": count / (time.perf_counter() - began)}

    def start(self) -> dict[str, float]:
        """From nothing to the first answer of another server."""
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="hl-") as folder:
            server = launch(path := str(Path(folder) / "grpc"))
            try:
                with grpc.insecure_channel(f"unix:{path}") as channel:
                    channel.unary_unary(GREET, Empty.SerializeToString, GreetResponse.FromString)(Empty())
                    return {"seconds": time.perf_counter() - began}
            finally:
                end(server)

    def pid(self) -> dict[str, int]:
        return {"pid": self._server.pid}


def launch(path: str) -> subprocess.Popen[bytes]:
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.workers.bare_grpcio", path], stdout=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()
    return server


def end(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()
    assert server.stdout is not None
    server.stdout.close()


def main() -> None:
    if len(sys.argv) > 1:
        serve(sys.argv[1])
        return
    with tempfile.TemporaryDirectory(prefix="hl-") as folder:
        server = launch(path := str(Path(folder) / "grpc"))
        try:
            obey(Caller(path, server))
        finally:
            end(server)


if __name__ == "__main__":
    main()
