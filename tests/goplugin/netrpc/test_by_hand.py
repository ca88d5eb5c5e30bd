"""Hand-written net/rpc plugins in both roles, and the broker between the two: with Go or Python at the other end."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hybridload import Handshake
from hybridload.errors import BrokerError, ConfigError, ContractError, PluginCrashed, RemoteError
from hybridload.goplugin import Client
from hybridload.goplugin.event_loop import EventLoop
from hybridload.goplugin.netrpc import gob
from hybridload.goplugin.netrpc.broker import MuxBroker
from hybridload.goplugin.netrpc.client import NetRPCClient
from hybridload.goplugin.netrpc.gob import Registry, Uint
from hybridload.goplugin.netrpc.plugin_service import plugin_service
from hybridload.goplugin.netrpc.server import NetRPCServer
from hybridload.goplugin.streams.base import StreamError
from hybridload.goplugin.streams.mux import Mux
from hybridload.goplugin.streams.sockets import socket_pair

HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")
PATIENCE = 60.0  # seconds
PLUGIN = """
import asyncio, os, threading
from typing import Annotated, Any
from hybridload import Handshake, serve
from hybridload.goplugin.netrpc import gob

class Torture:
    def __init__(self, broker):
        self._broker = broker

    def echo(self, data: bytes) -> bytes:
        return data

    def anything(self, value):
        return value

    def nothing(self) -> None:
        pass

    async def double(self, number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    def fail(self, message: str) -> bool:
        raise ValueError(message)

    async def fail_later(self, message: str) -> bool:
        raise ValueError(message)

    def wait_for(self, file: str) -> bool:
        import time
        open(file + ".entered", "w").close()
        while not os.path.exists(file):
            time.sleep(0.002)
        return True

    def exit(self, code: int) -> bool:
        os._exit(code)

    def call_back(self, service_id: Annotated[int, gob.Uint(32)]) -> str:
        client = self._broker.client(service_id)
        try:
            return client.call("Plugin.Greet")
        finally:
            client.close()

    def offer(self, greeting: str) -> Annotated[int, gob.Uint(32)]:
        service_id = self._broker.next_id()
        stream_service = {"Plugin": {}}
        from hybridload.goplugin.netrpc.server import Behavior
        stream_service["Plugin"]["Greet"] = Behavior(lambda _: greeting, None, gob.String())
        self._broker.accept_and_serve(service_id, stream_service)
        return service_id

class Greeter:
    def Greet(self) -> str:
        return "Hello from Python, by hand!"

class Store:
    def __init__(self):
        self.values = {}
    def put(self, arguments: dict[str, object]) -> None:
        self.values[arguments["key"]] = arguments["value"]
    def get(self, key: str) -> bytes:
        return self.values[key]

class ByHand:
    def __init__(self, make):
        self._make = make
    def netrpc_client(self, broker, client):
        return client
    def netrpc_server(self, broker):
        return self._make(broker)

serve({"torture": ByHand(Torture), "greeter": ByHand(lambda _: Greeter()), "kv": ByHand(lambda _: Store())},
      handshake=Handshake("BASIC_PLUGIN", "hello"))
"""

mtls = pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])


@dataclass(frozen=True, slots=True)
class Halves:
    """What the host's half of a hand-written plugin is given."""

    broker: Any
    client: Any


class ByHand:
    def netrpc_client(self, broker: Any, client: Any) -> Halves:
        return Halves(broker, client)

    def netrpc_server(self, broker: Any) -> Any:
        raise NotImplementedError


class ByHandOverGRPC:
    def grpc_client(self, broker: Any, channel: Any) -> Any:
        return channel

    def grpc_server(self, broker: Any, server: Any) -> None: ...


PLUGINS: Any = {"torture": ByHand(), "greeter": ByHand(), "kv": ByHand(), "channel": ByHandOverGRPC()}
NewClient = Callable[..., Client]


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    path = tmp_path / "by_hand.py"
    path.write_text(PLUGIN)
    return [sys.executable, str(path)]


@pytest.fixture(params=["Go", "Python"])
def command(request: pytest.FixtureRequest, program: list[str]) -> list[str | Path]:
    if request.param == "Go":
        go_build: Callable[[str], Path] = request.getfixturevalue("go_build")
        return [go_build("tests/go/netrpc")]
    return list(program)


@pytest.fixture
def new_client() -> Iterator[NewClient]:
    clients = []

    def new(command: list[str | Path], **options: Any) -> Client:
        clients.append(Client(command, plugins=PLUGINS, handshake=HANDSHAKE, **options))
        return clients[-1]

    yield new
    for client in clients:
        client.kill()


# Both roles


@mtls
def test_the_hosts_half_calls_by_name(new_client: NewClient, command: list[str | Path], mtls: bool) -> None:
    client = new_client(command, auto_mtls=mtls)
    torture = client.dispense("torture").client
    assert client.protocol == "netrpc"
    assert torture.call("Plugin.Echo", b"\0\xff" * 100_000, bytes, bytes) == b"\0\xff" * 100_000
    with pytest.raises(RemoteError, match=r"^no such luck$"):
        torture.call("Plugin.Fail", "no such luck")
    with pytest.raises(RemoteError, match=r"^rpc: can't find method Plugin\.Nowhere$"):
        torture.call("Plugin.Nowhere", "x")
    with pytest.raises(RemoteError, match=r"^rpc: can't find service Other\.Echo$"):
        torture.call("Other.Echo", "x")
    with pytest.raises(gob.GobMismatch, match=r"expected string, received \[\]byte"):
        torture.call("Plugin.Echo", b"x", bytes, str)
    with pytest.raises(gob.GobError, match="expected bytes"):
        torture.call("Plugin.Echo", "x", bytes)
    store = client.dispense("kv").client
    store.call("Plugin.Put", {"key": "k", "value": b"v"})
    assert store.call("Plugin.Get", "k") == b"v"
    assert client.dispense("greeter").client.call("Plugin.Greet").startswith("Hello from ")
    assert torture.call("Plugin.Echo", b"still there", bytes, bytes) == b"still there"


@mtls
def test_a_go_host_uses_a_hand_written_plugin(
    go_build: Callable[[str], Path], program: list[str], mtls: bool, tmp_path: Path
) -> None:
    calls = [part for call in ("ping", "greet", "put:a=1", "get:a", "get:b") for part in ("-call", call)]
    flags = ["-mtls"] if mtls else []
    done = subprocess.run(
        [go_build("tests/go/host"), *flags, *calls, "--", *program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    answers = [event.get("error", event["value"]) for event in events if event["event"] == "answer"]
    assert answers == [None, "Hello from Python, by hand!", None, "1", "'b'"], done.stderr


def test_methods_without_hints_and_asynchronous_ones(new_client: NewClient, program: list[str]) -> None:
    torture = new_client(list(program)).dispense("torture").client
    for value in (5, "text", [1, "two"], {"a": [None, {"b": 2.5}]}, b"bytes"):
        assert torture.call("Plugin.Anything", value) == value
    assert torture.call("Plugin.Nothing") is None
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: torture.call("Plugin.Double", n), range(200))) == list(range(0, 400, 2))
    with pytest.raises(RemoteError, match=r"^later$"):
        torture.call("Plugin.FailLater", "later")


def test_a_plugin_that_dies_ends_its_calls(new_client: NewClient, command: list[str | Path]) -> None:
    client = new_client(command)
    torture = client.dispense("torture").client
    with pytest.raises(StreamError):
        torture.call("Plugin.Exit", 3)
    assert client.wait(PATIENCE)
    assert client.returncode == 3
    with pytest.raises(PluginCrashed, match="exit status 3"):
        client.dispense("torture")
    with pytest.raises(PluginCrashed, match="exit status 3"):
        client.ping()


def test_a_plugin_by_hand_for_grpc_is_refused(new_client: NewClient, program: list[str]) -> None:
    with pytest.raises(ConfigError, match="speaks net/rpc, and the kind 'channel' is a hand-written plugin for gRPC"):
        new_client(list(program)).dispense("channel")


class TwoArguments:
    def add(self, a: int, b: int) -> int:
        return a + b


class Unhinted:
    def set(self, value: set[int]) -> None: ...


@pytest.mark.parametrize(
    ("served", "says"),
    [
        (TwoArguments(), "a call has one argument; make the parameters one"),
        (Unhinted(), r"Unhinted\.set cannot be served over net/rpc"),
        (TwoArguments, "is a class: netrpc_server must return an instance"),
    ],
)
def test_what_cannot_be_served_is_named(served: Any, says: str) -> None:
    loop = EventLoop()
    try:
        with pytest.raises(ContractError, match=says):
            plugin_service(served, Registry(), loop)
    finally:
        loop.close(1)


# The broker


class Hello:
    def greet(self) -> str:
        return "Hello from the host!"

    async def later(self) -> str:
        return "Hello later!"


def offer(halves: Halves, loop: EventLoop, service: object) -> int:
    service_id: int = halves.broker.next_id()
    registry = Registry()
    halves.broker.accept_and_serve(service_id, plugin_service(service, registry, loop), registry)
    return service_id


@mtls
def test_both_sides_serve_and_dial(new_client: NewClient, command: list[str | Path], mtls: bool) -> None:
    halves = new_client(command, auto_mtls=mtls).dispense("torture")
    loop = EventLoop()
    try:
        for _ in range(3):
            service_id = offer(halves, loop, Hello())
            assert halves.client.call("Plugin.CallBack", service_id, Uint(32), str) == "Hello from the host!"
        offered = halves.client.call("Plugin.Offer", "Hello, host!", str, Uint(32))
        client = halves.broker.client(offered)
        assert [client.call("Plugin.Greet") for _ in range(3)] == ["Hello, host!"] * 3
        client.close()
    finally:
        loop.close(1)


@mtls
def test_many_at_once_get_their_own(new_client: NewClient, command: list[str | Path], mtls: bool) -> None:
    halves = new_client(command, auto_mtls=mtls).dispense("torture")
    loop = EventLoop()

    class Numbered:
        def __init__(self, number: int) -> None:
            self.number = number

        def greet(self) -> str:
            return f"I am {self.number}"

    def both(number: int) -> tuple[str, str]:
        heard = halves.client.call("Plugin.CallBack", offer(halves, loop, Numbered(number)), Uint(32), str)
        client = halves.broker.client(halves.client.call("Plugin.Offer", f"and you {number}", str, Uint(32)))
        try:
            return heard, client.call("Plugin.Greet")
        finally:
            client.close()

    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(both, range(40))) == [(f"I am {n}", f"and you {n}") for n in range(40)]
    finally:
        loop.close(1)


def test_an_id_that_the_plugin_does_not_accept(new_client: NewClient, command: list[str | Path]) -> None:
    halves = new_client(command).dispense("torture")
    began = time.monotonic()
    with pytest.raises(BrokerError, match="the brokered id 4711 cannot be reached"):
        halves.broker.dial(4711)
    assert 3 < time.monotonic() - began < 20
    assert halves.client.call("Plugin.Echo", b"on", bytes, bytes) == b"on"


def test_an_id_that_the_host_does_not_accept(new_client: NewClient, command: list[str | Path]) -> None:
    halves = new_client(command).dispense("torture")
    with pytest.raises(RemoteError):
        halves.client.call("Plugin.CallBack", 4711, Uint(32), str)
    assert halves.client.call("Plugin.Echo", b"on", bytes, bytes) == b"on"


# Both ends of a session, in one process


@dataclass(frozen=True, slots=True)
class Side:
    mux: Mux
    server: NetRPCServer
    broker: MuxBroker


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    """Two brokers with a real socket between them."""
    made = []
    for stream, is_client in zip(socket_pair(), (True, False), strict=True):
        mux = Mux(stream, client=is_client)
        server = NetRPCServer(f"side {is_client}")
        made.append(Side(mux, server, MuxBroker(mux, server, name=f"side {is_client}")))
    yield made[0], made[1]
    for side in made:
        side.mux.close()
        side.broker.close()
        assert side.server.close(PATIENCE)


def test_a_stream_may_come_before_its_id_is_accepted(sides: tuple[Side, Side]) -> None:
    ours, theirs = sides
    with ThreadPoolExecutor(1) as pool:
        dialled = pool.submit(ours.broker.dial, 7)
        arriving = "hybridload side False calls"
        while not any(thread.name.startswith(arriving) for thread in threading.enumerate()):
            time.sleep(0.001)
        accepted = theirs.broker.accept(7, PATIENCE)
        stream = dialled.result(PATIENCE)
    stream.send(b"hello")
    assert accepted.receive() == b"hello"
    stream.close()
    accepted.close()


def test_an_unclaimed_stream_is_closed_after_five_seconds(sides: tuple[Side, Side]) -> None:
    ours, _ = sides
    stream = ours.mux.open(PATIENCE)
    stream.send(b"\x09\0\0\0")
    began = time.monotonic()
    assert stream.receive(4, 30) == b""
    assert time.monotonic() - began > 4
    stream.close()


def test_a_stream_that_never_says_its_id_is_closed(sides: tuple[Side, Side]) -> None:
    ours, _ = sides
    stream = ours.mux.open(PATIENCE)
    stream.send(b"\x09\0")
    assert stream.receive(4, 30) == b""
    stream.close()


def test_an_id_is_accepted_once_at_a_time_and_dialled_once_at_a_time(sides: tuple[Side, Side]) -> None:
    ours, _ = sides
    ours.broker.expect(3, lambda stream: stream.close())
    with pytest.raises(BrokerError, match="is being accepted already"):
        ours.broker.expect(3, lambda stream: stream.close())
    with ThreadPoolExecutor(4) as pool:
        outcomes = [pool.submit(ours.broker.dial, 5) for _ in range(4)]
        said = [str(each.exception(PATIENCE)) for each in outcomes]
    assert sum("is being dialled already" in words for words in said) == 3
    assert sum("cannot be reached" in words for words in said) == 1


def test_nobody_dials(sides: tuple[Side, Side]) -> None:
    ours, _ = sides
    with pytest.raises(BrokerError, match=r"nobody dialled the brokered id 3 within 0\.1 s"):
        ours.broker.accept(3, 0.1)
    with pytest.raises(BrokerError, match="nobody dialled"):  # the id is free again
        ours.broker.accept(3, 0.01)


def test_closing_ends_whoever_waits(sides: tuple[Side, Side]) -> None:
    ours, theirs = sides
    with ThreadPoolExecutor(2) as pool:
        dialling = pool.submit(ours.broker.dial, 11)
        theirs.mux.close()
        theirs.broker.close()
        with pytest.raises(BrokerError):
            dialling.result(PATIENCE)
    with pytest.raises(BrokerError, match="its broker is closed"):
        theirs.broker.dial(1)
    with pytest.raises(BrokerError, match="its broker is closed"):
        theirs.broker.accept(1)


# A connection, in one process


@pytest.fixture
def connected() -> Iterator[Callable[[object], NetRPCClient]]:
    """Serves an object at the other end of a real socket."""
    server, loop, clients, threads = NetRPCServer("here"), EventLoop(), [], []

    def connect(service: object) -> NetRPCClient:
        ours, theirs = socket_pair()
        registry = Registry()
        services = plugin_service(service, registry, loop)
        threads.append(threading.Thread(target=server.serve, args=(theirs, services, registry)))
        threads[-1].start()
        clients.append(NetRPCClient(ours))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()
    assert server.close(PATIENCE)
    loop.close(1)
    for thread in threads:
        thread.join()


class Gate:
    """Methods that return when they are let."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def wait(self, number: int) -> int:
        self.entered.release()
        assert self.opened.wait(PATIENCE)
        return number

    def square(self, number: int) -> int:
        return number * number

    async def cube(self, number: int) -> int:
        await asyncio.sleep(0)
        return number**3


def test_eight_threads_hand_the_reading_on(connected: Callable[[object], NetRPCClient]) -> None:
    """Whoever reads goes away with its own answer, and the others must not be forgotten."""
    client = connected(Gate())

    def ask(thread: int) -> list[int]:
        numbers = range(thread, 4000, 8)
        return [n for n in numbers if client.call("Plugin.Square", n, timeout=PATIENCE) != n * n]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [[]] * 8


def test_slow_calls_hold_up_nobody(connected: Callable[[object], NetRPCClient]) -> None:
    gate = Gate()
    client = connected(gate)
    with ThreadPoolExecutor(12) as pool:
        slow = [pool.submit(client.call, "Plugin.Wait", number) for number in range(12)]
        for _ in slow:
            assert gate.entered.acquire(timeout=PATIENCE)
        for number in range(100):
            assert client.call("Plugin.Square", number, timeout=PATIENCE) == number * number
            assert client.call("Plugin.Cube", number, timeout=PATIENCE) == number**3
        assert not any(call.done() for call in slow)
        gate.opened.set()
        assert [call.result(PATIENCE) for call in slow] == list(range(12))


def test_late_answers_are_passed_over(connected: Callable[[object], NetRPCClient]) -> None:
    gate = Gate()
    client = connected(gate)

    def give_up(number: int) -> None:
        with pytest.raises(TimeoutError):
            client.call("Plugin.Wait", number, timeout=0.5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(give_up, range(24)))
        for _ in range(24):
            assert gate.entered.acquire(timeout=PATIENCE)
        gate.opened.set()
        squares = pool.map(lambda n: client.call("Plugin.Square", n, timeout=PATIENCE), range(200))
        assert list(squares) == [n * n for n in range(200)]
    assert client.call("Plugin.Wait", 5, timeout=PATIENCE) == 5


def test_closing_ends_all_calls(connected: Callable[[object], NetRPCClient]) -> None:
    gate = Gate()
    client = connected(gate)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(client.call, "Plugin.Wait", number) for number in range(8)]
        for _ in calls:
            assert gate.entered.acquire(timeout=PATIENCE)
        client.close()
        assert all(isinstance(call.exception(PATIENCE), StreamError) for call in calls)
    with pytest.raises(StreamError):
        client.call("Plugin.Square", 1)
    gate.opened.set()
