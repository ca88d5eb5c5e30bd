"""Values through bytes and back, for every type; and what is said about those that cannot travel."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, Protocol

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridload.contract import Contract, calls


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


class Size(enum.IntEnum):
    NONE = 0
    BIG = 2**31 - 1
    SMALL = -(2**31)


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0


@dataclass
class Node:
    name: str
    point: Point
    kids: list[Node] = field(default_factory=list)
    named: dict[str, Node] = field(default_factory=dict)
    colour: Colour | None = None
    note: str | None = None
    raw: bytes = field(default=b"", kw_only=True)
    label: str = field(init=False, default="never sent")


class Box(Protocol):
    def text(self, value: str) -> str: ...
    def number(self, value: int) -> int: ...
    def real(self, value: float) -> float: ...
    def flag(self, value: bool) -> bool: ...
    def data(self, value: bytes) -> bytes: ...
    def instant(self, value: datetime) -> datetime: ...
    def span(self, value: timedelta) -> timedelta: ...
    def colour(self, value: Colour) -> Colour: ...
    def size(self, value: Size) -> Size: ...
    def texts(self, value: list[str]) -> list[str]: ...
    def pair(self, value: tuple[int, ...]) -> tuple[int, ...]: ...
    def unique(self, value: set[int]) -> set[int]: ...
    def frozen(self, value: frozenset[Colour]) -> frozenset[Colour]: ...
    def sequence(self, value: Sequence[float]) -> Sequence[float]: ...
    def table(self, value: dict[str, int]) -> dict[str, int]: ...
    def flags(self, value: dict[bool, bytes]) -> dict[bool, bytes]: ...
    def points(self, value: dict[int, Point]) -> dict[int, Point]: ...
    def maybe_text(self, value: str | None) -> str | None: ...
    def maybe_number(self, value: int | None) -> int | None: ...
    def maybe_list(self, value: list[bytes] | None) -> list[bytes] | None: ...
    def maybe_point(self, value: Point | None) -> Point | None: ...
    def lists(self, value: list[list[int]]) -> list[list[int]]: ...
    def holes(self, value: list[str | None]) -> list[str | None]: ...
    def tables(self, value: dict[str, dict[int, bool]]) -> dict[str, dict[int, bool]]: ...
    def mixed(self, value: dict[str, list[Point | None]]) -> dict[str, list[Point | None]]: ...
    def instants(self, value: list[datetime]) -> list[datetime]: ...
    def node(self, value: Node) -> Node: ...


WIRE = Contract(Box).complete().wire()

int64 = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False)
text = st.text()
zones: st.SearchStrategy[tzinfo] = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
instants = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=zones)
points = st.builds(Point, int64, floats)
colours = st.sampled_from(Colour)
nodes = st.recursive(
    st.builds(Node, text, points, colour=st.none() | colours, note=st.none() | text, raw=st.binary()),
    lambda inner: st.builds(
        Node, text, points, st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=2)
    ),
    max_leaves=6,
)  # fmt: skip
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": text,
    "number": int64,
    "real": floats,
    "flag": st.booleans(),
    "data": st.binary(),
    "instant": instants,
    "span": st.timedeltas(),
    "colour": colours,
    "size": st.sampled_from(Size),
    "texts": st.lists(text),
    "pair": st.lists(int64).map(tuple),
    "unique": st.sets(int64),
    "frozen": st.frozensets(colours),
    "sequence": st.lists(floats),
    "table": st.dictionaries(text, int64),
    "flags": st.dictionaries(st.booleans(), st.binary()),
    "points": st.dictionaries(int64, points),
    "maybe_text": st.none() | text,
    "maybe_number": st.none() | int64,
    "maybe_list": st.none() | st.lists(st.binary()),
    "maybe_point": st.none() | points,
    "lists": st.lists(st.lists(int64)),
    "holes": st.lists(st.none() | text),
    "tables": st.dictionaries(text, st.dictionaries(int64, st.booleans())),
    "mixed": st.dictionaries(text, st.lists(st.none() | points)),
    "instants": st.lists(instants),
    "node": nodes,
}


def test_every_method_has_values() -> None:
    assert set(VALUES) == set(WIRE.methods)


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_equal(name: str) -> None:
    method = WIRE.methods[name]

    @settings(max_examples=60)
    @given(VALUES[name])
    def round_trip(value: Any) -> None:
        (received,), kwargs = method.decode_arguments(method.encode_arguments((value,), {}, None), None)
        assert received == value
        assert type(received) is type(value)
        assert kwargs == {}
        result = method.decode_result(method.encode_result(value, None), None)
        assert result == value

    round_trip()


LARGE = bytes(range(256)) * (calls.LARGE // 256)


@pytest.mark.parametrize("value", [b"", LARGE[:-1], LARGE, LARGE + b"x", LARGE * 200], ids=len)
def test_large_bytes_are_what_protobuf_makes_of_them(value: bytes) -> None:
    data = WIRE.methods["data"]
    encoded = BytesValue(value=value).SerializeToString()
    assert data.encode_arguments((value,), {}, None) == data.encode_result(value, None) == encoded
    assert data.decode_arguments(encoded, None) == ((value,), {})
    assert data.decode_result(encoded, None) == value


@pytest.mark.parametrize(
    "encoded",
    [
        BytesValue(value=b"first").SerializeToString() + BytesValue(value=LARGE).SerializeToString(),
        BytesValue(value=LARGE).SerializeToString() + BytesValue(value=b"last").SerializeToString(),
        BytesValue(value=LARGE).SerializeToString() + b"\x10\x01",
        b"\x10\x01" + BytesValue(value=LARGE).SerializeToString(),
        b"\x12" + BytesValue(value=LARGE).SerializeToString()[1:],
    ],
    ids=["twice", "twice, the last small", "an unknown field behind", "one before", "nothing else"],
)
def test_large_bytes_in_another_form_are_read_as_protobuf_reads_them(encoded: bytes) -> None:
    data = WIRE.methods["data"]
    value = BytesValue.FromString(encoded).value
    assert data.decode_arguments(encoded, None) == ((value,), {})
    assert data.decode_result(encoded, None) == value


@pytest.mark.parametrize("left", [1, 2, len(LARGE), -1])
def test_large_bytes_that_are_cut_off_are_refused(left: int) -> None:
    data = WIRE.methods["data"]
    encoded = BytesValue(value=LARGE * 2).SerializeToString()[:left].ljust(len(LARGE), b"\xff")
    with pytest.raises(ValueError, match=r"^data\(\).*the bytes received are no "):
        data.decode_arguments(encoded, None)
    with pytest.raises(ValueError, match=r"^data\(\).*the bytes received are no "):
        data.decode_result(encoded, None)


@pytest.mark.parametrize("length", [b"\xff" * (1 << 20), b"\x80\x80\x81\x80\x80\x80\x00", b"\x80" * 10 + b"\x01"])
def test_a_length_that_is_none_is_refused_and_takes_no_time(length: bytes) -> None:
    data = WIRE.methods["data"]
    encoded = b"\n" + length + LARGE
    with pytest.raises(DecodeError):
        BytesValue.FromString(encoded)
    with pytest.raises(ValueError, match=r"^data\(\).*the bytes received are no "):
        data.decode_arguments(encoded, None)
    with pytest.raises(ValueError, match=r"^data\(\).*the bytes received are no "):
        data.decode_result(encoded, None)


def test_only_bytes_are_taken_for_large_bytes() -> None:
    data = WIRE.methods["data"]
    for value in (bytearray(LARGE), memoryview(LARGE), "x" * len(LARGE)):
        with pytest.raises(TypeError, match="must be bytes"):
            data.encode_arguments((value,), {}, None)
        with pytest.raises(TypeError, match="must be bytes"):
            data.encode_result(value, None)


class Refused(Exception):
    """Received bytes were refused as they should be."""


@contextlib.contextmanager
def refusals_named(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if str(error).startswith(f"{name}()"):
            raise Refused from error
        raise


@given(st.binary())
def test_any_bytes_are_decoded_or_refused_by_name(data: bytes) -> None:
    for name in ("node", "mixed", "instant", "size", "span", "maybe_list"):
        with contextlib.suppress(Refused), refusals_named(name):
            WIRE.methods[name].decode_arguments(data, None)


def test_nan_and_infinities_travel() -> None:
    real = WIRE.methods["real"]
    assert math.isnan(real.decode_result(real.encode_result(math.nan, None), None))
    assert real.decode_result(real.encode_result(-math.inf, None), None) == -math.inf


def test_instants_come_back_in_utc() -> None:
    instant = WIRE.methods["instant"]
    noon = datetime(2026, 6, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    received = instant.decode_result(instant.encode_result(noon, None), None)
    assert received == noon
    assert received.tzinfo is UTC


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("text", 3, TypeError, "text() argument 'value' must be str, not int"),
        ("text", b"x", TypeError, "text() argument 'value' must be str, not bytes"),
        ("text", None, TypeError, "text() argument 'value' must be str, not None"),
        ("text", "a\ud800", ValueError, "text() argument 'value' has a lone surrogate at 1, which no"),
        ("number", "3", TypeError, "number() argument 'value' must be int, not str"),
        ("number", 3.0, TypeError, "number() argument 'value' must be int, not float"),
        ("number", 2**63, OverflowError, "number() argument 'value' must be from -9223372036854775808 to "
         "9223372036854775807 (int64), not 9223372036854775808"),
        ("real", "1", TypeError, "real() argument 'value' must be float, not str"),
        ("real", 10**400, OverflowError, "real() argument 'value' is too large for a float"),
        ("flag", 1, TypeError, "flag() argument 'value' must be bool, not int"),
        ("data", bytearray(b"x"), TypeError, "data() argument 'value' must be bytes, not bytearray"),
        ("instant", datetime(2026, 1, 1), ValueError, "instant() argument 'value' is a naive datetime"),
        ("instant", 3, TypeError, "instant() argument 'value' must be datetime, not int"),
        ("span", 3, TypeError, "span() argument 'value' must be timedelta, not int"),
        ("colour", "r", TypeError, "colour() argument 'value' must be Colour, not str"),
        ("colour", Size.NONE, TypeError, "colour() argument 'value' must be Colour, not Size"),
        ("texts", "abc", TypeError, "texts() argument 'value' must be list, not str"),
        ("texts", ["a", 3], TypeError, "texts() argument 'value[1]' must be str, not int"),
        ("sequence", "abc", TypeError, "sequence() argument 'value' must be Sequence, not str"),
        ("pair", [1], TypeError, "pair() argument 'value' must be tuple, not list"),
        ("table", [1], TypeError, "table() argument 'value' must be dict, not list"),
        ("table", {"a": None}, TypeError, "table() argument 'value['a']' must be int, not None"),
        ("table", {3: 1}, TypeError, "table() argument 'value key 3' must be str, not int"),
        ("points", {1: Point("x")}, TypeError, "points() argument 'value[1].x' must be int, not str"),  # type: ignore[arg-type]
        ("maybe_number", "x", TypeError, "maybe_number() argument 'value' must be int, not str"),
        ("lists", [[1], [2, None]], TypeError, "lists() argument 'value[1][1]' must be int, not None"),
        ("mixed", {"k": [None, 3]}, TypeError, "mixed() argument 'value['k'][1]' must be Point, not int"),
        ("node", Node("a", Point(1), [Node("b", None)]), TypeError,  # type: ignore[arg-type]
         "node() argument 'value.kids[0].point' must be Point, not None"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_travel_is_named(name: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        WIRE.methods[name].encode_arguments((value,), {}, None)
    assert message in str(caught.value)
    assert type(caught.value) is error
    with pytest.raises(error) as caught:
        WIRE.methods[name].encode_result(value, None)
    assert message.replace("argument 'value", "result").replace("' must", " must").replace("' ", " ") in str(
        caught.value
    )


def test_a_huge_number_is_refused_without_its_digits() -> None:
    with pytest.raises(OverflowError, match=r"not about -10\*\*4999$|not about -10\*\*5000$"):
        WIRE.methods["number"].encode_arguments((-(10**5000),), {}, None)


def test_bool_passes_for_int_and_int_for_float() -> None:
    number, real = WIRE.methods["number"], WIRE.methods["real"]
    assert number.decode_result(number.encode_result(True, None), None) == 1
    assert type(real.decode_result(real.encode_result(3, None), None)) is float


def test_what_has_an_index_passes_for_int() -> None:
    class Index:
        def __index__(self) -> int:
            return 7

    number = WIRE.methods["number"]
    assert number.decode_result(number.encode_result(Index(), None), None) == 7


class Calls(Protocol):
    def none(self) -> None: ...
    def put(self, key: str, value: int = 3, /, flag: bool = False, *, note: str | None = None, must: int) -> None: ...
    def any_order(self, a: int, *, b: int, c: int = 5) -> None: ...
    def shared(self, items: list[int] = []) -> None: ...  # noqa: B006
    def upload(self, name: str, items: Iterator[int], /, *, last: bool = False) -> None: ...
    def collect(self, items: Collection[int], table: Mapping[str, int]) -> None: ...


CALLS = Contract(Calls).complete().wire().methods


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        (("k",), {}),
        ((), {"key": "k", "must": 1}),
        (("k", 1), {"value": 1, "must": 1}),
        (("k", 1, True, "x"), {"must": 1}),
        (("k", 1, True), {"flag": True, "must": 1}),
        (("k",), {"must": 1, "zzz": 1}),
    ],
)
def test_wrong_arguments_are_refused_as_python_does(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    method = CALLS["put"]
    with pytest.raises(TypeError) as python:
        method.method.signature.bind(*args, **kwargs)
    with pytest.raises(TypeError) as ours:
        method.encode_arguments(args, kwargs, None)
    assert str(ours.value) == f"put() {python.value}"


def test_no_parameters_take_no_arguments() -> None:
    with pytest.raises(TypeError, match=r"^none\(\) too many positional arguments$"):
        CALLS["none"].encode_arguments((1,), {}, None)
    with pytest.raises(TypeError, match=r"^none\(\) result must be None, not int$"):
        CALLS["none"].encode_result(3, None)
    assert CALLS["none"].decode_arguments(b"", None) == ((), {})
    assert CALLS["none"].decode_result(b"", None) is None


def test_arguments_arrive_as_the_interface_orders_them() -> None:
    put = CALLS["put"]
    data = put.encode_arguments(("k",), {"must": 9, "flag": True}, None)
    assert put.decode_arguments(data, None) == (("k", 3, True), {"note": None, "must": 9})
    data = CALLS["any_order"].encode_arguments((), {"b": 2, "a": 1}, None)
    assert CALLS["any_order"].decode_arguments(data, None) == ((1,), {"b": 2, "c": 5})


def test_a_default_that_is_a_list_is_not_shared() -> None:
    shared = CALLS["shared"]
    (first,), _ = shared.decode_arguments(shared.encode_arguments((), {}, None), None)
    first.append(1)
    (second,), _ = shared.decode_arguments(shared.encode_arguments((), {}, None), None)
    assert second == []


def test_abstract_containers_are_accepted() -> None:
    collect = CALLS["collect"]
    data = collect.encode_arguments(({1: ""}.keys(), {"a": 1}), {}, None)
    assert collect.decode_arguments(data, None) == (([1], {"a": 1}), {})


def test_a_stream_is_encoded_as_it_is_consumed() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in (1, 2, 3):
            taken.append(number)
            yield number

    chunks = CALLS["upload"].encode_argument_stream(("n", numbers()), {"last": True}, None)
    assert taken == []
    next(chunks)
    assert taken == []
    next(chunks)
    assert taken == [1]


def test_a_stream_is_decoded_as_it_is_consumed() -> None:
    chunks = list(CALLS["upload"].encode_argument_stream(("n", iter([1, 2, 3])), {"last": True}, None))
    source = iter(chunks)
    (name, items), kwargs = CALLS["upload"].decode_argument_stream(source, None)
    assert (name, kwargs) == ("n", {"last": True})
    assert next(items) == 1
    assert len(list(source)) == 2


def test_wrong_streams_are_named() -> None:
    upload = CALLS["upload"]
    with pytest.raises(TypeError, match=r"^upload\(\) argument 'items' must be an iterator, not int$"):
        upload.encode_argument_stream(("n", 3), {}, None)
    with pytest.raises(TypeError, match=r"^upload\(\) argument 'name' must be str, not int$"):
        upload.encode_argument_stream((3, iter([])), {}, None)
    with pytest.raises(TypeError, match=r"^upload\(\) argument 'items' item must be int, not str$"):
        list(upload.encode_argument_stream(("n", iter(["x"])), {}, None))
    with pytest.raises(ValueError, match=r"^upload\(\): the stream ended before the message that carries name, last$"):
        upload.decode_argument_stream(iter([]), None)
    with pytest.raises(TypeError, match="arguments are no stream"):
        CALLS["none"].encode_argument_stream((), {}, None)


class AsyncCalls(Protocol):
    async def upload(self, name: str, items: AsyncIterator[int]) -> None: ...


def test_asynchronous_streams_travel_too() -> None:
    async def talk() -> None:
        upload = Contract(AsyncCalls).complete().wire().methods["upload"]

        async def numbers() -> AsyncIterator[int]:
            yield 1
            yield 2

        chunks = upload.encode_argument_stream_async(("n", numbers()), {}, None)
        (name, items), _ = await upload.decode_argument_stream_async(chunks, None)
        assert (name, [item async for item in items]) == ("n", [1, 2])
        with pytest.raises(TypeError, match=r"argument 'items' must be an async iterator, not list_iterator$"):
            upload.encode_argument_stream_async(("n", iter([1])), {}, None)

    asyncio.run(talk())
