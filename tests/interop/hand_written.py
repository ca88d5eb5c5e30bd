"""go-plugin's bidirectional example by hand: stubs that grpc_tools generated, and both halves around them.

A program of its own, because generated code registers its messages for the whole process:
``hand_written.py serve``, or ``hand_written.py host OPTIONS COMMAND…``, which prints what it saw as JSON. The stubs
`kv_pb2` and `kv_pb2_grpc` are on PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import grpc
import kv_pb2
import kv_pb2_grpc

from hybridload import Handshake, serve
from hybridload.goplugin import Client

HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")


class CounterPlugin:
    """Both halves, as go-plugin's `GRPCPlugin` has them."""

    def grpc_client(self, broker: Any, channel: Any) -> CounterClient:
        return CounterClient(broker, kv_pb2_grpc.CounterStub(channel))

    def grpc_server(self, broker: Any, server: Any) -> None:
        kv_pb2_grpc.add_CounterServicer_to_server(CounterServicer(broker), server)


class CounterClient:
    def __init__(self, broker: Any, stub: Any) -> None:
        self._broker = broker
        self._stub = stub

    def put(self, key: str, value: int, adder: AddHelperServicer) -> None:
        service_id = self._broker.next_id()
        served = self._broker.accept_and_serve(
            service_id, lambda server: kv_pb2_grpc.add_AddHelperServicer_to_server(adder, server)
        )
        try:
            self._stub.Put(kv_pb2.PutRequest(add_server=service_id, key=key, value=value))
        finally:
            served.close()

    def get(self, key: str) -> int:
        value: int = self._stub.Get(kv_pb2.GetRequest(key=key)).value
        return value


class CounterServicer(kv_pb2_grpc.CounterServicer):
    def __init__(self, broker: Any) -> None:
        self._broker = broker

    def Get(self, request: Any, context: Any) -> Any:
        path = Path(f"counter_{request.key}")
        if not path.exists():
            context.abort(grpc.StatusCode.NOT_FOUND, f"open kv_{request.key}: no such file")
        return kv_pb2.GetResponse(value=int(path.read_text()))

    def Put(self, request: Any, context: Any) -> Any:
        path = Path(f"counter_{request.key}")
        before = int(path.read_text()) if path.exists() else 0
        with self._broker.dial(request.add_server) as channel:
            try:
                answer = kv_pb2_grpc.AddHelperStub(channel).Sum(kv_pb2.SumRequest(a=before, b=request.value), timeout=5)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
        path.write_text(str(answer.r))
        return kv_pb2.Empty()


class AddHelperServicer(kv_pb2_grpc.AddHelperServicer):
    def __init__(self, limit: int) -> None:
        self.limit = limit

    def Sum(self, request: Any, context: Any) -> Any:
        if request.a + request.b > self.limit:
            context.abort(grpc.StatusCode.OUT_OF_RANGE, f"{request.a} and {request.b} are too much")
        return kv_pb2.SumResponse(r=request.a + request.b)


def failure(call: Any, *arguments: Any) -> list[Any]:
    try:
        call(*arguments)
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return []


def host(options: dict[str, Any], command: list[str]) -> None:
    plugins: Any = {"counter": CounterPlugin()}
    with Client(command, plugins=plugins, handshake=HANDSHAKE, **options) as client:
        counter = client.dispense("counter")
        counter.put("n", 20, AddHelperServicer(100))
        counter.put("n", 22, AddHelperServicer(100))
        seen = {
            "protocol": client.protocol,
            "value": counter.get("n"),
            "refused": failure(counter.put, "n", 1, AddHelperServicer(42)),
            "missing": failure(counter.get, "missing"),
            "after": counter.get("n"),
        }
    print(json.dumps({**seen, "returncode": client.returncode}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve({"counter": CounterPlugin()}, handshake=HANDSHAKE)
    else:
        host(json.loads(sys.argv[2]), sys.argv[3:])
