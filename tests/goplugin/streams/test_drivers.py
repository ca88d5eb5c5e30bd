"""TLS and yamux streams between two ends that send, half close, close and break off at whatever moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybridload.goplugin.certificates import generate_certificate
from hybridload.goplugin.streams import reading, sockets
from hybridload.goplugin.streams.base import Stream, StreamError
from hybridload.goplugin.streams.mux import Mux
from hybridload.goplugin.streams.sockets import socket_pair
from hybridload.goplugin.streams.tls import TLSStream, client_context, server_context

PATIENCE = 20.0  # seconds; who takes longer hangs
PATTERN = bytes(range(251)) * 2000
Ending = Literal["half close", "close", "break"]


class Script(NamedTuple):
    """What one end does: sends so much in each call, and ends in its way; it receives so much in each call."""

    sizes: list[int]
    ending: Ending
    piece: int


class Ends(NamedTuple):
    streams: tuple[Stream, Stream]
    break_off: Callable[[], None]


_HOST, _PLUGIN = generate_certificate("P-256"), generate_certificate("P-256")
_CLIENTS, _SERVERS = client_context(_HOST, _PLUGIN.der), server_context(_PLUGIN, _HOST.der)


@contextmanager
def plain() -> Iterator[Ends]:
    ours, theirs = socket_pair()
    yield Ends((ours, theirs), ours.close)
    ours.close()
    theirs.close()


@contextmanager
def tls() -> Iterator[Ends]:
    near, far = socket_pair()
    ours, theirs = TLSStream(near, _CLIENTS, "localhost"), TLSStream(far, _SERVERS)
    yield Ends((ours, theirs), near.close)
    ours.close()
    theirs.close()


@contextmanager
def yamux() -> Iterator[Ends]:
    near, far = socket_pair()
    client, server = Mux(near, client=True), Mux(far, client=False)
    ours, theirs = client.open(PATIENCE), server.accept(PATIENCE)
    yield Ends((ours, theirs), near.close)
    client.close()
    server.close()


@contextmanager
def tls_over_yamux() -> Iterator[Ends]:
    with yamux() as below:
        ours, theirs = (
            TLSStream(below.streams[0], _CLIENTS, "localhost"),
            TLSStream(below.streams[1], _SERVERS),
        )
        yield Ends((ours, theirs), below.break_off)
        ours.close()
        theirs.close()


scripts = st.builds(
    Script,
    st.lists(st.sampled_from([1, 100, 16_384, 70_000, 300_000]), max_size=5),
    st.sampled_from(["half close", "half close", "close", "break"]),
    st.sampled_from([100, 4096, 65_536]),
)


@pytest.mark.parametrize("connected", [tls, yamux, tls_over_yamux], ids=lambda make: make.__name__)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(scripts, scripts))
def test_data_is_whole_or_the_end_has_a_name(
    connected: Callable[[], object], pool: ThreadPoolExecutor, both: tuple[Script, Script]
) -> None:
    def send(stream: Stream, script: Script, break_off: Callable[[], None]) -> None:
        sent = 0
        try:
            for size in script.sizes:
                stream.send((PATTERN[sent % 251 :])[:size])
                sent += size
            if script.ending == "half close":
                stream.close_write()
        except StreamError:
            pass
        if script.ending == "close":
            stream.close()
        elif script.ending == "break":
            break_off()

    def receive(stream: Stream, script: Script) -> tuple[int, StreamError | None]:
        received = 0
        try:
            while data := stream.receive(script.piece, PATIENCE):
                assert data == PATTERN[received % 251 :][: len(data)]
                received += len(data)
        except StreamError as error:
            return received, error
        return received, None

    with connected() as ends:  # type: ignore[attr-defined]
        receiving = [pool.submit(receive, stream, script) for stream, script in zip(ends.streams, both, strict=True)]
        sending = [
            pool.submit(send, stream, script, ends.break_off) for stream, script in zip(ends.streams, both, strict=True)
        ]
        for each in sending:
            each.result(PATIENCE)
        results = [each.result(PATIENCE) for each in receiving]
    for (received, error), peer in zip(results, reversed(both), strict=True):
        assert received <= sum(peer.sizes)
        if all(script.ending == "half close" for script in both):
            assert error is None
            assert received == sum(peer.sizes)


@pytest.mark.parametrize("connected", [plain, tls, yamux, tls_over_yamux], ids=lambda make: make.__name__)
def test_a_look_misses_nothing(
    connected: Callable[[], AbstractContextManager[Ends]], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOMENT", PATIENCE)  # or another thread reads, and there is nothing to look for
    with connected() as ends:
        ours, theirs = ends.streams
        sending = pool.submit(theirs.send, b"hello")  # which does the handshake too, where there is one
        assert ours.receive(100, PATIENCE) == b"hello"
        sending.result(PATIENCE)
        look = ours.looker()
        assert not look()
        for last, said in ((False, b"word"), (True, b"last words")):
            theirs.send(said)
            if last:
                theirs.close_write()
            until = time.monotonic() + PATIENCE
            while not look():
                assert time.monotonic() < until
            assert ours.receive(2, 0) == said[:2]
            assert look(), "there is more, though nothing more came"
            assert ours.receive(100, PATIENCE) == said[2:]
        assert ours.receive(100, PATIENCE) == b""
        assert look()
        ours.close()
        assert look()


@pytest.mark.parametrize("can_poll", [True, False])
def test_a_look_at_what_another_thread_closes_is_harmless(can_poll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_CAN_POLL", can_poll)
    ours, theirs = socket_pair()
    look = ours.looker()
    assert not look()
    ours._socket.close()  # the last step of `close`; that it had begun was not seen yet
    look()
    ours.close()
    assert look()
    theirs.close()
