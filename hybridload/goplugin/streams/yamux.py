"""yamux: many streams over one connection, as a state machine that holds no socket, no thread and no clock.

Bytes from the peer go in through `Session.receive_data` and come out as events; what is to be sent is taken from
`Session.data_to_send`. The wire is that of hashicorp/yamux v0.1.2, its spec.md and its code, and these are its rules:

**Frames.** A header of 12 bytes, big-endian: version (0), type, flags, stream id, length. After a data header come
`length` bytes; in a window update `length` is the number of bytes that the window grows by, in a ping an opaque value
that is sent back, in a go away the reason. Version and type are checked before anything else is looked at.

**Streams.** A frame with SYN and an unused id opens one. The client's ids are odd, the server's even, 0 is the session.
The other end answers once with ACK, when its user accepts the stream; data may travel before that. At most `backlog`
streams wait for it in each direction: one more that comes in is reset, one more that shall go out has to wait.

**Ends.** FIN ends one direction, RST the whole stream at once. A second FIN breaks the protocol. A stream that both
ends have finished is forgotten, and so is one that was reset; frames for a forgotten stream are passed over, since they
may have been under way, and their data is skipped.

**Windows.** Each direction of each stream starts with a window of 256 KiB, of which every byte of data takes one. One
byte too many breaks the protocol. The receiver gives back what its user consumed, in an update, whenever half a window
has come together, so that nobody ever has to hold more than a window for a stream.

**A stream that our user closed** goes on existing until the peer has finished its half, because in yamux a FIN says
nothing about the other direction. What still comes is skipped. A peer that wrote until its window was used up, and is
blocked, is told by RST; doing that earlier could make it lose what it has not read yet.

**Chatter.** Pings, window updates, streams that come and go and data for nobody are work for us and none for our users.
A peer may send many of them, and more with each frame of data, either way; beyond that the session ends.

**The session's end.** Go away with code 0 means: no new streams, those that exist go on. Any other code, either way,
and every breach of the protocol, ends the session; a breach is answered with go away, code 1.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from hybridload.goplugin.http2.limits import Budget
from hybridload.goplugin.streams.base import Buffer, StreamClosed, StreamError

INITIAL_WINDOW = 256 * 1024
MAX_WINDOW = 2**32 - 1
VERSION = 0

_HEADER = struct.Struct(">BBHII")
_EARNED = 2  # frames of chatter, by each of data and each stream of ours
_LAST_ID = 2**32 - 2  # go-plugin's library gives up there too


# Types and flags are plain integers: they are compared for every frame, and members of an enumeration take longer.
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


class Reason(IntEnum):
    """Why a side goes away."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


_WORDS: dict[int, str] = {
    Reason.PROTOCOL_ERROR: "it says that we broke the protocol",
    Reason.INTERNAL_ERROR: "it failed",
}

# Which halves of a stream are open. These are plain strings for the same reason as above.
BOTH = "both"
RECEIVING = "receiving"  # we sent FIN
SENDING = "sending"  # the peer sent FIN
NEITHER = "neither"  # and the stream is forgotten

# The rules of FIN. What is missing here is a mistake: ours when sending, a breach of the protocol when receiving.
_FIN_SENT = {BOTH: RECEIVING, SENDING: NEITHER}
_FIN_RECEIVED = {BOTH: SENDING, RECEIVING: NEITHER}


# What the peer did


class StreamOpened(NamedTuple):
    """The peer opened a stream; `Session.acknowledge` accepts it."""

    stream_id: int


class StreamAcknowledged(NamedTuple):
    """The peer accepted a stream of ours."""

    stream_id: int


class DataReceived(NamedTuple):
    """The next bytes of a stream. `Session.consumed` gives the room back."""

    stream_id: int
    data: bytes


class WindowGrew(NamedTuple):
    """There is more room to send."""

    stream_id: int


class StreamFinished(NamedTuple):
    """The peer will send nothing more on this stream."""

    stream_id: int


class StreamAborted(NamedTuple):
    """The peer reset the stream, or refused it."""

    stream_id: int


class PongReceived(NamedTuple):
    """The answer to a ping of ours."""

    value: int


class WentAway(NamedTuple):
    """The peer takes no new streams; those that exist go on."""


class SessionFailed(NamedTuple):
    """The session is over.

    :param by_peer: whether the peer said so; otherwise it broke the rules and has been told.
    """

    reason: int
    message: str
    by_peer: bool


Event = (
    StreamOpened
    | StreamAcknowledged
    | DataReceived
    | WindowGrew
    | StreamFinished
    | StreamAborted
    | PongReceived
    | WentAway
    | SessionFailed
)


class BacklogFull(StreamError):
    """As many streams wait for the peer to accept them as it may have to remember."""


class _Breach(Exception):
    """The peer broke the protocol."""


@dataclass(frozen=True, slots=True)
class Config:
    """:param backlog: streams that may wait to be accepted, in each direction.
    :param window: bytes that the peer may send on a stream before they are consumed; at least 256 KiB.
    :param max_queued: bytes of control frames (answers to pings, refusals, window updates) that may wait to be sent. A
        peer that provokes more and does not read them is cut off.
    :param chatter: frames without data for anybody that are accepted at once; as many are forgiven in ten seconds.
    """

    backlog: int = 256
    window: int = INITIAL_WINDOW
    max_queued: int = 256 * 1024
    chatter: int = 20000

    def __post_init__(self) -> None:
        if self.backlog < 1 or not INITIAL_WINDOW <= self.window <= MAX_WINDOW:
            raise ValueError("backlog must be at least 1 and window at least 256 KiB, and less than 4 GiB")


class _Stream:
    __slots__ = ("acknowledged", "consumed", "half", "receive_window", "send_window", "skipping", "stream_id")

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.half = BOTH
        self.acknowledged = False
        self.send_window = INITIAL_WINDOW
        self.receive_window = INITIAL_WINDOW
        self.consumed = 0  # bytes whose room has not been given back yet
        self.skipping = False  # our user wants nothing more of it


class Session:
    """One end of a yamux connection.

    :param client: whether this is the end that made the connection; the two ends must differ.
    :param clock: seconds that never go back; only the limit of chatter asks it.
    """

    def __init__(self, client: bool, config: Config = Config(), clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._chatter = Budget(config.chatter, clock)
        self._earned = 0  # since chatter was last spent
        self._next_id = 1 if client else 2
        self._streams: dict[int, _Stream] = {}
        self._unacknowledged: set[int] = set()  # ours, which the peer has not accepted
        self._offered: set[int] = set()  # the peer's, which our user has not accepted
        self._out: list[Buffer] = []
        self._queued = 0  # bytes of control frames in `_out`
        self._partial = b""  # of a header
        self._body = 0  # bytes that are still to come of a data frame
        self._body_of: _Stream | None = None  # the frame's stream; without one its data is skipped
        self._body_finishes = False
        self._next_ping = 0
        self._leaving = False
        self.peer_leaving = False
        """Whether the peer takes no new streams."""
        self.failure: SessionFailed | None = None
        """Why the session is over, when it is."""

    # Sending

    def data_to_send(self) -> list[Buffer]:
        """What is to be sent now, in this order. It counts as sent from here on."""
        out, self._out, self._queued = self._out, [], 0
        return out

    @property
    def has_data_to_send(self) -> bool:
        return bool(self._out)

    @property
    def queued(self) -> int:
        """Bytes of control frames that are to be sent."""
        return self._queued

    @property
    def can_open(self) -> bool:
        """Whether `open` would succeed, as far as the backlog is concerned."""
        return len(self._unacknowledged) < self._config.backlog

    def open(self) -> int:
        """Open a stream and return its id. Data may be sent at once.

        :raises BacklogFull: the peer has to accept others first.
        :raises StreamClosed: the session is over, the peer takes no new streams, or there are no ids left.
        """
        if self.failure is not None:
            raise StreamClosed(self.failure.message)
        if self.peer_leaving:
            raise StreamClosed("the peer is going away and takes no new streams")
        if self._next_id >= _LAST_ID:
            raise StreamClosed("every stream id has been used: make a new connection")
        if not self.can_open:
            raise BacklogFull(f"{self._config.backlog} streams wait for the peer to accept them")
        stream = _Stream(self._next_id)
        self._next_id += 2
        self._streams[stream.stream_id] = stream
        self._unacknowledged.add(stream.stream_id)
        self._earned += _EARNED
        self._update_window(stream, SYN)
        return stream.stream_id

    def acknowledge(self, stream_id: int) -> None:
        """Accept a stream that the peer opened."""
        self._offered.discard(stream_id)
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.acknowledged and self.failure is None:
            stream.acknowledged = True
            self._update_window(stream, ACK)

    def can_send(self, stream_id: int, size: int = 1) -> bool:
        """Whether the window has room for so many bytes, or sending would raise at once."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.send_window >= size or stream.half not in _FIN_SENT

    def send(self, stream_id: int, data: Buffer) -> int:
        """Queue as much of `data` as the window allows, without copying it. Returns the number of bytes, maybe 0.

        :raises StreamClosed: our half is closed, or the stream is over.
        """
        stream = self._streams.get(stream_id)
        if self.failure is not None:
            raise StreamClosed(self.failure.message)
        if stream is None or stream.half not in _FIN_SENT:
            raise StreamClosed(f"the sending half of stream {stream_id} is closed")
        size = min(len(data), stream.send_window)
        if size:
            stream.send_window -= size
            self._earned += _EARNED
            self._out.append(_HEADER.pack(VERSION, DATA, 0, stream_id, size))
            self._out.append(data if size == len(data) else memoryview(data)[:size])
        return size

    def consumed(self, stream_id: int, size: int) -> None:
        """Our user took so many bytes of a stream: the peer may send as many again, when half a window is due."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.consumed += size
        if stream.consumed >= self._config.window // 2 and stream.half in _FIN_RECEIVED and not stream.skipping:
            self._update_window(stream, 0)

    def close_write(self, stream_id: int) -> None:
        """Finish our half of a stream; nothing happens when that was done, or the stream is over."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.half not in _FIN_SENT or self.failure is not None:
            return
        stream.half = _FIN_SENT[stream.half]
        self._control(WINDOW_UPDATE, FIN, stream_id, 0)
        if stream.half is NEITHER:
            self._forget(stream_id)

    def close(self, stream_id: int) -> None:
        """Our user is done with a stream, in both directions."""
        self.close_write(stream_id)
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.skipping = True
            if stream.receive_window == 0:
                self.reset(stream_id)

    def reset(self, stream_id: int) -> None:
        """Give a stream up at once; nothing happens when it is over."""
        if stream_id in self._streams:
            self._forget(stream_id)
            self._control(WINDOW_UPDATE, RST, stream_id, 0)

    def exists(self, stream_id: int) -> bool:
        """Whether frames of a stream still count: it is neither finished by both ends nor reset."""
        return stream_id in self._streams

    def ping(self) -> int:
        """Ask the peer for a sign of life. Returns the value that its answer will carry."""
        value = self._next_ping
        self._next_ping = (value + 1) % 2**32
        self._control(PING, SYN, 0, value)
        return value

    def go_away(self, reason: Reason = Reason.NORMAL) -> None:
        """Take no new streams. Those that the peer still opens are refused."""
        self._leaving = True
        self._control(GO_AWAY, 0, 0, reason)

    def fail(self, reason: Reason, message: str) -> SessionFailed:
        """End the session from this side and tell the peer why."""
        if self.failure is None:
            self.failure = SessionFailed(reason, message, by_peer=False)
            self._leaving = True
            self._out.append(_HEADER.pack(VERSION, GO_AWAY, 0, 0, reason))
        return self.failure

    # Receiving

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes as they come, cut anywhere. What follows the end of the session is ignored."""
        events: list[Event] = []
        if self._partial:
            data, self._partial = self._partial + data, b""
        at, end = 0, len(data)
        try:
            while at < end and self.failure is None:
                if self._body:
                    size = min(self._body, end - at)
                    self._receive_body(data[at : at + size], events)
                    at += size
                elif end - at >= _HEADER.size:
                    self._receive_header(events, *_HEADER.unpack_from(data, at))
                    at += _HEADER.size
                else:
                    self._partial = data[at:]
                    break
        except _Breach as breach:
            events.append(self.fail(Reason.PROTOCOL_ERROR, str(breach)))
        if self._queued > self._config.max_queued and self.failure is None:
            message = "the peer provokes answers and does not read them"
            events.append(self.fail(Reason.INTERNAL_ERROR, message))
        return events

    def receive_only(self, stream_id: int, data: bytes) -> bytes | None:
        """The short way in, for what mostly comes: one whole frame of data for this stream, and nothing else.

        :return: the frame's data, already counted as consumed. `None` when it is anything else; then nothing has
            happened, and the bytes are for `receive_data`.
        """
        size = len(data) - _HEADER.size
        if size <= 0 or self._body or self._partial or self.failure is not None:
            return None
        if _HEADER.unpack_from(data) != (VERSION, DATA, 0, stream_id, size):
            return None
        stream = self._streams.get(stream_id)
        if stream is None or stream.skipping or stream.half not in _FIN_RECEIVED or size > stream.receive_window:
            return None
        stream.receive_window -= size
        stream.consumed += size
        self._earned += _EARNED
        if stream.consumed >= self._config.window // 2:
            self._update_window(stream, 0)
        return data[_HEADER.size :]

    def awaits_body(self, stream_id: int, data: bytes) -> bool:
        """Whether these bytes are a header for `receive_only`, sent ahead of its data, as hashicorp/yamux does."""
        if len(data) != _HEADER.size or self._body or self._partial:
            return False
        *start, length = _HEADER.unpack(data)
        return length > 0 and start == [VERSION, DATA, 0, stream_id]

    def _receive_header(
        self, events: list[Event], version: int, kind: int, flags: int, stream_id: int, length: int
    ) -> None:
        if version != VERSION:
            raise _Breach(f"the peer sent a frame of version {version}; is it yamux that it speaks?")
        if kind in (DATA, WINDOW_UPDATE):
            stream = self._stream_of(stream_id, flags, events)
            if kind == DATA:
                if length and stream is not None:
                    self._earned += _EARNED
                else:
                    self._spend_chatter()
                self._receive_data_header(stream, flags, length, events)
                return
            self._spend_chatter()
            if stream is not None:
                self._receive_window_update(stream, flags, length, events)
        elif kind == PING:
            self._spend_chatter()
            self._receive_ping(flags, length, events)
        elif kind == GO_AWAY:
            self._spend_chatter()
            self._receive_go_away(length, events)
        else:
            raise _Breach(f"the peer sent a frame of the unknown type {kind}")

    def _spend_chatter(self) -> None:
        if self._earned:
            self._chatter.earn(self._earned)
            self._earned = 0
        if not self._chatter.spend():
            raise _Breach("the peer sends frame after frame, and nothing in them")

    def _stream_of(self, stream_id: int, flags: int, events: list[Event]) -> _Stream | None:
        """The stream that a frame is about, opened, acknowledged or reset as its flags say; FIN is for later."""
        if flags & SYN:
            self._receive_open(stream_id, events)
        stream = self._streams.get(stream_id)
        if stream is None:
            return None
        if flags & ACK and stream_id in self._unacknowledged:
            self._unacknowledged.discard(stream_id)
            stream.acknowledged = True
            events.append(StreamAcknowledged(stream_id))
        if flags & RST:
            self._forget(stream_id)
            events.append(StreamAborted(stream_id))
            return None
        return stream

    def _receive_open(self, stream_id: int, events: list[Event]) -> None:
        if stream_id == 0 or stream_id % 2 == self._next_id % 2:
            raise _Breach(f"the peer opened stream {stream_id}, which is not its to open")
        if stream_id in self._streams:
            raise _Breach(f"the peer opened stream {stream_id} twice")
        if self._leaving or len(self._offered) >= self._config.backlog:
            self._control(WINDOW_UPDATE, RST, stream_id, 0)
            return
        self._streams[stream_id] = _Stream(stream_id)
        self._offered.add(stream_id)
        events.append(StreamOpened(stream_id))

    def _receive_data_header(self, stream: _Stream | None, flags: int, length: int, events: list[Event]) -> None:
        if stream is not None:
            if length > stream.receive_window:
                raise _Breach(f"the peer sent more on stream {stream.stream_id} than its window allows")
            stream.receive_window -= length
        self._body, self._body_of, self._body_finishes = length, stream, bool(flags & FIN)
        if not length:
            self._end_of_body(events)

    def _receive_body(self, data: bytes, events: list[Event]) -> None:
        self._body -= len(data)
        stream = self._body_of
        if stream is not None and not stream.skipping and stream.half in _FIN_RECEIVED:
            events.append(DataReceived(stream.stream_id, data))
        if not self._body:
            self._end_of_body(events)

    def _end_of_body(self, events: list[Event]) -> None:
        stream, self._body_of = self._body_of, None
        if stream is None:
            return
        if self._body_finishes:
            self._receive_fin(stream, events)
        elif stream.skipping and stream.receive_window == 0:
            self.reset(stream.stream_id)

    def _receive_window_update(self, stream: _Stream, flags: int, delta: int, events: list[Event]) -> None:
        stream.send_window += delta
        if stream.send_window > MAX_WINDOW:
            raise _Breach(f"the peer made the window of stream {stream.stream_id} larger than can be")
        if delta:
            events.append(WindowGrew(stream.stream_id))
        if flags & FIN:
            self._receive_fin(stream, events)

    def _receive_fin(self, stream: _Stream, events: list[Event]) -> None:
        if stream.half not in _FIN_RECEIVED:
            raise _Breach(f"the peer finished stream {stream.stream_id} twice")
        stream.half = _FIN_RECEIVED[stream.half]
        if stream.half is NEITHER:
            self._forget(stream.stream_id)
        events.append(StreamFinished(stream.stream_id))

    def _receive_ping(self, flags: int, value: int, events: list[Event]) -> None:
        if flags & SYN:
            self._control(PING, ACK, 0, value)
        else:
            events.append(PongReceived(value))

    def _receive_go_away(self, reason: int, events: list[Event]) -> None:
        if reason == Reason.NORMAL:
            self.peer_leaving = True
            events.append(WentAway())
            return
        message = f"the peer ended the session: {_WORDS.get(reason, f'reason {reason}')}"
        self.failure = SessionFailed(reason, message, by_peer=True)
        events.append(self.failure)

    # What both directions use

    def _update_window(self, stream: _Stream, flags: int) -> None:
        """Give the peer all the room that there is, with flags if any."""
        delta = stream.consumed
        if flags:  # the first frame of a stream; windows start out at their initial size
            delta += self._config.window - INITIAL_WINDOW
        stream.consumed = 0
        stream.receive_window += delta
        self._control(WINDOW_UPDATE, flags, stream.stream_id, delta)

    def _forget(self, stream_id: int) -> None:
        if self._streams.pop(stream_id) is self._body_of:
            self._body_of = None
        self._unacknowledged.discard(stream_id)

    def _control(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if self.failure is None:
            self._out.append(_HEADER.pack(VERSION, kind, flags, stream_id, length))
            self._queued += _HEADER.size
