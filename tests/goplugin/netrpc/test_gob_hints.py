"""What type hints mean to Go, and which names say what a type is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum
from typing import Annotated, Any, NewType, Optional, Union

import pytest

from hybridload.goplugin.netrpc.gob import (
    NEED_DATA,
    Array,
    Bool,
    Bytes,
    Complex,
    Decoder,
    Encoder,
    Float,
    GobError,
    GobValue,
    Int,
    Interface,
    Map,
    Name,
    Pointer,
    Registry,
    Slice,
    String,
    Struct,
    Time,
    Uint,
    from_hint,
)

UserId = NewType("UserId", int)


class Color(IntEnum):
    NONE = 0
    RED = 1


class Word(Enum):
    EMPTY = ""
    YES = "yes"


class Mixed(Enum):
    A = 1
    B = "b"


@dataclass
class Inner:
    z: float = 0.0


@dataclass
class Everything:
    service_method: str
    user_id: Annotated[int, Name("UserID"), Uint(32)]
    color: Color = Color.NONE
    word: Word = Word.EMPTY
    took: timedelta = timedelta()
    at: datetime | None = None
    inner: Inner = field(default_factory=Inner)
    pair: tuple[int, ...] = ()
    children: list[Everything] = field(default_factory=list)
    hidden: int = field(default=5, init=False)


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (bool, Bool()),
        (int, Int(64)),
        (float, Float(64)),
        (complex, Complex(128)),
        (str, String()),
        (bytes, Bytes()),
        (datetime, Time()),
        (object, Interface()),
        (Any, Interface()),
        (list, Slice(Interface())),
        (dict, Map(String(), Interface())),
        (list[int], Slice(Int())),
        (Sequence[str], Slice(String())),
        (Iterable[bytes], Slice(Bytes())),
        (dict[str, object], Map(String(), Interface())),
        (Mapping[int, list[bool]], Map(Int(), Slice(Bool()))),
        (int | None, Pointer(Int())),
        (Optional[str], Pointer(String())),  # noqa: UP045
        (Union[int, str], Interface()),  # noqa: UP007
        (Any | None, Interface()),
        (UserId, Int()),
        (Annotated[int, "words", Uint(8)], Uint(8)),
        (Annotated[str, "words"], String()),
        (list[Annotated[int, Int(16)]], Slice(Int(16))),
        (Annotated[list[int], Array(3, Int())], Array(3, Int())),
        (Uint(8), Uint(8)),
    ],
)
def test_a_hint_has_a_go_type(hint: Any, expected: Any) -> None:
    assert from_hint(hint) == expected


@pytest.mark.parametrize(
    "hint", [set[int], tuple[int, str], Callable[[], None], "str", 5, type(None), None, {1: 2}, Mixed, Exception]
)
def test_other_hints_are_refused(hint: Any) -> None:
    with pytest.raises(GobError, match="has no Go type"):
        from_hint(hint)


def test_a_dataclass_is_a_struct_with_exported_names() -> None:
    struct = from_hint(Everything)
    assert isinstance(struct, Struct)
    assert [f.name for f in struct.fields] == [
        "ServiceMethod", "UserID", "Color", "Word", "Took", "At", "Inner", "Pair", "Children",
    ]  # fmt: skip
    assert struct.fields[1].type == Uint(32)


def test_a_dataclass_comes_back_as_it_was_sent() -> None:
    value = Everything(
        "a", 2, Color.RED, Word.YES, timedelta(milliseconds=1), datetime(2024, 1, 1, tzinfo=UTC), Inner(1.5), (1, 2),
        [Everything("child", 0)],
    )  # fmt: skip
    kind = from_hint(Everything)
    decoder = Decoder()
    decoder.feed(Encoder().encode(value, kind))
    assert decoder.next_value(kind) == value
    assert decoder.next_value() is NEED_DATA


def test_a_field_without_a_go_name_is_refused() -> None:
    @dataclass
    class Odd:
        _1: int

    with pytest.raises(GobError, match="'_1' has no Go name"):
        Encoder().encode(Odd(1), from_hint(Odd))


def test_a_field_without_a_go_type_is_refused_when_it_is_needed() -> None:
    @dataclass
    class Odd:
        items: set[int]

    kind = Registry().go_type(Odd)
    with pytest.raises(GobError, match=r"set\[int\] has no Go type"):
        Encoder().encode(Odd(set()), kind)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type aliases that contain themselves came with Python 3.12")
def test_a_type_alias_may_contain_itself() -> None:
    names: dict[str, Any] = {}
    exec("type Nest = list[Nest]", names)
    kind = from_hint(names["Nest"])
    decoder = Decoder()
    decoder.feed(Encoder().encode([[], [[]]], kind))
    assert decoder.next_value(kind) == [[], [[]]]


def test_a_registry_gives_one_struct_for_a_dataclass() -> None:
    registry = Registry()
    assert registry.go_type(list[Inner]) == registry.go_type(list[Inner])
    assert registry.go_type(Color) == registry.go_type(Color)
    registry.register("main.Inner", Inner)
    registry.register("main.Inner", Inner)
    with pytest.raises(GobError, match="stands for something else already"):
        registry.register("main.Inner", int)
    with pytest.raises(GobError, match="is empty"):
        registry.register("", Inner)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("int8", -5),
        ("uintptr", 5),
        ("float32", 0.5),
        ("complex64", 1j),
        ("[]uint8", b"x"),
        ("[2]uint8", [1, 2]),
        ("[][]string", [["a"]]),
        ("map[string]int32", {"a": 1}),
        ("map[int]map[bool][]float64", {1: {True: [1.0]}}),
        ("map[interface {}][3]interface {}", {"k": [None, None, None]}),
        ("map[string][]uint8", {"a": b"x"}),
    ],
)
def test_a_name_that_spells_its_type_needs_no_registration(name: str, value: Any) -> None:
    decoder = Decoder()
    decoder.feed(Encoder().encode(GobValue(name, value), Interface()))
    assert decoder.next_value() == value


@pytest.mark.parametrize(
    "name",
    [
        "any",
        "interface{}",
        "map[string]any",
        "[]main.Point",
        "[-1]int",
        "map[[2]int]int",
        "*int",
        "[" + "1" * 19 + "]int",
        "int ",
        "[]" * 600,
    ],
)
def test_any_other_name_is_not_taken_for_a_spelling(name: str) -> None:
    with pytest.raises(GobError, match="is not known here"):
        Encoder().encode(GobValue(name, []), Interface())
