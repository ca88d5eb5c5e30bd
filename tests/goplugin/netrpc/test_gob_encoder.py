"""What is sent, byte for byte where Go's own documentation has the bytes, and what is refused with which words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum, IntEnum
from typing import Any

import pytest

from hybridload.goplugin.netrpc.gob import (
    Adapted,
    Array,
    Bool,
    Bytes,
    Complex,
    Decoder,
    Encoded,
    Encoder,
    Field,
    Float,
    GobData,
    GobError,
    GobValue,
    Int,
    Interface,
    Map,
    Pointer,
    Registered,
    Registry,
    Slice,
    String,
    Struct,
    Time,
    Uint,
    encoder,
    from_hint,
)

INT, STRING = Int(), String()
POINT = Struct("Point", [Field("X", INT), Field("Y", INT)])


@dataclass
class Point:
    x: int
    y: int


class Level(IntEnum):
    OFF = 0
    ON = 1


class Word(Enum):
    YES = "yes"


def test_a_point_has_the_bytes_of_gos_documentation() -> None:
    """With 64 for the type's number, as Go counts today, in place of 65."""
    assert Encoder().encode(Point(22, 33), from_hint(Point)).hex(" ") == (
        "1e 7f 03 01 01 05 50 6f 69 6e 74 01 ff 80 00 01 02 01 01 58 01 04 00 01 01 59 01 04 00 00 00 "
        "07 ff 80 01 2c 01 42 00"
    )


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (7, Uint(), "03060007"),
        (256, Uint(), "050600fe0100"),
        (-129, INT, "050400fe0101"),
        (17.0, Float(), "050800fe3140"),
        ("abc", STRING, "060c0003616263"),
        (None, Interface(), "03100000"),
        ("abc", Interface(), "10100006737472696e670c050003616263"),
        (True, Bool(), "03020001"),
        (b"", Bytes(), "030a0000"),
    ],
)
def test_basic_values_have_the_bytes_that_go_gives_them(value: Any, kind: Any, expected: str) -> None:
    if kind == Uint() or kind == Float():
        expected = expected
    assert Encoder().encode(value, kind).hex() == expected


def test_a_type_is_defined_once_and_before_it_is_needed() -> None:
    encoder = Encoder()
    first, second = (encoder.encode({"X": 1}, POINT) for _ in range(2))
    assert first.endswith(second)
    assert len(second) == 6
    within = encoder.encode(GobValue("[]int", [1]), Interface())
    assert within.endswith(encoder.encode(GobValue("[]int", [1]), Interface()))


def test_a_value_that_cannot_be_sent_leaves_the_stream_as_it_was() -> None:
    encoder, decoder = Encoder(), Decoder()
    kind = Map(STRING, Interface())
    with pytest.raises(GobError):
        encoder.encode({"good": GobValue("[]int", [1]), "bad": object()}, kind)
    with pytest.raises(GobError):
        encoder.encode_all(({"good": GobValue("[]int", [1])}, kind), ("x", INT))
    decoder.feed(encoder.encode({"good": GobValue("[]int", [1])}, kind))
    assert decoder.next_value() == {"good": [1]}


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (1, STRING, "sent as string: expected a str, got the int 1"),
        ("\ud800", STRING, "cannot be written as UTF-8"),
        ("x", INT, "expected an int, got the str 'x'"),
        (1.0, INT, "expected an int"),
        (128, Int(8), "128 is out of the range of int8, -128 to 127"),
        (-1, Uint(), "-1 is out of the range of uint64, 0 to 18446744073709551615"),
        (2**63, INT, "out of the range of int64"),
        (1, Bool(), "expected a bool"),
        ("1", Float(), "expected a float"),
        (1e39, Float(32), "out of the range of float32"),
        (10**400, Float(), "out of the range of float64"),
        ("1", Complex(), "expected a complex"),
        ("x", Bytes(), "expected bytes, got the str 'x'"),
        ([256], Slice(Uint(8)), "numbers from 0 to 255"),
        ("abc", Slice(STRING), "expected a list, got the str"),
        (iter([1]), Slice(INT), "expected a list"),
        ([1, "2"], Slice(INT), r"\[1\]: expected an int"),
        ([1], Array(2, INT), "expected 2 elements, got 1"),
        ([1], Map(STRING, INT), "expected a dict"),
        ({"k": "v"}, Map(STRING, INT), r"\['k'\]: expected an int"),
        ({1: 1}, Map(STRING, INT), r"\[1\]: expected a str"),
        ([None], Slice(Pointer(INT)), r"\[0\]: None where gob must have a value"),
        (None, Pointer(INT), "None where gob must have a value"),
        ({"X": 1, "Z": 2}, POINT, r"struct Point has no fields \['Z'\]; it has X, Y"),
        ({"X": None}, POINT, "X: expected an int, got the NoneType None"),
        ({"X": ""}, POINT, "X: expected an int"),
        (5, POINT, "expected struct Point with the fields X, Y; got 5"),
        (object(), Interface(), "a object has no Go type .* GobValue .* Registry.register"),
        (Point(1, 2), Interface(), "a Point has no Go type"),
        (GobValue("main.Point", {}), Interface(), r"'main.Point' is not known here; Registry.register\('main.Point'"),
        (GobValue("int8", 200), Interface(), "out of the range of int8"),
        (GobValue("map[string]any", {}), Interface(), "is not known here"),
        (2**63, Interface(), "out of the range of int64"),
        ([1], Registered("", Slice(INT)), "Go takes 1 to 1024"),
        ([1], Registered("x" * 1025, Slice(INT)), "Go takes 1 to 1024"),
        (datetime(2024, 1, 1), Time(), "a naive datetime; give it a time zone"),
        (datetime(2024, 1, 1, tzinfo=timezone(-timedelta(minutes=1))), Time(), "which Go cannot write; convert .* UTC"),
        (datetime(2024, 1, 1, tzinfo=timezone(timedelta(microseconds=1))), Time(), "which Go cannot write"),
        ("2024", Time(), "expected a datetime"),
        (GobData("", b"", "text"), Encoded("X"), "in the form 'gob', got 'text'"),
        ("maybe", from_hint(Word), "'maybe' cannot be turned into string"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(GobError, match=message):
        Encoder().encode(value, kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Struct("S", [Field("lower", INT)]), "distinct names in capitals"),
        (Struct("S", [Field("A", INT), Field("A", INT)]), "distinct names in capitals"),
        (str, "describes no Go type"),
        (Slice(str), "describes no Go type"),  # type: ignore[arg-type]
    ],
)
def test_a_type_that_makes_no_sense_to_go_is_refused(kind: Any, message: str) -> None:
    encoder = Encoder()
    for _ in range(2):
        with pytest.raises(GobError, match=message):
            encoder.encode({}, kind)


@pytest.mark.parametrize("make", [lambda: Int(7), lambda: Uint(0), lambda: Float(16), lambda: Complex(32)])
def test_a_width_that_go_does_not_have_is_refused(make: Any) -> None:
    with pytest.raises(GobError, match="Go has"):
        make()


def test_a_value_that_contains_itself_is_refused() -> None:
    endless: list[Any] = [1, "x"]
    endless.append(endless)
    with pytest.raises(GobError, match="does it contain itself"):
        Encoder().encode(endless, Interface())


def test_a_message_that_nobody_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "LARGEST_MESSAGE", 10)
    with pytest.raises(GobError, match="over the limit of 10"):
        Encoder().encode("x" * 10, STRING)


def test_one_go_type_has_one_number_however_often_it_is_described() -> None:
    """Go takes two numbers for two types, and refuses `map[T]T` with a number for the key and another for the value."""
    twice = Map(Struct("", [Field("A", INT)]), Struct("", [Field("A", INT)]))
    stream = Encoder().encode({(("A", 1),): {"A": 2}}, twice)
    assert stream.count(b"\1\1A\1\4\0") == 1


def test_zero_values_are_left_out_of_structs_and_nowhere_else() -> None:
    kinds = [Bool(), INT, Uint(), Float(), Complex(), STRING, Bytes(), Slice(INT), Pointer(INT), Interface()]
    kinds += [from_hint(Level)]
    zeros = [False, 0, 0, -0.0, 0j, "", b"", [], None, None, Level.OFF]
    kind = Struct("", [Field(f"F{number}", go_type) for number, go_type in enumerate(kinds)])
    encoder = Encoder()
    values = {f"F{number}": zero for number, zero in enumerate(zeros)}
    encoder.encode(values, kind)
    assert encoder.encode(values, kind) == encoder.encode({}, kind) == bytes.fromhex("03ff8000")
    encoder.encode([0], Slice(INT))
    assert encoder.encode([0, 0], Slice(INT)).endswith(b"\2\0\0")


def test_a_zero_that_is_pointed_to_is_no_nil() -> None:
    kinds = [Pointer(STRING), Pointer(INT), Pointer(from_hint(Level)), Pointer(Slice(INT))]
    kind = Struct("", [Field(f"F{number}", go_type) for number, go_type in enumerate(kinds)])
    encoder = Encoder()
    values = {"F0": "", "F1": 0, "F2": Level.OFF, "F3": []}
    decoder = Decoder()
    for given in (values, {"F0": None, "F1": None, "F2": None, "F3": None}):
        decoder.feed(encoder.encode(given, kind))
        assert decoder.next_value(Struct("", kind.fields, dict)) == given


def test_empty_arrays_maps_and_structs_are_sent() -> None:
    kind = Struct("", [Field("A", Array(1, INT)), Field("M", Map(INT, INT)), Field("S", POINT)])
    encoder = Encoder()
    encoder.encode({}, kind)
    sent = encoder.encode({"A": [0], "M": {}, "S": {}}, kind)
    assert sent.endswith(b"\1\1\0" + b"\1\0" + b"\1\0" + b"\0")


def test_what_python_values_become_inside_an_interface() -> None:
    registry = Registry()
    registry.register("geo.Point", Point)
    registry.register("log.Level", Level)
    decoder, encoder = Decoder(registry, keep_names=True), Encoder(registry)
    names = {
        "bool": True,
        "int": -5,
        "float64": 1.5,
        "complex128": 1j,
        "string": "x",
        "[]uint8": bytearray(b"x"),
        "[]string": ["a"],
        "[]int": [1],
        "[]float64": [1.5],
        "[]bool": (True,),
        "[]interface {}": [1, "x"],
        "map[string]interface {}": {"k": None},
        "map[interface {}]interface {}": {1: "x"},
        "geo.Point": Point(1, 2),
        "log.Level": Level.ON,
        "time.Time": datetime(2024, 1, 1, tzinfo=UTC),
    }
    for name, value in names.items():
        decoder.feed(encoder.encode(value, Interface()))
        assert decoder.next_value().name == name
    decoder.feed(encoder.encode([], Interface()))
    assert decoder.next_value() == GobValue("[]interface {}", [])


def test_a_registered_type_is_sent_under_its_name_wherever_an_interface_is_declared() -> None:
    decoder, encoder = Decoder(keep_names=True), Encoder()
    decoder.feed(encoder.encode(["a", "b"], Registered("main.Names", Slice(STRING))))
    assert decoder.next_value() == GobValue("main.Names", ["a", "b"])


def test_an_adapted_value_travels_as_what_it_is_turned_into() -> None:
    upper = Adapted(STRING, str.lower, str.upper)
    decoder = Decoder()
    decoder.feed(Encoder().encode({"A": "x", "B": ["y"]}, Struct("", [Field("A", upper), Field("B", Slice(upper))])))
    assert decoder.next_value() == {"A": "X", "B": ["Y"]}
