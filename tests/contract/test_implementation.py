"""Whether an object is what its interface says."""

from __future__ import annotations

import functools
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol
from unittest.mock import MagicMock

import pytest

from hybridload.contract import Contract
from hybridload.errors import ContractError


class Store(Protocol):
    def get(self, key: str, default: str = "") -> str: ...
    def put(self, key: str, /, *, value: str) -> None: ...
    def keys(self) -> Iterator[str]: ...


class AsyncStore(Protocol):
    async def get(self, key: str) -> str: ...
    def keys(self) -> AsyncIterator[str]: ...


def refusal(interface: Any, implementation: object) -> str:
    with pytest.raises(ContractError) as caught:
        Contract(interface).complete().check_implementation(implementation)
    return str(caught.value)


class Good:
    def get(self, key: str, default: str = "other", extra: int = 0) -> str:
        return key

    def put(self, name: str, *, value: str, **more: str) -> None: ...

    def keys(self) -> Iterator[str]:
        yield "a"


def test_a_fitting_object_passes() -> None:
    check = Contract(Store).complete().check_implementation
    check(Good())
    check(types.SimpleNamespace(get=lambda key, default: "", put=lambda *args, **kwargs: None, keys=lambda: iter(())))
    check(MagicMock())
    module = types.ModuleType("store")
    vars(module).update(get=Good().get, put=Good().put, keys=Good().keys)
    check(module)


def test_builtins_are_taken_at_their_word() -> None:
    class Has(Protocol):
        def get(self, key: str) -> str: ...

    Contract(Has).complete().check_implementation(types.SimpleNamespace(get=max))


def test_everything_wrong_is_listed() -> None:
    class Bad:
        put = 3

        def get(self, name: str, default: str, needed: int) -> str:
            return name

    text = refusal(Store, Bad())
    assert text.startswith("Bad is no Store:") or ".Bad is no Store:" in text
    assert "get(name: " in text
    assert "cannot take the arguments of get(key: str, default: str = '') -> str" in text
    assert "missing a required argument: 'needed'" in text
    assert "put is int and cannot be called; define put(key: str, /, *, value: str) -> None" in text
    assert "keys() is missing; define keys() -> " in text


def test_names_of_keyword_arguments_must_be_the_interfaces() -> None:
    class Renamed(Good):
        def get(self, name: str, default: str = "") -> str:  # type: ignore[override]
            return name

    assert "when called by name" in refusal(Store, Renamed())


def test_asynchronous_or_not_must_agree() -> None:
    class Sync:
        def get(self, key: str) -> str:
            return key

        def keys(self) -> Iterator[str]:
            yield "a"

    class Async:
        async def get(self, key: str, default: str = "") -> str:
            return key

        def put(self, key: str, *, value: str) -> None: ...

        async def keys(self) -> AsyncIterator[str]:
            yield "a"

    text = refusal(AsyncStore, Sync())
    assert "get() is not asynchronous, but the interface's is; define it with `async def`" in text
    assert "keys() is a generator, but the interface's is asynchronous" in text
    text = refusal(Store, Async())
    assert "get() is asynchronous, but the interface's is not" in text
    assert "keys() is asynchronous" in text
    Contract(AsyncStore).complete().check_implementation(Async())


def test_a_decorated_coroutine_function_is_asynchronous() -> None:
    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    class Async:
        @traced
        async def get(self, key: str) -> str:
            return key

        def keys(self) -> AsyncIterator[str]:
            raise NotImplementedError

    Contract(AsyncStore).complete().check_implementation(Async())


def test_a_generator_where_one_value_is_wanted_is_refused() -> None:
    class Yields(Good):
        def get(self, key: str, default: str = "") -> Iterator[str]:  # type: ignore[override]
            yield key

    assert "get() is a generator, but the interface's returns one value" in refusal(Store, Yields())


def test_a_coroutine_that_should_be_an_async_generator_is_refused() -> None:
    class Returns:
        async def get(self, key: str) -> str:
            return key

        async def keys(self) -> list[str]:
            return []

    assert "keys() must be awaited before it yields" in refusal(AsyncStore, Returns())
