"""The state machine: two connections that talk to each other, cut anywhere; broken frames; floods."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hybridload.goplugin.http2 import frames, patterns
from hybridload.goplugin.http2.connection import Connection, ConnectionClosed, Role, StreamClosed
from hybridload.goplugin.http2.events import (
    ConnectionFailed,
    DataReceived,
    GoAwayReceived,
    HeadersReceived,
    PingAnswered,
    StreamEnded,
    WindowOpened,
)
from hybridload.goplugin.http2.frames import ErrorCode
from hybridload.goplugin.http2.header_blocks import encode
from hybridload.goplugin.http2.limits import Limits

REQUEST = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/t.T/Echo"), (b"te", b"trailers"))
RESPONSE = ((b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILERS = ((b"grpc-status", b"0"),)
UPDATE_AND_PING = frames.window_update(0, 5) + frames.ping(b"12345678", ack=False)


def take(connection: Connection) -> bytes:
    return b"".join(connection.data_to_send())


def greeted(role: Role, **limits: Any) -> Connection:
    """A connection whose peer has sent its settings; the clock stands still."""
    connection = Connection(role, Limits(**limits), clock=lambda: 0.0)
    hello = frames.settings({})
    connection.receive(frames.PREFACE + hello if role is Role.SERVER else hello)
    take(connection)
    return connection


def with_requests(role: Role) -> Connection:
    """The same; a client has three calls under way, so that answers can come."""
    connection = greeted(role)
    if role is Role.CLIENT:
        for _ in range(3):
            connection.send_headers(connection.open_stream(), encode(REQUEST))
        take(connection)
    return connection


def request_frame(stream_id: int, ends: bool = False, fields: Any = REQUEST) -> bytes:
    return frames.headers(stream_id, encode(fields), ends, 16384)


def data_frame(stream_id: int, data: bytes, flags: int = 0) -> bytes:
    return frames.header(len(data), frames.DATA, flags, stream_id) + data


def failure(events: list[Any]) -> ErrorCode:
    """What the connection failed with."""
    assert isinstance(events[-1], ConnectionFailed), events
    return ErrorCode(events[-1].code)


class TwoEnds(RuleBasedStateMachine):
    """A client and a server, with bytes on their way in both directions that arrive in pieces of any size.

    The model is what each side has sent on each stream; what the other reports must be a prefix of it, and all of it
    in the end.
    """

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(max_streams=5, stream_window=65535, max_frame=16384)
        self.ends = {role: Connection(role, limits, clock=lambda: 0.0) for role in Role}
        self.wire: dict[Role, bytearray] = {role: bytearray() for role in Role}
        self.sent: dict[tuple[Role, int], bytearray] = {}
        self.got: dict[tuple[Role, int], bytearray] = {}
        self.ended: set[tuple[Role, int]] = set()
        self.saw_end: set[tuple[Role, int]] = set()
        self.reset: set[int] = set()
        self.unconsumed: deque[tuple[Role, int, int]] = deque()
        self.answered: set[int] = set()
        self.streams: list[int] = []

    def other(self, role: Role) -> Role:
        return Role.CLIENT if role is Role.SERVER else Role.SERVER

    def collect(self) -> None:
        for role, end in self.ends.items():
            self.wire[role] += take(end)

    def deliver_some(self, sender: Role, size: int) -> None:
        self.collect()
        data = bytes(self.wire[sender][:size])
        del self.wire[sender][:size]
        receiver = self.other(sender)
        for event in self.ends[receiver].receive(data) if data else ():
            self.note(sender, event)

    def note(self, sender: Role, event: Any) -> None:
        assert not isinstance(event, ConnectionFailed), event
        if isinstance(event, HeadersReceived):
            self.got.setdefault((sender, event.stream_id), bytearray())
        elif isinstance(event, DataReceived):
            self.got[sender, event.stream_id] += event.data
            self.unconsumed.append((self.other(sender), event.stream_id, len(event.data)))
        if getattr(event, "end_stream", False):
            assert (sender, event.stream_id) not in self.saw_end
            self.saw_end.add((sender, event.stream_id))
        if isinstance(event, StreamEnded):
            assert event.by_peer
            assert event.stream_id in self.reset

    @rule(ends=st.booleans())
    def open_stream(self, ends: bool) -> None:
        client = self.ends[Role.CLIENT]
        if client.open_streams >= min(client.max_streams, 5):
            return
        stream_id = client.open_stream()
        client.send_headers(stream_id, encode(REQUEST), ends)
        self.streams.append(stream_id)
        self.sent[Role.CLIENT, stream_id] = bytearray()
        if ends:
            self.ended.add((Role.CLIENT, stream_id))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), size=st.sampled_from([0, 1, 100, 16384, 16385, 70000]), ends=st.booleans())
    def send_data(self, data: st.DataObject, size: int, ends: bool) -> None:
        role, stream_id = data.draw(st.sampled_from(list(self.sent) or [(Role.CLIENT, self.streams[0])]))
        end = self.ends[role]
        if not end.is_sending(stream_id):
            with pytest.raises(StreamClosed):
                end.send_data(stream_id, b"x")
            return
        payload = bytes([len(self.sent[role, stream_id]) % 251]) * size
        window = end.window(stream_id)
        taken = end.send_data(stream_id, payload, ends)
        assert taken == min(size, window)
        self.sent[role, stream_id] += payload[:taken]
        if ends and taken == size:
            self.ended.add((role, stream_id))

    @rule(ends=st.booleans())
    def respond(self, ends: bool) -> None:
        server = self.ends[Role.SERVER]
        for stream_id in self.streams:
            known = (Role.CLIENT, stream_id) in self.got
            if known and stream_id not in self.answered and server.is_sending(stream_id):
                server.send_headers(stream_id, encode(RESPONSE), ends)
                self.answered.add(stream_id)
                self.sent[Role.SERVER, stream_id] = bytearray()
                if ends:
                    self.ended.add((Role.SERVER, stream_id))
                return

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), role=st.sampled_from(Role))
    def reset_stream(self, data: st.DataObject, role: Role) -> None:
        stream_id = data.draw(st.sampled_from(self.streams))
        self.ends[role].reset(stream_id)
        self.reset.add(stream_id)

    @rule(role=st.sampled_from(Role), size=st.sampled_from([1, 5, 9, 24, 1000, 100000]))
    def deliver(self, role: Role, size: int) -> None:
        self.deliver_some(role, size)

    @rule()
    def consume(self) -> None:
        for _ in range(min(3, len(self.unconsumed))):
            role, stream_id, size = self.unconsumed.popleft()
            self.ends[role].consumed(stream_id, size)

    @rule(role=st.sampled_from(Role))
    def ping(self, role: Role) -> None:
        self.ends[role].ping(b"12345678")

    @invariant()
    def what_arrives_is_what_was_sent(self) -> None:
        for key, got in self.got.items():
            assert self.sent.get(key, b"")[: len(got)] == got

    def teardown(self) -> None:
        for _ in range(200):
            self.consume()
            for role in Role:
                self.deliver_some(role, 1 << 20)
            if not any(self.wire.values()) and not self.unconsumed:
                break
        for key, sent in self.sent.items():
            if key[1] not in self.reset:
                assert self.got.get(key, b"") == sent
                assert (key in self.ended) == (key in self.saw_end)


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=60, stateful_step_count=40)


@settings(max_examples=200)
@given(st.data())
def test_the_same_bytes_mean_the_same_however_they_are_cut(data: st.DataObject) -> None:
    wire = (
        frames.PREFACE
        + frames.settings({4: 1000})
        + request_frame(1)
        + data_frame(1, b"hello" * 100)
        + frames.header(10, frames.DATA, frames.PADDED | frames.END_STREAM, 1)
        + b"\x04world\0\0\0\0"
        + frames.headers(3, encode(REQUEST), True, 10)
        + frames.ping(b"abcdefgh", ack=True)
        + request_frame(5)
        + frames.rst_stream(5, 8)
        + frames.window_update(1, 77)
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=12)))
    connection = Connection(Role.SERVER, clock=lambda: 0.0)
    events: list[Any] = []
    for start, stop in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        events += connection.receive(wire[start:stop])
    body = b"".join(event.data for event in events if isinstance(event, DataReceived))
    assert body == b"hello" * 100 + b"world"
    assert [event.stream_id for event in events if isinstance(event, HeadersReceived)] == [1, 3, 5]
    assert [event.stream_id for event in events if getattr(event, "end_stream", False)] == [1, 3]
    assert PingAnswered(b"abcdefgh") in events
    assert any(isinstance(event, StreamEnded) and event.stream_id == 5 for event in events)


@settings(max_examples=300)
@given(st.sampled_from(Role), st.binary(max_size=400), st.integers(1, 50))
def test_noise_ends_in_a_failure_or_in_waiting(role: Role, noise: bytes, step: int) -> None:
    connection = greeted(role)
    for start in range(0, len(noise), step):
        connection.receive(noise[start : start + step])
    assert len(take(connection)) < 1 << 17


frame_like = st.builds(
    lambda kind, flags, stream_id, payload: frames.header(len(payload), kind, flags, stream_id) + payload,
    st.integers(0, 12),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 7, 0x7FFFFFFF]),
    st.one_of(
        st.binary(max_size=40),
        st.just(encode(REQUEST)),
        st.just(encode(RESPONSE)),
        st.sampled_from([bytes(4), bytes(8), b"\0\4\xff\xff\xff\xff", b"\0\4\0\0\0\0", b"\0\5\0\0\0\1"]),
    ),
)


@settings(max_examples=400)
@given(st.sampled_from(Role), st.lists(frame_like, max_size=12))
def test_any_frames_end_in_a_failure_or_go_on(role: Role, wire: list[bytes]) -> None:
    connection = with_requests(role)
    failed = False
    for frame in wire:
        events = connection.receive(frame)
        assert not (failed and events)
        failed = failed or any(isinstance(event, ConnectionFailed) for event in events)
    assert failed == connection.failed


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_header_block_ends_in_a_failure_or_an_event(block: bytes) -> None:
    connection = greeted(Role.SERVER)
    connection.receive(frames.headers(1, block, True, 16384))


# The short ways through


def answer_frames(stream_id: int, message: bytes = b"hello") -> bytes:
    """A whole answer to a unary call."""
    return (
        frames.headers(stream_id, encode(RESPONSE), False, 16384)
        + data_frame(stream_id, b"\0" + len(message).to_bytes(4, "big") + message)
        + frames.headers(stream_id, encode(TRAILERS), True, 16384)
    )


def at_once(connection: Connection, stream_id: int, data: bytes) -> Any:
    """What the short way of the connection's role gives; `None` where it is not for these bytes."""
    if connection.role is Role.CLIENT:
        return connection.receive_answer(stream_id, data, None)
    return connection.receive_request(data, None)


def parts_of(role: Role, stream_id: int) -> st.SearchStrategy[list[bytes]]:
    """Frames of a whole request or answer, some left out, some twice, with others in between."""
    first = REQUEST if role is Role.SERVER else RESPONSE
    usual = [
        frames.headers(stream_id, encode(first), False, 16384),
        data_frame(stream_id, b"\0\0\0\0\5hello", frames.END_STREAM if role is Role.SERVER else 0),
    ]
    if role is Role.CLIENT:
        usual.append(frames.headers(stream_id, encode(TRAILERS), True, 16384))
    odd = st.sampled_from(
        [
            frames.ping(b"12345678", ack=False),
            frames.ping(b"12345678", ack=True),
            frames.window_update(0, 5),
            frames.window_update(0, 0),
            frames.window_update(stream_id, 5),
            frames.settings({4: 70000}),
            frames.rst_stream(stream_id, 8),
            frames.goaway(0, 0, ""),
            data_frame(stream_id, b"\0\0\0\0\1x"),
            data_frame(stream_id, b"\1\0\0\0\1x", frames.END_STREAM),
            data_frame(stream_id + 2, b"\0\0\0\0\1x", frames.END_STREAM),
            frames.headers(stream_id, encode(TRAILERS), True, 16384),
            frames.headers(stream_id, encode(TRAILERS), False, 16384),
            frames.headers(stream_id + 2, encode(REQUEST), True, 16384),
            b"\0\0",
        ]
    )
    few_odd = st.lists(odd, max_size=2)
    return st.builds(
        lambda before, kept, after: before + [part for part, keep in zip(usual, kept, strict=True) if keep] + after,
        few_odd,
        st.lists(st.sampled_from([True, True, True, False]), min_size=len(usual), max_size=len(usual)),
        few_odd,
    )


@settings(max_examples=400)
@given(st.data(), st.sampled_from(Role), st.integers(1, 6))
def test_the_short_way_through_gives_what_the_long_way_gives(data: st.DataObject, role: Role, rounds: int) -> None:
    short, long = greeted(role), greeted(role)
    for turn in range(rounds):
        stream_id = 1 + 2 * turn
        if role is Role.CLIENT:
            if short.going_away:
                return
            for connection in (short, long):
                connection.send_headers(connection.open_stream(), encode(REQUEST), end_stream=True)
                take(connection)
        wire = b"".join(data.draw(parts_of(role, stream_id)))
        expected = long.receive(wire)
        if role is Role.CLIENT:
            answer = short.receive_answer(stream_id, wire, None)
            if answer is not None:
                head, message, trailers = answer
                body = b"\0" + len(message).to_bytes(4, "big") + message
                got: list[Any] = [
                    HeadersReceived(stream_id, head, False),
                    DataReceived(stream_id, body, False),
                    HeadersReceived(stream_id, trailers, True),
                ]
            else:
                got = short.receive(wire)
        else:
            request = short.receive_request(wire, None)
            if request is not None:
                number, head, message = request
                body = b"\0" + len(message).to_bytes(4, "big") + message
                got = [HeadersReceived(number, head, False), DataReceived(number, body, True)]
            else:
                got = short.receive(wire)
        assert got == expected
        assert (short.failed, short.going_away, short.open_streams) == (long.failed, long.going_away, long.open_streams)
        assert (short._send_window, short._receive_window) == (long._send_window, long._receive_window)
        assert take(short) == take(long)
        assert short._highest_peer_id == long._highest_peer_id


@settings(max_examples=600)
@given(
    st.sampled_from(Role),
    st.sampled_from([b"", UPDATE_AND_PING, UPDATE_AND_PING[:13], UPDATE_AND_PING[13:]]),
    st.integers(0, 3),
    st.integers(0, 200),
    st.integers(0, 255),
    st.sampled_from(["change", "insert", "cut"]),
)
def test_the_short_way_lets_no_wrong_byte_through(
    role: Role, prefix: bytes, others: int, place: int, byte: int, how: str
) -> None:
    short, long = greeted(role), greeted(role)
    for stream_id in range(1, 2 * others + 5, 2):
        damaged = stream_id == 2 * others + 3
        if role is Role.CLIENT:
            for connection in (short, long):
                connection.send_headers(connection.open_stream(), encode(REQUEST), end_stream=True)
                take(connection)
            wire = prefix + answer_frames(stream_id)
        else:
            wire = prefix + frames.headers(stream_id, encode(REQUEST), False, 16384)
            wire += data_frame(stream_id, b"\0\0\0\0\5hello", frames.END_STREAM)
        if damaged:
            at = place % len(wire)
            wire = (
                wire[:at]
                + {"change": bytes((byte,)), "insert": bytes((byte, wire[at])), "cut": b""}[how]
                + wire[at + 1 :]
            )
        expected = long.receive(wire)
        taken = at_once(short, stream_id, wire)
        if taken is None:
            assert short.receive(wire) == expected
        else:
            message = taken[1] if role is Role.CLIENT else taken[2]
            assert [type(event) for event in expected][:2] == [HeadersReceived, DataReceived]
            assert bytes(expected[1].data)[5:] == message  # type: ignore[union-attr]
            assert expected[-1].end_stream  # type: ignore[union-attr]
        assert (short.failed, short.open_streams) == (long.failed, long.open_streams)
        assert (short._send_window, short._receive_window) == (long._send_window, long._receive_window)
        assert take(short) == take(long)


def test_an_answer_of_a_kind_seen_before_takes_the_short_way() -> None:
    connection = greeted(Role.CLIENT)
    taken = []
    for stream_id, message in enumerate([b"first", b"hello", b"three", b"again", b"longer", b"short", b"other"]):
        stream_id = 2 * stream_id + 1
        assert connection.ask(encode(REQUEST), b"hi", 0) == (
            stream_id,
            request_frame(stream_id) + data_frame(stream_id, b"\0\0\0\0\2hi", frames.END_STREAM),
        )
        wire = UPDATE_AND_PING + answer_frames(stream_id, message)
        answer = connection.receive_answer(stream_id, wire, None)
        taken.append(answer is not None and answer[1])
        if answer is None:
            connection.receive(wire)
        assert take(connection) == frames.ping(b"12345678", ack=True)
        assert connection.open_streams == 0
    assert taken == [False, b"hello", b"three", b"again", b"longer", b"short", b"other"]


def test_a_request_of_a_kind_seen_before_takes_the_short_way() -> None:
    connection = greeted(Role.SERVER)
    taken = []
    for stream_id in (1, 3, 5, 7, 9):
        wire = request_frame(stream_id) + data_frame(stream_id, b"\0\0\0\0\2hi", frames.END_STREAM)
        request = connection.receive_request(wire, None)
        taken.append(request)
        if request is None:
            connection.receive(wire)
        assert connection.answer(stream_id, encode(RESPONSE), b"hello", 0, encode(TRAILERS))
        assert take(connection) == answer_frames(stream_id)
        assert connection.open_streams == 0
    assert taken == [None, *((stream_id, REQUEST, b"hi") for stream_id in (3, 5, 7, 9))]


def test_what_was_learned_of_answers_is_forgotten_when_their_bytes_mean_something_else() -> None:
    encoder = Encoder()
    short, long = greeted(Role.CLIENT), greeted(Role.CLIENT)
    for turn, extra in enumerate(b"aaaaabbbbb"):
        stream_id = 2 * turn + 1
        fields = [*RESPONSE, (b"x", bytes((extra,)))]
        wire = (
            frames.headers(stream_id, encoder.encode(fields), False, 16384)
            + data_frame(stream_id, b"\0\0\0\0\5hello")
            + frames.headers(stream_id, encoder.encode(TRAILERS), True, 16384)
        )
        for connection in (short, long):
            connection.ask(encode(REQUEST), b"hi", 0)
        answer = short.receive_answer(stream_id, wire, None)
        first = long.receive(wire)[0]
        assert isinstance(first, HeadersReceived)
        if answer is None:
            assert turn in (0, 1, 5, 6)
            short.receive(wire)
        else:
            assert answer[0] == first.headers == tuple(fields)


def test_a_pattern_holds_to_the_limits_of_what_may_be_received() -> None:
    connection = greeted(Role.CLIENT)
    for stream_id in (1, 3, 5, 7):
        connection.ask(encode(REQUEST), b"hi", 0)
        wire = answer_frames(stream_id)
        if stream_id < 7:
            assert connection.receive_answer(stream_id, wire, 5) or connection.receive(wire)
    assert connection.receive_answer(7, wire, 4) is None
    assert connection.receive_answer(5, wire, 5) is None
    assert connection.receive_answer(7, wire, 5) is not None
    assert connection.receive_answer(7, wire, 5) is None


def test_no_more_patterns_are_kept_than_there_is_room_for() -> None:
    connection = greeted(Role.SERVER)
    for turn in range(400):
        message = bytes(turn // 3)
        body = b"\0" + len(message).to_bytes(4, "big") + message
        wire = request_frame(2 * turn + 1) + data_frame(2 * turn + 1, body, frames.END_STREAM)
        request = connection.receive_request(wire, None)
        assert (request or connection.receive(wire)) is not None
        assert request is None or request[2] == message
        connection.answer(2 * turn + 1, encode(RESPONSE), b"", 0, encode(TRAILERS))
        assert len(connection._patterns) <= patterns.MOST
    assert connection._patterns


_OF_NO_MEANING = frozenset(
    (
        *("_decoder", "_known_blocks", "_resets", "_ended_well", "_chatter", "_useful", "_events", "_needed"),
        *("_data_stream", "_data_ends", "_block_stream", "_block_ends", "_block_parts"),
        *("_patterns", "_lengths", "_spare"),
    )
)
"""What may differ between two connections that have come to the same point on different ways."""


def state_of(connection: Connection) -> dict[str, Any]:
    state = {name: value for name, value in vars(connection).items() if name not in _OF_NO_MEANING}
    streams = connection._streams.values()
    return {**state, "_streams": [[getattr(stream, name) for name in stream.__slots__] for stream in streams]}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("prefix", [b"", UPDATE_AND_PING])
@pytest.mark.parametrize("role", Role)
def test_a_call_leaves_the_same_state_wherever_it_is_cut(role: Role, prefix: bytes, learned: bool) -> None:
    def call_of(stream_id: int) -> bytes:
        if role is Role.SERVER:
            return request_frame(stream_id) + data_frame(stream_id, b"\0\0\0\0\5hello", frames.END_STREAM)
        return answer_frames(stream_id)

    def receive(connection: Connection, data: bytes) -> bytes:
        """The body, and whether the whole was taken at once."""
        whole = at_once(connection, last, data)
        if whole:
            return b"at once " + next(part for part in whole if isinstance(part, bytes))
        return b"".join(event.data for event in connection.receive(data) if isinstance(event, DataReceived))[5:]

    states, bodies = [], []
    last = 9 if learned else 3
    wire = prefix + call_of(last)
    for cut in range(len(wire)):
        connection = greeted(role)
        for _ in range(1, last + 2, 2) if role is Role.CLIENT else ():
            connection.ask(encode(REQUEST), b"hi", 0)
        connection.receive(call_of(1))
        for stream_id in range(3, last, 2):
            assert at_once(connection, stream_id, prefix + call_of(stream_id))
            take(connection)
        assert bool(connection._patterns) is learned
        pieces = [wire[:cut], wire[cut:]] if cut else [wire]
        data = b"".join(event for event in (receive(connection, piece) for piece in pieces))
        bodies.append(data)
        states.append(state_of(connection))
    assert bodies[0] == b"at once hello"
    for state in states:
        assert state == states[0]


# Rules


def test_settings_must_come_first() -> None:
    connection = Connection(Role.CLIENT)
    assert failure(connection.receive(frames.ping(bytes(8), ack=False))) is ErrorCode.PROTOCOL_ERROR


def test_something_else_than_http2_is_refused() -> None:
    assert failure(Connection(Role.SERVER).receive(b"GET / HTTP/1.1\r\n\r\n")) is ErrorCode.PROTOCOL_ERROR


def test_settings_and_pings_are_answered() -> None:
    connection = greeted(Role.CLIENT)
    connection.receive(frames.ping(b"12345678", ack=False) + frames.settings({1: 0}))
    assert take(connection) == frames.ping(b"12345678", ack=True) + frames.SETTINGS_ACK


def test_a_block_may_not_be_interrupted() -> None:
    connection = greeted(Role.SERVER)
    begun = frames.header(3, frames.HEADERS, 0, 1) + b"\x83\x86\x84"
    assert failure(connection.receive(begun + frames.ping(bytes(8), ack=False))) is ErrorCode.PROTOCOL_ERROR


def test_a_frame_larger_than_announced_is_refused() -> None:
    connection = greeted(Role.SERVER, max_frame=16384)
    assert failure(connection.receive(frames.header(16385, 0, 0, 1))) is ErrorCode.FRAME_SIZE_ERROR


def test_data_beyond_the_window_ends_the_stream() -> None:
    connection = greeted(Role.SERVER, stream_window=65535)
    connection.receive(request_frame(1) + b"".join(data_frame(1, bytes(16384)) for _ in range(3)))
    events = connection.receive(data_frame(1, bytes(16384)))
    assert [type(event) for event in events] == [StreamEnded]
    assert events[0].code == ErrorCode.FLOW_CONTROL_ERROR
    assert take(connection) == frames.rst_stream(1, ErrorCode.FLOW_CONTROL_ERROR)
    assert connection.receive(data_frame(1, b"late")) == []


def test_the_window_is_given_back_when_data_is_consumed() -> None:
    connection = greeted(Role.SERVER, stream_window=65535)
    connection.receive(request_frame(1) + data_frame(1, bytes(40000)))
    connection.consumed(1, 10000)
    assert take(connection) == b""
    connection.consumed(1, 30000)
    assert take(connection) == frames.window_update(1, 40000)


def test_a_large_message_is_lent_what_it_needs_once() -> None:
    connection = greeted(Role.SERVER, stream_window=65535)
    connection.receive(request_frame(1))
    connection.expect(1, 1 << 20)
    assert take(connection) == frames.window_update(1, (1 << 20) - 65535)
    connection.expect(1, 1 << 20)
    connection.consumed(1, (1 << 20) - 65535)
    assert take(connection) == b""


def test_data_is_cut_to_the_peers_windows_and_frames() -> None:
    connection = greeted(Role.CLIENT)
    stream_id = connection.open_stream()
    connection.send_headers(stream_id, encode(REQUEST))
    take(connection)
    assert connection.send_data(stream_id, bytes(100000), end_stream=True) == 65535
    assert take(connection).count(frames.header(16384, frames.DATA, 0, stream_id)) == 3
    assert connection.send_data(stream_id, b"more") == 0
    assert connection.receive(frames.window_update(0, 10) + frames.window_update(1, 3)) == [
        WindowOpened(0),
        WindowOpened(1),
    ]
    assert connection.window(stream_id) == 3


def test_a_smaller_initial_window_may_leave_a_debt() -> None:
    connection = greeted(Role.CLIENT)
    stream_id = connection.open_stream()
    connection.send_headers(stream_id, encode(REQUEST))
    connection.send_data(stream_id, bytes(60000))
    connection.receive(frames.settings({4: 1000}))
    assert connection.window(stream_id) == 0
    connection.receive(frames.window_update(stream_id, 59000 + 7))
    assert connection.window(stream_id) == 7


def test_padding_counts_but_is_given_back() -> None:
    connection = greeted(Role.SERVER, stream_window=65535)
    padded = frames.header(30001, frames.DATA, frames.PADDED, 1) + b"\xff" + bytes(30000)
    connection.receive(request_frame(1) + padded + padded)
    connection.consumed(1, 2 * (30000 - 255))
    assert take(connection) == frames.window_update(1, 60002)


def test_a_trailers_only_response_is_one_event() -> None:
    connection = greeted(Role.CLIENT)
    stream_id = connection.open_stream()
    connection.send_headers(stream_id, encode(REQUEST), end_stream=True)
    events = connection.receive(frames.headers(stream_id, encode(RESPONSE + TRAILERS), True, 16384))
    assert events == [HeadersReceived(stream_id, RESPONSE + TRAILERS, True)]
    assert connection.open_streams == 0


def test_interim_responses_are_dropped() -> None:
    connection = greeted(Role.CLIENT)
    stream_id = connection.open_stream()
    connection.send_headers(stream_id, encode(REQUEST), end_stream=True)
    assert connection.receive(frames.headers(stream_id, encode(((b":status", b"103"),)), False, 16384)) == []


def test_a_push_breaks_the_protocol() -> None:
    connection = greeted(Role.CLIENT)
    assert failure(connection.receive(frames.header(4, frames.PUSH_PROMISE, 4, 1) + bytes(4))) is (
        ErrorCode.PROTOCOL_ERROR
    )


def test_no_stream_is_opened_on_a_connection_that_goes_away() -> None:
    connection = greeted(Role.CLIENT)
    stream_id = connection.open_stream()
    connection.send_headers(stream_id, encode(REQUEST))
    assert connection.receive(frames.goaway(1, 0, "bye")) == [GoAwayReceived(1, 0, "bye")]
    with pytest.raises(ConnectionClosed):
        connection.open_stream()
    assert connection.window(stream_id) > 0


def test_a_server_that_goes_away_refuses_what_comes_later_and_its_data() -> None:
    connection = greeted(Role.SERVER)
    connection.receive(request_frame(1))
    connection.go_away()
    take(connection)
    assert connection.receive(request_frame(3) + data_frame(3, b"x", frames.END_STREAM)) == []
    assert take(connection) == frames.rst_stream(3, ErrorCode.REFUSED_STREAM)
    assert connection.is_sending(1)


def test_a_stream_too_many_is_refused() -> None:
    connection = greeted(Role.SERVER, max_streams=2)
    connection.receive(request_frame(1) + request_frame(3) + request_frame(5))
    assert take(connection) == frames.rst_stream(5, ErrorCode.REFUSED_STREAM)


@pytest.mark.parametrize(
    "fields",
    [
        REQUEST[1:],
        (*REQUEST, (b":path", b"/")),
        ((b"te", b"trailers"), *REQUEST[:3]),
        (*REQUEST[:3], (b"Upper", b"x")),
        (*REQUEST[:3], (b"connection", b"close")),
        (*REQUEST[:3], (b"te", b"gzip")),
        (*REQUEST[:3], (b"x", b"a\r\nb")),
        (*REQUEST[:3], (b":unknown", b"x")),
        RESPONSE,
    ],
)
def test_a_malformed_request_ends_its_stream_only(fields: Any) -> None:
    connection = greeted(Role.SERVER)
    assert connection.receive(request_frame(1, fields=fields)) == []
    assert take(connection) == frames.rst_stream(1, ErrorCode.PROTOCOL_ERROR)
    assert len(connection.receive(request_frame(3))) == 1


def test_blocks_are_remembered_only_while_the_table_stays() -> None:
    """The cache in front of hpack must never give an old meaning to bytes whose indexes have moved."""
    encoder = Encoder()
    connection = greeted(Role.SERVER)
    seen = []
    for number in range(40):
        fields = (*REQUEST, (b"x-number", b"%d" % (number // 3)), (b"x-other", b"%d" % (number % 5)))
        block = encoder.encode(fields, huffman=bool(number % 2))
        (event,) = connection.receive(frames.headers(1 + 2 * number, block, True, 16384))
        connection.reset(event.stream_id)
        seen.append(event.headers == fields)
    assert all(seen)


# Floods


def flood(connection: Connection, frame: Any, count: int) -> list[Any]:
    events: list[Any] = []
    for number in range(count):
        events = connection.receive(frame(number) if callable(frame) else frame)
        if connection.failed:
            break
    return events


def test_a_header_bomb_ends_the_connection() -> None:
    connection = greeted(Role.SERVER)
    encoder = Encoder()
    block = encoder.encode((*REQUEST, (b"x", b"a" * 3000))) + b"\xbe" * 16000
    assert failure(connection.receive(frames.headers(1, block, True, 1 << 20))) is ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("piece", [b"", b"\0" * 1000])
def test_endless_continuations_end_the_connection(piece: bytes) -> None:
    connection = greeted(Role.SERVER)
    connection.receive(frames.header(3, frames.HEADERS, 0, 1) + b"\x83\x86\x84")
    more = frames.header(len(piece), frames.CONTINUATION, 0, 1) + piece
    assert failure(flood(connection, more, 1000)) is ErrorCode.ENHANCE_YOUR_CALM


def test_rapid_resets_end_the_connection() -> None:
    connection = greeted(Role.SERVER)

    def rapid(number: int) -> bytes:
        return request_frame(1 + 2 * number) + frames.rst_stream(1 + 2 * number, 8)

    assert failure(flood(connection, rapid, 5000)) is ErrorCode.ENHANCE_YOUR_CALM


def answer_begins(connection: Connection, stream_id: int) -> None:
    connection.send_headers(stream_id, encode(RESPONSE))


def answer_ends(connection: Connection, stream_id: int) -> None:
    assert connection.answer(stream_id, encode(RESPONSE), b"", 0, encode(TRAILERS))


@pytest.mark.parametrize("happens", [Connection.begin_work, answer_begins, answer_ends])
def test_resets_of_what_is_worked_on_or_answered_are_nobodys_attack(happens: Any) -> None:
    connection = greeted(Role.SERVER)
    for number in range(5000):
        connection.receive(request_frame(1 + 2 * number))
        happens(connection, 1 + 2 * number)
        take(connection)
        connection.receive(frames.rst_stream(1 + 2 * number, 8))
    assert not connection.failed
    connection.begin_work(1)  # it is over, which is no mistake


def test_each_stream_that_ends_well_earns_a_reset_back() -> None:
    connection = greeted(Role.SERVER, resets=10)
    for number in range(100):
        well, reset = 1 + 4 * number, 3 + 4 * number
        connection.receive(request_frame(well, True))
        connection.send_headers(well, encode(RESPONSE))
        connection.send_headers(well, encode(TRAILERS), True)
        connection.receive(request_frame(reset) + frames.rst_stream(reset, 8))
        take(connection)
    assert not connection.failed


def test_a_client_that_has_reset_many_streams_opens_no_more_and_goes_on_with_those_it_has() -> None:
    connection = greeted(Role.CLIENT, cancellations=10)
    stays = connection.open_stream()
    connection.send_headers(stays, encode(REQUEST))
    for _ in range(10):
        assert not connection.going_away
        stream_id = connection.open_stream()
        connection.send_headers(stream_id, encode(REQUEST))
        connection.reset(stream_id)
        connection.reset(stream_id)  # it is over: that is none
    with pytest.raises(ConnectionClosed):
        connection.open_stream()
    events = connection.receive(frames.headers(stays, encode(RESPONSE), False, 16384) + data_frame(stays, b"x", 1))
    assert [type(each) for each in events] == [HeadersReceived, DataReceived]


def test_the_peer_confirms_that_it_has_heard_of_resets() -> None:
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)

    def exchange() -> None:
        while any(sent := (take(client), take(server))):
            server.receive(sent[0])
            client.receive(sent[1])

    def reset_one() -> None:
        stream_id = client.open_stream()
        client.send_headers(stream_id, encode(REQUEST))
        client.reset(stream_id)

    client.confirm()
    reset_one()
    assert client.unheard
    exchange()
    assert client.unheard  # nobody has asked, and what acknowledges the first settings says nothing
    client.confirm()
    client.confirm()
    assert take(client) == frames.settings({})
    reset_one()
    client.receive(frames.SETTINGS_ACK)
    assert client.unheard  # of the second, still
    client.confirm()
    exchange()
    assert not client.unheard


def test_a_stream_that_ends_with_the_peers_mistake_is_reset_without_its_knowing_too() -> None:
    client = with_requests(Role.CLIENT)
    client.receive(frames.window_update(1, 0))
    assert client.unheard


def test_a_reset_after_the_peers_end_needs_no_word() -> None:
    client = with_requests(Role.CLIENT)
    client.receive(frames.headers(1, encode(RESPONSE), True, 16384))
    client.reset(1)
    assert not client.unheard


def test_a_client_that_has_no_other_connection_resets_as_many_as_it_likes() -> None:
    connection = greeted(Role.CLIENT, cancellations=0)
    for _ in range(3000):
        stream_id = connection.open_stream()
        connection.send_headers(stream_id, encode(REQUEST))
        connection.reset(stream_id)
    assert not connection.going_away


def test_what_comes_for_streams_that_were_reset_long_ago_is_dropped() -> None:
    connection = greeted(Role.CLIENT, cancellations=0)
    opened = [connection.open_stream() for _ in range(1500)]
    for stream_id in opened:
        connection.reset(stream_id)
    for stream_id in opened:
        assert connection.receive(frames.headers(stream_id, encode(RESPONSE), False, 16384)) == []
        assert connection.receive(data_frame(stream_id, b"late")) == []
    assert not connection.failed


def test_a_window_that_is_too_large_resets_that_stream() -> None:
    connection = greeted(Role.SERVER)
    connection.receive(request_frame(1) + request_frame(7))
    take(connection)
    connection.receive(frames.window_update(7, frames.LARGEST_WINDOW))
    assert take(connection) == frames.rst_stream(7, ErrorCode.FLOW_CONTROL_ERROR)


@pytest.mark.parametrize(
    "frame",
    [
        frames.settings({}),
        frames.ping(bytes(8), ack=False),
        frames.ping(bytes(8), ack=True),
        frames.header(5, frames.PRIORITY, 0, 1) + bytes(5),
        frames.header(0, 77, 0, 0),
    ],
    ids=["settings", "ping", "pong", "priority", "unknown"],
)
def test_frames_that_carry_nothing_end_the_connection(frame: bytes) -> None:
    connection = greeted(Role.SERVER)

    def drained(number: int) -> bytes:
        take(connection)
        return frame

    assert failure(flood(connection, drained, 50000)) is ErrorCode.ENHANCE_YOUR_CALM


def test_empty_data_ends_the_connection() -> None:
    connection = greeted(Role.SERVER)
    connection.receive(request_frame(1))
    assert failure(flood(connection, data_frame(1, b""), 50000)) is ErrorCode.ENHANCE_YOUR_CALM


CHATTER = {
    "pings": frames.ping(bytes(8), ack=False),
    "answers to pings": frames.ping(bytes(8), ack=True),
    "settings": frames.settings({}),
    "answers to settings": frames.SETTINGS_ACK,
    "priorities": frames.header(5, frames.PRIORITY, 0, 1) + bytes(5),
    "unknown frames": frames.header(3, 99, 0, 0) + b"abc",
    "windows": frames.window_update(1, 1),
    "the connection's window": frames.window_update(0, 1),
    "windows of what is over": frames.window_update(3, 1),
    "resets of what is over": frames.rst_stream(3, 0),
    "headers of what is over": frames.headers(3, encode(RESPONSE), False, 16384),
    "empty data": data_frame(1, b""),
    "interim responses": frames.headers(5, encode([(b":status", b"103")]), False, 16384),
    "farewells": frames.goaway(9, 0, ""),
}


def calling(**limits: Any) -> Connection:
    """A client's connection with a stream that is answered, 1, one that was given up, 3, and one that waits, 5."""
    connection = greeted(Role.CLIENT, **limits)
    for _ in range(3):
        connection.send_headers(connection.open_stream(), encode(REQUEST))
    connection.receive(frames.headers(1, encode(RESPONSE), False, 16384))
    connection.reset(3)
    take(connection)
    return connection


@pytest.mark.parametrize("sent", CHATTER.values(), ids=CHATTER)
def test_a_server_that_chatters_ends_the_connection(sent: bytes) -> None:
    connection = calling(chatter=100)

    def drained(number: int) -> bytes:
        take(connection)
        return sent

    assert failure(flood(connection, drained, 500)) is ErrorCode.ENHANCE_YOUR_CALM


def test_what_is_sent_earns_the_windows_that_answer_it() -> None:
    connection = calling(chatter=100)
    for _ in range(1000):
        connection.send_data(1, b"x")
        assert connection.receive(frames.window_update(1, 1) + frames.window_update(0, 1)) == []
        take(connection)
    assert not connection.failed


def test_more_data_for_a_stream_that_was_given_up_than_could_be_under_way_ends_the_connection() -> None:
    connection = calling(stream_window=65535)
    assert connection.receive(data_frame(3, bytes(16384)) * 3) == []
    assert failure(connection.receive(data_frame(3, bytes(16384)))) is ErrorCode.FLOW_CONTROL_ERROR


def test_answers_that_are_never_read_end_the_connection() -> None:
    connection = greeted(Role.SERVER)
    assert failure(flood(connection, frames.ping(bytes(8), ack=False), 50000)) is ErrorCode.ENHANCE_YOUR_CALM
    assert len(take(connection)) < 70000


def test_a_busy_connection_may_be_pinged_with_every_call() -> None:
    """Go's gRPC measures each round trip with a ping."""
    connection = greeted(Role.SERVER)
    for number in range(30000):
        stream_id = 1 + 2 * number
        connection.receive(request_frame(stream_id, ends=True) + frames.ping(bytes(8), ack=False))
        connection.send_headers(stream_id, encode(RESPONSE + TRAILERS), end_stream=True)
        take(connection)
    assert not connection.failed


def test_a_closed_connection_says_nothing_more() -> None:
    connection = greeted(Role.SERVER)
    connection.receive(frames.header(0, frames.GOAWAY, 0, 3))
    assert connection.failed
    assert connection.receive(request_frame(1)) == []
