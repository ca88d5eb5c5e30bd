"""A corpus that Go wrote: each value decodes to the Python one, and what is sent back is the same value to Go."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import pytest

from hybridload.goplugin.netrpc.gob import (
    NEED_DATA,
    ZERO_TIME,
    Array,
    Complex,
    Decoder,
    Deferred,
    Encoded,
    Encoder,
    Field,
    Float,
    GobData,
    GobValue,
    Int,
    Map,
    Name,
    Pointer,
    Registry,
    Slice,
    Struct,
    Uint,
    from_hint,
)

Alike: TypeAlias = Callable[[Any, Any], bool]

NAN = math.nan
INT, STRING, BYTES = from_hint(int), from_hint(str), from_hint(bytes)
FLOAT32, COMPLEX64 = Float(32), Complex(64)


@dataclass(frozen=True)
class Point:
    x: int = 0
    y: int = 0


@dataclass
class Widths:
    bool: bool
    int: int
    int8: Annotated[int, Int(8)]
    int16: Annotated[int, Int(16)]
    int32: Annotated[int, Int(32)]
    int64: int
    uint: Annotated[int, Uint()]
    uint8: Annotated[int, Uint(8)]
    uint16: Annotated[int, Uint(16)]
    uint32: Annotated[int, Uint(32)]
    uint64: Annotated[int, Uint()]
    uintptr: Annotated[int, Uint()]
    float32: Annotated[float, FLOAT32]
    float64: float
    complex64: Annotated[complex, COMPLEX64]
    complex128: complex
    string: str
    bytes: bytes


@dataclass
class Node:
    value: int
    next: Node | None = None


@dataclass
class Tree:
    name: str = ""
    children: list[Tree] = field(default_factory=list)
    by_name: dict[str, Tree | None] = field(default_factory=dict)


@dataclass
class Ping:
    number: int
    pong: Pong | None = None


@dataclass
class Pong:
    name: str
    pings: list[Ping]


@dataclass
class Base:
    id: Annotated[int, Uint(32), Name("ID")]


@dataclass
class Derived:
    base: Base
    name: str


@dataclass
class Pointers:
    nil: int | None = None
    zero: int | None = None
    set: int | None = None
    deep: str | None = None
    struct: Point | None = None
    nil_point: Point | None = None
    array: Annotated[list[int], Pointer(Array(2, INT))] | None = None


@dataclass
class Box:
    label: str = ""
    any: Any = None
    many: list[object] = field(default_factory=list)
    named: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Square:
    side: float


@dataclass
class Circle:
    radius: float


@dataclass
class Failure:
    message: str


@dataclass(frozen=True)
class Empty:
    pass


@dataclass
class Times:
    before: datetime
    at: datetime
    later: datetime | None


KEY = Struct("Key", [Field("Kind", STRING), Field("Size", Array(2, Int(8)))])
WIDE = Struct("", [Field(f"F{chr(65 + n // 26)}{chr(65 + n % 26)}", INT) for n in range(200)])
SELF_ENCODING = Struct(
    "", [Field("N", Pointer(Encoded("Int"))), Field("A", Encoded("Addr", "binary")), Field("S", STRING)]
)
PAIR = Struct("", [Field("A", STRING), Field("B", STRING)])


NEST = Slice(Deferred("Nest", lambda: NEST))
DIRS = Map(STRING, Deferred("Dirs", lambda: DIRS))

INSTANT = datetime(2024, 2, 29, 23, 59, 58, 123456, UTC)
IN_KARACHI = INSTANT.astimezone(timezone(timedelta(hours=5)))
LMT = datetime(1883, 11, 18, 12, 3, 58, tzinfo=timezone(-timedelta(hours=4, minutes=56, seconds=2)))

REGISTERED: dict[str, Any] = {
    "main.Point": Point,
    "main.Box": Box,
    "main.Square": Square,
    "*main.Circle": Circle,
    "main.Color": int,
    "*main.Failure": Failure,
    "main.Node": Node,
    "main.Empty": Empty,
    "names of things": list[str],
}

ADDRESS = GobData("", bytes([192, 0, 2, 1]), "binary")
WIDE_VALUES = dict.fromkeys((f.name for f in WIDE.fields), 0) | {"FAB": 1, "FHR": 199}


def listed(length: int) -> Node:
    first = None
    for number in range(length, 0, -1):
        first = Node(number, first)
    assert first is not None
    return first


# Name, the type with which it is received and sent, and the value.
CORPUS: list[tuple[str, Any, Any]] = [
    ("true", bool, True),
    ("false", bool, False),
    ("int zero", int, 0),
    ("int 7", int, 7),
    ("int -129", int, -129),
    ("int 63", int, 63),
    ("int 64", int, 64),
    ("int min", int, -(2**63)),
    ("int max", int, 2**63 - 1),
    *[(f"int{bits} {end}", Int(bits), value) for bits in (8, 16, 32, 64)
      for end, value in (("min", -(2 ** (bits - 1))), ("max", 2 ** (bits - 1) - 1))],
    *[(f"uint {value}" if value else "uint zero", Uint(), value) for value in (0, 127, 128, 256)],
    *[(f"uint{bits} max", Uint(bits), 2**bits - 1) for bits in (8, 16, 32, 64)],
    ("uintptr", Uint(), 0xDEAD),
    ("float zero", float, 0.0),
    ("float minus zero", float, -0.0),
    ("float 17", float, 17.0),
    ("float pi", float, math.pi),
    ("float nan", float, NAN),
    ("float inf", float, math.inf),
    ("float -inf", float, -math.inf),
    ("float max", float, 1.7976931348623157e308),
    ("float least", float, 5e-324),
    ("float32 max", FLOAT32, 3.4028234663852886e38),
    ("float32 tenth", FLOAT32, 0.10000000149011612),
    ("float32 inf", FLOAT32, math.inf),
    ("complex", complex, 1.5 - 2j),
    ("complex zero", complex, 0j),
    ("complex64", COMPLEX64, -3 + 0.25j),
    ("complex nan", complex, complex(NAN, 1)),
    ("string", str, "hello"),
    ("string empty", str, ""),
    ("string unicode", str, "héllo, 世界 🎉"),
    ("string not utf-8", str, "a\udcff\udcfe\x00z"),
    ("string long", str, "ab" * 500),
    ("bytes", bytes, b"\x00\x01\xfe\xff"),
    ("bytes empty", bytes, b""),
    ("bytes nil", bytes, b""),
    ("slice", list[int], [1, -2, 3]),
    ("slice empty", list[int], []),
    ("slice nil", list[int], []),
    ("slice nested", list[list[str]], [["a"], [], ["b", ""]]),
    ("slice bool", list[bool], [True, False]),
    ("slice float", list[float], [0.0, -0.0, NAN, 1.0]),
    ("slice uint16", Slice(Uint(16)), [0, 65535]),
    ("slice int8", Slice(Int(8)), [-128, 127]),
    ("slice bytes", list[bytes], [b"\x01", b"", b"\x02\x03"]),
    ("slice structs", list[Point], [Point(1, 2), Point(), Point(0, 3)]),
    ("slice pointers", list[Point | None], [Point(1, 2), Point()]),
    ("slice empties", list[Empty], [Empty(), Empty()]),
    ("slice named", list[str], ["x"]),
    ("array", Array(3, INT), [1, 0, -1]),
    ("array bytes", Array(4, Uint(8)), [0, 1, 128, 255]),
    ("array none", Array(0, INT), []),
    ("array nested", Array(2, Array(2, STRING)), [["a", "b"], ["", "d"]]),
    ("map", dict[str, int], {"a": 1, "b": 0}),
    ("map empty", dict[str, int], {}),
    ("map nil", dict[str, int], {}),
    ("map nested", dict[int, dict[str, bytes]], {-1: {"k": b"\x09"}, 2: {}}),
    ("map of bool", dict[bool, str], {True: "yes", False: ""}),
    ("map of arrays", Map(Array(2, INT), STRING), {(1, 2): "x"}),
    ("map of structs", Map(KEY, Uint(8)), {(("Kind", "k"), ("Size", (1, -1))): 9}),
    ("map of interfaces", dict[object, object], {"s": 1, 2: "i", GobValue("main.Color", 3): None}),
    ("struct", Point, Point(22, 33)),
    ("struct zero", Point, Point()),
    ("struct empty", Empty, Empty()),
    ("struct unnamed", PAIR, {"A": "a", "B": ""}),
    ("struct widths", Widths, Widths(
        True, -(2**63), -8, -16, -32, -64, 2**64 - 1, 8, 16, 32, 64, 99, 0.5, -0.25, 1j, 2 + 2j, "s", b"b")),
    ("struct widths zero", Widths, Widths(False, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0j, 0j, "", b"")),
    ("struct embedded", Derived, Derived(Base(7), "n")),
    ("struct wide", WIDE, WIDE_VALUES),
    ("pointers", Pointers, Pointers(set=5, deep="deep", struct=Point(1, 0), array=[0, 0])),
    ("pointers nil", Pointers, Pointers()),
    ("list", Node, Node(1, Node(2, Node(0)))),
    ("list of 60", Node, listed(60)),
    ("tree", Tree, Tree("root", [Tree("a"), Tree("b", [Tree("c")])], {"x": Tree("y")})),
    ("mutual", Ping, Ping(1, Pong("p", [Ping(2), Ping(3, Pong("q", []))]))),
    ("nest", NEST, [[], [[], [[]]]]),
    ("dirs", DIRS, {"a": {"b": {}}, "c": {}}),
    ("interface nil", object, None),
    ("interface string", object, "abc"),
    ("interface bool", object, False),
    ("interface int", object, -5),
    ("interface int64", object, GobValue("int64", 5)),
    ("interface uint8", object, GobValue("uint8", 200)),
    ("interface float32", object, GobValue("float32", 0.5)),
    ("interface float", object, 0.5),
    ("interface complex", object, 2j),
    ("interface bytes", object, b"xyz"),
    ("interface strings", object, ["a", "b"]),
    ("interface ints", object, [1, 2]),
    ("interface bools", object, [True]),
    ("interface list", object, [1, "two", None, 3.0, GobValue("[]interface {}", [True])]),
    ("interface map", object, {"n": 1, "m": {"deep": ["x"], "nil": None}}),
    ("interface map of int32", object, GobValue("map[string]int32", {"a": 1})),
    ("interface struct", object, Point(1, 2)),
    ("interface pointer", object, Circle(2.0)),
    ("interface named int", object, GobValue("main.Color", 3)),
    ("interface named name", object, GobValue("names of things", ["p", "q"])),
    ("interface empty struct", object, Empty()),
    ("interface error", object, Failure("it broke")),
    ("interface time", object, INSTANT),
    ("interface recursive", object, Node(1, Node(2))),
    ("interface in interface", object, Box("outer", Box("inner", Point(3, 4)))),
    ("error", object, Failure("as an error")),
    ("shapes", list[object], [Square(2.0), Circle(1.0), None, Square(3.0)]),
    ("box", Box, Box(
        "b",
        Point(1, 2),
        [Square(1.0),
         Box("x", GobValue("main.Color", 1), [Circle(5.0), "s"], {"k": GobValue("names of things", ["v"])}), 7],
        {"a": GobValue("[]interface {}", [Node(1)]), "b": INSTANT})),
    ("box empty", Box, Box()),
    ("map of interface maps", dict[str, object],
        {"one": {"two": {"three": 3, "p": Point(0, 1)}}, "list": [{}, []]}),
    ("time", datetime, INSTANT),
    ("time zone", datetime, IN_KARACHI),
    ("time zero", datetime, ZERO_TIME),
    ("time before 1970", datetime, LMT),
    ("time last", datetime, datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)),
    ("times", Times, Times(ZERO_TIME, IN_KARACHI, INSTANT)),
    ("gob encoder", Encoded("Int"), GobData("", b"\x03\x40" + bytes(7))),
    ("binary marshaler", Encoded("Addr", "binary"), ADDRESS),
    ("self-encoding in a struct", SELF_ENCODING,
        {"N": GobData("", b"\x02\x07"), "A": GobData("", bytes(15) + b"\x01", "binary"), "S": "s"}),
]  # fmt: skip

# What else is received when nothing is known of the receiver's types, where that is not the value above.
PLAIN: dict[str, Any] = {
    "interface struct": GobValue("main.Point", {"X": 1, "Y": 2}),
    "interface pointer": GobValue("*main.Circle", {"Radius": 2.0}),
    "interface error": GobValue("*main.Failure", {"Message": "it broke"}),
    "interface recursive": GobValue("main.Node", {"Value": 1, "Next": {"Value": 2, "Next": None}}),
    "list": {"Value": 1, "Next": {"Value": 2, "Next": {"Value": 0, "Next": None}}},
    "interface int64": 5,
    "interface list": [1, "two", None, 3.0, [True]],
    "mutual": {
        "Number": 1,
        "Pong": {
            "Name": "p",
            "Pings": [{"Number": 2, "Pong": None}, {"Number": 3, "Pong": {"Name": "q", "Pings": []}}],
        },
    },
    "box empty": {"Label": "", "Any": None, "Many": [], "Named": {}},
    "times": {"Before": None, "At": IN_KARACHI, "Later": INSTANT},
    "map of interface maps": {
        "one": {"two": {"three": 3, "p": GobValue("main.Point", {"X": 0, "Y": 1})}},
        "list": [{}, []],
    },
    "self-encoding in a struct": CORPUS[-1][2],
    "map of arrays": {(1, 2): "x"},
    "time": INSTANT,
    "time zone": IN_KARACHI,
    "gob encoder": GobData("", b"\x03\x40" + bytes(7)),
}

names = pytest.mark.parametrize(("name", "kind", "value"), CORPUS, ids=[name for name, _, _ in CORPUS])


@pytest.fixture(scope="session")
def streams(gobcorpus: Path) -> dict[str, bytes]:
    """The corpus: a gob stream for each name."""
    output = subprocess.run([gobcorpus, "corpus"], capture_output=True, check=True).stdout
    lines = [json.loads(line) for line in output.splitlines()]
    return {line["name"]: bytes.fromhex(line["hex"]) for line in lines}


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    for name, kind in REGISTERED.items():
        registry.register(name, kind)
    return registry


def test_every_value_of_the_corpus_is_expected_here(streams: dict[str, bytes]) -> None:
    assert list(streams) == [name for name, _, _ in CORPUS]


@names
def test_what_go_sends_is_the_python_value(
    name: str, kind: Any, value: Any, streams: dict[str, bytes], registry: Registry, alike: Alike
) -> None:
    decoder = Decoder(registry)
    decoder.feed(streams[name])

    assert alike(decoder.next_value(registry.go_type(kind)), plain(value))
    assert decoder.next_value() is NEED_DATA
    assert decoder.at_boundary


@names
def test_what_is_sent_is_the_same_value_to_go(name: str, kind: Any, value: Any, registry: Registry, go: Any) -> None:
    encoder = Encoder(registry)
    assert go.ask(op="same", name=name, hex=encoder.encode(value, registry.go_type(kind)).hex()) == {"equal": True}


@names
def test_byte_by_byte_and_skipped_a_value_is_the_same(
    name: str, kind: Any, value: Any, streams: dict[str, bytes], registry: Registry, alike: Alike
) -> None:
    decoder = Decoder(registry)
    stream = streams[name]
    following = Encoder().encode("next", STRING)
    for number in range(len(stream)):
        assert decoder.next_value(registry.go_type(kind)) is NEED_DATA
        decoder.feed(stream[number : number + 1])
    assert alike(decoder.next_value(registry.go_type(kind)), plain(value))

    skipping = Decoder(registry)
    for number in range(len(stream)):
        assert not skipping.skip_value()
        skipping.feed(stream[number : number + 1])
    assert skipping.skip_value()
    skipping.feed(following)
    assert skipping.next_value() == "next"


@pytest.mark.parametrize("name", PLAIN)
def test_a_receiver_that_knows_nothing_gets_plain_python(name: str, streams: dict[str, bytes], alike: Alike) -> None:
    decoder = Decoder()
    decoder.feed(streams[name])
    assert alike(decoder.next_value(), PLAIN[name])


@names
def test_with_names_kept_an_interface_can_be_sent_on_as_it_came(
    name: str, kind: Any, value: Any, streams: dict[str, bytes], registry: Registry, go: Any
) -> None:
    decoder = Decoder(registry, keep_names=True)
    decoder.feed(streams[name])
    received = decoder.next_value(registry.go_type(kind))
    sent = Encoder(registry).encode(received, registry.go_type(kind))
    assert go.ask(op="same", name=name, hex=sent.hex()) == {"equal": True}


def plain(value: Any) -> Any:
    """What arrives for a value that had to be sent with a name although Python has a plain word for it."""
    match value:
        case GobValue(_, inner):
            return plain(inner)
        case dict():
            return {plain(key): plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case Box():
            return Box(value.label, plain(value.any), plain(value.many), plain(value.named))
    return value
