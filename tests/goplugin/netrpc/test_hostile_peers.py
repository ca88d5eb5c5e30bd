"""Peers that send what nobody should: the other side says so by name, in bounded memory and time, and goes on."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from hybridload import Contract, Handshake
from hybridload.errors import BrokerError, HandshakeError, PluginCrashed, StartTimeout
from hybridload.goplugin import Client
from hybridload.goplugin.netrpc.client import NetRPCClient
from hybridload.goplugin.netrpc.gob import Encoder, String, Uint
from hybridload.goplugin.netrpc.gob.wire import put_int, put_uint
from hybridload.goplugin.streams.base import Stream, StreamError
from hybridload.goplugin.streams.mux import Mux
from hybridload.goplugin.streams.sockets import connect

HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")
MIB = 1 << 20
PATIENCE = 30.0  # seconds
INT, INTERFACE = 2, 8


class Greeter(Protocol):
    def greet(self) -> str: ...


PLUGINS = {"greeter": Contract(Greeter)}


# What is sent


def uint(number: int) -> bytes:
    out = bytearray()
    put_uint(out, number)
    return bytes(out)


def integer(number: int) -> bytes:
    out = bytearray()
    put_int(out, number)
    return bytes(out)


def message(*parts: bytes) -> bytes:
    body = b"".join(parts)
    return uint(len(body)) + body


def slice_type(number: int, elem: int) -> bytes:
    return message(
        integer(-number), b"\2\1\2", integer(number), b"\0\1", integer(elem), b"\0\0"
    )  # what Go sends for a slice


def nested_interfaces(depth: int) -> bytes:
    inner = b"\0"
    for _ in range(depth):
        name = b"interface {}"
        inner = uint(len(name)) + name + integer(INTERFACE) + uint(1 + len(inner)) + b"\0" + inner
    return message(integer(INTERFACE), b"\0", inner)


HOSTILE = {
    "noise": random.Random(5).randbytes(MIB),
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "zeros": bytes(MIB),
    "ones": b"\xff" * MIB,
    "a length of 2^60": uint(1 << 60),
    "a length of 2^60 inside": slice_type(64, INT) + message(integer(64), b"\0", uint(1 << 60)),
    "a type bomb": b"".join(slice_type(number, INT) for number in range(64, 64 + 10_002)),
    "types in types": b"".join(slice_type(n, n + 1) for n in range(64, 5000)) + message(integer(64), b"\0\1"),
    "a type of itself": slice_type(64, 64) + message(integer(64), b"\0", b"\1" * 100_000),
    "interfaces in interfaces": nested_interfaces(1000),
    "an unknown type": message(integer(64), b"\0"),
    "a type number out of range": message(integer(1 << 62), b"\0"),
    "a type of gob's own": slice_type(6, INT),
    "a value that is no header": Encoder().encode("x", String()),
}
each_hostile = pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE)


# A hostile host


SERVED = """
from typing import Protocol
from hybridload import Contract, Handshake, serve

class Greeter(Protocol):
    def greet(self) -> str: ...

class Hello:
    def greet(self):
        return "hello"

serve({"greeter": Contract(Greeter)}, {"greeter": Hello()}, handshake=Handshake("BASIC_PLUGIN", "hello"),
      protocols=("netrpc",))
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Client]:
    program = tmp_path / "plugin.py"
    program.write_text(SERVED)
    client = Client([sys.executable, str(program)], plugins=PLUGINS, handshake=HANDSHAKE, auto_mtls=False)
    client.start()
    yield client
    client.kill()
    assert client.returncode == 0


class HostileHost:
    """A second connection to a plugin."""

    def __init__(self, plugin: Client) -> None:
        attach = plugin.reattach_config
        self.raw = connect(attach.network, attach.address, PATIENCE)
        self.mux = Mux(self.raw, client=True)
        self.control, self.stdout, self.stderr = (self.mux.open(PATIENCE) for _ in range(3))
        self.calls = NetRPCClient(self.control)

    def dispense(self) -> Stream:
        service_id: int = self.calls.call("Dispenser.Dispense", "greeter", String(), Uint(32), timeout=PATIENCE)
        stream = self.mux.open(PATIENCE)
        stream.send(service_id.to_bytes(4, "little"))
        assert stream.receive(4, PATIENCE) == service_id.to_bytes(4, "little")
        return stream

    def close(self) -> None:
        self.mux.close()
        self.calls.close()


@pytest.fixture
def hostile(plugin: Client) -> Iterator[HostileHost]:
    host = HostileHost(plugin)
    yield host
    host.close()


def give(stream: Stream, data: bytes) -> None:
    """Send as much of it as the other side takes."""
    try:
        stream.send(data)
    except StreamError:
        return


def ended(stream: Stream) -> bool:
    """Whether the other side ends the stream, whatever it says before."""
    deadline = time.monotonic() + PATIENCE
    try:
        while stream.receive(65536, deadline - time.monotonic()):
            pass
    except StreamError:
        pass
    return True


def resident(plugin: Client) -> int:
    size: int = psutil.Process(plugin.pid).memory_info().rss
    return size


@each_hostile
def test_a_plugin_ends_a_control_connection_that_is_none(plugin: Client, hostile: HostileHost, sent: bytes) -> None:
    greeter, before = plugin.dispense("greeter"), resident(plugin)
    give(hostile.control, sent)
    hostile.control.close_write()
    assert ended(hostile.control)
    assert ended(hostile.stdout)  # the whole session is over
    assert greeter.greet() == "hello"
    assert resident(plugin) - before < 128 * MIB


@each_hostile
def test_a_plugin_ends_a_dispensed_connection_and_keeps_the_session(
    plugin: Client, hostile: HostileHost, sent: bytes
) -> None:
    greeter, before = plugin.dispense("greeter"), resident(plugin)
    stream = hostile.dispense()
    give(stream, sent)
    stream.close_write()
    assert ended(stream)
    stream.close()
    assert NetRPCClient(hostile.dispense()).call("Plugin.Greet", timeout=PATIENCE) == "hello"
    assert greeter.greet() == "hello"
    assert resident(plugin) - before < 128 * MIB


NO_YAMUX = {
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10,
    "noise": random.Random(6).randbytes(4096),
    "zeros": bytes(1200),
}
each_no_yamux = pytest.mark.parametrize("sent", NO_YAMUX.values(), ids=NO_YAMUX)


@each_no_yamux
def test_a_plugin_ends_a_session_that_is_none(plugin: Client, sent: bytes) -> None:
    attach = plugin.reattach_config
    raw = connect(attach.network, attach.address, PATIENCE)
    give(raw, sent)
    raw.close_write()
    assert ended(raw)
    raw.close()
    assert plugin.dispense("greeter").greet() == "hello"


def test_a_plugin_bears_hosts_that_vanish_at_every_step(plugin: Client) -> None:
    attach = plugin.reattach_config
    for step in range(40):
        raw = connect(attach.network, attach.address, PATIENCE)
        mux = Mux(raw, client=True)
        streams = [mux.open(PATIENCE) for _ in range(step % 5)]
        if step % 5 == 4:
            streams[0].send(Encoder().encode("half", String())[:3])
            streams[3].send(b"\1\0")
        mux.close()
    assert plugin.dispense("greeter").greet() == "hello"
    plugin.ping()


def test_brokered_ids_out_of_range_are_closed(plugin: Client, hostile: HostileHost) -> None:
    streams = [hostile.mux.open(PATIENCE) for _ in range(50)]
    for number, stream in enumerate(streams):
        stream.send((0xFFFFFFFF - number).to_bytes(4, "little"))
    assert plugin.dispense("greeter").greet() == "hello"  # meanwhile
    assert all(ended(stream) for stream in streams)
    for stream in streams:
        stream.close()
    assert hostile.calls.call("Control.Ping", True, bool, None, timeout=PATIENCE) is None


# A hostile plugin


HOSTILE_PLUGIN = """
import os, sys, threading, time
from pathlib import Path
from hybridload.goplugin.netrpc.gob import Bool, Int, String, Uint
from hybridload.goplugin.netrpc.rpc import EMPTY
from hybridload.goplugin.netrpc.server import Behavior, NetRPCServer
from hybridload.goplugin.streams.base import StreamError
from hybridload.goplugin.streams.mux import Mux
from hybridload.goplugin.streams.sockets import listen_tcp

mode, sent = sys.argv[1], Path(sys.argv[2]).read_bytes()

def give(stream):
    try:
        stream.send(sent)
        stream.close_write()
        while stream.receive():
            pass
    except StreamError:
        pass

listener = listen_tcp()
print(f"1|1|tcp|{listener.address}|netrpc", flush=True)
raw = listener.accept()
if mode == "raw":
    give(raw)
elif mode == "end":
    raw.close()
else:
    mux = Mux(raw, client=False)
    control, out, err = (mux.accept() for _ in range(3))
    if mode == "control":
        threading.Thread(target=give, args=(out,), daemon=True).start()
        give(control)
    elif mode == "silent":
        while control.receive():
            pass
    else:
        server = NetRPCServer("hostile")
        services = {
            "Control": {
                "Quit": Behavior(lambda _: os._exit(0), Bool(), EMPTY),
                "Ping": Behavior(lambda _: {}, Bool(), EMPTY),
            },
            "Dispenser": {"Dispense": Behavior(lambda _: 1, String(), Uint(32))},
        }
        threading.Thread(target=server.serve, args=(control, services), daemon=True).start()
        while True:
            stream = mux.accept()
            service_id = stream.receive(4)
            if mode == "other id":
                stream.send(b"\\xff\\xff\\xff\\xff")
            elif mode == "dispensed":
                stream.send(service_id)
                stream.receive()
                threading.Thread(target=give, args=(stream,), daemon=True).start()
time.sleep(600)
"""


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[Any]:
    clients = []

    def host(mode: str, sent: bytes = b"", **options: Any) -> Client:
        (tmp_path / "hostile.py").write_text(HOSTILE_PLUGIN)
        (tmp_path / "sent").write_bytes(sent)
        command = [sys.executable, str(tmp_path / "hostile.py"), mode, str(tmp_path / "sent")]
        given = {"plugins": PLUGINS, "handshake": HANDSHAKE, "auto_mtls": False, **options}
        clients.append(Client(command, name="hostile", **given))
        return clients[-1]

    yield host
    for client in clients:
        client.kill()


@each_hostile
def test_a_host_refuses_a_plugin_whose_control_is_none(hosted: Any, sent: bytes) -> None:
    client, before = hosted("control", sent, start_timeout=10.0), psutil.Process().memory_info().rss
    with pytest.raises(HandshakeError, match="no go-plugin server answers net/rpc there") as caught:
        client.start()
    assert "'hostile'" in str(caught.value)
    assert client.exited
    assert psutil.Process().memory_info().rss - before < 128 * MIB


@each_hostile
def test_a_call_that_is_answered_with_that_fails_and_the_session_goes_on(hosted: Any, sent: bytes) -> None:
    client, before = hosted("dispensed", sent), psutil.Process().memory_info().rss
    greeter = client.dispense("greeter")
    with pytest.raises(PluginCrashed, match="broke its connection, though its process still runs: ") as caught:
        greeter.greet()
    assert "'hostile'" in str(caught.value)
    with pytest.raises(PluginCrashed):
        greeter.greet()
    client.ping()
    assert psutil.Process().memory_info().rss - before < 128 * MIB


@each_no_yamux
def test_a_host_refuses_a_session_that_is_none(hosted: Any, sent: bytes) -> None:
    with pytest.raises(HandshakeError, match="no go-plugin server answers net/rpc there"):
        hosted("raw", sent, start_timeout=5.0).start()


def test_a_host_does_not_wait_for_ever_for_the_first_answer(hosted: Any) -> None:
    with pytest.raises(StartTimeout, match="nothing came within the start timeout"):
        hosted("silent", start_timeout=5.0).start()


def test_a_plugin_that_hangs_up_at_once_is_named(hosted: Any) -> None:
    with pytest.raises(HandshakeError, match="no go-plugin server answers net/rpc there"):
        hosted("end").start()


@pytest.mark.parametrize(
    ("mode", "says"), [("other id", "was answered with 4294967295"), ("no id", "cannot be reached")]
)
def test_a_dispensed_kind_that_cannot_be_reached_is_an_error(hosted: Any, mode: str, says: str) -> None:
    client = hosted(mode)
    with pytest.raises(BrokerError, match=says):
        client.dispense("greeter")
    client.ping()
