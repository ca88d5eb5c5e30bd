from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hybridload.goplugin.streams.base import StreamClosed
from hybridload.goplugin.streams.yamux import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    INITIAL_WINDOW,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    BacklogFull,
    Config,
    DataReceived,
    Event,
    PongReceived,
    Reason,
    Session,
    SessionFailed,
    StreamAborted,
    StreamAcknowledged,
    StreamFinished,
    StreamOpened,
    WentAway,
    WindowGrew,
)


def frame(kind: int, flags: int = 0, stream_id: int = 0, length: int = 0, body: bytes = b"", version: int = 0) -> bytes:
    return struct.pack(">BBHII", version, kind, flags, stream_id, length or len(body)) + body


def frames(session: Session) -> list[tuple[int, int, int, int]]:
    """Headers of what a session wants to send: type, flags, stream, length."""
    data = b"".join(session.data_to_send())
    found = []
    while data:
        version, kind, flags, stream_id, length = struct.unpack_from(">BBHII", data)
        assert version == 0
        found.append((kind, flags, stream_id, length))
        data = data[12 + (length if kind == DATA else 0) :]
    return found


def deliver(sender: Session, receiver: Session) -> list[Event]:
    return receiver.receive_data(b"".join(sender.data_to_send()))


@pytest.fixture
def ends() -> tuple[Session, Session]:
    return Session(client=True), Session(client=False)


def opened(client: Session, server: Session) -> int:
    stream_id = client.open()
    assert deliver(client, server) == [StreamOpened(stream_id)]
    server.acknowledge(stream_id)
    assert deliver(server, client) == [StreamAcknowledged(stream_id)]
    return stream_id


# Streams


def test_ids_are_odd_for_the_client_and_even_for_the_server(ends: tuple[Session, Session]) -> None:
    client, server = ends
    assert [client.open(), client.open(), server.open(), server.open()] == [1, 3, 2, 4]


def test_opening_and_accepting_are_one_frame_each(ends: tuple[Session, Session]) -> None:
    client, server = ends
    client.open()
    assert frames(client) == [(WINDOW_UPDATE, SYN, 1, 0)]
    server.receive_data(frame(WINDOW_UPDATE, SYN, 1))
    assert frames(server) == []
    server.acknowledge(1)
    server.acknowledge(1)
    assert frames(server) == [(WINDOW_UPDATE, ACK, 1, 0)]


def test_data_may_travel_before_the_stream_is_accepted(ends: tuple[Session, Session]) -> None:
    client, server = ends
    client.open()
    assert client.send(1, b"early") == 5
    assert deliver(client, server) == [StreamOpened(1), DataReceived(1, b"early")]


def test_a_stream_may_be_opened_and_finished_by_a_data_frame() -> None:
    server = Session(client=False)
    assert server.receive_data(frame(DATA, SYN | FIN, 1, body=b"all")) == [
        StreamOpened(1),
        DataReceived(1, b"all"),
        StreamFinished(1),
    ]


def test_each_half_ends_by_itself(ends: tuple[Session, Session]) -> None:
    client, server = ends
    opened(client, server)
    client.close_write(1)
    client.close_write(1)
    assert deliver(client, server) == [StreamFinished(1)]
    with pytest.raises(StreamClosed):
        client.send(1, b"x")
    server.send(1, b"answer")
    assert deliver(server, client) == [DataReceived(1, b"answer")]
    server.close_write(1)
    assert deliver(server, client) == [StreamFinished(1)]
    assert not client.exists(1)
    assert not server.exists(1)


def test_a_reset_ends_both_halves_and_what_is_under_way_is_passed_over(ends: tuple[Session, Session]) -> None:
    client, server = ends
    opened(client, server)
    client.send(1, b"under way")
    client.close_write(1)
    server.reset(1)
    server.reset(1)
    assert deliver(client, server) == []
    assert deliver(server, client) == [StreamAborted(1)]
    assert server.failure is None
    with pytest.raises(StreamClosed):
        client.send(1, b"x")


def test_a_refused_stream_is_reset(ends: tuple[Session, Session]) -> None:
    client, server = ends
    client.open()
    client.send(1, b"lost")
    server.go_away()
    assert deliver(client, server) == []
    assert deliver(server, client) == [WentAway(), StreamAborted(1)]


def test_at_most_a_backlog_of_streams_waits_in_each_direction() -> None:
    client, server = Session(True, Config(backlog=2)), Session(False, Config(backlog=2))
    client.open()
    client.open()
    assert not client.can_open
    with pytest.raises(BacklogFull):
        client.open()
    deliver(client, server)
    assert server.receive_data(frame(WINDOW_UPDATE, SYN, 5)) == []
    assert frames(server) == [(WINDOW_UPDATE, RST, 5, 0)]
    server.acknowledge(1)
    deliver(server, client)
    assert client.can_open
    assert server.receive_data(frame(WINDOW_UPDATE, SYN, 7)) == [StreamOpened(7)]


def test_a_reset_gives_the_place_in_the_backlog_back() -> None:
    client, server = Session(True, Config(backlog=1)), Session(False, Config(backlog=1))
    client.open()
    client.reset(1)
    assert client.can_open
    client.open()
    server.receive_data(frame(WINDOW_UPDATE, SYN, 1))
    assert server.receive_data(frame(WINDOW_UPDATE, RST, 1)) == [StreamAborted(1)]
    assert server.receive_data(frame(WINDOW_UPDATE, SYN, 3)) == []  # its user still has 1 to look at
    server.acknowledge(1)
    assert server.receive_data(frame(WINDOW_UPDATE, SYN, 5)) == [StreamOpened(5)]


@pytest.mark.parametrize("kind", [DATA, WINDOW_UPDATE])
@pytest.mark.parametrize("flags", [0, ACK, FIN, RST])
def test_frames_for_unknown_streams_are_passed_over(kind: int, flags: int) -> None:
    session = Session(client=True)
    body = b"nobody's" if kind == DATA else b""
    assert session.receive_data(frame(kind, flags, 99, body=body) + frame(PING, ACK, length=7)) == [PongReceived(7)]
    assert frames(session) == []


def test_a_second_acknowledgement_is_passed_over(ends: tuple[Session, Session]) -> None:
    client, server = ends
    opened(client, server)
    assert client.receive_data(frame(WINDOW_UPDATE, ACK, 1)) == []


def test_data_after_a_fin_is_passed_over(ends: tuple[Session, Session]) -> None:
    """The Go library can send it: its Write and Close race."""
    client, server = ends
    opened(client, server)
    assert server.receive_data(frame(WINDOW_UPDATE, FIN, 1)) == [StreamFinished(1)]
    assert server.receive_data(frame(DATA, 0, 1, body=b"late")) == []
    assert server.failure is None


# Windows


def test_sending_stops_at_the_window_and_goes_on_with_an_update(ends: tuple[Session, Session]) -> None:
    client, server = ends
    opened(client, server)
    assert client.send(1, bytes(INITIAL_WINDOW - 1)) == INITIAL_WINDOW - 1
    assert client.send(1, b"xy") == 1
    assert client.send(1, b"y") == 0
    deliver(client, server)
    server.consumed(1, INITIAL_WINDOW // 2 - 1)
    assert frames(server) == []
    server.consumed(1, 1)
    assert frames(server) == [(WINDOW_UPDATE, 0, 1, INITIAL_WINDOW // 2)]
    assert client.receive_data(frame(WINDOW_UPDATE, 0, 1, INITIAL_WINDOW // 2)) == [WindowGrew(1)]
    assert client.can_send(1, INITIAL_WINDOW // 2)
    assert not client.can_send(1, INITIAL_WINDOW // 2 + 1)


def test_a_larger_window_is_announced_when_a_stream_is_opened_and_accepted() -> None:
    client, server = Session(True, Config(window=1 << 20)), Session(False, Config(window=1 << 20))
    stream_id = client.open()
    assert deliver(client, server) == [StreamOpened(stream_id), WindowGrew(stream_id)]
    assert server.can_send(stream_id, 1 << 20)
    server.acknowledge(stream_id)
    assert deliver(server, client) == [StreamAcknowledged(stream_id), WindowGrew(stream_id)]
    assert client.send(stream_id, bytes(2 << 20)) == 1 << 20
    assert deliver(client, server) == [DataReceived(stream_id, bytes(1 << 20))]
    assert server.failure is None


def test_data_is_queued_without_a_copy(ends: tuple[Session, Session]) -> None:
    client, _ = ends
    client.open()
    client.data_to_send()
    data = bytearray(300_000)
    client.send(1, data)
    body = client.data_to_send()[1]
    assert isinstance(body, memoryview)
    assert body.obj is data
    assert len(body) == INITIAL_WINDOW


def test_no_window_is_given_to_a_peer_that_has_finished(ends: tuple[Session, Session]) -> None:
    client, server = ends
    opened(client, server)
    client.send(1, bytes(INITIAL_WINDOW))
    client.close_write(1)
    deliver(client, server)
    server.consumed(1, INITIAL_WINDOW)
    assert frames(server) == []


def test_a_closed_stream_skips_what_comes_until_the_peer_is_blocked(ends: tuple[Session, Session]) -> None:
    client, server = ends
    opened(client, server)
    server.close(1)
    assert deliver(server, client) == [StreamFinished(1)]
    client.send(1, b"a farewell that nobody reads")
    assert deliver(client, server) == []
    assert frames(server) == []
    client.send(1, bytes(INITIAL_WINDOW))
    deliver(client, server)
    assert deliver(server, client) == [StreamAborted(1)]
    assert not server.exists(1)


def test_closing_a_stream_whose_peer_is_blocked_already_resets_it(ends: tuple[Session, Session]) -> None:
    client, server = ends
    opened(client, server)
    client.send(1, bytes(INITIAL_WINDOW))
    deliver(client, server)
    server.close(1)
    assert deliver(server, client) == [StreamFinished(1), StreamAborted(1)]


def test_a_closed_stream_is_forgotten_when_the_peer_has_finished_too(ends: tuple[Session, Session]) -> None:
    client, server = ends
    opened(client, server)
    client.close(1)
    deliver(client, server)
    server.close(1)
    assert deliver(server, client) == [StreamFinished(1)]
    assert not client.exists(1)
    assert not server.exists(1)


# The session


def test_a_ping_is_answered_with_its_value(ends: tuple[Session, Session]) -> None:
    client, server = ends
    assert [client.ping(), client.ping()] == [0, 1]
    assert deliver(client, server) == []
    assert deliver(server, client) == [PongReceived(0), PongReceived(1)]


def test_going_away_leaves_existing_streams_alone(ends: tuple[Session, Session]) -> None:
    client, server = ends
    opened(client, server)
    server.go_away()
    assert deliver(server, client) == [WentAway()]
    assert client.peer_leaving
    with pytest.raises(StreamClosed, match="going away"):
        client.open()
    client.send(1, b"still here")
    assert deliver(client, server) == [DataReceived(1, b"still here")]
    assert server.open() == 2


@pytest.mark.parametrize("reason", [1, 2, 3, 2**32 - 1])
def test_going_away_for_a_reason_ends_the_session(reason: int) -> None:
    session = Session(client=True)
    session.open()
    [failed] = session.receive_data(frame(GO_AWAY, length=reason) + frame(PING, SYN, length=1))
    assert isinstance(failed, SessionFailed)
    assert (failed.reason, failed.by_peer) == (reason, True)
    session.data_to_send()
    for use in (lambda: session.send(1, b"x"), session.open):
        with pytest.raises(StreamClosed, match="the peer ended the session"):
            use()
    session.close(1)
    session.ping()
    assert frames(session) == []


def test_ids_run_out_before_they_overflow() -> None:
    session = Session(client=True)
    session._next_id = 2**32 - 3
    assert session.open() == 2**32 - 3
    with pytest.raises(StreamClosed, match="every stream id"):
        session.open()


BREACHES = {
    "version": frame(PING, SYN, version=1),
    "type": frame(4),
    "a second stream of that id": frame(WINDOW_UPDATE, SYN, 1),
    "stream 0": frame(WINDOW_UPDATE, SYN, 0),
    "one of our own ids": frame(WINDOW_UPDATE, SYN, 4),
    "a byte beyond the window": frame(DATA, 0, 1, length=INITIAL_WINDOW + 1),
    "a second FIN": frame(DATA, FIN, 1, body=b"x") + frame(WINDOW_UPDATE, FIN, 1),
    "an impossible window": frame(WINDOW_UPDATE, 0, 1, length=2**32 - 1),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_of_the_protocol_ends_the_session_with_code_1(breach: str) -> None:
    server = Session(client=False)
    server.receive_data(frame(WINDOW_UPDATE, SYN, 1))
    events = server.receive_data(BREACHES[breach] + frame(PING, SYN))
    failed = events[-1]
    assert isinstance(failed, SessionFailed)
    assert (failed.reason, failed.by_peer) == (Reason.PROTOCOL_ERROR, False)
    assert frames(server) == [(GO_AWAY, 0, 0, 1)]
    assert server.receive_data(frame(PING, SYN)) == []
    assert frames(server) == []


def test_one_byte_beyond_what_is_left_of_the_window_is_a_breach(ends: tuple[Session, Session]) -> None:
    client, server = ends
    opened(client, server)
    client.send(1, bytes(INITIAL_WINDOW))
    deliver(client, server)
    assert isinstance(server.receive_data(frame(DATA, 0, 1, body=b"x"))[-1], SessionFailed)


def test_a_peer_that_provokes_answers_and_reads_none_is_cut_off() -> None:
    session = Session(client=False, config=Config(max_queued=1200))
    assert session.receive_data(frame(PING, SYN) * 100) == []
    [failed] = session.receive_data(frame(PING, SYN))
    assert isinstance(failed, SessionFailed)
    assert failed.reason == Reason.INTERNAL_ERROR


def test_a_configuration_that_cannot_work_is_refused() -> None:
    for make in (lambda: Config(backlog=0), lambda: Config(window=1000), lambda: Config(window=2**32)):
        with pytest.raises(ValueError, match="256 KiB"):
            make()


# Whatever comes, in whatever pieces


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_any_bytes_end_in_events_or_in_a_failure(pieces: list[bytes]) -> None:
    session = Session(client=False)
    for piece in pieces:
        session.receive_data(piece)
    assert sum(map(len, session.data_to_send())) <= 12 * (1 + sum(map(len, pieces)) // 12)


fuzzed_frames = st.builds(
    lambda kind, flags, stream_id, length, body, version: frame(kind, flags, stream_id, length, body, version),
    kind=st.integers(0, 4),
    flags=st.integers(0, 15),
    stream_id=st.integers(0, 6),
    length=st.sampled_from([0, 0, 0, 1, 10, 2**18, 2**18 + 1, 2**31, 2**32 - 1]),
    body=st.binary(max_size=10),
    version=st.sampled_from([0] * 30 + [1]),
)


@settings(max_examples=400)
@given(st.lists(fuzzed_frames, max_size=40), st.integers(1, 50))
def test_fuzzed_frames_are_read_the_same_however_they_are_cut(fuzzed: list[bytes], cut: int) -> None:
    data = b"".join(fuzzed)
    whole, pieces = Session(client=False), Session(client=False)
    for session in (whole, pieces):
        session.open()
    expected = whole.receive_data(data)
    events = [event for at in range(0, len(data), cut) for event in pieces.receive_data(data[at : at + cut])]
    assert joined(events) == joined(expected)
    assert b"".join(whole.data_to_send()) == b"".join(pieces.data_to_send())
    assert (whole.failure is None) == (not any(isinstance(event, SessionFailed) for event in expected))


def joined(events: list[Event]) -> list[Event]:
    """Neighbouring pieces of one stream's data as one."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, DataReceived) and isinstance(last, DataReceived) and last.stream_id == event.stream_id:
            found[-1] = DataReceived(event.stream_id, last.data + event.data)
        else:
            found.append(event)
    return found


# Two ends that are driven at random


@dataclass
class Direction:
    """What one end has sent on a stream, and what the other has seen of it."""

    sent: int = 0
    arrived: int = 0
    consumed: int = 0
    finished: bool = False
    seen_finished: bool = False
    given_up: bool = False  # by the receiving end: it looks at nothing more


@dataclass
class End:
    session: Session
    wire: bytearray = field(default_factory=bytearray)  # on its way to this end
    offered: list[int] = field(default_factory=list)


def pattern(start: int, size: int) -> bytes:
    cycle = bytes(range(251))
    return (cycle * (size // 251 + 2))[start % 251 : start % 251 + size]


class TwoEnds(RuleBasedStateMachine):
    """Two sessions that break no rule, with their bytes cut anywhere: neither ever complains, and all data arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = (End(Session(True, Config(backlog=4))), End(Session(False, Config(backlog=4))))
        self.directions: dict[tuple[int, int], Direction] = {}  # sending end, stream
        self.reset: set[int] = set()

    sides = st.sampled_from([0, 1])

    def stream(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted({stream_id for _, stream_id in self.directions})))

    def flush(self, side: int) -> None:
        self.ends[1 - side].wire += b"".join(self.ends[side].session.data_to_send())

    @rule(side=sides)
    def open(self, side: int) -> None:
        session = self.ends[side].session
        if not session.can_open:
            return
        stream_id = session.open()
        for sender in (0, 1):
            self.directions[sender, stream_id] = Direction()

    @rule(side=sides)
    def accept(self, side: int) -> None:
        end = self.ends[side]
        if end.offered:
            end.session.acknowledge(end.offered.pop(0))

    @precondition(lambda self: self.directions)
    @rule(side=sides, data=st.data(), size=st.sampled_from([1, 100, 70_000, 300_000]))
    def send(self, side: int, data: st.DataObject, size: int) -> None:
        stream_id = self.stream(data)
        session, direction = self.ends[side].session, self.directions[side, stream_id]
        known = session.exists(stream_id) and not direction.finished
        if not known:
            return
        sent = session.send(stream_id, pattern(direction.sent, size))
        assert sent == size or not session.can_send(stream_id)
        direction.sent += sent

    @precondition(lambda self: self.directions)
    @rule(side=sides, data=st.data(), share=st.floats(0, 1))
    def consume(self, side: int, data: st.DataObject, share: float) -> None:
        stream_id = self.stream(data)
        direction = self.directions[1 - side, stream_id]
        size = int((direction.arrived - direction.consumed) * share)
        direction.consumed += size
        self.ends[side].session.consumed(stream_id, size)

    @precondition(lambda self: self.directions)
    @rule(side=sides, data=st.data())
    def finish(self, side: int, data: st.DataObject) -> None:
        stream_id = self.stream(data)
        if self.ends[side].session.exists(stream_id):
            self.directions[side, stream_id].finished = True
        self.ends[side].session.close_write(stream_id)

    @precondition(lambda self: self.directions)
    @rule(side=sides, data=st.data())
    def close(self, side: int, data: st.DataObject) -> None:
        stream_id = self.stream(data)
        session = self.ends[side].session
        if session.exists(stream_id):
            self.directions[side, stream_id].finished = True
            self.directions[1 - side, stream_id].given_up = True
            session.close(stream_id)

    @precondition(lambda self: self.directions)
    @rule(side=sides, data=st.data())
    def give_up(self, side: int, data: st.DataObject) -> None:
        stream_id = self.stream(data)
        if self.ends[side].session.exists(stream_id):
            self.reset.add(stream_id)
        self.ends[side].session.reset(stream_id)

    @rule(side=sides)
    def ping(self, side: int) -> None:
        self.ends[side].session.ping()

    @rule(side=sides, share=st.floats(0, 1), data=st.data())
    def carry(self, side: int, share: float, data: st.DataObject) -> None:
        """Some of the bytes that are on their way to this end arrive, in pieces."""
        self.flush(1 - side)
        wire = self.ends[side].wire
        budget = int(len(wire) * share)
        while budget > 0:
            size = data.draw(st.sampled_from([1, 5, 12, 1000, 65536, 10**6]), label="piece")
            size = min(size, budget) if budget < 2000 or size > 999 else min(1000, budget)
            self.arrive(side, bytes(wire[:size]))
            del wire[:size]
            budget -= size

    def arrive(self, side: int, piece: bytes) -> None:
        for event in self.ends[side].session.receive_data(piece):
            if isinstance(event, StreamOpened):
                self.ends[side].offered.append(event.stream_id)
            elif isinstance(event, DataReceived):
                direction = self.directions[1 - side, event.stream_id]
                assert event.data == pattern(direction.arrived, len(event.data))
                assert not direction.seen_finished
                assert not direction.given_up
                direction.arrived += len(event.data)
            elif isinstance(event, StreamFinished):
                direction = self.directions[1 - side, event.stream_id]
                assert direction.finished
                assert not direction.seen_finished
                direction.seen_finished = True
                if not direction.given_up:
                    assert direction.arrived == direction.sent
            elif isinstance(event, StreamAborted):
                self.reset.add(event.stream_id)
            else:
                assert not isinstance(event, SessionFailed), event

    @invariant()
    def nobody_complains(self) -> None:
        assert [end.session.failure for end in self.ends] == [None, None]

    @invariant()
    def no_more_than_a_window_is_held(self) -> None:
        for direction in self.directions.values():
            assert direction.arrived - direction.consumed <= INITIAL_WINDOW
            assert direction.sent - direction.consumed <= INITIAL_WINDOW or direction.given_up

    def teardown(self) -> None:
        """When everything has arrived, both ends agree about every stream."""
        for _ in range(4):
            for side in (0, 1):
                self.flush(1 - side)
                wire = self.ends[side].wire
                self.arrive(side, bytes(wire))
                wire.clear()
        self.nobody_complains()
        first, second = (end.session for end in self.ends)
        for (sender, stream_id), direction in self.directions.items():
            assert first.exists(stream_id) == second.exists(stream_id)
            if stream_id not in self.reset and not direction.given_up:
                assert direction.arrived == direction.sent
                assert direction.seen_finished == direction.finished
                assert not (direction.finished and self.directions[1 - sender, stream_id].finished) or not first.exists(
                    stream_id
                )


TestTwoEnds: Callable[[], object] = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=60, stateful_step_count=60)  # type: ignore[attr-defined]


_CHUNKS = st.lists(
    st.one_of(
        st.builds(
            frame,
            st.sampled_from([DATA, DATA, DATA, WINDOW_UPDATE, PING, GO_AWAY, 7]),
            st.sampled_from([0, 0, 0, SYN, ACK, FIN, RST]),
            st.sampled_from([1, 1, 3, 0]),
            body=st.binary(max_size=60_000),
        ),
        st.binary(max_size=40),
    ),
    max_size=12,
)


@given(_CHUNKS, st.integers(0, 30), st.sampled_from(["open", "closed", "finished"]))
def test_the_short_way_in_ends_where_the_long_one_does(chunks: list[bytes], cut: int, state: str) -> None:
    short, long = Session(client=True), Session(client=True)
    for session in (short, long):
        assert session.open() == 1
        if state == "closed":
            session.close(1)
        elif state == "finished":
            session.close_write(1)
        session.data_to_send()
    for chunk in chunks:
        for piece in filter(None, (chunk[:cut], chunk[cut:])) if len(chunk) % 2 else (chunk,):
            events = long.receive_data(piece)
            for event in events:
                if isinstance(event, DataReceived):
                    long.consumed(event.stream_id, len(event.data))
            plain = short.receive_only(1, piece)
            if plain is None:
                found = short.receive_data(piece)
                for event in found:
                    if isinstance(event, DataReceived):
                        short.consumed(event.stream_id, len(event.data))
            else:
                found = [DataReceived(1, plain)]
            assert found == events
            assert short.data_to_send() == long.data_to_send()
            assert short.exists(1) == long.exists(1)


def test_the_short_way_in_takes_a_frame_and_knows_its_header() -> None:
    session = Session(client=True)
    stream_id = session.open()
    data = frame(DATA, stream_id=stream_id, body=b"answer")
    assert session.awaits_body(stream_id, data[:12])
    assert not session.awaits_body(stream_id + 2, data[:12])
    assert not session.awaits_body(stream_id, data)
    assert session.receive_only(stream_id, data) == b"answer"
    assert session.receive_only(stream_id, data[:-1]) is None
    assert session.receive_only(stream_id, data + data) is None
    assert session.receive_data(data[:5]) == []
    assert not session.awaits_body(stream_id, data[:12])
    assert session.receive_only(stream_id, data) is None
    assert session.receive_data(data[5:]) == [DataReceived(stream_id, b"answer")]


CHATTER = {
    "pings": frame(PING, SYN, 0, 7),
    "answers to pings": frame(PING, ACK, 0, 7),
    "window updates": frame(WINDOW_UPDATE, 0, 1, 1),
    "window updates of nothing": frame(WINDOW_UPDATE, 0, 4, 1),
    "resets of nothing": frame(WINDOW_UPDATE, RST, 4, 0),
    "streams that are refused": frame(WINDOW_UPDATE, SYN, 4, 0) + frame(WINDOW_UPDATE, RST, 4, 0),
    "data for nobody": frame(DATA, 0, 4, body=b"nobody"),
    "data that is none": frame(DATA, 0, 1),
    "farewells": frame(GO_AWAY),
}


@pytest.mark.parametrize("sent", CHATTER.values(), ids=CHATTER)
def test_a_peer_that_chatters_ends_the_session_sooner_than_time_forgives_it(sent: bytes) -> None:
    now = 0.0
    session = Session(client=True, config=Config(chatter=100), clock=lambda: now)
    session.open()
    for _ in range(100 // (len(sent) // 12)):
        session.receive_data(sent)
        session.data_to_send()
    assert session.failure is None
    now = 5.0
    for _ in range(40 // (len(sent) // 12)):
        session.receive_data(sent)
        session.data_to_send()
    assert session.failure is None
    for _ in range(100):
        session.receive_data(sent)
    assert session.failure is not None
    assert "nothing in them" in session.failure.message


def test_data_either_way_earns_what_goes_with_it() -> None:
    session = Session(client=True, config=Config(chatter=100), clock=lambda: 0.0)
    stream_id = session.open()
    update, ping = frame(WINDOW_UPDATE, 0, stream_id, 1), frame(PING, SYN, 0, 7)
    for _ in range(1000):
        session.send(stream_id, b"x")
        session.receive_data(update + ping)
        session.receive_data(frame(DATA, 0, stream_id, body=b"y") + ping + ping)
        session.consumed(stream_id, 1)
        session.data_to_send()
    assert session.failure is None
