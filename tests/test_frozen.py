"""What `frozen` makes is what dataclasses make of the same class, in fewer steps."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import dataclass, field
from typing import Any

import pytest

from hybridload.frozen import frozen


@frozen
class Ours:
    name: str
    size: int = 1
    tags: list[str] = field(default_factory=list)
    secret: str = field(default="s", repr=False)
    note: str = field(default="n", compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Theirs:
    name: str
    size: int = 1
    tags: list[str] = field(default_factory=list)
    secret: str = field(default="s", repr=False)
    note: str = field(default="n", compare=False, kw_only=True)


def test_it_is_made_shown_and_matched_as_a_dataclass() -> None:
    for kind in (Ours, Theirs):
        made: Any = kind("a", 2, note="x")
        assert repr(made) == f"{kind.__name__}(name='a', size=2, tags=[], note='x')"
        assert kind.__match_args__ == ("name", "size", "tags", "secret")
        assert [each.name for each in dataclasses.fields(made)] == ["name", "size", "tags", "secret", "note"]
        assert dataclasses.asdict(dataclasses.replace(made, size=3)) == {**dataclasses.asdict(made), "size": 3}
        assert not hasattr(made, "__dict__")
        with pytest.raises(TypeError):
            kind()  # type: ignore[call-arg]


def test_it_is_equal_by_what_is_compared_and_to_its_own_kind_alone() -> None:
    assert Ours("a", note="x") == Ours("a", note="y") != Ours("b")
    assert Ours("a") != Theirs("a")  # type: ignore[comparison-overlap]

    @frozen
    class Key:
        number: int

    @frozen
    class Other:
        number: int

    assert {Key(1): "found"}[Key(1)] == "found"
    assert hash(Key(1)) == hash(Key(1))
    assert Key(1) != Other(1)  # type: ignore[comparison-overlap]
    with pytest.raises(TypeError, match="unhashable"):
        hash(Ours("a"))


def test_nothing_of_it_can_be_changed() -> None:
    made: Any = Ours("a")
    for change in (lambda: setattr(made, "name", "b"), lambda: delattr(made, "name")):
        with pytest.raises(dataclasses.FrozenInstanceError, match="field 'name'"):
            change()
    with pytest.raises(AttributeError):
        made.other = 1
    assert made == Ours("a")


def test_it_can_be_copied_and_pickled() -> None:
    made = Ours("a", 2, ["t"], note="x")
    for again in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert (again, again.note) == (made, "x")


def test_a_method_that_the_class_has_itself_stays() -> None:
    @frozen
    class Own:
        number: int

        def __post_init__(self) -> None:
            if self.number < 0:
                raise ValueError("negative")

        def __repr__(self) -> str:
            return "own"

    assert repr(Own(1)) == "own"
    with pytest.raises(ValueError, match="negative"):
        Own(-1)


def test_what_derives_from_it_is_a_frozen_dataclass() -> None:
    @dataclass(frozen=True)
    class More(Ours):
        more: int = 0

    made: Any = More("a", more=3)
    assert made == More("a", more=3) != More("a")
    for name in ("name", "more"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, 1)
    with pytest.raises(TypeError, match="non-frozen"):
        dataclass(type("Loose", (Ours,), {}))
