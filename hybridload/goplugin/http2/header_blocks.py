"""Header compression (RFC 7541): blocks in, field lists out; fields in, blocks out.

Decoding is the `hpack` package's. In front of it stands a cache: as long as a block leaves the dynamic table as it was,
the same bytes mean the same fields, and a peer that calls one method over and over sends the same few bytes each time.

Encoding needs no table: what we send is literal and never indexed, so a block that is constant is made once and used on
every connection. It costs the peer about a microsecond and spares us all state.

Each field list is judged once (RFC 9113, section 8) when it is decoded: `Block.kind` says what it can be, `problem`
what is wrong with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from hybridload.frozen import frozen

from .events import Headers
from .frames import ErrorCode, FrameError

if TYPE_CHECKING:
    from hpack import Decoder

REQUEST: Final = "request"
RESPONSE: Final = "response"
TRAILERS: Final = "trailers"

_REQUEST_FIELDS: Final = frozenset((b":method", b":scheme", b":authority", b":path"))
_REQUIRED: Final = (b":method", b":scheme", b":path")
_PER_CONNECTION: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
_CACHED_BLOCKS: Final = 64
_CACHED_SIZE: Final = 1024


@frozen
class Block:
    """One decoded header block.

    :param kind: `REQUEST`, `RESPONSE` or `TRAILERS`: what its pseudo-header fields make of it.
    :param problem: why it is malformed; empty when it is not.
    :param content_length: the body's size as announced; `None` where it is not, as is usual.
    :param informational: an interim (1xx) response.
    :param usual: the kind, where none of the three above is the matter; otherwise empty.
    """

    headers: Headers
    kind: str
    problem: str
    content_length: int | None
    informational: bool
    usual: str


class BlockDecoder:
    """The decoding half of header compression, for one connection."""

    __slots__ = ("_decoder", "_refused", "known")

    def __init__(self, max_size: int) -> None:
        # Here and not above: importing it takes milliseconds, which a plugin has better uses for while it starts.
        from hpack import Decoder, HPACKError

        # hpack writes debug records of every header of every call, and formats them whether anybody wants them or not.
        logging.getLogger("hpack").setLevel(logging.INFO)
        self._decoder: Decoder = Decoder(max_header_list_size=max_size)
        self._refused = (HPACKError, IndexError, ValueError)
        self.known: dict[bytes, Block] = {}
        """What blocks mean as long as the table stays as it is."""

    def decode(self, block: bytes) -> Block:
        """:raises FrameError: the block is not valid, or too large. The connection is lost: tables have diverged."""
        known = self.known.get(block)
        if known is not None:
            return known
        before = self._table_state()
        try:
            headers = tuple((name, value) for name, value in self._decoder.decode(block, raw=True))
        except self._refused as error:
            too_large = type(error).__name__ == "OversizedHeaderListError"
            code = ErrorCode.ENHANCE_YOUR_CALM if too_large else ErrorCode.COMPRESSION_ERROR
            raise FrameError(code, f"header block refused: {error}") from error
        decoded = judge(headers)
        after = self._table_state()
        if after[0] is not before[0] or after[1:] != before[1:]:
            self.known.clear()
        elif len(block) <= _CACHED_SIZE:
            if len(self.known) >= _CACHED_BLOCKS:
                self.known.clear()
            self.known[block] = decoded
        return decoded

    def _table_state(self) -> tuple[object, int, int]:
        """Differs after every insertion and change of size: a new entry is a new object at the front."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        return (entries[0] if entries else None, len(entries), table.maxsize)


def judge(headers: Headers) -> Block:
    """Whether a field list is well-formed (RFC 9113, sections 8.1 to 8.3), and as what."""
    pseudo: dict[bytes, bytes] = {}
    problem = ""
    content_length: int | None = None
    regular = False
    for name, value in headers:
        if name[:1] == b":":
            if regular:
                problem = problem or "a pseudo-header field after a regular one"
            if name in pseudo:
                problem = problem or f"{name!r} twice"
            pseudo[name] = value
            continue
        regular = True
        if name == b"content-length":
            if value.isdigit() and len(value) < 19 and content_length in (None, int(value)):
                content_length = int(value)
            else:
                problem = problem or f"content-length is {value!r}"
        problem = problem or _field_problem(name, value)
    kind, wrong = _kind(pseudo)
    if kind != REQUEST:
        problem = "" if problem.startswith("te is") else problem
    informational = kind == RESPONSE and pseudo[b":status"][:1] == b"1"
    odd = problem or wrong or informational or content_length is not None
    return Block(headers, kind, problem or wrong, content_length, informational, "" if odd else kind)


def _field_problem(name: bytes, value: bytes) -> str:
    if not name or name != name.lower() or b" " in name:
        return f"field name {name!r}"
    if name in _PER_CONNECTION:
        return f"the connection-specific field {name!r}"
    if name == b"te" and value != b"trailers":
        return f"te is {value!r}"
    if b"\n" in value or b"\r" in value or b"\0" in value:
        return f"a line end in the value of {name!r}"
    return ""


def _kind(pseudo: dict[bytes, bytes]) -> tuple[str, str]:
    if not pseudo:
        return TRAILERS, ""
    if b":status" in pseudo:
        if len(pseudo) > 1:
            return RESPONSE, "pseudo-header fields beside :status"
        status = pseudo[b":status"]
        return RESPONSE, "" if len(status) == 3 and status.isdigit() else f":status is {status!r}"
    unknown = pseudo.keys() - _REQUEST_FIELDS
    if unknown:
        return REQUEST, f"unknown pseudo-header field {min(unknown)!r}"
    missing = [name for name in _REQUIRED if not pseudo.get(name)]
    return REQUEST, f"no {missing[0].decode()}" if missing else ""


def encode(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block of literal fields that leave no trace in the peer's table."""
    return b"".join([literal(name, value) for name, value in fields])


def literal(name: bytes, value: bytes) -> bytes:
    """One field: literal, without indexing, without Huffman coding (RFC 7541, section 6.2.2)."""
    if len(name) < 127 and len(value) < 127:
        return b"\x00%c%b%c%b" % (len(name), name, len(value), value)
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def named(index: int, value: bytes) -> bytes:
    """One field whose name is entry `index` of the static table (RFC 7541, appendix A)."""
    first = bytes((index,)) if index < 15 else bytes((15, index - 15))
    return first + _length(len(value)) + value


def _length(number: int) -> bytes:
    """An integer with a 7-bit prefix (RFC 7541, section 5.1)."""
    if number < 127:
        return bytes((number,))
    out = bytearray((127,))
    number -= 127
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
