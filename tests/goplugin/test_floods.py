"""No plugin, whatever it sends, holds a caller for longer than its deadline, nor its host's start, pings and end.

What is sent are the rows of `flooding_plugin.py`: a new kind of flood is one more row there, and tried against all that
a host does. A plugin that does no work may also be taken for broken before the deadline comes.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pytest

from hybridload import Contract, Handshake, deadline
from hybridload.errors import HandshakeError, PluginError
from hybridload.goplugin import Client
from hybridload.goplugin import client as client_module

PROGRAM = Path(__file__).parent / "flooding_plugin.py"
DEADLINE = GRACE = 0.25
START_TIMEOUT = 0.75
LATE = 2.0
"""Seconds. On a machine that has nothing else to do it is a tenth of that; what is caught here had no end."""

spec = importlib.util.spec_from_file_location("flooding_plugin", PROGRAM)
assert spec is not None
assert spec.loader is not None
flooding: Any = importlib.util.module_from_spec(spec)
sys.modules["flooding_plugin"] = flooding
spec.loader.exec_module(flooding)


class Flooded(Protocol):
    def greet(self) -> str: ...
    async def async_greet(self) -> str: ...


class Streaming(Flooded, Protocol):
    def take(self, data: bytes) -> str: ...
    def count(self) -> Iterator[str]: ...
    def collect(self, texts: Iterator[str]) -> str: ...
    async def async_take(self, data: bytes) -> str: ...
    def async_count(self) -> AsyncIterator[str]: ...


async def all_of(items: AsyncIterator[str]) -> list[str]:
    return [item async for item in items]


CALLS: dict[str, Callable[[Any, Client], object]] = {
    "ping": lambda plugin, client: client.ping(DEADLINE),
    "call": lambda plugin, client: plugin.greet(),
    "async call": lambda plugin, client: asyncio.run(plugin.async_greet()),
}
STREAMS: dict[str, Callable[[Any, Client], object]] = {
    "large call": lambda plugin, client: plugin.take(bytes(4 << 20)),
    "large async call": lambda plugin, client: asyncio.run(plugin.async_take(bytes(4 << 20))),
    "stream": lambda plugin, client: list(plugin.count()),
    "async stream": lambda plugin, client: asyncio.run(all_of(plugin.async_count())),
    "stream of requests": lambda plugin, client: plugin.collect(str(number) for number in range(1 << 40)),
}

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "http2": ("http2", {}),
    "http2 under TLS": ("http2", {"auto_mtls": True}),
    "yamux under net/rpc": ("yamux", {}),
    "yamux under gRPC": ("multiplexed", {"multiplex": True}),
    "net/rpc": ("netrpc", {}),
    "net/rpc under TLS": ("netrpc", {"auto_mtls": True}),
}
ALSO_THERE = ("silence", "stream's window", "an answer a byte at a time", "pings")
"""Rows that are tried on every way; on one that carries what another carries as well, the others are long."""
TO_START_WITH = (
    "silence",
    "stream's window",
    "an answer a byte at a time",
    "pings, slowly",
    "output",
    "empty messages",
)
"""Rows that are tried at the start as well; the others are long there."""


def cases(of_start: bool) -> Iterator[Any]:
    for way, (protocol, options) in WAYS.items():
        for row, flood in flooding.PROTOCOLS[protocol][2].items():
            elsewhere = way not in ("http2", "yamux under net/rpc", "net/rpc")
            long = flood.long or (elsewhere and row not in ALSO_THERE) or (of_start and row not in TO_START_WITH)
            marks = [pytest.mark.long] if long else []
            yield pytest.param(protocol, options, row, id=f"{way}: {row}", marks=marks)


@pytest.fixture
def flooded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Client]]:
    monkeypatch.setattr(client_module, "_GRACE", GRACE)
    clients: list[Client] = []

    def make(protocol: str, row: str, *moments: str, **options: Any) -> Client:
        grpc = flooding.PROTOCOLS[protocol][0] == "grpc"
        options = {"auto_mtls": False, **options}
        clients.append(
            Client(
                [sys.executable, str(PROGRAM), protocol, row, *moments],
                plugins={"flooded": Contract(Streaming if grpc else Flooded, service="floods.Flooded")},
                handshake=Handshake("BASIC_PLUGIN", "hello"),
                name="flooding",
                **options,
            )
        )
        return clients[-1]

    yield make
    for client in clients:
        client.kill()


def lateness(action: Callable[[], object], limit: float) -> float:
    """Seconds that it took beyond what it may take."""
    began = time.monotonic()
    with suppress(PluginError):
        action()
    return round(time.monotonic() - began - limit, 2)


@pytest.mark.parametrize(("protocol", "options", "row"), list(cases(of_start=False)))
def test_calls_pings_and_kills_end_in_time(
    flooded: Callable[..., Client], protocol: str, options: dict[str, Any], row: str
) -> None:
    client = flooded(protocol, row, "call", "ping", "stop", **options)
    plugin = client.dispense("flooded")
    late: dict[str, float] = {}

    def timed(what: str, call: Callable[[Any, Client], object]) -> None:
        with deadline(DEADLINE):
            late[what] = lateness(lambda: call(plugin, client), DEADLINE)

    timed("call that is alone", CALLS["call"])
    crowd = {**CALLS, **(STREAMS if flooding.PROTOCOLS[protocol][0] == "grpc" else {})}
    threads = [threading.Thread(target=timed, args=each) for each in crowd.items()]
    threads.append(threading.Thread(target=lateness, args=(plugin.greet, 0)))  # it ends with the plugin
    for thread in threads:
        thread.start()
    for thread in threads[:-1]:
        thread.join()
    late["kill"] = lateness(client.kill, GRACE)
    late["call without a deadline"] = lateness(threads[-1].join, 0)
    print(late)
    assert {what: by for what, by in late.items() if by > LATE} == {}
    assert len(late) == len(crowd) + 3


def check_start(client: Client) -> None:
    def start() -> None:
        with pytest.raises(HandshakeError):
            client.start()

    late = lateness(start, START_TIMEOUT)
    print(late)
    assert late < LATE
    assert client.exited


@pytest.mark.parametrize(("protocol", "options", "row"), list(cases(of_start=True)))
def test_a_start_ends_in_time(flooded: Callable[..., Client], protocol: str, options: dict[str, Any], row: str) -> None:
    check_start(flooded(protocol, row, "start", start_timeout=START_TIMEOUT, **options))


@pytest.mark.parametrize("row", flooding.HANDSHAKES)
def test_a_start_ends_in_time_though_the_handshake_of_tls_does_not(flooded: Callable[..., Client], row: str) -> None:
    check_start(flooded("tls", row, auto_mtls=True, start_timeout=START_TIMEOUT))


@pytest.mark.parametrize(
    ("way", "calls"),
    [
        ("http2", 400),
        ("yamux under net/rpc", 400),
        pytest.param("http2 under TLS", 400, marks=pytest.mark.long),
        pytest.param("yamux under gRPC", 2000, marks=pytest.mark.long),
    ],
)
def test_calls_end_in_time_when_what_they_send_is_never_read(
    flooded: Callable[..., Client], way: str, calls: int
) -> None:
    """More of them than what lies between host and plugin has room for; grpcio's own channel does hang then."""
    protocol, options = WAYS[way]
    client = flooded(protocol, "silence, and nothing is read", "call", "ping", "stop", engine="direct", **options)
    plugin = client.dispense("flooded")

    def call() -> None:
        with deadline(0.002):
            plugin.greet()

    assert max(lateness(call, 0.002) for _ in range(calls)) < LATE
    assert lateness(client.kill, GRACE) < LATE
