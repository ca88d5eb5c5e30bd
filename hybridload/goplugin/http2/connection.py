"""One HTTP/2 connection without a socket: bytes in, events out; actions in, bytes out.

How it is used: `receive` takes whatever came from the peer and returns what it means; `open_stream`, `send_headers`,
`send_data`, `reset`, … do what the application wants; after either, `data_to_send` has the bytes that are due. Nothing
here blocks, knows time (but for the injected clock of the flood limits) or is thread-safe: a driver holds a lock.

**A stream is two halves**, one for each direction, each open or ended. The states of RFC 9113, section 5.1, are their
combinations: both open is *open*, one ended is *half-closed*, both ended is *closed*; a stream that is not in
`_streams` is *idle* when its id is above every id used so far, otherwise *closed*. Pushed and reserved streams do not
exist: push is switched off, and a server that pushes breaks the protocol.

What the peer may send on a stream, by role (anything else ends the stream, or the connection where the RFC says so):

    role    first                       then                    last
    server  HEADERS with a request      DATA, any number        END_STREAM on either, or HEADERS with trailers
    client  HEADERS with a response     DATA, any number        END_STREAM on either, or HEADERS with trailers
            (interim 1xx responses before it are dropped)

So the events of one stream are: `HeadersReceived`, then `DataReceived` any number of times, then maybe a second
`HeadersReceived`; the last of them has `end_stream`. `StreamEnded` may come at any point (on a server, after the first:
a stream that was never reported does not end), and nothing comes after it.

**Closed streams.** Frames for a stream that *we* reset may still be under way: they are dropped (their header blocks
are decoded, their data counts). For a stream that the peer ended itself they are its mistake and end the connection.

**Flow control.** The window of the connection is as large as it can be and is topped up as data comes, whoever waits
for it: a slow stream never stops the others. The window of a stream is given back as data is consumed (`consumed`), so
what a peer can make us hold is `Limits.stream_window` for each stream; `expect` lends a stream what one large message
needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from struct import Struct
from typing import Final

from . import frames, patterns
from .events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    Headers,
    HeadersReceived,
    PingAnswered,
    SettingsReceived,
    StreamEnded,
    WindowOpened,
)
from .frames import ErrorCode, FrameError, Setting
from .header_blocks import REQUEST, RESPONSE, TRAILERS, Block, BlockDecoder
from .limits import Budget, Limits
from .patterns import Pattern

Buffer = bytes | memoryview

_REMEMBERED_RESETS: Final = 1000
_COPIED_PIECE: Final = 4096
"""Pieces of a body up to this size are copied out, so that a few bytes do not keep a large buffer alive."""

_JOINED_DATA: Final = 16384
"""Below this size a frame's header and payload become one object; from it on, the payload is passed on as it is."""


_HEADER: Final = Struct(">LBL")
"""A frame's header, with length and kind as one number: ``length << 8 | kind``."""
_DATA_HEADER: Final = Struct(">LBLBL")
"""The same of a DATA frame, and the prefix of a gRPC message behind it."""

_pack, _unpack = _HEADER.pack, _HEADER.unpack_from
_pack_message, _unpack_message = _DATA_HEADER.pack, _DATA_HEADER.unpack_from
_unpack_control = patterns.CONTROL.unpack_from

_NO_SETTINGS: Final = frames.settings({})
_PING_ACK: Final = frames.ping(b"", ack=True)
_PING_ACK_SIZE: Final = len(_PING_ACK) + 8
_SHORTEST_REQUEST: Final = frames.HEADER.size + _DATA_HEADER.size
_SHORTEST_ANSWER: Final = _SHORTEST_REQUEST + frames.HEADER.size

_pack_id = Struct(">L").pack

_LOW_WINDOW: Final = 1 << 30
"""Bytes. The connection's window is topped up when it falls below."""

_FORGIVEN_BY_HEADERS: Final = 20
_FORGIVEN_BY_DATA: Final = 2
"""Also by each DATA frame that we send: the peer may grant the windows of stream and connection anew for it."""


class Role(Enum):
    CLIENT = "client"
    SERVER = "server"


class ConnectionClosed(Exception):
    """No stream can be opened or used: the connection failed, is going away, or has used up its stream ids."""


class StreamClosed(Exception):
    """The stream is over, or its sending half is.

    Which of the two sides ended it was reported by an event.
    """


class _Stream:
    """The two halves of one stream and its windows."""

    __slots__ = (
        "awaited",
        "begun",
        "borrowed",
        "credit",
        "id",
        "receive_window",
        "received_headers",
        "receiving",
        "send_window",
        "sending",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: int) -> None:
        self.id = stream_id
        self.sending = True
        self.receiving = True
        self.received_headers = False
        self.begun = False  # it was answered, or somebody works on it: its reset hides nothing
        self.send_window = send_window
        self.receive_window = receive_window
        self.credit = 0  # consumed, but not yet given back to the peer
        self.borrowed = 0  # lent by `expect`: consumed without being given back
        self.awaited: int | None = None  # what content-length still promises


class Connection:
    """The state of one connection, seen from one end.

    :param clock: seconds that never go back; only the flood limits ask it.
    """

    def __init__(self, role: Role, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.role = role
        self.limits = limits or Limits()
        self.failed = False
        self.going_away = False
        """The peer, or this side, wants no new streams."""
        self.max_streams = 100
        """How many streams the peer lets us have open at once (100 until its settings say otherwise)."""
        self.peer_max_headers: int | None = None
        """The largest header list that the peer accepts, where it has said so."""
        self._is_server = role is Role.SERVER
        self._first_kind = REQUEST if self._is_server else RESPONSE
        self._decoder = BlockDecoder(self.limits.max_headers)
        self._known_blocks = self._decoder.known
        self._patterns = self._decoder.patterns
        self._lengths: set[int] = set()  # of what could be a pattern: the second of a length is made one
        self._streams: dict[int, _Stream] = {}
        self._spare: _Stream | None = None
        """One that is over, and as `ask` makes it but for its id and what may be sent on it."""
        self._asked = (b"", 0, b"", b"", b"")
        """Of the latest request: header block, size of the message with its prefix, and the pieces between."""
        self._answered = (b"", b"", 0, b"", b"", b"", b"")
        """The same of the latest answer, with its trailers."""
        self._reset: dict[int, int] = {}
        """Of streams that we reset, latest last: how many bytes their peer may have sent before it learned of it."""
        self._forgotten = 0
        """The highest of those that are no longer in `_reset`: what comes for streams up to it may be of good faith."""
        self._next_id = 1
        self._highest_peer_id = 0
        self.due: list[Buffer] = []
        """The bytes to send, in order; taken with `data_to_send`."""
        self.untouched = 1
        """Of our streams from this one on nothing was handed over to be sent."""
        self._control_size = 0
        self._send_window = frames.DEFAULT_WINDOW
        self._initial_send_window = frames.DEFAULT_WINDOW
        self._max_send_frame = frames.DEFAULT_MAX_FRAME
        self._receive_window = frames.LARGEST_WINDOW
        self._stream_window = self.limits.stream_window
        self._resets = Budget(self.limits.resets, clock)
        self._cancellations_left = 0 if self._is_server else self.limits.cancellations
        self._chatter = Budget(self.limits.chatter, clock)
        self._ended_well = 0  # streams, since a reset was last spent
        self._useful = 0  # what frames that carried something have earned since chatter was last spent
        # What was received but could not be parsed yet, and how long it must become before another look is worth it.
        self._pending = bytearray()
        self._needed = 0
        self._greeting = frames.PREFACE if self._is_server else b""
        self.settings_seen = False
        self.unheard = False
        """Whether the peer may still send on streams that we reset: see `confirm`."""
        self._unheard_since = False  # whether a stream was reset after the latest `confirm`
        self._confirming = False
        self._unacknowledged = 1  # of our SETTINGS
        # Whether the peer's next byte begins a frame that may begin anything: what the short ways through ask for.
        self._between_frames = False
        # Inside the payload of a DATA frame: what is left of it, its stream (none: to be dropped) and its end.
        self._data_left = 0
        self._data_stream: _Stream | None = None
        self._data_ends = False
        # Inside a header block that goes on in CONTINUATION frames.
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_ends = False
        self._block_parts = 0
        self._events: list[Event] = []
        self._queue_greeting()

    def _queue_greeting(self) -> None:
        settings = {
            Setting.MAX_CONCURRENT_STREAMS: self.limits.max_streams,
            Setting.INITIAL_WINDOW_SIZE: self.limits.stream_window,
            Setting.MAX_FRAME_SIZE: self.limits.max_frame,
            Setting.MAX_HEADER_LIST_SIZE: self.limits.max_headers,
        }
        if not self._is_server:
            settings[Setting.ENABLE_PUSH] = 0
            del settings[Setting.MAX_CONCURRENT_STREAMS]
            self.due.append(frames.PREFACE)
        self.due.append(frames.settings({int(key): value for key, value in settings.items()}))
        self.due.append(frames.window_update(0, frames.LARGEST_WINDOW - frames.DEFAULT_WINDOW))

    # What the driver reads.

    def data_to_send(self) -> list[Buffer]:
        """The bytes that are due, in order. They are handed over: the next call returns later ones."""
        due, self.due = self.due, []
        self._control_size = 0
        self.untouched = self._next_id
        return due

    @property
    def due_size(self) -> int:
        """How many bytes are due."""
        return sum(map(len, self.due))

    @property
    def open_streams(self) -> int:
        """Streams with at least one half open."""
        return len(self._streams)

    def is_sending(self, stream_id: int) -> bool:
        """Whether the stream's sending half is open."""
        stream = self._streams.get(stream_id)
        return stream is not None and stream.sending

    def window(self, stream_id: int) -> int:
        """How many bytes may be sent on the stream just now; 0 or more.

        :raises StreamClosed: none ever again.
        """
        return max(0, min(self._sending_stream(stream_id).send_window, self._send_window))

    # What the application does.

    def open_stream(self) -> int:
        """The id of a new stream; its HEADERS must be sent before another one is opened.

        The caller sees to it that there are fewer than `max_streams`.

        :raises ConnectionClosed: there can be no more streams on this connection.
        """
        stream_id = self._next_id
        if self.failed or self.going_away or stream_id > frames.LARGEST_STREAM_ID:
            raise ConnectionClosed("the connection takes no more streams")
        self._next_id = stream_id + 2
        self._streams[stream_id] = _Stream(stream_id, self._initial_send_window, self.limits.stream_window)
        return stream_id

    def ask(self, block: bytes, message: bytes, compressed: int) -> tuple[int, bytes]:
        """Open a stream and send the whole of a unary request: a header block and one message, which end our half.

        Returns the stream's id and all that is due, the request last; it is handed over as by `data_to_send`. Returns
        zero and nothing where that takes more than one frame each.

        :raises ConnectionClosed: there can be no more streams on this connection.
        """
        known, size, first, second, third = self._asked
        if known is not block or size != len(message) + 5 or compressed:
            size = len(message) + 5
            if size > _JOINED_DATA or len(block) > frames.DEFAULT_MAX_FRAME:
                return 0, b""
            first, second, third = _pieces(block, size, compressed, frames.END_STREAM)
            if not compressed:
                self._asked = (block, size, first, second, third)
        window = self._initial_send_window
        if size > window or size > self._send_window:
            return 0, b""
        stream_id = self._next_id
        if self.going_away or stream_id > frames.LARGEST_STREAM_ID:
            raise ConnectionClosed("the connection takes no more streams")
        number = _pack_id(stream_id)
        data = first + number + second + number + third + message
        self._next_id = self.untouched = stream_id + 2
        self._send_window -= size
        stream = self._spare
        if stream is None:
            stream = _Stream(stream_id, window - size, self._stream_window)
            stream.sending = False
        else:
            self._spare = None
            stream.id = stream_id
            stream.send_window = window - size
        self._streams[stream_id] = stream
        if self.due:
            self.due.append(data)
            data = b"".join(self.data_to_send())
        return stream_id, data

    def answer(self, stream_id: int, head: bytes, message: bytes, compressed: int, trailers: bytes) -> bool:
        """Send the whole of a unary answer, a header block, one message and trailers, and end our half.

        False where one frame each is not enough.

        :raises StreamClosed: the stream takes no more.
        """
        stream = self._streams.get(stream_id)
        if stream is None or not stream.sending or self.failed:
            raise StreamClosed(f"stream {stream_id} is closed")
        known, ending, size, first, second, third, fourth = self._answered
        if known is not head or ending is not trailers or size != len(message) + 5 or compressed:
            size = len(message) + 5
            if size > _JOINED_DATA or len(head) > frames.DEFAULT_MAX_FRAME or len(trailers) > frames.DEFAULT_MAX_FRAME:
                return False
            first, second, third = _pieces(head, size, compressed, 0)
            fourth = _pack(len(trailers) << 8 | frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 0)[:5]
            if not compressed:
                self._answered = (head, trailers, size, first, second, third, fourth)
        if size > stream.send_window or size > self._send_window:
            return False
        number = _pack_id(stream_id)
        self.due.append(first + number + second + number + third + message + fourth + number + trailers)
        self._send_window -= size
        if stream.receiving:
            stream.send_window -= size
            stream.sending = False
            stream.begun = True
        else:
            self._end(stream)
        return True

    def send_headers(self, stream_id: int, block: bytes, end_stream: bool = False) -> None:
        """Send an encoded header block: the first of the stream, or trailers (with `end_stream`).

        :raises StreamClosed: the stream takes no more.
        """
        stream = self._sending_stream(stream_id)
        stream.begun = True
        self.due.append(frames.headers(stream_id, block, end_stream, self._max_send_frame))
        if end_stream:
            self._end_sending(stream)

    def send_data(self, stream_id: int, data: Buffer, end_stream: bool = False) -> int:
        """Send as much of `data` as the windows allow. Returns how much that was.

        `end_stream` counts only when all of it was sent. What was taken is not copied when it is large: leave it alone
        until it has been written.

        :raises StreamClosed: the stream takes no more.
        """
        stream = self._sending_stream(stream_id)
        size = len(data)
        if size > stream.send_window or size > self._send_window:
            size = max(0, min(stream.send_window, self._send_window))
            if not size:
                return 0
            end_stream = False
            data = memoryview(data)[:size]
        stream.send_window -= size
        self._send_window -= size
        flags = frames.END_STREAM if end_stream else 0
        if size <= self._max_send_frame:
            self._append_data(stream_id, data, flags)
        else:
            view = memoryview(data)
            for start in range(0, size, self._max_send_frame):
                last = start + self._max_send_frame >= size
                self._append_data(stream_id, view[start : start + self._max_send_frame], flags if last else 0)
        if end_stream:
            self._end_sending(stream)
        return size

    def _append_data(self, stream_id: int, data: Buffer, flags: int) -> None:
        size = len(data)
        self._useful += _FORGIVEN_BY_DATA
        header = frames.HEADER.pack(size >> 8, size & 255, frames.DATA, flags, stream_id)
        if size < _JOINED_DATA:
            self.due.append(header + data)
        else:
            self.due.append(header)
            self.due.append(data)

    def begin_work(self, stream_id: int) -> None:
        """Somebody works on a stream of the peer's from now on, and is counted until that has ended."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.begun = True

    def reset(self, stream_id: int, code: int = ErrorCode.CANCEL) -> None:
        """End both halves of a stream at once. Nothing more is reported about it. A closed stream stays closed.

        A client that has reset as many as it may is `going_away`: servers end connections on which many are reset.
        """
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            if stream.receiving:
                self.unheard = self._unheard_since = True
            stream.sending = stream.receiving = False
            self._remember_reset(stream_id, stream.receive_window)
            self.due.append(frames.rst_stream(stream_id, code))
            self._cancellations_left -= 1
            if not self._cancellations_left:
                self.going_away = True

    def confirm(self) -> None:
        """Have the peer say that it has read of our resets: no more comes on those streams then, and `unheard` ends.

        It says so by acknowledging SETTINGS that change nothing (RFC 9113, section 6.5.3). A PING would do as well, but
        grpc-go counts those, and ends connections on which there are many.
        """
        if self.unheard and not self._confirming:
            self._confirming, self._unheard_since = True, False
            self._unacknowledged += 1
            self.due.append(_NO_SETTINGS)

    def _remember_reset(self, stream_id: int, window: int) -> None:
        if len(self._reset) >= _REMEMBERED_RESETS:
            oldest = next(iter(self._reset))
            del self._reset[oldest]
            self._forgotten = max(self._forgotten, oldest)
        self._reset[stream_id] = window
        self._useful += _FORGIVEN_BY_HEADERS  # what is under way was sent in good faith

    def consumed(self, stream_id: int, size: int) -> None:
        """Give back what was received on a stream, so that the peer may send as much again."""
        stream = self._streams.get(stream_id)
        if stream is None or not stream.receiving:
            return
        if stream.borrowed:
            repaid = min(stream.borrowed, size)
            stream.borrowed -= repaid
            size -= repaid
        stream.credit += size
        if stream.credit * 2 >= self.limits.stream_window:
            self._grant(stream, stream.credit)
            stream.credit = 0

    def expect(self, stream_id: int, size: int) -> None:
        """Let a stream receive `size` bytes more at least, because one message is that large."""
        stream = self._streams.get(stream_id)
        if stream is None or not stream.receiving or stream.receive_window >= min(size, 1 << 30):
            return
        lent = min(size, frames.LARGEST_WINDOW) - stream.receive_window
        stream.borrowed += lent
        self._grant(stream, lent)

    def _grant(self, stream: _Stream, size: int) -> None:
        stream.receive_window += size
        self.due.append(frames.window_update(stream.id, size))

    def ping(self, payload: bytes) -> None:
        """:param payload: eight bytes; `PingAnswered` has them again."""
        self.due.append(frames.ping(payload, ack=False))

    def go_away(self, code: int = ErrorCode.NO_ERROR, message: str = "") -> None:
        """Take no new streams from the peer; those that are open go on."""
        self.going_away = True
        self.due.append(frames.goaway(self._highest_peer_id, code, message))

    def _sending_stream(self, stream_id: int) -> _Stream:
        stream = self._streams.get(stream_id)
        if stream is None or not stream.sending or self.failed:
            raise StreamClosed(f"stream {stream_id} is closed")
        return stream

    def _end_sending(self, stream: _Stream) -> None:
        stream.sending = False
        if not stream.receiving:
            self._end(stream)

    def _end(self, stream: _Stream) -> None:
        del self._streams[stream.id]
        self._ended_well += 1

    # What the peer sends.

    def receive(self, data: bytes) -> list[Event]:
        """What these bytes, with those that came before, mean. They may be cut anywhere."""
        if self.failed:
            return []
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return []
            data = bytes(self._pending)
            self._pending = bytearray()
        events = self._events = []
        try:
            self._parse(data)
        except FrameError as error:
            self.failed = self.going_away = True
            self.due.append(frames.goaway(self._highest_peer_id, error.code, str(error)))
            events.append(ConnectionFailed(error.code, str(error)))
        self._between_frames = self.settings_seen and not (
            self.failed or self._pending or self._data_left or self._block is not None
        )
        return events

    def receive_answer(
        self, stream_id: int, data: bytes, max_size: int | None
    ) -> tuple[Headers, bytes, Headers] | None:
        """A whole answer to a unary call, if these bytes are exactly that: header list, the message, trailers.

        `None` where anything is unusual; then nothing has changed, and `receive` is to be given the same bytes. It is
        the same reading as there without what only unusual answers need, in a fraction of the time: PING and
        WINDOW_UPDATE before the answer, then three frames that hold one field list, one uncompressed message of at
        most `max_size` bytes, one field list, all of a kind that was seen before.
        """
        end = len(data)
        stream = self._streams.get(stream_id)
        if (
            end < _SHORTEST_ANSWER
            or stream is None
            or stream.received_headers
            or not stream.receiving
            or not self._between_frames
            or self._receive_window <= _LOW_WINDOW
        ):
            return None
        position = increment = 0
        ping = b""
        pattern = self._patterns.get(end)
        if pattern is not None:
            position = pattern.position
            first, one, second, two, third, message, fourth, three, fifth = pattern.unpack(data, position)
            if (
                one == two == three == stream_id
                and (first, second, third, fourth, fifth) == pattern.like
                and pattern.length <= stream.receive_window
                and (max_size is None or pattern.size <= max_size)
                and (not position or self._take_control(data))
            ):
                self._receive_window -= pattern.length
                self._useful += _FORGIVEN_BY_HEADERS
                if stream.sending:
                    stream.receiving = False
                else:
                    del self._streams[stream_id]
                    self._spare = stream  # what changes of one before its answer comes, `ask` sets
                return pattern.headers, message, pattern.trailers
            position = 0
        if data[3] != 1:
            found = self._skip_control(data)
            if found is None:
                return None
            position, increment, ping = found
        what, flags, number = _unpack(data, position)
        start = position + 9
        after = start + (what >> 8)
        if what & 255 != 1 or flags != 4 or number != stream_id or after + 23 > end:
            return None
        what, flags, number, compressed, size = _unpack_message(data, after)
        length = size + 5
        last = after + 9 + length
        if what != length << 8 or flags or number != stream_id or compressed or last + 9 > end:
            return None
        what, flags, number = _unpack(data, last)
        if what & 255 != 1 or flags != 5 or number != stream_id or last + 9 + (what >> 8) != end:
            return None
        known = self._known_blocks
        head = known.get(data[start:after])
        tail = known.get(data[last + 9 :])
        if (
            head is None
            or tail is None
            or head.usual is not RESPONSE
            or tail.usual is not TRAILERS
            or length > stream.receive_window
            or length > self.limits.max_frame
            or (max_size is not None and size > max_size)
        ):
            return None
        self._receive_window -= length
        self._useful += _FORGIVEN_BY_HEADERS
        if position:
            self._commit_control(increment, ping)
        if stream.sending:
            stream.receiving = False
        else:
            del self._streams[stream_id]
        if self._learns(data, position):
            self._patterns[end] = Pattern(data, position, after - start, size, head.headers, tail.headers)
        return head.headers, data[after + 14 : last], tail.headers

    def receive_request(self, data: bytes, max_size: int | None) -> tuple[int, Headers, bytes] | None:
        """A whole request of a unary call, if these bytes are exactly that: stream id, header list, the message.

        As `receive_answer`, for servers: two frames, of which the second ends the stream.
        """
        end = len(data)
        if (
            end < _SHORTEST_REQUEST
            or not self._between_frames
            or self.going_away
            or self._receive_window <= _LOW_WINDOW
        ):
            return None
        position = increment = 0
        ping = b""
        pattern = self._patterns.get(end)
        if pattern is not None:
            position = pattern.position
            first, stream_id, second, number, third, message = pattern.unpack(data, position)
            if (
                number == stream_id
                and (first, second, third) == pattern.like
                and self._highest_peer_id < stream_id <= frames.LARGEST_STREAM_ID
                and stream_id & 1
                and pattern.length <= self._stream_window
                and (max_size is None or pattern.size <= max_size)
                and len(self._streams) < self.limits.max_streams
                and (not position or self._take_control(data))
            ):
                self._begin_whole(stream_id, pattern.length)
                return stream_id, pattern.headers, message
            position = 0
        if data[3] != 1:
            found = self._skip_control(data)
            if found is None:
                return None
            position, increment, ping = found
        what, flags, stream_id = _unpack(data, position)
        start = position + 9
        after = start + (what >> 8)
        if what & 255 != 1 or flags != 4 or stream_id <= self._highest_peer_id or after + 14 > end:
            return None
        what, flags, number, compressed, size = _unpack_message(data, after)
        length = size + 5
        if what != length << 8 or flags != 1 or number != stream_id or compressed or after + 9 + length != end:
            return None
        block = self._known_blocks.get(data[start:after])
        if (
            block is None
            or block.usual is not REQUEST
            or not stream_id & 1
            or stream_id > frames.LARGEST_STREAM_ID
            or length > self._stream_window
            or length > self.limits.max_frame
            or (max_size is not None and size > max_size)
            or len(self._streams) >= self.limits.max_streams
        ):
            return None
        if position:
            self._commit_control(increment, ping)
        self._begin_whole(stream_id, length)
        if self._learns(data, position):
            self._patterns[end] = Pattern(data, position, after - start, size, block.headers)
        return stream_id, block.headers, data[after + 14 :]

    def _begin_whole(self, stream_id: int, length: int) -> None:
        """The peer has opened a stream and said all on it, in a DATA frame of that length."""
        self._receive_window -= length
        self._useful += _FORGIVEN_BY_HEADERS
        self._highest_peer_id = stream_id
        self._streams[stream_id] = stream = _Stream(stream_id, self._initial_send_window, self._stream_window - length)
        stream.receiving = False
        stream.received_headers = True

    def _learns(self, data: bytes, position: int) -> bool:
        """Whether a pattern is to be made of what was read: where one before was as long."""
        end = len(data)
        if end > patterns.LARGEST or not patterns.control_before(data, position):
            return False
        if end not in self._lengths:
            if len(self._lengths) >= patterns.MOST:
                self._lengths.clear()
            self._lengths.add(end)
            return False
        if len(self._patterns) >= patterns.MOST:
            self._patterns.clear()
        return True

    def _take_control(self, data: bytes) -> bool:
        """What `patterns.CONTROL` describes takes effect. False, and nothing has, where it is something else."""
        update, increment, pinged, ping = _unpack_control(data)
        window = self._send_window
        if (
            update != patterns.UPDATE_HEADER
            or pinged != patterns.PING_HEADER
            or self._control_size
            or window <= 0
            or not 0 < increment <= frames.LARGEST_WINDOW - window
        ):
            return False
        self._send_window = window + increment
        self._useful -= 1  # as in `_commit_control`
        self._control_size = _PING_ACK_SIZE
        self.due.append(_PING_ACK + ping)
        return True

    def _skip_control(self, data: bytes) -> tuple[int, int, bytes] | None:
        """Where the first HEADERS is, and what PING and WINDOW_UPDATE before it say; none where that is not all."""
        if self._control_size:
            return None
        position = increment = 0
        ping = b""
        end = len(data)
        while position + 9 <= end:
            what, flags, stream_id = _unpack(data, position)
            if what & 255 == 1:
                return position, increment, ping
            body = position + 9
            position = body + (what >> 8)
            if stream_id or flags or position > end:
                return None
            if what == 4 << 8 | 8 and not increment and self._send_window > 0:
                increment = int.from_bytes(data[body:position], "big")
                if not 0 < increment <= frames.LARGEST_WINDOW - self._send_window:
                    return None
            elif what == 8 << 8 | 6 and not ping:
                ping = data[body:position]
            else:
                return None
        return None

    def _commit_control(self, increment: int, ping: bytes) -> None:
        """What came before a call takes effect. Nothing of its kind is due yet."""
        self._send_window += increment
        if ping:
            self._useful -= 1  # one is always covered by the headers that came with it
            self._control_size = _PING_ACK_SIZE
            self.due.append(_PING_ACK + ping)

    def _parse(self, data: bytes) -> None:
        position = 0
        end = len(data)
        if self._greeting:
            position = self._read_greeting(data)
        unpack = frames.HEADER.unpack_from
        largest = self.limits.max_frame
        readers = self._READERS
        while position < end:
            if self._data_left:
                position = self._read_data_piece(data, position, end)
                continue
            body = position + 9
            if body > end:
                self._wait_for(9, data, position)
                return
            high, low, kind, flags, stream_id = unpack(data, position)
            length = high << 8 | low
            stream_id &= 0x7FFFFFFF
            if length > largest:
                raise FrameError(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            if self._block is not None or not self.settings_seen:
                self._check_turn(kind, flags, stream_id)
            position = body + length
            # What a call consists of, in its usual form, comes first; the rest of the loop would do for it too.
            if kind == 0 and length and not flags & 8:
                if position > end or not self._read_plain_data(data, body, position, flags, stream_id):
                    self._begin_data(stream_id, length, length, flags)
                    position = body
            elif position > end:
                self._wait_for(9 + length, data, body - 9)
                return
            elif kind == 1 and flags & 0x2C == 4 and stream_id and length <= self.limits.max_headers:
                self._read_block(stream_id, data[body:position], flags & 1 == 1)
            elif kind < len(readers):
                readers[kind](self, flags, stream_id, data[body:position])
            else:
                self._spend_chatter()

    def _wait_for(self, size: int, data: bytes, position: int) -> None:
        self._needed = size
        self._pending += data[position:] if position else data

    def _read_greeting(self, data: bytes) -> int:
        greeting = self._greeting
        size = min(len(data), len(greeting))
        if data[:size] != greeting[:size]:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
        self._greeting = greeting[size:]
        return size

    def _check_turn(self, kind: int, flags: int, stream_id: int) -> None:
        """Settings come first, and nothing comes between the parts of a header block."""
        if self._block is not None:
            if kind != frames.CONTINUATION or stream_id != self._block_stream:
                raise FrameError(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        elif kind != frames.SETTINGS or flags & frames.ACK:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")

    def _spend_chatter(self) -> None:
        if self._useful:
            self._chatter.earn(self._useful)
            self._useful = 0
        if not self._chatter.spend():
            raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _queue_control(self, frame: bytes) -> None:
        self._control_size += len(frame)
        if self._control_size > self.limits.max_control:
            raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, "answers pile up because they are not read")
        self.due.append(frame)

    def _stream_error(self, stream_id: int, code: ErrorCode, reason: str) -> None:
        known = self._streams.pop(stream_id, None)
        self._remember_reset(stream_id, self._stream_window)
        self._queue_control(frames.rst_stream(stream_id, code))
        if known is not None:
            if known.receiving:
                self.unheard = self._unheard_since = True
            known.sending = known.receiving = False
            if known.received_headers or not self._is_server:
                self._events.append(StreamEnded(stream_id, code, False, reason))
        if self._is_server:
            self._spend_reset()

    def _end_receiving(self, stream: _Stream) -> None:
        stream.receiving = False
        if not stream.sending:
            self._end(stream)

    def _is_idle(self, stream_id: int) -> bool:
        ours = bool(stream_id & 1) is not self._is_server
        return stream_id >= self._next_id if ours else stream_id > self._highest_peer_id

    # DATA

    def _begin_data(self, stream_id: int, length: int, counted: int, flags: int) -> None:
        """The header of a DATA frame was read: account for all of it, its padding too, before its payload is there."""
        self._receive_window -= counted
        if self._receive_window < 0:
            raise FrameError(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        if self._receive_window < _LOW_WINDOW:
            self._queue_control(frames.window_update(0, frames.LARGEST_WINDOW - self._receive_window))
            self._receive_window = frames.LARGEST_WINDOW
        stream = self._streams.get(stream_id)
        self._data_left = length
        self._data_ends = bool(flags & frames.END_STREAM)
        self._data_stream = stream if self._accepts_data(stream, stream_id, length, counted) else None
        if length == 0 and self._data_stream is not None:
            self._read_empty_data(self._data_stream)

    def _read_plain_data(self, data: bytes, body: int, after: int, flags: int, stream_id: int) -> bool:
        """A whole DATA frame about which nothing is unusual. False when something is."""
        stream = self._streams.get(stream_id)
        length = after - body
        if (
            stream is None
            or not stream.receiving
            or not stream.received_headers
            or stream.awaited is not None
            or stream.receive_window < length
            or self._receive_window <= _LOW_WINDOW
        ):
            return False
        stream.receive_window -= length
        self._receive_window -= length
        self._useful += _FORGIVEN_BY_DATA
        ends = flags & 1 == 1
        if ends:
            self._end_receiving(stream)
        piece = data[body:after] if length <= _COPIED_PIECE else memoryview(data)[body:after]
        self._events.append(DataReceived(stream_id, piece, ends))
        return True

    def _accepts_data(self, stream: _Stream | None, stream_id: int, length: int, counted: int) -> bool:
        if stream is None:
            if stream_id == 0 or self._is_idle(stream_id):
                raise FrameError(ErrorCode.PROTOCOL_ERROR, f"DATA on stream {stream_id}, which is idle")
            left = self._reset.get(stream_id)
            if left is None:
                if stream_id > self._forgotten:
                    raise FrameError(ErrorCode.STREAM_CLOSED, f"DATA on stream {stream_id}, which is closed")
                self._spend_chatter()
                return False
            if counted > left:
                raise FrameError(ErrorCode.FLOW_CONTROL_ERROR, f"more data on stream {stream_id} than its window")
            self._reset[stream_id] = left - counted
            return False
        if not stream.receiving:
            self._stream_error(stream_id, ErrorCode.STREAM_CLOSED, "DATA after the end of the stream")
            return False
        if not stream.received_headers:
            self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, "DATA before HEADERS")
            return False
        stream.receive_window -= counted
        if stream.receive_window < 0:
            self._stream_error(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "more data than the stream's window")
            return False
        if counted != length:
            self.consumed(stream_id, counted - length)
        if stream.awaited is not None:
            stream.awaited -= length
            if stream.awaited < 0 or (self._data_ends and stream.awaited):
                self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, "the body is not as long as content-length")
                return False
        return True

    def _read_empty_data(self, stream: _Stream) -> None:
        if self._data_ends:
            self._end_receiving(stream)
            self._events.append(DataReceived(stream.id, b"", True))

    def _read_data_piece(self, data: bytes, position: int, end: int) -> int:
        left = self._data_left
        size = min(left, end - position)
        after = position + size
        self._data_left = left - size
        stream = self._data_stream
        if stream is None or not stream.receiving:
            return after
        ends = self._data_ends and left == size
        if left == size:
            self._useful += _FORGIVEN_BY_DATA
        if ends:
            self._end_receiving(stream)
        piece = data[position:after] if size <= _COPIED_PIECE else memoryview(data)[position:after]
        self._events.append(DataReceived(stream.id, piece, ends))
        return after

    def _read_whole_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        """A DATA frame that is padded, or empty."""
        body = frames.without_padding(payload, flags)
        if not body and not flags & frames.END_STREAM:
            self._spend_chatter()
        self._begin_data(stream_id, len(body), len(payload), flags)
        if body:
            self._read_data_piece(body, 0, len(body))

    # HEADERS and CONTINUATION

    def _read_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        block = payload
        if flags & (frames.PADDED | frames.HAS_PRIORITY):
            block = frames.without_priority(frames.without_padding(payload, flags), flags, stream_id)
        ends = bool(flags & frames.END_STREAM)
        if len(block) > self.limits.max_headers:
            raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, f"a header block of {len(block)} bytes")
        if flags & frames.END_HEADERS:
            self._read_block(stream_id, block, ends)
            return
        self._block = bytearray(block)
        self._block_stream = stream_id
        self._block_ends = ends
        self._block_parts = 0

    def _read_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        self._block_parts += 1
        if len(self._block) > self.limits.max_headers or self._block_parts > self.limits.max_continuations:
            raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, "a header block that is too large or in too many parts")
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._read_block(stream_id, block, self._block_ends)

    def _read_block(self, stream_id: int, encoded: bytes, ends: bool) -> None:
        block = self._known_blocks.get(encoded) or self._decoder.decode(encoded)
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = self._open_for_peer(stream_id)
            if stream is None:
                return
        elif not stream.receiving:
            self._stream_error(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after the end of the stream")
            return
        if stream.received_headers or block.usual is not self._first_kind:
            problem = self._block_problem(stream, block, ends)
            if problem:
                self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, problem)
                return
            if block.informational:
                self._spend_chatter()
                return
        stream.received_headers = True
        self._useful += _FORGIVEN_BY_HEADERS
        if ends:
            self._end_receiving(stream)
        self._events.append(HeadersReceived(stream_id, block.headers, ends))

    def _open_for_peer(self, stream_id: int) -> _Stream | None:
        """The stream that a client's HEADERS open; none when they are to be dropped."""
        if not self._is_idle(stream_id):
            if stream_id in self._reset or stream_id <= self._forgotten:
                self._spend_chatter()
                return None
            raise FrameError(ErrorCode.STREAM_CLOSED, f"HEADERS on stream {stream_id}, which is closed")
        if not self._is_server or not stream_id & 1:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, f"the peer may not open stream {stream_id}")
        self._highest_peer_id = stream_id
        if self.going_away or len(self._streams) >= self.limits.max_streams:
            # A peer may repeat what was refused: it is certain that nobody looked at it.
            self._stream_error(stream_id, ErrorCode.REFUSED_STREAM, "no more streams")
            return None
        stream = _Stream(stream_id, self._initial_send_window, self.limits.stream_window)
        self._streams[stream_id] = stream
        return stream

    def _block_problem(self, stream: _Stream, block: Block, ends: bool) -> str:
        """Why a header list may not come now; empty when it may."""
        if block.problem:
            return block.problem
        if stream.received_headers:
            if block.kind != TRAILERS:
                return f"a second {block.kind}"
            if not ends:
                return "trailers that do not end the stream"
            return "the body is shorter than content-length" if stream.awaited else ""
        if block.kind != self._first_kind:
            return f"{block.kind} where there should be {'a request' if self._is_server else 'a response'}"
        if block.informational:
            return "an interim response that ends the stream" if ends else ""
        stream.awaited = block.content_length
        return "content-length without a body" if ends and block.content_length and self._is_server else ""

    # Everything else

    def _read_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        frames.check_priority(payload, stream_id)
        self._spend_chatter()

    def _read_rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        code = frames.read_uint32(payload, "RST_STREAM")
        if stream_id == 0 or self._is_idle(stream_id):
            raise FrameError(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on stream {stream_id}, which is idle")
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            self._spend_chatter()
            return
        stream.sending = stream.receiving = False
        self._events.append(StreamEnded(stream_id, code, True, f"reset by the peer: {ErrorCode.name_of(code)}"))
        if self._is_server and not stream.begun:
            self._spend_reset()

    def _spend_reset(self) -> None:
        if self._ended_well:
            self._resets.earn(self._ended_well)
            self._ended_well = 0
        if not self._resets.spend():
            raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, "too many streams opened only to be reset")

    def _read_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
        self._spend_chatter()
        if flags & frames.ACK:
            if payload:
                raise FrameError(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a payload")
            self._unacknowledged -= 1
            if self._confirming and self._unacknowledged <= 0:
                self._confirming, self.unheard = False, self._unheard_since
            return
        if not self.settings_seen:
            self.settings_seen = True
            self.max_streams = frames.LARGEST_STREAM_ID  # what no word about it means
        for key, value in frames.read_settings(payload):
            self._apply_setting(key, value)
        self._queue_control(frames.SETTINGS_ACK)
        self._events.append(SettingsReceived())

    def _apply_setting(self, key: int, value: int) -> None:
        if key == Setting.INITIAL_WINDOW_SIZE:
            if value > frames.LARGEST_WINDOW:
                raise FrameError(ErrorCode.FLOW_CONTROL_ERROR, f"an initial window of {value} bytes")
            self._resize_windows(value)
        elif key == Setting.MAX_FRAME_SIZE:
            if not frames.DEFAULT_MAX_FRAME <= value <= frames.LARGEST_FRAME:
                raise FrameError(ErrorCode.PROTOCOL_ERROR, f"a largest frame of {value} bytes")
            # Larger ones would only keep other streams waiting.
            self._max_send_frame = min(value, 1 << 20)
        elif key == Setting.ENABLE_PUSH:
            if value > 1 or (value and not self._is_server):
                raise FrameError(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")
        elif key == Setting.MAX_CONCURRENT_STREAMS:
            self.max_streams = value
        elif key == Setting.MAX_HEADER_LIST_SIZE:
            self.peer_max_headers = value

    def _resize_windows(self, size: int) -> None:
        """The peer's initial window changed: so does that of every open stream (RFC 9113, section 6.9.2)."""
        change = size - self._initial_send_window
        self._initial_send_window = size
        for stream in self._streams.values():
            stream.send_window += change
            if stream.send_window > frames.LARGEST_WINDOW:
                raise FrameError(ErrorCode.FLOW_CONTROL_ERROR, f"the window of stream {stream.id} is too large")
        if change > 0:
            self._events.append(WindowOpened(0))

    def _read_push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise FrameError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which is switched off")

    def _read_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, f"PING on stream {stream_id}")
        if len(payload) != 8:
            raise FrameError(ErrorCode.FRAME_SIZE_ERROR, f"PING of {len(payload)} bytes")
        self._spend_chatter()
        if flags & frames.ACK:
            self._events.append(PingAnswered(payload))
        else:
            self._queue_control(frames.ping(payload, ack=True))

    def _read_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, f"GOAWAY on stream {stream_id}")
        self._spend_chatter()
        last, code, message = frames.read_goaway(payload)
        if not self._is_server:
            self.going_away = True
        self._events.append(GoAwayReceived(last, code, message.decode("utf-8", "replace")))

    def _read_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        increment = frames.read_uint32(payload, "WINDOW_UPDATE") & frames.LARGEST_WINDOW
        self._spend_chatter()  # what we send earns those that answer it
        if stream_id == 0:
            before = self._send_window
            self._send_window += increment
            if not increment or self._send_window > frames.LARGEST_WINDOW:
                code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
                raise FrameError(code, f"WINDOW_UPDATE by {increment}")
            if before <= 0:
                self._events.append(WindowOpened(0))
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise FrameError(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on stream {stream_id}, which is idle")
            return
        before = stream.send_window
        stream.send_window += increment
        if not increment or stream.send_window > frames.LARGEST_WINDOW:
            code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
            self._stream_error(stream_id, code, f"WINDOW_UPDATE by {increment}")
            return
        if before <= 0:
            self._events.append(WindowOpened(stream_id))

    _READERS = (
        _read_whole_data,
        _read_headers,
        _read_priority,
        _read_rst_stream,
        _read_settings,
        _read_push_promise,
        _read_ping,
        _read_goaway,
        _read_window_update,
        _read_continuation,
    )


def _pieces(block: bytes, size: int, compressed: int, flags: int) -> tuple[bytes, bytes, bytes]:
    """What HEADERS and DATA are beside the stream's id, before either, and the message.

    :param size: of the DATA.
    :param flags: of the DATA.
    """
    first = _pack(len(block) << 8 | frames.HEADERS, frames.END_HEADERS, 0)[:5]
    data = _pack_message(size << 8 | frames.DATA, flags, 0, compressed, size - 5)
    return first, block + data[:5], data[9:]
