"""Calls in which nothing is sent for long, with a Go server that counts the pings.

Go's gRPC closes a connection with GOAWAY ``too_many_pings`` when a client pings without data more than twice within
the server's policy, five minutes by default. The plugin's policy here is a day, so that a client which pings at all is
found out in seconds.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest

from .conftest import NewClient

STRICT = {"TORTURE_KEEPALIVE": "strict"}


@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
def test_a_silent_call_is_left_alone(new_client: NewClient, mtls: bool) -> None:
    client = new_client(env=STRICT, auto_mtls=mtls)
    torture = client.dispense("torture")
    torture.sleep(3.0)
    assert torture.echo(b"still the same plugin") == b"still the same plugin"


def test_silent_calls_side_by_side_and_one_after_the_other(new_client: NewClient) -> None:
    client = new_client(env=STRICT)
    torture = client.dispense("torture")
    failures: list[Exception] = []

    def sleep_and_echo() -> None:
        try:
            for _ in range(5):
                torture.sleep(0.5)
                assert torture.echo(b"x") == b"x"
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=sleep_and_echo) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_server_does_count(go_build: Any) -> None:
    """A grpcio channel that pings without being asked to loses its connection: the policy above is in force."""
    import grpc

    from hybridload.goplugin import Client

    from .conftest import Greeter

    with Client(
        [go_build("tests/go/greeter")],
        plugins={"greeter": Greeter},
        handshake=_handshake(),
        auto_mtls=False,
        engine="grpcio",
        env=STRICT,
    ) as client:
        config = client.reattach_config
        options = [
            ("grpc.keepalive_time_ms", 200),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        with grpc.insecure_channel(f"{config.network}:{config.address}", options=options) as channel:
            sleep = channel.unary_unary("/torture.Torture/Sleep")
            with pytest.raises(grpc.RpcError, match=r"too_many_pings|Too many pings"):
                sleep(b"\x09" + bytes.fromhex("0000000000001440"), timeout=30)  # seconds: 5.0


def _handshake() -> Any:
    from hybridload import Handshake

    return Handshake("BASIC_PLUGIN", "hello")
