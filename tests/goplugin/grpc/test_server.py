"""The serving half of the grpcio engine, with nothing around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from hybridload.goplugin.grpc.handlers import CONTROL, PLUMBING, ServiceHandler, method_handler
from hybridload.goplugin.grpc.server import GrpcioServer, Lanes

PATIENCE = 20.0


class Served:
    """A server with two threads for calls, and a channel to it."""

    def __init__(self, path: str) -> None:
        self.lanes = Lanes(call_threads=2)
        self.server = GrpcioServer(self.lanes)
        self.path = path
        self.channel: Any = None
        self.release = threading.Event()

    def start(self, **methods: Any) -> None:
        self.server.add_generic_rpc_handlers((ServiceHandler("t.T", methods),))
        self.server.listen("unix", self.path)
        self.server.start()
        self.channel = grpc.insecure_channel(f"unix:{self.path}")

    def call(self, method: str, request: bytes = b"") -> bytes:
        return bytes(self.channel.unary_unary(f"/t.T/{method}")(request, timeout=PATIENCE))

    def stream(self, method: str, request: bytes = b"") -> Any:
        return self.channel.unary_stream(f"/t.T/{method}")(request, timeout=PATIENCE)

    def close(self) -> None:
        self.release.set()
        self.channel.close()
        self.server.stop(0)
        assert self.lanes.close(PATIENCE)
        # grpcio keeps its pollers as long as these exist, and pytest keeps this.
        del self.channel, self.server


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(str(tmp_path / "s"))
    yield made
    made.close()


def raising(kind: type[BaseException]) -> Callable[[Any, Any], Any]:
    def behavior(request: Any, context: Any) -> Any:
        raise kind("x")

    return behavior


def test_two_workers_and_open_streams_and_stuck_calls_starve_nothing_that_has_to_answer(served: Served) -> None:
    def stuck(request: bytes, context: Any) -> bytes:
        served.release.wait(PATIENCE)
        return b"released"

    def stream(request: bytes, context: Any) -> Iterator[bytes]:
        yield b"open"
        served.release.wait(PATIENCE)

    served.start(
        Stuck=method_handler(stuck),
        Echo=method_handler(lambda request, context: request),
        Stream=method_handler(stream, response_streaming=True),
        Plumbing=method_handler(stream, response_streaming=True, lane=PLUMBING),
        Control=method_handler(lambda request, context: b"ok", lane=CONTROL),
    )
    streams = [served.stream(name) for name in ("Stream", "Plumbing") for _ in range(5)]
    assert [next(each) for each in streams] == [b"open"] * 10
    assert served.call("Echo", b"x") == b"x"
    blocked = [served.channel.unary_unary("/t.T/Stuck").future(b"", timeout=PATIENCE) for _ in range(2)]
    assert served.call("Control") == b"ok"
    late = served.channel.unary_unary("/t.T/Echo").future(b"late", timeout=PATIENCE)
    served.release.set()
    assert [call.result() for call in blocked] == [b"released"] * 2
    assert late.result() == b"late"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_a_behavior_raises_the_call_is_answered(served: Served, kind: type[BaseException]) -> None:
    def late(request: bytes, context: Any) -> Iterator[bytes]:
        yield b"first"
        raise kind("x")

    served.start(
        Unary=method_handler(raising(kind)),
        Stream=method_handler(raising(kind), response_streaming=True),
        Late=method_handler(late, response_streaming=True),
    )
    for call in (
        lambda: served.call("Unary"),
        lambda: list(served.stream("Stream")),
        lambda: list(served.stream("Late")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        assert caught.value.details().endswith("x")


def test_a_status_may_have_metadata(served: Served) -> None:
    def abort(request: bytes, context: Any) -> bytes:
        raise served.server.abort(context, "NOT_FOUND", "not here", (("some-bin", b"\0\1"), ("key", "value")))

    served.start(Abort=method_handler(abort))
    with pytest.raises(grpc.RpcError) as caught:
        served.call("Abort")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "not here"
    assert {("some-bin", b"\0\1"), ("key", "value")} <= set(caught.value.trailing_metadata())


def test_an_iterator_is_closed_when_the_caller_goes_away(served: Served) -> None:
    closed = threading.Event()

    def endless(request: bytes, context: Any) -> Iterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    served.start(Endless=method_handler(endless, response_streaming=True))
    stream = served.stream("Endless")
    next(stream)
    stream.cancel()
    assert closed.wait(PATIENCE)


def test_an_unknown_method_is_unimplemented(served: Served) -> None:
    served.start()
    with pytest.raises(grpc.RpcError) as caught:
        served.call("Nothing")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_refusing_spares_calls_in_flight_and_the_protocols_own(served: Served) -> None:
    entered = threading.Event()

    def slow(request: bytes, context: Any) -> bytes:
        entered.set()
        served.release.wait(PATIENCE)
        return b"done"

    served.start(
        Slow=method_handler(slow),
        Stream=method_handler(lambda request, context: iter([b"x"]), response_streaming=True),
        Control=method_handler(lambda request, context: b"ok", lane=CONTROL),
    )
    slow_call = served.channel.unary_unary("/t.T/Slow").future(b"", timeout=PATIENCE)
    assert entered.wait(PATIENCE)
    served.server.refuse_calls()
    for call in (lambda: served.call("Slow"), lambda: list(served.stream("Stream"))):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert served.call("Control") == b"ok"
    served.release.set()
    assert slow_call.result() == b"done"


def test_a_handler_that_makes_up_its_answers_is_asked_each_time(served: Served) -> None:
    class Dynamic(grpc.GenericRpcHandler):  # type: ignore[misc,type-arg]
        count = 0

        def service(self, details: Any) -> Any:
            self.count += 1
            answer = str(self.count).encode()
            return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)

    served.server.add_generic_rpc_handlers((Dynamic(),))
    served.start()
    assert [served.call("Anything") for _ in range(3)] == [b"1", b"2", b"3"]


def test_pings_without_calls_are_no_offence(tmp_path: Path) -> None:
    lanes = Lanes()
    server = GrpcioServer(lanes)
    server.add_generic_rpc_handlers(
        (ServiceHandler("t.T", {"Echo": method_handler(lambda request, context: request)}),)
    )
    server.listen("unix", str(tmp_path / "s"))
    server.start()
    options = [
        ("grpc.keepalive_time_ms", 10),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with grpc.insecure_channel(f"unix:{tmp_path / 's'}", options=options) as channel:
        states: list[grpc.ChannelConnectivity] = []
        channel.subscribe(states.append)
        echo = channel.unary_unary("/t.T/Echo")
        assert echo(b"a", timeout=PATIENCE) == b"a"
        # Pings go out every 10 ms or at the least interval that the library allows.
        threading.Event().wait(0.5)
        assert echo(b"b", timeout=PATIENCE) == b"b"
        assert grpc.ChannelConnectivity.TRANSIENT_FAILURE not in states
    server.stop(0)
    lanes.close(PATIENCE)


def test_a_server_that_was_never_started_can_be_stopped(tmp_path: Path) -> None:
    lanes = Lanes()
    server = GrpcioServer(lanes)
    server.listen("unix", str(tmp_path / "s"))
    assert server.stop(0)
    assert lanes.close(1)


def test_an_address_that_cannot_be_had_is_an_os_error(tmp_path: Path) -> None:
    lanes = Lanes()
    server = GrpcioServer(lanes)
    with pytest.raises(OSError, match="cannot be listened on"):
        server.listen("unix", str(tmp_path / "missing" / "s"))
    address = server.listen("tcp", "127.0.0.1:0")
    assert int(address.rpartition(":")[2]) > 0
    server.stop(0)
    lanes.close(1)
