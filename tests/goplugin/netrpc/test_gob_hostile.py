"""What a hostile or broken sender may write ends in an error, in bounded memory and time."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridload.goplugin.netrpc.gob import (
    NEED_DATA,
    Decoder,
    Encoder,
    Field,
    GobCorrupt,
    GobMismatch,
    GobValue,
    Int,
    Interface,
    Limits,
    Map,
    Registry,
    Slice,
    String,
    Struct,
    Time,
    Uint,
    from_hint,
)
from hybridload.goplugin.netrpc.gob.wire import put_int, put_uint
from hybridload.goplugin.netrpc.rpc import RpcClient, RpcServer

MIB = 1 << 20
STRING, INT, INTERFACE = 6, 2, 8
HUGE = 1 << 60


def uint(*numbers: int) -> bytes:
    out = bytearray()
    for number in numbers:
        put_uint(out, number)
    return bytes(out)


def integer(number: int) -> bytes:
    out = bytearray()
    put_int(out, number)
    return bytes(out)


def message(*parts: bytes) -> bytes:
    body = b"".join(parts)
    return uint(len(body)) + body


def text(words: str) -> bytes:
    return uint(len(words)) + words.encode()


def slice_body(type_id: int, elem: int) -> bytes:
    return integer(-type_id) + b"\2\1\2" + integer(type_id) + b"\0\1" + integer(elem) + b"\0\0"


def array_body(type_id: int, elem: int, length: int) -> bytes:
    common = integer(-type_id) + b"\1\1\2" + integer(type_id)
    return common + b"\0\1" + integer(elem) + b"\1" + integer(length) + b"\0\0"


def map_body(type_id: int, key: int, elem: int) -> bytes:
    return integer(-type_id) + b"\4\1\2" + integer(type_id) + b"\0\1" + integer(key) + b"\1" + integer(elem) + b"\0\0"


def struct_body(type_id: int, *fields: tuple[str, int]) -> bytes:
    told = b"".join(b"\1" + text(name) + b"\1" + integer(elem) + b"\0" for name, elem in fields)
    return integer(-type_id) + b"\3\1\2" + integer(type_id) + b"\0\1" + uint(len(fields)) + told + b"\0\0"


@contextmanager
def bounded(memory: int = 32 * MIB, seconds: float = 20.0) -> Iterator[None]:
    """Time is bounded generously, for slow machines: what is to be caught here would take minutes, or for ever."""
    started = time.monotonic()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < memory
    assert time.monotonic() - started < seconds


def exhaust(decoder: Decoder) -> None:
    while decoder.next_value() is not NEED_DATA:
        pass


def refused(stream: bytes, match: str, limits: Limits | None = None, memory: int = 32 * MIB) -> None:
    for one_by_one in (False, True):
        decoder = Decoder(limits=limits)
        with bounded(memory):
            if one_by_one and len(stream) < 10_000:
                for byte in stream[:-1]:
                    decoder.feed(bytes((byte,)))
                decoder.feed(stream[-1:])
            else:
                decoder.feed(stream)
            with pytest.raises(GobCorrupt, match=match):
                exhaust(decoder)
        with pytest.raises(GobCorrupt, match=match):
            decoder.next_value()
        with pytest.raises(GobCorrupt, match=match):
            decoder.skip_value()


@pytest.mark.parametrize(
    ("stream", "match"),
    [
        (uint(HUGE), "over the limit"),
        (b"\xf0" + bytes(16), "longer than eight bytes"),
        (b"\x80" + bytes(200), "longer than eight bytes"),
        (message(integer(STRING), b"\0", uint(HUGE)), "announced"),
        (message(integer(5), b"\0", uint(HUGE)), "announced"),
        (message(integer(STRING), b"\0", b"\xf8\1"), "longer than eight bytes, or than its message"),
        (message(integer(STRING)), "ends in the middle"),
        (message(integer(STRING), b"\1", text("x")), "does not begin with a zero"),
        (message(integer(STRING), b"\0", text("x"), b"\0"), "goes on after its end"),
        (message(slice_body(64, INT)) + message(integer(64), b"\0", uint(HUGE)), r"Limits\.elements"),
        (message(slice_body(64, INT)) + message(integer(64), b"\0", uint(1 << 20), b"\0"), "ends in the middle"),
        (message(map_body(64, INT, INT)) + message(integer(64), b"\0", uint(HUGE)), r"Limits\.elements"),
        (message(map_body(64, INT, INT)) + message(integer(64), b"\0", uint(1 << 20)), "ends in the middle"),
        (message(array_body(64, INT, HUGE)) + message(integer(64), b"\0", uint(HUGE)), r"Limits\.elements"),
        (message(struct_body(64, ("A", INT))) + message(integer(64), b"\2\2\0"), "field 1 of a struct of 1"),
        (message(struct_body(64, ("A", INT))) + message(integer(64), uint(HUGE)), "of a struct of 1"),
        (message(struct_body(64, ("A", INT))) + message(integer(64), b"\1\2"), "ends in the middle"),
    ],
)  # fmt: skip
def test_lengths_and_counts_are_checked_before_they_are_believed(stream: bytes, match: str) -> None:
    refused(stream, match)


@pytest.mark.parametrize(
    ("stream", "match"),
    [
        (message(integer(64), b"\0"), "type 64 is used and was never defined"),
        (message(integer(HUGE), b"\0"), "was never defined"),
        (message(integer(0), b"\0"), "type 0 is used"),
        (message(integer(9), b"\0"), "type 9 is used"),
        (message(slice_body(64, 99)) + message(integer(64), b"\0\1"), "type 99 is used"),
        (message(slice_body(64, -5)) + message(integer(64), b"\0\1"), "type -5 is used"),
        (message(slice_body(64, INT)) * 2, "type 64 is defined twice"),
        (message(slice_body(STRING, INT)), "type 6 is defined twice, or is one of gob's own"),
        (message(slice_body(16, INT)), "type 16"),
        (message(integer(-64), b"\0"), "0 types in it"),
        (message(slice_body(64, INT)[:-1] + b"\1\1\0\0\0\0"), "2 types in it"),
        (message(slice_body(64, INT), b"\0"), "goes on after its end"),
        (message(slice_body(64, INT)[:-2]), "ends in the middle"),
    ],
)  # fmt: skip
def test_type_numbers_are_checked(stream: bytes, match: str) -> None:
    refused(stream, match)


def test_a_type_bomb_is_refused() -> None:
    many = b"".join(message(slice_body(number, INT)) for number in range(64, 64 + 10_002))
    refused(many, r"Limits\.types")
    wide = b"".join(message(struct_body(64 + n, *[(f"Field{k:0200}", INT) for k in range(500)])) for n in range(30))
    refused(wide, r"Limits\.definitions", memory=128 * MIB)


def test_types_that_nest_too_deeply_are_refused() -> None:
    chain = b"".join(message(slice_body(number, number + 1)) for number in range(64, 5000))
    refused(chain + message(integer(64), b"\0\1"), r"Limits\.depth|Python's stack")


def test_doubling_structs_cost_what_is_sent_and_no_more() -> None:
    doubling = b"".join(message(struct_body(n, ("A", n + 1), ("B", n + 1))) for n in range(64, 104))
    last = message(struct_body(104, ("A", INT)))
    decoder = Decoder()
    with bounded():
        decoder.feed(doubling + last + message(integer(64), b"\1\1\0\0\0"))
        assert decoder.next_value() == {"A": {"A": {"A": None, "B": None}, "B": None}, "B": None}


@pytest.mark.parametrize(
    "definition",
    [slice_body(64, 64), array_body(64, 64, 1), struct_body(64, ("A", 64)), map_body(64, 64, 64)],
    ids=["slice", "array", "struct", "map"],
)
def test_a_type_of_itself_ends_at_the_depth_limit(definition: bytes) -> None:
    lead = b"" if b"\1A" in definition else b"\0"
    refused(message(definition) + message(integer(64), lead, b"\1" * 100_000), r"Limits\.depth")
    shallow = Decoder()
    shallow.feed(message(definition) + message(integer(64), lead, b"\1" * 20))
    with pytest.raises(GobCorrupt, match="ends in the middle"):
        shallow.next_value()


def test_a_value_in_several_messages_has_one_limit() -> None:
    """A type that is defined inside an interface ends the message, and the value goes on in the next one."""
    value = SAMPLES[1]
    decoder = Decoder(limits=Limits(message=200))
    decoder.feed(value)
    exhaust(decoder)
    refused(value, "in several messages", limits=Limits(message=100))


def test_interfaces_that_nest_too_deeply_are_refused() -> None:
    inner = b"\0"
    for _ in range(1000):
        inner = text("interface {}") + integer(INTERFACE) + uint(1 + len(inner)) + b"\0" + inner
    refused(message(integer(INTERFACE), b"\0", inner), r"Limits\.depth|Python's stack")


def test_what_is_filled_in_for_the_sender_counts() -> None:
    """A struct of 10,000 fields that are all left out is one byte, and 10,000 entries of a dict."""
    fields = [(f"F{number}", INT) for number in range(10_000)]
    stream = message(struct_body(65, *fields)) + message(slice_body(64, 65)) + message(
        integer(64), b"\0", uint(5_000_000), bytes(5_000_000)
    )  # fmt: skip
    refused(stream, r"Limits\.elements", limits=Limits(elements=100_000), memory=64 * MIB)


def test_a_receiver_makes_nothing_of_an_array_that_was_not_sent() -> None:
    decoder = Decoder()
    with bounded():
        decoder.feed(message(struct_body(65, ("A", 64), ("B", INT))) + message(array_body(64, INT, HUGE)))
        decoder.feed(message(integer(65), b"\2\2\0"))
        assert decoder.next_value() == {"A": None, "B": 1}


def test_a_large_message_in_small_pieces_costs_time_in_proportion() -> None:
    data = message(integer(5), b"\0", uint(8 * MIB), bytes(8 * MIB))
    decoder = Decoder()
    with bounded(memory=40 * MIB):
        for start in range(0, len(data), 1000):
            assert decoder.next_value() is NEED_DATA
            decoder.feed(data[start : start + 1000])
        assert len(decoder.next_value()) == 8 * MIB


def test_a_value_in_a_thousand_messages_is_not_read_a_thousand_times() -> None:
    """Each type that is new inside an interface ends a message; here each comes late, after a large first one."""
    elements = 20_000
    stream = [message(slice_body(64, INTERFACE))]
    rest = integer(64) + b"\0" + uint(elements + 1000) + (text("int") + integer(INT) + b"\2\0\2") * elements
    for number in range(65, 1065):
        stream.append(message(rest, text("t"), slice_body(number, INT)))
        rest = integer(number) + b"\2\0\0"
    stream.append(message(rest))
    decoder = Decoder()
    with bounded():
        for piece in stream:
            assert decoder.next_value() is NEED_DATA
            decoder.feed(piece)
        value = decoder.next_value()
    assert len(value) == elements + 1000
    assert value[-1] == GobValue("t", [])


def test_a_new_connection_knows_no_types_of_the_old() -> None:
    encoder = Encoder()
    encoder.encode([1], Slice(Int()))
    decoder = Decoder()
    decoder.feed(encoder.encode([1], Slice(Int())))
    with pytest.raises(GobCorrupt, match="was never defined"):
        decoder.next_value()


@dataclass(frozen=True)
class Item:
    name: str = ""
    count: int = 0
    more: tuple[int, ...] = ()


RECEIVERS = [
    Interface(),
    from_hint(Item),
    from_hint(dict[str, object]),
    from_hint(list[Item | None]),
    from_hint(int),
    from_hint(str),
    Map(Uint(8), Time()),
]
LIMITS = Limits(message=1 << 16, depth=50, elements=10_000, types=50, definitions=1 << 12)


def samples() -> list[bytes]:
    """Streams with everything in them, Go's own inline definitions included."""
    registry = Registry()
    registry.register("item", Item)
    encoder = Encoder(registry)
    tree = Struct("Tree", lambda: [Field("Name", String()), Field("Kids", Slice(tree))])
    own = b"".join(
        [
            encoder.encode(Item("a", -3, (1, 2)), registry.go_type(Item)),
            encoder.encode({"x": [1, "y", None, Item("b")], "t": {"z": 1.5, "c": 2j}}, Interface()),
            encoder.encode({"Name": "r", "Kids": [{"Name": "k"}]}, tree),
            encoder.encode({3: b"xyz", -1: b""}, from_hint(dict[int, bytes])),
        ]
    )
    nested = (
        "431000086d61696e2e426f78ffe303010103426f7801ffe400010401054c6162656c010c000103416e7901100001044d616e7901ffd800"
        "01054e616d656401ffda0000000cffd7020102ffd800011000000effd9040102ffda00010c0110000054ffe45101056f7574657201086d"
        "61696e2e426f78ffe43201"
    )
    return [own, bytes.fromhex(nested)]


SAMPLES = samples()


def consume(stream: bytes, receivers: list[Any], size: int) -> None:
    """Read all there is, as a caller would who goes on after a mismatch."""
    decoder = Decoder(limits=LIMITS)
    turn = 0
    try:
        for start in range(0, len(stream), size):
            decoder.feed(stream[start : start + size])
            while True:
                turn += 1
                try:
                    if turn % 5 == 4:
                        if not decoder.skip_value():
                            break
                    elif decoder.next_value(receivers[turn % len(receivers)]) is NEED_DATA:
                        break
                except GobMismatch:
                    pass
    except GobCorrupt:
        return


fuzzing = settings(max_examples=400, deadline=20_000)
receiving = st.lists(st.sampled_from(RECEIVERS), min_size=1, max_size=4)
sizes = st.sampled_from([1, 3, 10_000])


@fuzzing
@given(st.binary(max_size=300), receiving, sizes)
def test_any_bytes_are_a_stream_or_an_error(stream: bytes, receivers: list[Any], size: int) -> None:
    consume(stream, receivers, size)


@fuzzing
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=4),
    receiving,
    sizes,
)
def test_a_damaged_stream_is_a_stream_or_an_error(
    sample: bytes, damages: list[tuple[int, bytes, int]], receivers: list[Any], size: int
) -> None:
    stream = bytearray(sample)
    for place, inserted, removed in damages:
        stream[place : place + removed] = inserted
    consume(bytes(stream), receivers, size)


ids = st.sampled_from([2, 5, 6, 7, 8, 64, 65, 66, 67])
definitions = st.one_of(
    st.builds(slice_body, st.integers(64, 68), ids),
    st.builds(array_body, st.integers(64, 68), ids, st.integers(-1, 3)),
    st.builds(map_body, st.integers(64, 68), ids, ids),
    st.builds(lambda n, kinds: struct_body(n, *[(f"F{k}", kind) for k, kind in enumerate(kinds)]),
              st.integers(64, 68), st.lists(ids, max_size=3)),
)  # fmt: skip
values = st.builds(lambda n, body: integer(n) + body, ids, st.lists(st.sampled_from(
    [b"\0", b"\1", b"\2", b"\3", text("x"), text("int") + b"\4\3\0\2", text("t") + b"\xff\x80\1\0"]), max_size=12
).map(b"".join))  # fmt: skip


@fuzzing
@given(
    st.lists(definitions, max_size=5),
    st.lists(st.builds(lambda *parts: b"".join(parts), values, st.just(b"") | definitions), max_size=4),
    receiving,
    sizes,
)
def test_any_types_and_values_are_a_stream_or_an_error(
    types: list[bytes], bodies: list[bytes], receivers: list[Any], size: int
) -> None:
    consume(b"".join(map(message, types + bodies)), receivers, size)


@fuzzing
@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 4))
def test_damaged_net_rpc_is_net_rpc_or_an_error(inserted: bytes, place: int, removed: int) -> None:
    client, server = RpcClient(limits=LIMITS), RpcServer({"A": {"B": Interface(), "C": String()}}, limits=LIMITS)
    stream = bytearray()
    answers = bytearray()
    for method in ("A.B", "A.C", "A.D"):
        stream += client.call(method, "x", String())[1]
    for call in RpcServer({"A": {"B": Interface(), "C": String(), "D": String()}}).receive(bytes(stream)):
        answers += server.error(call, "no") if call.method == "D" else server.reply(call, ["x"], Interface())  # type: ignore[arg-type]
    for broken, receive in ((stream, server.receive), (answers, client.receive)):
        broken[place : place + removed] = inserted
        try:
            list(receive(bytes(broken)))
        except GobCorrupt:
            pass
