"""What a connection reports after it was given bytes.

Named tuples: they are cheap to make, and thousands are made a second. Who gets them, and in which order they can come,
is said in `connection`.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Fields in the order in which they came, names in lower case, pseudo-header fields first."""


class HeadersReceived(NamedTuple):
    """The first header list of a stream (a request or a response), or its last (trailers, `end_stream` set)."""

    stream_id: int
    headers: Headers
    end_stream: bool


class DataReceived(NamedTuple):
    """A piece of a stream's body. Pieces are not frames: a frame that arrives in parts is reported in parts.

    The bytes count against the stream's window until `Connection.consumed` gives them back; padding was given back.
    """

    stream_id: int
    data: bytes | memoryview
    end_stream: bool


class StreamEnded(NamedTuple):
    """The stream is over before its time: reset by the peer, or by us because the peer broke a rule on it."""

    stream_id: int
    code: int
    by_peer: bool
    reason: str


class WindowOpened(NamedTuple):
    """More may be sent where nothing could be: on one stream, or on any where `stream_id` is 0."""

    stream_id: int


class PingAnswered(NamedTuple):
    payload: bytes


class GoAwayReceived(NamedTuple):
    """The peer takes no new streams. Those above `last_stream_id` it has not looked at and never will."""

    last_stream_id: int
    code: int
    message: str


class SettingsReceived(NamedTuple):
    """The peer's settings came, or changed. They are in force."""


class ConnectionFailed(NamedTuple):
    """The peer broke the protocol. GOAWAY is queued: send it and close. No further events come."""

    code: int
    reason: str


Event: TypeAlias = (
    HeadersReceived
    | DataReceived
    | StreamEnded
    | WindowOpened
    | PingAnswered
    | GoAwayReceived
    | SettingsReceived
    | ConnectionFailed
)
