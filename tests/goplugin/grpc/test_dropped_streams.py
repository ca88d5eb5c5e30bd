"""A stream of results that nobody holds any more, whoever collects it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hybridload.goplugin.grpc.contract_client import RemoteStream
from hybridload.goplugin.http2.channel import Channel
from hybridload.goplugin.http2.server import Server
from hybridload.goplugin.streams.sockets import connect, listen_unix
from tests.goplugin.http2.conftest import Service

PATIENCE = 60.0  # seconds


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def channel(service: Service) -> Iterator[Channel]:
    listener = listen_unix()
    finder = SimpleNamespace(service=lambda details: service.handlers.get(details.method.rpartition("/")[2]))
    server = Server([finder])
    server.add_listener(listener)
    server.start()
    with Channel(lambda _: connect("unix", listener.address)) as made:
        yield made
    service.hanging.release()
    server.stop(0).wait(PATIENCE)


def test_a_stream_that_is_collected_in_the_middle_of_its_connection_ends_without_its_locks(channel: Channel) -> None:
    call: Any = channel.unary_stream("/t.T/HangStream")(b"x")
    link, ended = call._call.link, threading.Event()
    context: Any = SimpleNamespace(rpc_error=(Exception,))
    decode: Any = None
    stream = RemoteStream(call, decode, context, None, None)
    stream.add_done_callback(ended.set)
    cycle: list[Any] = [stream]
    cycle.append(cycle)
    gc.disable()
    try:
        del call, stream, cycle
        with link.lock:
            gc.collect()
    finally:
        gc.enable()
    assert ended.wait(PATIENCE)
