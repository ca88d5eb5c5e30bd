"""Large messages, and many small ones, arrive whole and in order; nobody keeps more of them than the windows allow."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from hybridload.errors import RemoteError
from hybridload.goplugin import Client

NewClient = Callable[..., Client]
MIB = 1 << 20
MANY = 10_000
PATIENCE = 30.0

ALL = pytest.mark.parametrize(
    "connection",
    [{"auto_mtls": False}, {"auto_mtls": True}, {"auto_mtls": True, "multiplex": True}],
    ids=["plain", "tls", "tls+multiplex"],
)


@ALL
def test_64_mib_each_way(new_client: NewClient, connection: dict[str, bool]) -> None:
    client = new_client(env={"TORTURE_MAX_MESSAGE": "unlimited"}, **connection)
    client.start()
    data = os.urandom(MIB) * 64
    answer = client.dispense("torture").echo(data)
    assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()


def test_what_is_beyond_gos_limit_is_refused_by_name(new_client: NewClient) -> None:
    client = new_client()
    client.start()
    torture = client.dispense("torture")
    with pytest.raises(RemoteError) as caught:
        torture.echo(bytes(64 * MIB))
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert "larger than max" in str(caught.value)
    assert str(4 * MIB) in str(caught.value)
    assert "Raise the plugin's limit" in str(caught.value)
    assert "grpc.MaxRecvMsgSize" in str(caught.value)
    assert torture.echo(b"still here") == b"still here"


@ALL
def test_ten_thousand_small_ones_in_a_stream(
    new_client: NewClient, go_plugins: Any, connection: dict[str, bool]
) -> None:
    client = new_client(**connection)
    client.start()
    torture = client.dispense("torture")
    items = list(torture.count(MANY, size=10))
    assert [item.number for item in items] == list(range(MANY))
    assert {len(item.padding) for item in items} == {10}
    total = torture.collect(iter(items))
    assert (total.count, total.bytes) == (MANY, 10 * MANY)
    words = [b"%d" % number for number in range(MANY)]
    assert list(torture.chat(iter(words))) == words


@pytest.mark.parametrize("multiplex", [False, True], ids=["tls", "tls+multiplex"])
def test_a_host_that_reads_slowly_is_not_sent_more_than_it_can_keep(new_client: NewClient, multiplex: bool) -> None:
    client = new_client(multiplex=multiplex)
    client.start()
    torture = client.dispense("torture")
    assert client.pid is not None
    ours, theirs = psutil.Process(), psutil.Process(client.pid)
    next(iter(torture.count(1)))
    before = ours.memory_info().rss, theirs.memory_info().rss
    stream = iter(torture.count(512, size=MIB))
    assert next(stream).number == 0
    torture.sleep(0.5)  # another call: the plugin has had the time to send half a gigabyte, if it were let
    grown = [process.memory_info().rss - rss for process, rss in zip((ours, theirs), before, strict=True)]
    assert max(grown) < 128 * MIB, grown
    assert [next(stream).number for _ in range(8)] == list(range(1, 9))
    stream.close()
    assert torture.echo(b"still here") == b"still here"


@pytest.mark.parametrize("multiplex", [False, True], ids=["tls", "tls+multiplex"])
def test_a_host_does_not_make_more_than_a_slow_plugin_takes(new_client: NewClient, multiplex: bool) -> None:
    client = new_client(multiplex=multiplex)
    client.start()
    torture = client.dispense("torture")
    made = 0
    enough = threading.Event()

    def words() -> Iterator[bytes]:
        nonlocal made
        while not enough.is_set():
            made += 1
            yield bytes(MIB)

    answers = iter(torture.chat(words()))  # nobody reads what the plugin echoes: it stops reading as well
    assert next(answers) == bytes(MIB)
    torture.sleep(0.5)
    assert made < 128
    enough.set()
    assert sum(1 for _ in answers) == made - 1
