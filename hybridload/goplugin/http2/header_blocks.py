"""Header compression (RFC 7541): blocks in, field lists out; fields in, blocks out.

Encoding needs no table: what we send is literal and never indexed, so a block that is constant is made once and used on
every connection. It costs the peer about a microsecond and spares us all state.

Decoding is the `hpack` package's, from the first block on that has more in it than what is sent here: a peer that is
hybridload itself never sends such, and the package takes milliseconds and half a megabyte. In front of both stands a
cache: as long as a block leaves the dynamic table as it was, the same bytes mean the same fields, and a peer that calls
one method over and over sends the same few bytes each time.

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

    from .patterns import Pattern

REQUEST: Final = "request"
RESPONSE: Final = "response"
TRAILERS: Final = "trailers"

_REQUEST_FIELDS: Final = frozenset((b":method", b":scheme", b":authority", b":path"))
_REQUIRED: Final = (b":method", b":scheme", b":path")
_PER_CONNECTION: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
# What is sent here of the static table (RFC 7541, appendix A): whole fields by their byte, names by their index.
_FIELDS: Final = {
    0x83: (b":method", b"POST"),
    0x86: (b":scheme", b"http"),
    0x88: (b":status", b"200"),
}
_NAMES: Final = {1: b":authority", 4: b":path", 31: b"content-type", 58: b"user-agent"}
_FIELD_OVERHEAD: Final = 32
"""What a field counts for in a list's size beside its bytes (RFC 9113, section 6.5.2)."""
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

    __slots__ = ("_decoder", "_max_size", "known", "patterns")

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._decoder: Decoder | None = None
        self.known: dict[bytes, Block] = {}
        """What blocks mean as long as the table stays as it is."""
        self.patterns: dict[int, Pattern] = {}
        """What whole calls are like, by length: for the same time."""

    def decode(self, block: bytes) -> Block:
        """:raises FrameError: the block is not valid, or too large. The connection is lost: tables have diverged."""
        known = self.known.get(block)
        if known is not None:
            return known
        plain = plain_fields(block, self._max_size) if self._decoder is None else None
        if plain is None:
            before = self._table_state()
            decoded = judge(self._with_hpack(block))
            after = self._table_state()
            if after[0] is not before[0] or after[1:] != before[1:]:
                self.known.clear()
                self.patterns.clear()
                return decoded
        else:
            decoded = judge(plain)
        if len(block) <= _CACHED_SIZE:
            if len(self.known) >= _CACHED_BLOCKS:
                self.known.clear()
            self.known[block] = decoded
        return decoded

    def _with_hpack(self, block: bytes) -> Headers:
        from hpack import HPACKError, OversizedHeaderListError

        try:
            return tuple((name, value) for name, value in self._hpack.decode(block, raw=True))
        except (HPACKError, IndexError, ValueError) as error:
            too_large = isinstance(error, OversizedHeaderListError)
            code = ErrorCode.ENHANCE_YOUR_CALM if too_large else ErrorCode.COMPRESSION_ERROR
            raise FrameError(code, f"header block refused: {error}") from error

    @property
    def _hpack(self) -> Decoder:
        if self._decoder is None:
            from hpack import Decoder

            # hpack writes debug records of every header of every call, and formats them whether anybody wants them.
            logging.getLogger("hpack").setLevel(logging.INFO)
            self._decoder = Decoder(max_header_list_size=self._max_size)
        return self._decoder

    def _table_state(self) -> tuple[object, int, int]:
        """Differs after every insertion and change of size: a new entry is a new object at the front."""
        table = self._hpack.header_table
        entries = table.dynamic_entries
        return (entries[0] if entries else None, len(entries), table.maxsize)


def plain_fields(block: bytes, max_size: int) -> Headers | None:
    """The fields of a block that has nothing but what is sent here; it leaves the dynamic table as it was.

    :param max_size: as `BlockDecoder` has it.
    :returns: `None` for any other block, one that is cut off or too large among them: hpack is to judge it.
    """
    fields: list[tuple[bytes, bytes]] = []
    at, end, size = 0, len(block), 0
    try:
        while at < end:
            first = block[at]
            at += 1
            field = _FIELDS.get(first)
            if field is None:
                if first == 0:
                    name, at = _plain_text(block, at)
                elif first < 15:
                    name = _NAMES[first]
                elif first == 15:
                    name = _NAMES[block[at] + 15]
                    at += 1
                else:
                    return None
                value, at = _plain_text(block, at)
                field = name, value
            size += len(field[0]) + len(field[1]) + _FIELD_OVERHEAD
            if size > max_size:
                return None
            fields.append(field)
    except LookupError:
        return None
    return tuple(fields)


def _plain_text(block: bytes, at: int) -> tuple[bytes, int]:
    """A text without Huffman coding, and where it ends.

    :raises LookupError: it is coded, or ends too late.
    """
    size = block[at]
    at += 1
    if size == 127:
        shift = 0
        more = 128
        while more & 128:
            more = block[at]
            at += 1
            size += (more & 127) << shift
            shift += 7
            if shift > 21:
                raise LookupError("a number too large for any text")
    elif size > 127:
        raise LookupError("a Huffman code")
    end = at + size
    if end > len(block):
        raise LookupError("the text is cut off")
    return block[at:end], end


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
