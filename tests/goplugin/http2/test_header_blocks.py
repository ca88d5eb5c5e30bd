"""Header blocks that hybridload itself sends are read without hpack, and as hpack reads them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hpack import Decoder, Encoder, HPACKError
from hypothesis import given
from hypothesis import strategies as some

from hybridload.goplugin.http2.context import RESPONSE_HEAD
from hybridload.goplugin.http2.frames import FrameError
from hybridload.goplugin.http2.header_blocks import BlockDecoder, literal, named, plain_fields

MOST = 1 << 16
texts = some.one_of(some.binary(max_size=140), some.sampled_from((127, 128, 254, 255, 256, 16510, 16511)).map(bytes))
ours = some.one_of(
    some.sampled_from((b"\x83", b"\x86", b"\x88", RESPONSE_HEAD)),
    some.builds(named, some.sampled_from((1, 4, 31, 58)), texts),
    some.builds(literal, texts, texts),
)
blocks_of_ours = some.lists(ours, max_size=4).map(b"".join)
theirs = some.lists(some.tuples(some.binary(max_size=20), some.binary(max_size=20)), max_size=4)


def by_hpack(block: bytes, most: int = MOST, decoder: Decoder | None = None) -> Any:
    """The fields of a block, or `None` when it is refused."""
    try:
        return tuple(map(tuple, (decoder or Decoder(max_header_list_size=most)).decode(block, raw=True)))
    except (HPACKError, IndexError, ValueError):
        return None


@given(blocks_of_ours)
def test_a_block_of_ours_is_read_as_hpack_reads_it(block: bytes) -> None:
    read = plain_fields(block, MOST)
    assert read == by_hpack(block)
    if read is not None:
        size = sum(len(name) + len(value) + 32 for name, value in read)
        assert plain_fields(block, size) == read
        assert size == 0 or plain_fields(block, size - 1) is None


@given(some.one_of(some.binary(max_size=40), some.tuples(blocks_of_ours, some.binary(max_size=6)).map(b"".join)))
def test_any_other_block_is_left_to_hpack_or_read_as_hpack_reads_it(block: bytes) -> None:
    assert plain_fields(block, MOST) in (None, by_hpack(block))


@given(blocks_of_ours, some.data())
def test_a_block_that_is_cut_off_or_garbled_is_not_guessed_at(block: bytes, data: Any) -> None:
    cut = block[: data.draw(some.integers(0, len(block)))]
    garbled = bytearray(block or b"\0")
    garbled[data.draw(some.integers(0, min(len(garbled), 8) - 1))] = data.draw(some.integers(0, 255))
    for each in (cut, bytes(garbled)):
        assert plain_fields(each, MOST) in (None, by_hpack(each))


@given(some.lists(some.one_of(blocks_of_ours, theirs, some.binary(max_size=20)), max_size=6))
def test_a_connection_reads_a_mixture_as_hpack_alone_would(blocks: list[Any]) -> None:
    encoder, alone, decoder = Encoder(), Decoder(max_header_list_size=MOST), BlockDecoder(MOST)
    for each in blocks:
        block = each if isinstance(each, bytes) else encoder.encode(each)
        for _ in range(2):
            expected = by_hpack(block, decoder=alone)
            if expected is None:
                with pytest.raises(FrameError):
                    decoder.decode(block)
                return  # the connection ends
            assert decoder.decode(block).headers == expected


def test_a_length_without_an_end_is_refused() -> None:
    assert plain_fields(b"\0\x7f" + b"\xff" * 60000 + b"\1", MOST) is None


def test_hpack_is_not_imported_for_ours() -> None:
    code = """
import sys
from hybridload.goplugin.http2.header_blocks import BlockDecoder, literal, named
decoder = BlockDecoder(1 << 16)
decoder.decode(b"\\x83\\x86" + named(4, b"/a/b") + literal(b"x", b"y" * 300))
assert "hpack" not in sys.modules
assert decoder.decode(b"\\x82").headers == ((b":method", b"GET"),)
assert "hpack" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
