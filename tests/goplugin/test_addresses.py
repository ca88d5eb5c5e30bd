"""What one side connects to because the other one named it: this machine, and nothing that has to be looked up."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from hybridload import Handshake
from hybridload.errors import BrokerError, HandshakeError
from hybridload.goplugin import Client, ReattachConfig
from hybridload.goplugin.addresses import AddressRefused, local_address
from hybridload.goplugin.grpc import messages
from hybridload.goplugin.grpc.broker import GRPCBroker
from hybridload.goplugin.runner import LocalRunner
from hybridload.goplugin.streams.base import StreamError
from hybridload.goplugin.streams.sockets import connect
from hybridload.goplugin.transport import SocketTransport

PROGRAM = Path(__file__).parent / "sizes_plugin.py"
PATIENCE = 30.0
spec = importlib.util.spec_from_file_location("sizes_plugin", PROGRAM)
assert spec is not None
assert spec.loader is not None
sizes_plugin: Any = importlib.util.module_from_spec(spec)
sys.modules["sizes_plugin"] = sizes_plugin
spec.loader.exec_module(sizes_plugin)

# As they are told -> as they are connected to.
ALLOWED = {
    ("unix", "/tmp/plugin1"): "/tmp/plugin1",
    ("unix", "sockets/plugin"): "sockets/plugin",
    ("unix", "/" + "x" * 106): "/" + "x" * 106,
    ("tcp", "127.0.0.1:1234"): "127.0.0.1:1234",
    ("tcp", "127.9.8.7:65535"): "127.9.8.7:65535",
    ("tcp", "[::1]:1234"): "[::1]:1234",
    ("tcp", "::1:1234"): "::1:1234",
    ("tcp", "[::ffff:127.0.0.1]:1234"): "[::ffff:127.0.0.1]:1234",
    ("tcp", "localhost:1234"): "127.0.0.1:1234",
    ("tcp", "LocalHost:1234"): "127.0.0.1:1234",
    ("tcp", ":1234"): "127.0.0.1:1234",
    ("tcp", "0.0.0.0:1234"): "127.0.0.1:1234",
    ("tcp", "[::]:1234"): "[::1]:1234",
}
ELSEWHERE = "on loopback"
REFUSED = {
    ("tcp", "192.0.2.1:80"): ELSEWHERE,
    ("tcp", "[2001:db8::1]:80"): ELSEWHERE,
    ("tcp", "[::ffff:192.0.2.1]:80"): ELSEWHERE,
    ("tcp", "[::1%eth0]:80"): ELSEWHERE,
    ("tcp", "169.254.169.254:80"): ELSEWHERE,
    ("tcp", "example.com:80"): ELSEWHERE,
    ("tcp", "localhost.:80"): ELSEWHERE,
    ("tcp", "localhost.example.com:80"): ELSEWHERE,
    ("tcp", "127.1:80"): ELSEWHERE,
    ("tcp", "2130706433:80"): ELSEWHERE,
    ("tcp", "0x7f000001:80"): ELSEWHERE,
    ("tcp", "127.0.0.1@192.0.2.1:80"): ELSEWHERE,
    ("unix", "@abstract"): "abstract",
    ("unix", "/" + "x" * 107): "at most 107 bytes",
}
# What no handshake line gets as far as, and an offer of the broker's does.
ODD = {
    ("unix", "\0abstract"): "abstract",
    ("unix", "/tmp/a\0b"): "NUL",
    ("unix", ""): "no path is empty",
    ("tcp", "127.0.0.1"): "port",
    ("tcp", "127.0.0.1:0"): "port",
    ("tcp", "127.0.0.1:99999"): "port",
    ("tcp", "localhost:http"): "port",
    ("vsock", "2:1234"): ELSEWHERE,
    ("", ""): ELSEWHERE,
}


@pytest.fixture(autouse=True)
def _no_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))


@pytest.mark.parametrize(("told", "connected_to"), ALLOWED.items())
def test_this_machine_is_connected_to(told: tuple[str, str], connected_to: str) -> None:
    assert local_address(*told) == connected_to


@pytest.mark.parametrize(("told", "words"), (REFUSED | ODD).items())
def test_anything_else_is_refused_by_name(told: tuple[str, str], words: str) -> None:
    with pytest.raises(AddressRefused, match=words):
        local_address(*told)


@pytest.mark.parametrize("options", [{}, {"engine": "grpcio"}, {"multiplex": True}], ids=["direct", "grpcio", "mux"])
@pytest.mark.parametrize("protocol", ["grpc", "netrpc"])
@pytest.mark.parametrize("told", [("tcp", "192.0.2.1:80"), ("tcp", "example.com:80"), ("unix", "@abstract")])
def test_a_handshake_line_is_held_to_that(told: tuple[str, str], protocol: str, options: dict[str, Any]) -> None:
    line = f"1|1|{told[0]}|{told[1]}|{protocol}||true"
    client = started(line, **options)
    with pytest.raises(HandshakeError, match=REFUSED[told]) as caught:
        client.start()
    assert "Plugin 'sh' names the address" in str(caught.value)
    assert client.exited


class Elsewhere(LocalRunner):
    """A host that knows where its plugins are."""

    def plugin_to_host(self, network: Any, address: str) -> tuple[Any, str]:
        return network, address


def started(line: str, **options: Any) -> Client:
    return Client(
        ["sh", "-c", f"echo '{line}'; exec sleep 60"],
        plugins=sizes_plugin.SIZES,
        handshake=Handshake("KEY", "value"),
        auto_mtls=False,
        start_timeout=PATIENCE,
        **options,
    )


@pytest.fixture
def unreachable() -> Iterator[str]:
    """An address of this machine that is not on loopback; nothing listens there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as looking:
        try:
            looking.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        yield f"{looking.getsockname()[0]}:9"


def test_a_runner_decides_by_itself(unreachable: str) -> None:
    with pytest.raises(HandshakeError, match="no gRPC server answers there"):
        started(f"1|1|tcp|{unreachable}|grpc", runner=Elsewhere()).start()


def test_who_reattaches_names_the_address(unreachable: str) -> None:
    known = LocalRunner(known=("tcp", "192.0.2.1:80"))
    assert known.plugin_to_host("tcp", "192.0.2.1:80") == ("tcp", "192.0.2.1:80")
    assert known.plugin_to_host("tcp", "192.0.2.1:81") == ("tcp", "192.0.2.1:81")
    assert known.plugin_to_host("tcp", "localhost:81") == ("tcp", "127.0.0.1:81")
    for told in (("tcp", "192.0.2.2:80"), ("unix", "@abstract")):
        with pytest.raises(AddressRefused):
            known.plugin_to_host(*told)  # type: ignore[arg-type]
    config = ReattachConfig("grpc", 1, "tcp", unreachable, os.getpid())
    client = Client.reattach(config, plugins=sizes_plugin.SIZES, handshake=None, start_timeout=PATIENCE)
    with pytest.raises(HandshakeError, match="no gRPC server answers there"):
        client.start()


@pytest.mark.parametrize(("told", "words"), (REFUSED | ODD).items())
def test_an_offer_of_the_brokers_is_held_to_that(told: tuple[str, str], words: str) -> None:
    transport = SocketTransport(inwards=LocalRunner().plugin_to_host)
    with closing(GRPCBroker(transport, SimpleNamespace(), None, name="it")) as broker:  # type: ignore[arg-type]
        broker.receive([messages.ConnInfo(service_id=1, network=told[0], address=told[1])])
        with pytest.raises(BrokerError, match=f"id 1 names the address .*{words}"):
            broker.dial(1)


@pytest.mark.parametrize("engine", ["direct", "grpcio"])
def test_a_plugin_holds_its_host_to_that(engine: str) -> None:
    """The host's object, which the call brings along, is said to be elsewhere."""
    with Client(
        [sys.executable, str(PROGRAM), "unlimited", "grpc"],
        plugins=sizes_plugin.SIZES,
        handshake=sizes_plugin.HANDSHAKE,
        auto_mtls=False,
        env={"HYBRIDLOAD_ENGINE": engine},
    ) as client:
        assert client.announced is not None
        offer = messages.ConnInfo(service_id=7, network="tcp", address="192.0.2.1:80")
        with grpc.insecure_channel(f"unix:{client.announced.address}") as channel:
            offers = channel.stream_stream(messages.START_STREAM)(iter([offer.SerializeToString()]))
            with pytest.raises(grpc.RpcError, match=r"id 7 names the address tcp '192\.0\.2\.1:80'"):
                channel.unary_unary("/sizes.Sizes/HaveTaken")(b"\x08\x07\x10\x05", timeout=PATIENCE)
            offers.cancel()


@pytest.mark.parametrize("told", [("tcp", "127.0.0.1:99999"), ("unix", "/tmp/a\0b"), ("unix", "\ud800")])
def test_what_no_address_can_hold_is_a_stream_error(told: tuple[str, str]) -> None:
    with pytest.raises(StreamError, match="cannot connect"):
        connect(*told, 1.0)
