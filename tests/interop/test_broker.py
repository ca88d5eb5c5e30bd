"""Brokered connections in either direction, over every kind of connection and on both engines, with Go over there.

`tests/go/greeter` is the plugin of a Python host: it dials what the host accepts (CallBack), and accepts what the host
dials (Offer). `brokering.py` is the same in Python, for the Go host.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hybridload.errors import BrokerError, RemoteError
from hybridload.goplugin import Client

NewClient = Callable[..., Client]
PLUGIN = [sys.executable, Path(__file__).with_name("brokering.py")]
PATIENCE = 30.0
A_FEW = 8
# What takes seconds, and is the same on either engine and with or without TLS.
SLOW = pytest.mark.parametrize(
    ("engine", "connection"),
    [("direct", {"auto_mtls": True, "multiplex": multiplex}) for multiplex in (False, True)],
    ids=["sockets", "multiplex"],
)


@pytest.fixture(params=["plain", "tls", "multiplex", "tls+multiplex"])
def connection(request: pytest.FixtureRequest) -> dict[str, bool]:
    """What connections run over, as options of a client."""
    return {"auto_mtls": "tls" in request.param, "multiplex": "multiplex" in request.param}


@pytest.fixture
def client(new_client: NewClient, go_plugins: Any, brokering: Any, connection: dict[str, bool]) -> Client:
    plugins = {**go_plugins.plugins, "broker": brokering.BrokerKind()}
    client = new_client(plugins=plugins, **connection)
    client.start()
    return client


@pytest.fixture
def python_client(new_client: NewClient, brokering: Any, connection: dict[str, bool]) -> Client:
    """The same with the Python plugin."""
    client = new_client(*PLUGIN, plugins=brokering.PLUGINS, **connection)
    client.start()
    return client


@pytest.fixture
def go(start_go_host: Callable[..., Any], connection: dict[str, bool], engine: str) -> Callable[..., Any]:
    """Runs the Go host with the Python plugin and returns what its calls answered."""
    flags = ["-mtls"] * connection["auto_mtls"] + ["-multiplex"] * connection["multiplex"]

    def run(*calls: str) -> list[Any]:
        told = [word for call in calls for word in ("-call", call)]
        host = start_go_host(PLUGIN, *flags, *told, env={**os.environ, "HYBRIDLOAD_ENGINE": engine})
        host.wait_for("stopped")
        answers: list[Any] = host.answers
        return answers

    return run


def open_things() -> list[str]:
    """Threads and descriptors of this process, without grpcio's threads for calls, which stay for a while."""
    descriptors = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    threads = [thread.name for thread in threading.enumerate() if not thread.name.startswith("hybridload calls")]
    return sorted(threads + [name.partition(":")[0] for name in descriptors])


def check_that_no_more_is_open(before: list[str]) -> None:
    """Wait for what is on its way out; the main channel and server may have grown by a few threads."""
    deadline = time.monotonic() + PATIENCE
    while len(now := open_things()) > len(before) + A_FEW:
        assert time.monotonic() < deadline, f"{before} was open before, and now {now}"
        time.sleep(0.01)


# A Python host


def test_the_plugin_calls_back(client: Client, brokering: Any) -> None:
    broker, torture = client.dispense("broker"), client.dispense("torture")
    for _ in range(2):
        service_id = broker.next_id()
        served = broker.accept_and_serve(service_id, brokering.greeter("Hello from the host!"))
        assert torture.call_back(service_id, 3) == ["Hello from the host!"] * 3
        served.close()


def test_the_host_dials(client: Client, brokering: Any) -> None:
    broker, torture = client.dispense("broker"), client.dispense("torture")
    ids = torture.offer(5)
    for service_id in reversed(ids):
        with broker.dial(service_id) as channel:
            assert brokering.greet(channel) == f"Hello from service {service_id}!"
            assert brokering.greet(channel) == f"Hello from service {service_id}!"


def test_both_directions_at_once(client: Client, brokering: Any) -> None:
    broker, torture = client.dispense("broker"), client.dispense("torture")

    def call_back(_: int) -> bool:
        service_id = broker.next_id()
        served = broker.accept_and_serve(service_id, brokering.greeter(f"Hello {service_id}!"))
        answers: list[str] = torture.call_back(service_id, 2)
        served.close()
        return answers == [f"Hello {service_id}!"] * 2

    def dial(service_id: int) -> bool:
        with broker.dial(service_id) as channel:
            return brokering.greet(channel) == f"Hello from service {service_id}!"

    def fifty() -> None:
        with ThreadPoolExecutor(50) as pool:
            back = [pool.submit(call_back, number) for number in range(25)]
            there = [pool.submit(dial, service_id) for service_id in torture.offer(25)]
            assert all(each.result(PATIENCE) for each in (*back, *there))

    fifty()  # the main channel may keep connections for so many calls at once
    before = open_things()
    fifty()
    check_that_no_more_is_open(before)


def test_hundreds_one_after_the_other_leave_nothing_behind(client: Client, brokering: Any) -> None:
    broker, torture = client.dispense("broker"), client.dispense("torture")

    def once() -> None:
        service_id = broker.next_id()
        served = broker.accept_and_serve(service_id, brokering.greeter("Hello!"))
        assert torture.call_back(service_id, 1) == ["Hello!"]
        served.close()
        (service_id,) = torture.offer(1)
        with broker.dial(service_id) as channel:
            assert brokering.greet(channel) == f"Hello from service {service_id}!"

    once()
    before = open_things()
    for _ in range(125):  # times two, times four kinds of connection: a thousand on each engine
        once()
    check_that_no_more_is_open(before)


@SLOW
def test_an_id_that_nobody_accepts_fails_after_five_seconds(client: Client, brokering: Any) -> None:
    broker = client.dispense("broker")
    began = time.monotonic()
    with pytest.raises(BrokerError, match="nobody accepts the brokered id 4711"):
        broker.dial(4711)
    assert 4.5 < time.monotonic() - began < 7
    (service_id,) = client.dispense("torture").offer(1)
    with broker.dial(service_id) as channel:
        assert brokering.greet(channel) == f"Hello from service {service_id}!"


@SLOW
def test_go_is_told_that_nobody_accepts(client: Client, brokering: Any) -> None:
    broker, torture = client.dispense("broker"), client.dispense("torture")
    began = time.monotonic()
    with pytest.raises(RemoteError):
        torture.call_back(4711, 1)
    assert time.monotonic() - began < 7
    service_id = broker.next_id()
    broker.accept_and_serve(service_id, brokering.greeter("Hello!"))
    assert torture.call_back(service_id, 1) == ["Hello!"]


def test_what_is_left_open_ends_with_the_plugin(client: Client, brokering: Any) -> None:
    broker, torture = client.dispense("broker"), client.dispense("torture")
    service_id = broker.next_id()
    broker.accept_and_serve(service_id, brokering.greeter("Hello!"))
    assert torture.call_back(service_id, 1) == ["Hello!"]
    broker.accept_and_serve(broker.next_id(), brokering.greeter("Nobody calls me."))
    channel = broker.dial(torture.offer(1)[0])
    assert brokering.greet(channel)
    broker.dial(torture.offer(1)[0])  # and not even used
    client.kill()
    with pytest.raises(BrokerError, match="closed"):
        broker.dial(1)
    with pytest.raises(BrokerError, match="closed"):
        broker.accept(broker.next_id())


def test_a_python_plugin_does_the_same(python_client: Client, brokering: Any) -> None:
    broker, torture = python_client.dispense("broker"), python_client.dispense("torture")
    service_id = broker.next_id()
    served = broker.accept_and_serve(service_id, brokering.greeter("Hello from the host!"))
    assert torture.call_back(service_id, 2) == ["Hello from the host!"] * 2
    served.close()
    for service_id in torture.offer(3):
        with broker.dial(service_id) as channel:
            assert brokering.greet(channel) == f"Hello from service {service_id}!"
    assert torture.served() == 3


# A Go host


def test_a_go_host_and_our_plugin_dial_each_other(go: Callable[..., Any]) -> None:
    answers = go("callback:3", "offer:1", "callback:1", "offer:10")
    assert answers[0] == ["Hello from the host's service 1!"] * 3
    assert answers[1] == ["Hello from service 1!"]
    assert answers[2] == ["Hello from the host's service 2!"]
    assert answers[3] == [f"Hello from service {number}!" for number in range(2, 12)]


def test_a_go_host_brokers_hundreds_of_connections_with_our_plugin(go: Callable[..., Any]) -> None:
    answers = go("offer:50", *["callback:1"] * 100)
    assert answers[0] == [f"Hello from service {number}!" for number in range(1, 51)]
    assert answers[1:] == [[f"Hello from the host's service {number}!"] for number in range(1, 101)]


@SLOW
def test_a_go_host_that_dials_what_nobody_accepts_is_told_so(go: Callable[..., Any]) -> None:
    answers = go("dial:4711", "offer:1")
    assert "error" in answers[0]
    assert answers[1] == ["Hello from service 1!"]
