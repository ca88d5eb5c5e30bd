"""gRPC's header fields: user metadata, deadlines and status messages as they stand in HTTP/2 fields.

Pure. The rules are those of gRPC's PROTOCOL-HTTP2 document: names in lower case, values printable ASCII; a name that
ends in ``-bin`` has bytes for its value, base64 on the wire, padded or not, several joined by commas; a status message
is UTF-8, percent-encoded; a timeout is at most eight digits and a unit.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

from .events import Headers
from .header_blocks import literal


class Metadatum(NamedTuple):
    """One field of metadata. The value is bytes when the key ends in ``-bin``, otherwise text."""

    key: str
    value: str | bytes


Metadata: TypeAlias = tuple[Metadatum, ...]

_RESERVED: Final = frozenset(
    (
        b"content-type",
        b"te",
        b"grpc-timeout",
        b"grpc-encoding",
        b"grpc-accept-encoding",
        b"grpc-status",
        b"grpc-message",
        b"content-length",
    )
)
_NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.-")
_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {ord("%")}
_UNITS: Final = {b"n": 1e-9, b"u": 1e-6, b"m": 1e-3, b"S": 1.0, b"M": 60.0, b"H": 3600.0}
_LARGEST_TIMEOUT: Final = 99_999_999


def encode_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    """User metadata as a piece of a header block.

    :raises ValueError: a key or a value that cannot travel.
    """
    return b"".join([_encode_field(key, value) for key, value in metadata])


def _encode_field(key: str, value: str | bytes) -> bytes:
    name = key.lower()
    if not name or not _NAME_CHARACTERS.issuperset(name) or name.encode() in _RESERVED:
        raise ValueError(f"metadata key {key!r}: it must consist of letters, digits, '_', '.', '-' and not be reserved")
    if name.endswith("-bin"):
        data = value.encode() if isinstance(value, str) else bytes(value)
        return literal(name.encode(), binascii.b2a_base64(data, newline=False).rstrip(b"="))
    text = value.encode("latin-1", "replace") if isinstance(value, str) else bytes(value)
    if any(byte < 0x20 or byte > 0x7E for byte in text):
        raise ValueError(f"metadata value of {key!r} is not printable ASCII: bytes need a key that ends in '-bin'")
    return literal(name.encode(), text)


def decode_metadata(headers: Headers) -> Metadata:
    """The user's part of a field list. Binary values that are not base64 are left out."""
    found: list[Metadatum] = []
    for name, value in headers:
        if name[:1] == b":" or name in _RESERVED:
            continue
        key = name.decode("latin-1")
        if name.endswith(b"-bin"):
            found += [Metadatum(key, part) for part in _decode_binary(value)]
        else:
            found.append(Metadatum(key, value.decode("latin-1")))
    return tuple(found)


def _decode_binary(value: bytes) -> list[bytes]:
    parts = []
    for part in value.split(b","):
        part = part.strip().rstrip(b"=")
        try:
            parts.append(binascii.a2b_base64(part + b"=" * (-len(part) % 4), strict_mode=True) if part else b"")
        except binascii.Error:
            continue
    return parts


def field(headers: Headers, name: bytes) -> bytes | None:
    """The first value of a field; `None` where there is none."""
    for key, value in headers:
        if key == name:
            return value
    return None


def encode_message(text: str) -> bytes:
    """A status message for ``grpc-message``."""
    data = text.encode("utf-8", "replace")
    if _PLAIN.issuperset(data):
        return data
    return b"".join([bytes((byte,)) if byte in _PLAIN else b"%%%02X" % byte for byte in data])


def decode_message(value: bytes) -> str:
    """A status message from ``grpc-message``. Whatever came is made readable; nothing is refused."""
    if b"%" not in value:
        return value.decode("utf-8", "replace")
    head, *parts = value.split(b"%")
    out = [head]
    for part in parts:
        try:
            out.append(binascii.unhexlify(part[:2]) + part[2:])
        except binascii.Error:
            out.append(b"%" + part)
    return b"".join(out).decode("utf-8", "replace")


def encode_timeout(seconds: float) -> bytes:
    """A timeout for ``grpc-timeout``, rounded up to a unit that leaves it eight digits."""
    if seconds <= 0:
        return b"1n"
    for unit, size in ((b"u", 1e-6), (b"m", 1e-3), (b"S", 1.0), (b"M", 60.0)):
        if seconds <= _LARGEST_TIMEOUT * size:
            return b"%d%b" % (max(1, -int(-seconds // size)), unit)
    return b"%dH" % min(_LARGEST_TIMEOUT, int(min(seconds, 1e12) / 3600) + 1)


def decode_timeout(value: bytes) -> float | None:
    """Seconds from ``grpc-timeout``; `None` where it is not valid."""
    digits, unit = value[:-1], value[-1:]
    if not 1 <= len(digits) <= 8 or not digits.isdigit() or unit not in _UNITS:
        return None
    return int(digits) * _UNITS[unit]
