"""Go's own gRPC as the client of our server and as the server of our client; h2spec against our server."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridload.goplugin.http2.channel import Channel
from hybridload.goplugin.http2.limits import Limits
from hybridload.goplugin.http2.server import Server
from hybridload.goplugin.http2.status import RpcError
from hybridload.goplugin.streams.sockets import connect, listen_tcp

PEER = "tests/go/h2peer"


def test_every_kind_of_call_from_go(ours: tuple[Server, str], go_build: Callable[[str], Path]) -> None:
    result = subprocess.run([go_build(PEER), "call", ours[1]], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("ok ") == 13


@pytest.fixture
def go_server(go_build: Callable[[str], Path]) -> Iterator[tuple[Channel, Any]]:
    """A channel to Go's server, and what it prints."""
    socket = os.path.join(tempfile.gettempdir(), "h2peer.sock")
    process = subprocess.Popen(
        [go_build(PEER), "serve", socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "serving\n"
    with Channel(lambda _: connect("unix", socket)) as channel:
        yield channel, process.stdout
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


def test_unary_calls_to_go(go_server: Any) -> None:
    echo = go_server[0].unary_unary("/t.T/Echo")
    for size in (0, 1, 100, 16379, 16384, 65535, 65536, 1 << 20, 64 << 20):
        data = b"0123456789abcdef" * (size // 16) + b"x" * (size % 16)
        assert echo(data, timeout=60) == data


def test_metadata_to_go_and_back(go_server: Any) -> None:
    metadata = [("x-bin", b"\x00\xff"), ("x-text", "a b")]
    _, call = go_server[0].unary_unary("/t.T/Echo").with_call(b"", metadata=metadata)
    assert sorted(tuple(each) for each in call.initial_metadata()) == metadata
    assert sorted(tuple(each) for each in call.trailing_metadata()) == metadata


def test_an_error_from_go(go_server: Any) -> None:
    with pytest.raises(RpcError) as caught:
        go_server[0].unary_unary("/t.T/Fail")(b"")
    assert (caught.value.code().name, caught.value.details()) == ("NOT_FOUND", "nö 100%\n")


def test_streams_with_go(go_server: Any) -> None:
    channel = go_server[0]
    assert list(channel.unary_stream("/t.T/Count")(b"5000")) == [b"%d" % number for number in range(5000)]
    assert channel.stream_unary("/t.T/Join")(b"%d" % n for n in range(2000)) == b"+".join(
        b"%d" % n for n in range(2000)
    )
    requests: queue.Queue[bytes | None] = queue.Queue()
    responses = channel.stream_stream("/t.T/Chat")(iter(requests.get, None))
    for number in range(100):
        requests.put(b"%d" % number)
        assert next(responses) == b"<%d>" % number
    requests.put(None)
    assert list(responses) == []


def test_a_deadline_and_a_cancellation_reach_go(go_server: Any) -> None:
    channel, printed = go_server
    with pytest.raises(RpcError) as caught:
        channel.unary_unary("/t.T/Hang")(b"", timeout=0.2)
    assert caught.value.code().name == "DEADLINE_EXCEEDED"
    assert printed.readline() in ("hung context deadline exceeded\n", "hung context canceled\n")
    call = channel.unary_stream("/t.T/Hang")(b"")
    call.cancel()
    assert printed.readline() == "hung context canceled\n"


# h2spec


@pytest.fixture(scope="session")
def h2spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The h2spec program, built once into the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybridload-tests"
    program = cache / "h2spec"
    if not program.exists():
        if shutil.which("go") is None:
            pytest.skip("h2spec is built from source, which needs Go 1.24 or newer on PATH")
        result = subprocess.run(
            ["go", "install", "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible"],
            env={**os.environ, "GOBIN": str(cache), "GOFLAGS": "-mod=mod"},
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            pytest.skip(f"h2spec cannot be built: {result.stderr[-500:]}")
    return program


@pytest.mark.go
def test_h2spec_passes(service: Any, h2spec: Path, tmp_path: Path) -> None:
    """With frames of the default size: one case takes more than 16 KiB for too large whatever was agreed on."""
    server = Server((service,), limits=Limits(max_frame=16384))
    listener = listen_tcp()
    server.add_listener(listener)
    server.start()
    host, _, port = listener.address.rpartition(":")
    report = tmp_path / "report.xml"
    try:
        result = subprocess.run(
            [h2spec, "-h", host, "-p", port, "-P", "/t.T/Echo", "-o", "5", "-j", report],
            capture_output=True,
            text=True,
            timeout=110,
        )
    finally:
        assert server.stop(0).wait(10)
    summary = result.stdout.strip().splitlines()[-1]
    assert result.returncode == 0, result.stdout[result.stdout.find("Failures:") :]
    assert " 0 failed" in summary, summary
    assert " 0 skipped" in summary, summary
