"""gRPC's framing and its header fields, without any connection."""

from __future__ import annotations

import gzip
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridload.goplugin.http2.header_blocks import BlockDecoder, encode, named
from hybridload.goplugin.http2.messages import Compressed, MessageError, MessageReader, compress, plain
from hybridload.goplugin.http2.metadata import (
    decode_message,
    decode_metadata,
    decode_timeout,
    encode_message,
    encode_metadata,
    encode_timeout,
)
from hybridload.goplugin.http2.status import StatusCode


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_messages_survive_any_cutting(messages: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(map(framed, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    reader = MessageReader(None)
    got: list[bytes] = []
    for start, stop in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        piece = wire[start:stop]
        got += reader.feed(memoryview(piece) if start % 2 else piece)
    assert got == messages
    assert not reader.inside


def test_a_reader_knows_what_is_missing() -> None:
    reader = MessageReader(None)
    assert reader.feed(framed(bytes(100))[:55]) == []
    assert (reader.missing, reader.inside) == (50, True)


def test_a_message_beyond_the_limit_is_refused_before_it_arrives() -> None:
    with pytest.raises(MessageError, match=r"\(1001 vs\. 1000\)"):
        MessageReader(1000).feed(framed(bytes(1001))[:5])


def test_gzip_is_read() -> None:
    reader = MessageReader(None)
    reader.encoding = "gzip"
    messages = reader.feed(framed(gzip.compress(b"hello" * 100), 1) + framed(b"plain") + framed(compress(b""), 1))
    assert [plain(message, None) for message in messages] == [b"hello" * 100, b"plain", b""]


def test_a_gzip_bomb_is_not_unpacked() -> None:
    reader = MessageReader(100_000)
    reader.encoding = "gzip"
    [bomb] = reader.feed(framed(gzip.compress(bytes(50_000_000)), 1))
    tracemalloc.start()
    try:
        with pytest.raises(MessageError, match=r"over 100000 vs\. 100000") as caught:
            plain(bomb, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.status.code is StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("encoding", "data"), [("identity", b"x"), ("gzip", b"x"), ("gzip", compress(b"x")[:-3]), ("br", b"")]
)
def test_what_cannot_be_unpacked_is_refused(encoding: str, data: bytes) -> None:
    reader = MessageReader(None)
    reader.encoding = encoding
    with pytest.raises(MessageError):
        plain(*reader.feed(framed(data, 1)), None)


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_status_messages_survive(text: str) -> None:
    wire = encode_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in wire)
    assert decode_message(wire) == text


@given(st.binary())
def test_any_status_message_can_be_read(wire: bytes) -> None:
    decode_message(wire)


@given(st.floats(1e-6, 1e9))
def test_timeouts_are_rounded_up_a_little(seconds: float) -> None:
    wire = encode_timeout(seconds)
    decoded = decode_timeout(wire)
    assert len(wire) <= 9
    assert decoded is not None
    assert seconds <= decoded * (1 + 1e-9)
    assert decoded <= max(seconds * 1.02, seconds + 1e-6) or seconds > 9e7 * 60


@pytest.mark.parametrize("wire", [b"", b"1", b"S", b"123456789S", b"1x", b"-1S", b"1.5S"])
def test_timeouts_that_are_none(wire: bytes) -> None:
    assert decode_timeout(wire) is None


keys = st.from_regex(r"x-[a-z0-9_.-]{0,20}", fullmatch=True).filter(lambda key: not key.endswith("-bin"))
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=300)


@given(st.lists(st.one_of(st.tuples(keys, values), st.tuples(keys.map("{}-bin".format), st.binary(max_size=300)))))
def test_metadata_survives(metadata: list[tuple[str, str | bytes]]) -> None:
    block = BlockDecoder(1 << 20).decode(encode_metadata(metadata))
    assert [tuple(each) for each in decode_metadata(block.headers)] == metadata


@pytest.mark.parametrize("item", [("", "x"), ("a b", "x"), ("grpc-timeout", "1S"), ("x", "\n"), ("x", "ü€")])
def test_metadata_that_cannot_travel(item: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="metadata"):
        encode_metadata((item,))


def test_binary_metadata_is_read_padded_or_not_and_joined() -> None:
    headers = ((b"a-bin", b"AAE="), (b"b-bin", b"AAE,/w"), (b"c-bin", b"!"))
    assert [tuple(each) for each in decode_metadata(headers)] == [
        ("a-bin", b"\x00\x01"),
        ("b-bin", b"\x00\x01"),
        ("b-bin", b"\xff"),
    ]


@given(st.lists(st.tuples(st.from_regex(rb"[a-z]{1,300}", fullmatch=True), st.binary(max_size=20000)), max_size=4))
def test_fields_of_any_length_survive_encoding(fields: list[tuple[bytes, bytes]]) -> None:
    assert BlockDecoder(1 << 20).decode(encode(fields)).headers == tuple(fields)


@pytest.mark.parametrize("index", [1, 4, 14, 15, 31, 58])
def test_names_from_the_static_table(index: int) -> None:
    ((_, value),) = BlockDecoder(1 << 16).decode(named(index, b"x" * 200)).headers
    assert value == b"x" * 200


@pytest.mark.parametrize(("size", "buffer"), [(1, 1), (100, 100), (5000, 65536)])
def test_a_message_takes_its_own_room_however_it_is_cut_up(size: int, buffer: int) -> None:
    reader = MessageReader(None)
    count = 1_000_000 // size
    message = bytes(range(250)) * (count * size // 250)
    reader.feed(bytes(1) + (len(message) + 1).to_bytes(4, "big"))
    tracemalloc.start()
    try:
        for start in range(0, len(message), size):
            piece = message[start : start + size]
            assert not reader.feed(memoryview(piece + bytes(buffer - len(piece)))[: len(piece)])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.5 * len(message)
    assert reader.feed(b"!") == [message + b"!"]


@given(st.lists(st.binary(max_size=10_000), max_size=4), st.lists(st.integers(1, 9_000), max_size=40))
def test_messages_survive_being_cut_up(messages: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(map(framed, messages))
    reader = MessageReader(None)
    received = []
    for cut in cuts:
        received += reader.feed(memoryview(wire + b"x" * cut)[: min(cut, len(wire))])
        wire = wire[cut:]
    received += reader.feed(wire)
    assert received == messages


def test_decompression_ends_with_the_calls_deadline() -> None:
    bomb = Compressed(compress(bytes(32 << 20)))
    assert len(plain(bomb, None, deadline=time.monotonic() + 60)) == 32 << 20
    tracemalloc.start()
    try:
        with pytest.raises(MessageError) as refused:
            plain(bomb, None, deadline=time.monotonic())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.status.code is StatusCode.DEADLINE_EXCEEDED
    assert most < 16 << 20


@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 9 << 20])
def test_what_is_decompressed_in_steps_is_whole_and_may_be_as_large_as_the_limit(size: int) -> None:
    message = bytes(range(251)) * (size // 251 + 1)
    wire = Compressed(compress(message[:size]))
    for limit in (None, size, size + 1):
        assert plain(wire, limit) == message[:size]
    if size:
        with pytest.raises(MessageError, match="over"):
            plain(wire, size - 1)
    with pytest.raises(MessageError, match="cut short"):
        plain(Compressed(wire[:-4]), None)
