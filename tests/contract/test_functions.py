"""What is read off a function's code is what `inspect` says, and what calls do."""

from __future__ import annotations

import abc
import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from hybridload.contract import idempotent
from hybridload.contract.functions import NO_DEFAULT, Declared, called, parameters_of, plain_function, takes

NAMES = ("a", "b", "c", "d", "e", "f")


@some.composite
def functions(draw: Any) -> Any:
    """A function whose parameters are drawn."""
    kinds = sorted(draw(some.lists(some.sampled_from((0, 1, 2, 3, 4)), max_size=len(NAMES))))
    kinds = [kind for kind, times in itertools.groupby(kinds) for _ in range(1 if kind in (2, 4) else len(list(times)))]
    defaults = draw(some.integers(0, len(kinds)))
    written: list[str] = []
    for index, (name, kind) in enumerate(zip(NAMES, kinds, strict=False)):
        if kind == 3 and not {2, 3} & set(kinds[:index]):
            written.append("*")
        optional = draw(some.booleans()) if kind == 3 else index >= defaults
        written.append({2: "*", 4: "**"}.get(kind, "") + name + (" = 7" if optional and kind not in (2, 4) else ""))
        if kind == 0 and (index + 1 == len(kinds) or kinds[index + 1] != 0):
            written.append("/")
    namespace: dict[str, Any] = {}
    exec(f"def drawn({', '.join(written)}): pass", namespace)
    return namespace["drawn"]


def binds(found: Callable[..., Any], positional: int, named: list[str]) -> bool:
    try:
        found(*[None] * positional, **dict.fromkeys(named))
    except TypeError:
        return False
    return True


def as_inspect_says(found: Callable[..., Any]) -> list[Declared]:
    return [
        Declared(each.name, int(each.kind), NO_DEFAULT if each.default is each.empty else each.default)
        for each in inspect.signature(found).parameters.values()
    ]


@given(functions(), some.integers(0, 7), some.lists(some.sampled_from((*NAMES, "other")), unique=True))
def test_a_plain_function_takes_what_it_can_be_called_with(function: Any, positional: int, named: list[str]) -> None:
    assert parameters_of(function) == as_inspect_says(function)
    assert takes(function, positional, named) == binds(function, positional, named)
    # With a first argument of its own, as a method, and as what makes the object of a class.
    kind = type("Drawn", (), {"__init__": function, "drawn": function})
    method = object.__new__(kind).drawn
    assert takes(method, positional, named) == binds(method, positional, named)
    assert takes(kind, positional, named) == binds(kind, positional, named)


def test_a_class_without_a_constructor_takes_nothing() -> None:
    class Bare(abc.ABC):  # noqa: B024
        pass

    assert takes(Bare, 0, ())
    assert not takes(Bare, 1, ())
    assert not takes(Bare, 0, ["a"])


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def signed(function: Any) -> Any:
    function.__signature__ = inspect.Signature()
    return function


class Made(type):
    def __call__(cls, *args: Any) -> Any:
        return args


class FromNew:
    def __new__(cls, *args: Any) -> Any:
        return args


class Callable_:
    def __call__(self, a: int) -> int:
        return a


@pytest.mark.parametrize(
    "found",
    [
        decorated(lambda a: a),
        signed(lambda a: a),
        functools.partial(lambda a: a, 1),
        Made("Kind", (), {}),
        FromNew,
        Callable_(),
        max,
        [].append,
    ],
)
def test_what_inspect_has_to_be_asked_about_is_not_answered(found: Any) -> None:
    assert plain_function(found) is None
    assert not takes(found, 1, ())


def test_the_parameters_of_a_decorated_function_are_those_of_the_one_beneath() -> None:
    def function(a: int, *, b: str = "x") -> None: ...

    assert parameters_of(decorated(function)) == parameters_of(function) == as_inspect_says(function)
    assert parameters_of(idempotent(function)) == parameters_of(function)
    assert plain_function(idempotent(function)) is function


async def coroutine() -> None: ...


async def async_generator() -> Any:
    yield


def generator() -> Any:
    yield


def plain() -> None: ...


class Asynchronous:
    async def method(self) -> None: ...

    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    "found",
    [coroutine, async_generator, generator, plain, Asynchronous().method, Asynchronous(), decorated(generator), max],
)
def test_what_a_call_gives_is_known(found: Any) -> None:
    said = called(found)
    asked = [found, type(found).__call__]
    assert said.coroutine == any(map(inspect.iscoroutinefunction, asked))
    assert said.generator == any(map(inspect.isgeneratorfunction, asked))
    assert said.async_generator == any(map(inspect.isasyncgenfunction, asked))


def test_a_decorator_may_return_an_awaitable_that_it_got() -> None:
    assert not called(coroutine).not_awaitable
    assert not called(decorated(coroutine)).not_awaitable
    assert called(decorated(plain)).not_awaitable
    assert called(plain).not_awaitable
    assert not called(max).not_awaitable
