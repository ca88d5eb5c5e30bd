"""HTTP/2 frames as bytes (RFC 9113, sections 4 and 6): how each is written, and the numbers in them.

Nothing here knows the state of a connection. Reading is one `HEADER.unpack_from`, in `connection`, which is where the
time goes; so only the parts of reading that several frames share are functions here.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

HEADER: Final = Struct(">HBBBL")
"""A frame header in five numbers: the length's upper 16 and lower 8 bits, type, flags, stream id (31 bits)."""

HEADER_SIZE: Final = 9
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

DEFAULT_WINDOW: Final = 65535
DEFAULT_MAX_FRAME: Final = 16384
LARGEST_FRAME: Final = (1 << 24) - 1
LARGEST_WINDOW: Final = (1 << 31) - 1
LARGEST_STREAM_ID: Final = (1 << 31) - 1

_SETTING: Final = Struct(">HL")
_UINT32: Final = Struct(">L")
_TWO_UINT32: Final = Struct(">LL")


class Setting(IntEnum):
    """The settings of RFC 9113, section 6.5.2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ErrorCode(IntEnum):
    """The error codes of RFC 9113, section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13

    @staticmethod
    def name_of(code: int) -> str:
        """The code's name, or its number in hexadecimal where it has none (unknown codes are legal)."""
        try:
            return ErrorCode(code).name
        except ValueError:
            return hex(code)


class FrameError(ValueError):
    """A frame that breaks the format.

    :param code: what the peer is told.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes before a payload of `length` bytes."""
    return HEADER.pack(length >> 8, length & 255, kind, flags, stream_id)


def headers(stream_id: int, block: bytes, end_stream: bool, max_frame: int) -> bytes:
    """A header block as HEADERS and as many CONTINUATION frames as it needs."""
    flags = END_STREAM if end_stream else 0
    size = len(block)
    if size <= max_frame:
        return HEADER.pack(size >> 8, size & 255, HEADERS, flags | END_HEADERS, stream_id) + block
    parts = [header(max_frame, HEADERS, flags, stream_id), block[:max_frame]]
    for start in range(max_frame, size, max_frame):
        piece = block[start : start + max_frame]
        last = END_HEADERS if start + max_frame >= size else 0
        parts += (header(len(piece), CONTINUATION, last, stream_id), piece)
    return b"".join(parts)


def rst_stream(stream_id: int, code: int) -> bytes:
    return header(4, RST_STREAM, 0, stream_id) + _UINT32.pack(code)


def settings(values: dict[int, int]) -> bytes:
    payload = b"".join(_SETTING.pack(key, value) for key, value in values.items())
    return header(len(payload), SETTINGS, 0, 0) + payload


SETTINGS_ACK: Final = header(0, SETTINGS, ACK, 0)


def ping(payload: bytes, ack: bool) -> bytes:
    return header(8, PING, ACK if ack else 0, 0) + payload


def goaway(last_stream_id: int, code: int, message: str) -> bytes:
    payload = _TWO_UINT32.pack(last_stream_id, code) + message.encode()
    return header(len(payload), GOAWAY, 0, 0) + payload


def window_update(stream_id: int, increment: int) -> bytes:
    return header(4, WINDOW_UPDATE, 0, stream_id) + _UINT32.pack(increment)


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """The settings in their order; later ones win.

    :raises FrameError: the length is no multiple of six.
    """
    if len(payload) % 6:
        raise FrameError(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    return list(_SETTING.iter_unpack(payload))


def read_uint32(payload: bytes, kind: str) -> int:
    """The one number that RST_STREAM and WINDOW_UPDATE consist of.

    :raises FrameError: there are not four bytes.
    """
    if len(payload) != 4:
        raise FrameError(ErrorCode.FRAME_SIZE_ERROR, f"{kind} of {len(payload)} bytes")
    number: int = _UINT32.unpack(payload)[0]
    return number


def read_goaway(payload: bytes) -> tuple[int, int, bytes]:
    """Last stream id, error code, debug data.

    :raises FrameError: there are fewer than eight bytes.
    """
    if len(payload) < 8:
        raise FrameError(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
    last, code = _TWO_UINT32.unpack_from(payload)
    return last & LARGEST_STREAM_ID, code, payload[8:]


def without_padding(payload: bytes, flags: int) -> bytes:
    """The payload of a HEADERS or DATA frame without what PADDED added.

    :raises FrameError: there is more padding than frame.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise FrameError(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def without_priority(payload: bytes, flags: int, stream_id: int) -> bytes:
    """The header block of a HEADERS frame without what PRIORITY added, which nobody uses any more.

    :raises FrameError: it is cut short, or the stream depends on itself.
    """
    if not flags & HAS_PRIORITY:
        return payload
    check_priority(payload[:5], stream_id)
    return payload[5:]


def check_priority(payload: bytes, stream_id: int) -> None:
    """:raises FrameError: not five bytes, or the stream depends on itself."""
    if len(payload) != 5:
        raise FrameError(ErrorCode.FRAME_SIZE_ERROR, f"priority of {len(payload)} bytes")
    if _UINT32.unpack_from(payload)[0] & LARGEST_STREAM_ID == stream_id:
        raise FrameError(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} depends on itself")
