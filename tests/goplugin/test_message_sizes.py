"""`max_message`: what is too large is refused by whoever receives it, in every protocol and direction, for that call
alone, and the error says what to raise on which side."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from hybridload import Loader
from hybridload.errors import ConfigError, RemoteError
from hybridload.goplugin import Client
from hybridload.goplugin.http2.channel import Channel
from hybridload.goplugin.http2.connection import Connection, Role
from hybridload.goplugin.http2.events import HeadersReceived
from hybridload.goplugin.http2.header_blocks import encode
from hybridload.goplugin.http2.status import RpcError
from hybridload.goplugin.streams.sockets import connect, socket_pair
from hybridload.limits import MAX_MESSAGE, UNLIMITED, given_max_message, read_max_message

PROGRAM = Path(__file__).parent / "sizes_plugin.py"
spec = importlib.util.spec_from_file_location("sizes_plugin", PROGRAM)
assert spec is not None
assert spec.loader is not None
sizes_plugin: Any = importlib.util.module_from_spec(spec)
sys.modules["sizes_plugin"] = sizes_plugin
spec.loader.exec_module(sizes_plugin)

KIB, MIB = 1 << 10, 1 << 20
PATIENCE = 30.0
OK_RESPONSE = encode(((b":status", b"200"), (b"content-type", b"application/grpc")))
HOST, PLUGIN = 64 * KIB, 96 * KIB
OVERHEAD = 200  # bytes that a message may have besides what it is asked to carry

Call = Callable[[Any, int], Any]


@contextmanager
def memory() -> Iterator[Callable[[], int]]:
    """Gives what Python has taken at the most since then, in bytes."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def wait_until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


async def _all(items: AsyncIterator[bytes]) -> int:
    return sum([len(item) async for item in items])


async def _soon(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield bytes(size)


def _run(made: Callable[[], Any]) -> Any:
    async def run() -> Any:
        return await made()

    return asyncio.run(run())


# name -> the call with a payload of so many bytes, and whose limit it meets
CALLS: dict[str, tuple[Call, int]] = {
    "argument": (lambda it, size: it.take(bytes(size)), PLUGIN),
    "result": (lambda it, size: len(it.give(size)), HOST),
    "argument, async": (lambda it, size: _run(lambda: it.take_soon(bytes(size))), PLUGIN),
    "result, async": (lambda it, size: len(_run(lambda: it.give_soon(size))), HOST),
    "argument of a callback": (lambda it, size: it.have_taken(sizes_plugin.Impl(), size), HOST),
    "result of a callback": (lambda it, size: it.have_given(sizes_plugin.Impl(), size), PLUGIN),
}
STREAMS: dict[str, tuple[Call, int]] = {
    "stream of arguments": (lambda it, size: it.take_all(iter((b"", bytes(size), b""))), PLUGIN),
    "stream of results": (lambda it, size: sum(map(len, it.give_all([0, size, 0]))), HOST),
    "stream of arguments, async": (lambda it, size: _run(lambda: it.take_all_soon(_soon(0, size, 0))), PLUGIN),
    "stream of results, async": (lambda it, size: _run(lambda: _all(it.give_all_soon([0, size, 0]))), HOST),
}
WAYS = [("grpc", "direct"), ("grpc", "grpcio"), ("netrpc", "direct")]


@contextmanager
def started(protocol: str, engine: str, host: int | str = HOST, plugin: int | str = PLUGIN) -> Iterator[Client]:
    with Client(
        [sys.executable, str(PROGRAM), str(plugin), protocol],
        plugins=sizes_plugin.PLUGINS[protocol],
        handshake=sizes_plugin.HANDSHAKE,
        auto_mtls=False,
        engine=engine,
        env={"HYBRIDLOAD_ENGINE": engine},
        max_message=host,
    ) as client:
        yield client


def refusal(call: Call, it: Any, size: int) -> str:
    with pytest.raises(RemoteError) as caught:
        call(it, size)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    return str(caught.value)


ways = pytest.mark.parametrize(("protocol", "engine"), WAYS, ids=["direct", "grpcio", "netrpc"])


@ways
def test_what_is_larger_is_refused_for_that_call_alone(protocol: str, engine: str) -> None:
    with started(protocol, engine) as client:
        for kind, calls in (("sizes", CALLS), ("streams", STREAMS)):
            if kind not in sizes_plugin.PLUGINS[protocol]:
                continue
            it = client.dispense(kind)
            for name, (call, limit) in calls.items():
                assert call(it, limit - OVERHEAD) == limit - OVERHEAD, name
                for size in (limit + 1, 10 * limit):
                    words = refusal(call, it, size)
                    assert f"vs. {limit}" in words, name
                    assert f"Raise the {'host' if limit == HOST else 'plugin'}'s limit: max_message" in words, name
                    assert words.count("Raise the") == 1, name
                    assert "hybridload " not in words, name  # what the exception travels in
                assert call(it, limit - OVERHEAD) == limit - OVERHEAD, name


@ways
def test_unlimited_can_be_said(protocol: str, engine: str) -> None:
    with started(protocol, engine, "unlimited", "unlimited") as client:
        it = client.dispense("sizes")
        size = 5 << 20  # more than grpcio takes by itself
        for name, (call, _) in CALLS.items():
            assert call(it, size) == size, name


def test_of_a_subprocess_is_its_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin in a process of its own has no `serve` to say it in."""
    monkeypatch.syspath_prepend(PROGRAM.parent)
    config = tmp_path / "plugins.toml"
    config.write_text('[plugins.it]\nentry_point = "sizes_plugin:Impl"\nmax_message = "64KiB"\n')
    with Loader(sizes_plugin.PLUGINS["grpc"], handshake=sizes_plugin.HANDSHAKE, config=config) as loader:
        it: Any = loader.load("it", sizes_plugin.Sizes, isolation="subprocess")
        for call, _ in CALLS.values():
            assert call(it, HOST - OVERHEAD) == HOST - OVERHEAD
            assert f"vs. {HOST}). Raise the" in refusal(call, it, HOST + 1)
        assert loader.status("it").restarts == 0


# What is compressed counts as what it becomes


zeros = functools.cache(bytes)


class Compressing(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Answers with zeros in gzip, as many as it is asked for in each message."""

    def service(self, details: Any) -> Any:
        return grpc.unary_stream_rpc_method_handler(self.answer)

    def answer(self, request: bytes, context: Any) -> Iterator[bytes]:
        context.set_compression(grpc.Compression.Gzip)
        yield from map(zeros, map(int, request.split()))


@pytest.fixture
def compressing() -> Iterator[Callable[..., Channel]]:
    """Opens channels of ours to a server of grpcio's that compresses."""
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((Compressing(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with ExitStack() as stack:
        stack.callback(lambda: server.stop(None).wait())
        yield lambda limit: stack.enter_context(
            Channel(lambda _: connect("tcp", f"127.0.0.1:{port}", 10.0), max_receive=limit)
        )


def test_counts_what_is_decompressed(compressing: Callable[..., Channel]) -> None:
    ask = compressing(MIB).unary_stream("/it/answer")
    assert [len(item) for item in ask(b"0 1000000 5 1048576")] == [0, 1000000, 5, MIB]
    zeros(64 * MIB)
    for before, sizes in (([], b"%d"), ([0], b"0 %d"), ([10, 20], b"10 20 %d 10")):
        answers = ask(sizes % (64 * MIB))
        got: list[int] = []
        with memory() as grown:
            with pytest.raises(RpcError, match=f"over {MIB} vs. {MIB}") as caught:
                got.extend(len(item) for item in answers)
            assert grown() < 16 * MIB
        assert got == before
        assert caught.value.code().name == "RESOURCE_EXHAUSTED"


def test_counts_what_is_decompressed_on_event_loops_as_well(compressing: Callable[..., Channel]) -> None:
    ask = compressing(MIB).on_loops("/it/answer")
    got: list[int] = []

    async def run() -> None:
        async for item in ask.stream(b"10 20 %d 10" % (2 * MIB), timeout=PATIENCE):
            got.append(len(item))

    with pytest.raises(RpcError, match=f"over {MIB} vs. {MIB}"):
        asyncio.run(run())
    assert got == [10, 20]


def test_what_nobody_has_read_yet_stays_compressed(compressing: Callable[..., Channel]) -> None:
    """A window has room for a thousand times its size in gzip."""
    size, count = 4 * MIB, 40
    ask = compressing(64 * MIB).unary_stream("/it/answer")
    zeros(size)
    with memory() as grown:
        stream = ask(b"%d " % size * count)
        assert len(next(stream)) == size
        wait_until(lambda: len(stream._call.messages) == count - 1)
        assert grown() < 32 * MIB
        assert [len(item) for item in stream] == [size] * (count - 1)


@pytest.mark.parametrize("engine", ["direct", "grpcio"])
def test_a_request_counts_as_what_it_is_decompressed_to(engine: str) -> None:
    with started("grpc", engine) as client:
        process = psutil.Process(client.pid)
        before = process.memory_info().rss
        assert client.announced is not None
        with grpc.insecure_channel(
            f"unix:{client.announced.address}", options=[("grpc.max_send_message_length", -1)]
        ) as channel:
            bomb = b"\x0a\x80\x80\x80\x20" + bytes(64 * MIB)
            for ask, request in (
                (channel.unary_unary("/sizes.Sizes/Take"), bomb),
                (channel.stream_unary("/sizes.Streams/TakeAll"), iter((b"", b"\x0a\x01x", bomb, b""))),
                (channel.stream_unary("/sizes.Streams/TakeAllSoon"), iter((b"", b"\x0a\x01x", bomb, b""))),
            ):
                with pytest.raises(grpc.RpcError, match="larger than max") as caught:
                    ask(request, compression=grpc.Compression.Gzip, timeout=PATIENCE)
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert process.memory_info().rss - before < 32 * MIB
        assert client.dispense("sizes").take(b"still here") == 10


def test_a_length_is_refused_before_anything_is_read() -> None:
    """4 GiB are said to come: the call is over then, and nothing of it was waited for."""
    mine, theirs = socket_pair()

    def answer() -> None:
        connection = Connection(Role.SERVER)
        with closing(theirs):
            while data := theirs.receive():
                for event in connection.receive(data):
                    if isinstance(event, HeadersReceived):
                        connection.send_headers(event.stream_id, OK_RESPONSE)
                        connection.send_data(event.stream_id, b"\0\xff\xff\xff\xff")
                theirs.send_all(connection.data_to_send())

    with ThreadPoolExecutor(1) as peer:
        peer.submit(answer)
        with Channel(lambda _: mine, max_receive=MAX_MESSAGE) as channel, memory() as grown:
            with pytest.raises(RpcError, match=f"{2**32 - 1} vs. {MAX_MESSAGE}"):
                channel.unary_unary("/it/answer")(b"", timeout=PATIENCE)
            assert grown() < MIB


# What may be said


@pytest.mark.parametrize(
    ("value", "size"),
    [(1, 1), ("64MB", 64_000_000), ("1 GiB", 2**30), ("5", 5), ("unlimited", UNLIMITED), (2**31, 2**31)],
)
def test_a_size_may_be_a_number_or_a_text(value: int | str, size: int) -> None:
    assert read_max_message(value) == size


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "", "many", "-1", "0", "1 EB", None, [], 2**63])
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"max_message is .*; expected a size greater than 0"):
        read_max_message(value)
    if value is not None:
        with pytest.raises(ConfigError, match="max_message"):
            Client("x", plugins=sizes_plugin.SIZES, handshake=None, max_message=value)


def test_grpcs_own_argument_may_say_it_instead() -> None:
    option = ("grpc.max_receive_message_length", 5)
    other = ("grpc.max_send_message_length", 6)
    assert given_max_message(None, [other, option], "channel_options") == (5, (other,))
    assert given_max_message(None, [("grpc.max_receive_message_length", -1)], "") == (UNLIMITED, ())
    assert given_max_message(None, [other], "") == (MAX_MESSAGE, (other,))
    with pytest.raises(ConfigError, match="give one of them"):
        given_max_message(7, [option], "channel_options")


@pytest.mark.parametrize("limit", ["64MB", 1.5, True])
def test_grpcs_own_argument_is_checked_as_well(limit: Any) -> None:
    options = [("grpc.max_receive_message_length", limit)]
    with pytest.raises(ConfigError, match=r"grpc.max_receive_message_length of channel_options is .*; expected bytes"):
        Client("x", plugins=sizes_plugin.SIZES, handshake=None, channel_options=options)
