"""A service of raw bytes with every kind of call, and the three pairs of client and server that must agree on it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from hybridload.goplugin.http2.channel import Channel
from hybridload.goplugin.http2.server import Server
from hybridload.goplugin.streams.sockets import connect, listen_unix


@dataclass
class Handler:
    """What `grpc.RpcMethodHandler` has."""

    behavior: Callable[..., Any]
    request_streaming: bool = False
    response_streaming: bool = False
    request_deserializer: Any = None
    response_serializer: Any = None

    def __post_init__(self) -> None:
        self.unary_unary = self.unary_stream = self.stream_unary = self.stream_stream = self.behavior


@dataclass
class Service:
    """Handlers by the last part of the path, and what they have seen."""

    hanging: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    events: dict[str, threading.Event] = field(default_factory=dict)
    seen: list[Any] = field(default_factory=list)
    handlers: dict[str, Handler] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.handlers.update(
            Echo=Handler(lambda request, context: request),
            Fail=Handler(self.fail),
            Raise=Handler(self.explode),
            SetCode=Handler(self.set_code),
            Metadata=Handler(self.metadata),
            Remaining=Handler(self.remaining),
            Hang=Handler(self.hang),
            HangStream=Handler(self.hang_stream, response_streaming=True),
            Count=Handler(self.count, response_streaming=True),
            CountThenFail=Handler(self.count_then_fail, response_streaming=True),
            Zeros=Handler(lambda request, context: bytes(int(request))),
            Gzip=Handler(self.gzip),
            Join=Handler(lambda requests, context: b"+".join(requests), request_streaming=True),
            Chat=Handler(self.chat, request_streaming=True, response_streaming=True),
            FirstOnly=Handler(lambda requests, context: next(requests), request_streaming=True),
        )

    def event(self, name: str) -> threading.Event:
        return self.events.setdefault(name, threading.Event())

    def service(self, details: Any) -> Handler | None:
        return self.handlers.get(details.method.rpartition("/")[2])

    def fail(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("reason", "test"), ("details-bin", b"\x00\xff")))
        context.abort(status_code(context, "NOT_FOUND"), "nö 100%\n")
        raise AssertionError

    def explode(self, request: bytes, context: Any) -> bytes:
        raise RuntimeError("boom")

    def set_code(self, request: bytes, context: Any) -> bytes:
        context.set_code(status_code(context, "FAILED_PRECONDITION"))
        context.set_details("not yet")
        return b""

    def metadata(self, request: bytes, context: Any) -> bytes:
        metadata = [(key, value) for key, value in context.invocation_metadata() if key.startswith("x-")]
        context.send_initial_metadata(metadata)
        context.set_trailing_metadata(metadata)
        return request

    def remaining(self, request: bytes, context: Any) -> bytes:
        return repr(context.time_remaining()).encode()

    def hang(self, request: bytes, context: Any) -> bytes:
        over = threading.Event()
        if not context.add_callback(over.set):
            over.set()  # the call was over before this thread got as far as here
        self.event("hanging").set()
        self.hanging.release()
        self.seen.append(over.wait(20))
        self.event("hung").set()
        return b""

    def hang_stream(self, request: bytes, context: Any) -> Iterator[bytes]:
        yield b"first"
        self.hang(request, context)

    def count(self, request: bytes, context: Any) -> Iterator[bytes]:
        try:
            for number in range(int(request)):
                yield b"%d" % number
        finally:
            self.event("counted").set()

    def count_then_fail(self, request: bytes, context: Any) -> Iterator[bytes]:
        yield from self.count(request, context)
        context.abort(status_code(context, "DATA_LOSS"), "lost")

    def gzip(self, request: bytes, context: Any) -> bytes:
        import grpc

        context.set_compression(grpc.Compression.Gzip)
        return request

    def chat(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for request in requests:
            yield b"<" + request + b">"


def status_code(context: Any, name: str) -> Any:
    """The code as the context's engine wants it."""
    if type(context).__module__.startswith("grpc"):
        import grpc

        return grpc.StatusCode[name]
    from hybridload.goplugin.http2.status import StatusCode

    return StatusCode[name]


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def ours(service: Service) -> Iterator[tuple[Server, str]]:
    """Our server, and the path of its socket."""
    server = Server((service,))
    listener = listen_unix()
    server.add_listener(listener)
    server.start()
    yield server, listener.address
    assert server.stop(0).wait(10)


def open_channel(address: str, **options: Any) -> Channel:
    return Channel(lambda _: connect("unix", address), **options)


@pytest.fixture(params=["ours-ours", "grpcio-ours", "ours-grpcio"])
def channel(request: pytest.FixtureRequest, service: Service, caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """A channel to the service, for each pair of client and server."""
    grpc = pytest.importorskip("grpc")
    # A logged exception holds its frames, and with them the server.
    caplog.set_level(logging.CRITICAL + 1, logger="grpc._server")
    client, _, server_kind = request.param.partition("-")
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    if server_kind == "ours":
        server: Any = Server((service,))
        listener = listen_unix()
        server.add_listener(listener)
        address = listener.address
    else:
        from concurrent.futures import ThreadPoolExecutor

        server = grpc.server(ThreadPoolExecutor(8), handlers=(service,), options=unlimited)
        address = f"/tmp/hl-{time.time_ns():x}.sock"
        server.add_insecure_port(f"unix:{address}")
    server.start()
    opened = open_channel(address) if client == "ours" else grpc.insecure_channel(f"unix:{address}", options=unlimited)
    yield opened
    opened.close()
    server.stop(0).wait(10)
