"""What `frozen` makes is what dataclasses make of the same class, in fewer steps."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as some

import hybridload
from hybridload.frozen import field, frozen, names, replace


@frozen
class Ours:
    name: str
    size: int = 1
    tags: list[str] = field(default_factory=list)
    secret: str = field(default="s", repr=False)
    note: str = field(default="n", compare=False, kw_only=True)
    kind: str = field(kw_only=True, default="k")
    known: ClassVar[int] = 7


@dataclass(frozen=True, slots=True)
class Theirs:
    name: str
    size: int = 1
    tags: list[str] = dataclasses.field(default_factory=list)
    secret: str = dataclasses.field(default="s", repr=False)
    note: str = dataclasses.field(default="n", compare=False, kw_only=True)
    kind: str = dataclasses.field(kw_only=True, default="k")
    known: ClassVar[int] = 7


@frozen
class OurPair:
    left: object
    right: object
    must: object = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class TheirPair:
    left: object
    right: object
    must: object = dataclasses.field(kw_only=True)


@frozen
class OurNothing:
    pass


@dataclass(frozen=True, slots=True)
class TheirNothing:
    pass


TWINS = ((Ours, Theirs), (OurPair, TheirPair), (OurNothing, TheirNothing))
VALUES = some.one_of(some.integers(), some.text(max_size=3), some.tuples(some.integers()), some.lists(some.integers()))
NAMES = ("name", "size", "tags", "secret", "note", "kind", "left", "right", "must", "self", "known", "other")
ARGUMENTS = some.tuples(some.lists(VALUES, max_size=5), some.dictionaries(some.sampled_from(NAMES), VALUES, max_size=6))


def outcome(step: Any, *arguments: Any, **keywords: Any) -> Any:
    """What a call returns, or how it fails, in words that are the same for both of a pair."""
    try:
        returned = step(*arguments, **keywords)
    except Exception as error:
        returned = type(error), str(error)
    return (
        returned
        if isinstance(returned, (bool, int))
        else str(returned).replace("Theirs", "Ours").replace("Their", "Our")
    )


@given(some.sampled_from(TWINS), ARGUMENTS, ARGUMENTS)
def test_values_are_made_refused_shown_compared_and_changed_as_those_of_dataclasses(
    twins: tuple[Any, Any], first: tuple[list[Any], dict[str, Any]], second: tuple[list[Any], dict[str, Any]]
) -> None:
    ours, theirs = twins
    assert outcome(ours, *first[0], **first[1]) == outcome(theirs, *first[0], **first[1])
    try:
        pair = [(kind(*first[0], **first[1]), kind) for kind in twins]
    except TypeError:
        return
    for step in (
        lambda value, kind: hash(value),
        lambda value, kind: value == kind(*second[0], **second[1]),
        lambda value, kind: value == copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == copy.copy(value),
        lambda value, kind: dataclasses.replace(value, **second[1]),
        lambda value, kind: sorted(dataclasses.asdict(value).items(), key=str),
        lambda value, kind: value.other,
    ):
        assert outcome(step, *pair[0]) == outcome(step, *pair[1])


@pytest.mark.parametrize("name", [*names(Ours), "other"])
def test_nothing_of_it_can_be_changed(name: str) -> None:
    for change in (lambda made: setattr(made, name, "b"), lambda made: delattr(made, name)):
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"field '{name}'"):
            change(Ours("a"))


@pytest.mark.parametrize(("ours", "theirs"), TWINS)
def test_the_class_describes_itself_as_a_dataclass(ours: Any, theirs: Any) -> None:
    def described(kind: Any) -> Any:
        asked = ("name", "type", "repr", "compare", "kw_only", "init", "hash", "default")
        return [[getattr(each, name) for name in asked] for each in dataclasses.fields(kind)]

    assert dataclasses.is_dataclass(ours)
    assert described(ours) == described(theirs)
    assert ours.__match_args__ == theirs.__match_args__
    assert ours.__dataclass_params__.frozen
    assert str(inspect.signature(ours)) == str(inspect.signature(theirs))
    assert (ours.__slots__, ours.__module__) == (theirs.__slots__, theirs.__module__)
    assert names(ours) == tuple(each.name for each in dataclasses.fields(theirs))


def test_it_is_matched_by_position_and_by_name() -> None:
    match Ours("a", 2, note="x"):
        case Ours(name, size, note=note):
            assert (name, size, note, Ours.known) == ("a", 2, "x", 7)
        case _:
            pytest.fail("no match")


def test_it_is_equal_to_its_own_kind_alone() -> None:
    @frozen
    class Key:
        number: int

    @frozen
    class Other:
        number: int

    assert {Key(1): "found"}[Key(1)] == "found"
    assert Key(1) != Other(1)  # type: ignore[comparison-overlap]


def test_a_copy_differs_in_what_is_said() -> None:
    assert replace(Ours("a", note="x"), size=2) == Ours("a", 2)
    assert replace(Ours("a", note="x"), size=2).note == "x"
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        replace(Ours("a"), colour=1)
    if sys.version_info >= (3, 13):
        assert copy.replace(Ours("a"), size=2) == Ours("a", 2)


def test_a_value_that_contains_itself_is_shown() -> None:
    made: Any = Ours("a", tags=[])
    made.tags.append(made)
    assert repr(made) == "Ours(name='a', size=1, tags=[...], note='n', kind='k')"


def test_what_the_class_has_itself_stays() -> None:
    @frozen
    class Own:
        number: int

        def __post_init__(self) -> None:
            if self.number < 0:
                raise ValueError("negative")

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

    assert repr(Own(1)) == "own"
    assert Own(1) == Own(2)
    assert hash(Own(1)) == hash(Own(1)) != hash(Own(2))
    with pytest.raises(ValueError, match="negative"):
        Own(-1)


def test_what_derives_from_it_is_a_frozen_dataclass() -> None:
    @dataclass(frozen=True)
    class More(Ours):
        more: int = 0

    made: Any = More("a", more=3)
    assert made == More("a", more=3) != More("a")
    assert list(inspect.signature(More).parameters) == ["name", "size", "tags", "secret", "more", "note", "kind"]
    assert (copy.deepcopy(made), copy.copy(made), dataclasses.replace(More("a"), more=3)) == (made, made, made)
    for name in ("name", "more"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, 1)
    with pytest.raises(TypeError, match="non-frozen"):
        dataclass(type("Loose", (Ours,), {}))


def test_a_plain_class_may_derive_from_it_and_have_attributes_of_its_own() -> None:
    class Noted(Ours):
        def __init__(self, name: str) -> None:
            super().__init__(name, 2)
            self.written = 1
            self.written = 2

    made: Any = Noted("a")
    assert str(inspect.signature(Noted)) == "(name: 'str') -> 'None'"
    assert (made.written, copy.copy(made).written, repr(made)) == (2, 2, repr(made).replace("Ours", "Noted"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "b"


def test_each_of_ours_is_what_dataclasses_would_make() -> None:
    found = set()
    for module in pkgutil.walk_packages(hybridload.__path__, "hybridload."):
        if not module.name.endswith("__main__"):
            found |= {
                kind for kind in vars(importlib.import_module(module.name)).values() if hasattr(kind, "__frozen__")
            }
    assert len(found) > 40
    for kind in found:
        assert [each.name for each in dataclasses.fields(kind)] == list(names(kind)), kind  # or its defaults are wrong


def test_dataclasses_are_not_imported_for_it() -> None:
    code = """
import sys
from hybridload.frozen import field, frozen
@frozen
class Point:
    x: int
    tags: list = field(default_factory=list)
assert Point(1) == Point(x=1) and repr(Point(1)) == "Point(x=1, tags=[])" and Point.__match_args__ == ("x", "tags")
assert not {"dataclasses", "inspect"} & set(sys.modules)
assert hasattr(Point, "__dataclass_fields__") and "dataclasses" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
