"""What a receiver gets, and what it costs when a value is not what it asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Annotated, Any

import pytest

from hybridload.goplugin.netrpc.gob import (
    ANYTHING,
    NEED_DATA,
    Array,
    Bytes,
    Decoder,
    Encoded,
    Encoder,
    Field,
    Float,
    GobData,
    GobError,
    GobMismatch,
    GobValue,
    Int,
    Interface,
    Limits,
    Map,
    Name,
    Pointer,
    Registered,
    Registry,
    Slice,
    String,
    Struct,
    Time,
    Uint,
    from_hint,
)

INT, STRING = Int(), String()


def sent(value: Any, go_type: Any, receiver: Any = ANYTHING, **options: Any) -> Any:
    """What arrives for a value that is sent as one type and received as another."""
    decoder = Decoder(**options)
    decoder.feed(Encoder(options.get("registry")).encode(value, go_type))
    return decoder.next_value(receiver)


def struct(**fields: Any) -> Struct:
    return Struct("Sent", [Field(name, go_type) for name, go_type in fields.items()])


class Color(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Settings:
    name: str
    size: int = 7
    tags: list[str] = field(default_factory=lambda: ["default"])
    owner: str | None = None
    color: Color = Color.RED


def test_fields_are_matched_by_name_whatever_their_order() -> None:
    value = {"Owner": "o", "Unknown": [{"deep": 1}], "Tags": ["t"], "Name": "n", "Color": 2, "Size": 3}
    wire = struct(Owner=STRING, Unknown=Slice(Map(STRING, INT)), Tags=Slice(STRING), Name=STRING, Color=INT, Size=INT)
    assert sent(value, wire, from_hint(Settings)) == Settings("n", 3, ["t"], "o", Color.BLUE)


def test_a_field_that_the_sender_does_not_know_has_the_receivers_default() -> None:
    assert sent({"Name": "n"}, struct(Name=STRING), from_hint(Settings)) == Settings("n")


def test_a_field_that_the_sender_left_out_is_zero_and_not_the_default() -> None:
    wire = struct(Name=STRING, Size=INT, Tags=Slice(STRING), Owner=Pointer(STRING))
    assert sent({"Name": "n"}, wire, from_hint(Settings)) == Settings("n", 0, [], None)


def test_a_zero_that_is_no_member_of_the_enumeration_is_refused() -> None:
    with pytest.raises(GobMismatch, match="0 is not a valid Color"):
        sent({"Name": "n"}, struct(Name=STRING, Color=INT), from_hint(Settings))


def test_a_receiver_without_a_class_gets_a_dict_in_gos_order() -> None:
    wire = struct(B=STRING, A=Slice(INT), Nested=struct(X=INT), P=Pointer(struct(X=INT)), Any=Interface())
    received = sent({"A": [1], "Nested": {}}, wire)
    assert list(received.items()) == [("B", ""), ("A", [1]), ("Nested", {"X": 0}), ("P", None), ("Any", None)]


@pytest.mark.parametrize(
    ("value", "wire", "receiver", "message"),
    [
        (1, INT, STRING, "expected string, received int"),
        ("x", STRING, INT, "expected int64, received string"),
        ("x", STRING, Bytes(), r"expected \[\]byte, received string"),
        (b"x", Bytes(), STRING, r"expected string, received \[\]byte"),
        (1, INT, Float(), "expected float64, received int"),
        (1.0, Float(), INT, "expected int64, received float"),
        (True, from_hint(bool), INT, "expected int64, received bool"),
        ([1], Slice(INT), Map(INT, INT), r"expected map\[int64\]int64, received slice"),
        ([1], Slice(INT), Slice(STRING), "expected string, received int"),
        ([1, 2], Array(2, INT), Array(3, INT), r"expected \[3\]int64, received array of 2"),
        ([1, 2], Slice(INT), Array(3, INT), "expected an array of 3, received 2 elements"),
        ({"a": 1}, Map(STRING, INT), struct(A=INT), "expected struct Sent, received map"),
        ({"A": 1}, struct(A=INT), Map(STRING, INT), "received struct Sent"),
        ({"A": 1}, struct(A=INT), struct(A=STRING), "A: expected string, received int"),
        ({"A": [{"B": 300}]}, struct(A=Slice(struct(B=INT))), struct(A=Slice(struct(B=Uint(8)))),
            r"A > \[0\] > B: 300 is out of the range of uint8"),
        (-129, INT, Int(8), "-129 is out of the range of int8"),
        (-1, INT, Uint(16), "-1 is out of the range of uint16"),
        (1e39, Float(), Float(32), "out of the range of float32"),
        ({"A": 1}, struct(A=INT), struct(B=INT, C=INT), r"the fields B, C and received are A: none in common; .*Name"),
        (b"abc", Encoded("Int"), Time(), "616263 is no time.Time"),
        (b"abc", Encoded("Addr", "binary"), Time(), "expected time.Time, received Addr"),
        (b"abc", Encoded("X", "text"), Encoded("X", "gob"), "encodes itself as text"),
        (None, Interface(), STRING, "expected string, received a nil interface; Optional"),
        (5, Interface(), STRING, "expected string, received int"),
        (GobValue("[]int", [1]), Interface(), Slice(STRING), "expected string, received int"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_and_passed_over(value: Any, wire: Any, receiver: Any, message: str) -> None:
    encoder, decoder = Encoder(), Decoder()
    stream = encoder.encode(value, wire) + encoder.encode("next", STRING) + encoder.encode(value, wire)
    decoder.feed(stream)
    for _ in range(2):
        with pytest.raises(GobMismatch, match=message):
            decoder.next_value(receiver)
        assert decoder.next_value() in ("next", NEED_DATA)
    assert decoder.at_boundary


def test_a_refused_value_may_end_in_a_message_that_comes_later() -> None:
    """Go's `[]interface{}{1, []string{"x"}}`: the type of the second defines itself inside and ends the message."""
    stream = bytes.fromhex(
        "0b7f020102ff80000110000021ff80000203696e7404020002085b5d737472696e67ff81020102ff8200010c000007ff820400010178"
    )
    whole = Decoder()
    whole.feed(stream)
    assert whole.next_value() == [1, ["x"]]

    decoder = Decoder()
    last_message = stream[-8:]
    decoder.feed(stream[:-8])
    with pytest.raises(GobMismatch, match=r"\[0\]: expected string, received int"):
        decoder.next_value(Slice(STRING))
    assert decoder.next_value() is NEED_DATA
    decoder.feed(last_message + Encoder().encode("next", STRING))
    assert decoder.next_value() == "next"


def test_integers_of_either_kind_are_python_ints() -> None:
    assert sent(2**64 - 1, Uint(), INT) == 2**64 - 1
    assert sent(-5, INT, Uint()) == -5
    assert sent([200], Array(1, Uint(8)), Slice(Int(16))) == [200]


def test_an_array_of_bytes_can_be_received_as_bytes() -> None:
    assert sent([0, 128, 255], Array(3, Uint(8)), Bytes()) == b"\x00\x80\xff"
    assert sent(b"\x01\x02", Bytes(), Slice(Uint(8))) == [1, 2]
    with pytest.raises(GobMismatch, match="256 is out of the range of uint8"):
        sent([256], Slice(Uint(16)), Bytes())


def test_anything_is_taken_with_or_without_an_interface_around_it() -> None:
    assert sent("x", STRING) == sent("x", Interface()) == "x"
    assert sent("x", Interface(), STRING) == "x"
    assert sent(None, Interface(), Pointer(STRING)) is None
    assert sent([1], Slice(INT), Registered("[]int", Slice(INT))) == [1]


@dataclass(frozen=True)
class Point:
    x: int
    y: int


def test_a_registered_name_gives_the_receivers_class_and_an_unknown_one_is_kept() -> None:
    registry = Registry()
    registry.register("geo.Point", Point)
    unknown = GobValue("geo.Point", {"X": 1, "Y": 2})
    assert sent([Point(1, 2)], Slice(Interface()), registry=registry) == [Point(1, 2)]

    decoder = Decoder()
    decoder.feed(Encoder(registry).encode([Point(1, 2)], Slice(Interface())))
    assert decoder.next_value() == [unknown]


def test_names_can_be_kept_for_every_value() -> None:
    inner = GobValue("map[string]interface {}", {"k": GobValue("float64", 2.0)})
    named = GobValue("[]interface {}", [GobValue("int", 1), GobValue("string", "x"), inner])
    assert sent([1, "x", {"k": 2.0}], Interface(), keep_names=True) == named


def test_keys_that_python_cannot_tell_apart_are_refused_unless_names_are_kept() -> None:
    value = {GobValue("int", 1): "int", GobValue("bool", True): "bool"}
    kind = Map(Interface(), STRING)
    with pytest.raises(GobMismatch, match="keep_names=True"):
        sent(value, kind)
    assert sent(value, kind, keep_names=True) == value


def test_a_key_can_be_a_frozen_dataclass_and_no_other() -> None:
    wire = Map(struct(X=INT, Y=INT), STRING)
    value = {(("X", 1), ("Y", 2)): "p"}
    assert sent(value, wire) == value
    assert sent(value, wire, from_hint(dict[Point, str])) == {Point(1, 2): "p"}
    thawed = dataclasses.make_dataclass("Thawed", [("x", int), ("y", int)])
    with pytest.raises(GobMismatch, match="Thawed cannot be the key of a dict: make it a frozen dataclass"):
        sent(value, wire, from_hint(dict[thawed, str]))  # type: ignore[valid-type]


@dataclass
class Even:
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError("odd")


def test_a_class_may_refuse_what_it_is_given() -> None:
    with pytest.raises(GobMismatch, match="Even refused its fields: odd") as raised:
        sent({"Number": 3}, struct(Number=INT), from_hint(Even))
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_time_finer_than_a_microsecond_is_cut_off_and_one_out_of_range_is_kept_as_bytes() -> None:
    fine = bytes.fromhex("010000000edd73117e075bcd15ffff")
    assert sent(fine, Encoded("Time"), Time()) == datetime(2024, 2, 29, 23, 59, 58, 123456, UTC)
    year_10000 = bytes.fromhex("01000000497786388000000000ffff")
    assert sent(year_10000, Encoded("Time")) == GobData("Time", year_10000)
    with pytest.raises(GobMismatch, match=r"is no time\.Time that a datetime can hold"):
        sent(year_10000, Encoded("Time"), Time())


def test_a_type_that_writes_itself_is_kept_as_its_bytes() -> None:
    for form in ("gob", "binary", "text"):
        assert sent(b"192.0.2.1", Encoded("IP", form)) == GobData("IP", b"192.0.2.1", form)
    assert sent(timedelta(seconds=1.5), from_hint(timedelta)) == 1_500_000_000


def test_a_description_of_a_struct_that_can_never_be_zero_is_refused() -> None:
    endless = Struct("Endless", lambda: [Field("Name", STRING), Field("Self", endless)])
    with pytest.raises(GobError, match="contains itself: make the field that leads back Optional"):
        sent({"Name": "x"}, struct(Name=STRING), endless)


def test_a_hint_is_no_receiver() -> None:
    with pytest.raises(GobError, match="from_hint"):
        sent("x", STRING, str)


def test_values_nest_as_deep_as_the_limit_says() -> None:
    node = Struct("Node", lambda: [Field("Next", Pointer(node))])

    def chain(length: int) -> Any:
        return {"Next": chain(length - 1)} if length else {"Next": None}

    assert sent(chain(198), node) == chain(198)
    with pytest.raises(GobError, match=r"Limits\.depth"):
        sent(chain(12), node, limits=Limits(depth=10))


@dataclass
class Named:
    user_id: Annotated[int, Name("UserID")]


def test_a_field_has_the_name_that_it_was_given() -> None:
    assert sent({"UserID": 5}, struct(UserID=INT), from_hint(Named)) == Named(5)
