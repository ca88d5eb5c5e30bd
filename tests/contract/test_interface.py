"""Which interfaces can travel, and how those that cannot are told."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import subprocess
import sys
import typing
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from dataclasses import InitVar, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import pytest

from hybridload.contract import Contract, Field, Kind, as_contract
from hybridload.errors import ContractError

if TYPE_CHECKING:
    from decimal import Decimal

T = TypeVar("T")


class Greeter(Protocol):
    def greet(self) -> str: ...


def refusal(interface: Any, **options: Any) -> str:
    with pytest.raises(ContractError) as caught:
        Contract(interface, **options).complete()
    return str(caught.value)


def test_a_completed_contract_describes_its_methods() -> None:
    service = Contract(Greeter).complete()
    (method,) = service.methods
    assert service.full_name == "proto.GreeterService"
    assert service.interface is Greeter
    assert (method.name, method.wire_name, method.path) == ("greet", "Greet", "/proto.GreeterService/Greet")
    assert (method.kind, method.is_async, method.parameters, method.result) == (Kind.UNARY, False, (), str)
    assert method.location == f"{__file__}:{Greeter.greet.__code__.co_firstlineno}"
    assert Contract(Greeter, "my.Thing").complete().full_name == "my.Thing"


def test_completing_is_kept_and_wire_is_too() -> None:
    contract = Contract(Greeter)
    assert contract.complete() is contract.complete()
    assert contract.complete().wire() is contract.complete().wire()


def test_completing_hints_loads_no_protobuf() -> None:
    code = (
        "import sys, typing, hybridload.contract as c\n"
        "class G(typing.Protocol):\n    def greet(self) -> str: ...\n"
        "s = c.Contract(G).complete(); s.check_implementation(type('I', (), {'greet': lambda self: ''})())\n"
        "print([m for m in sys.modules if m.startswith(('google', 'grpc'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_making_a_contract_checks_nothing() -> None:
    class Later(Protocol):
        def greet(self, who: NotYet) -> str: ...  # type: ignore[name-defined]  # noqa: F821

    Contract(Later)


def test_every_bad_method_is_named_with_its_line() -> None:
    class Bad(Protocol):
        def good(self) -> str: ...
        def unhinted(self, a, b: int) -> str: ...  # type: ignore[no-untyped-def]
        def nothing(self): ...  # type: ignore[no-untyped-def]
        def anything(self, a: Any) -> object: ...
        def stars(self, *args: int, **kwargs: str) -> None: ...
        def bare(self, a: list) -> dict: ...  # type: ignore[type-arg]
        def either(self, a: int | str) -> None: ...
        def hidden(self, a: Decimal) -> None: ...
        def keyed(self, a: dict[float, str]) -> None: ...
        def fixed(self, a: tuple[int, str]) -> None: ...
        def calls(self, a: Callable[[], None]) -> None: ...
        def day(self) -> date: ...
        def nested(self) -> list[Iterator[int]]: ...
        def two(self, a: Iterator[int], b: Iterator[int]) -> None: ...
        def default(self, a: int = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013
        def variable(self, a: T) -> T: ...
        def grüße(self) -> None: ...
        def mixed(self, a: AsyncIterator[int]) -> None: ...
        async def pitfall(self) -> AsyncIterator[int]: ...
        def none(self, a: None) -> None: ...
        def generator(self) -> Generator[int, str, None]: ...
        def streamed_none(self) -> Iterator[None]: ...
        def pinned(self, a: Annotated[int, Field(0)]) -> None: ...
        def collide(self, a: Annotated[int, Field(2)], b: int) -> None: ...
        def reads(self, file: typing.IO[bytes]) -> None: ...
        def default_stream(self, a: Iterable[int] = ()) -> None: ...
        def alike(self, foo_bar: int, fooBar: int) -> None: ...

    text = refusal(Bad)
    first = Bad.good.__code__.co_firstlineno
    expected = {
        "unhinted": "parameter 'a': it has no type hint; write `a: str`, say",
        "nothing": "the result has no type hint; write `-> None` when there is none",
        "anything": "parameter 'a': Any cannot travel: say what it is; only typed values travel",
        "stars": "parameter 'args': *args cannot travel; use one parameter that is a list",
        "bare": "parameter 'a': list cannot travel: say what is in it, e.g. list[str]",
        "either": "parameter 'a': int | str cannot travel: one type, or one type and None",
        "hidden": "the hint's name 'Decimal' cannot be found; a name imported under `if TYPE_CHECKING:`",
        "keyed": "parameter 'a': dict[float, str] cannot travel: keys are str, int or bool",
        "fixed": "parameter 'a': tuple[int, str] cannot travel: use tuple[T, ...]",
        "calls": "parameter 'a': Callable[[], None] cannot travel: no such values can be sent",
        "day": "the result: date cannot travel: use datetime (with a time zone) or str",
        "nested": "the result: Iterator[int] cannot travel here: a stream is a whole parameter",
        "two": "only one parameter can be a stream, not a and b",
        "default": "parameter 'a': the default is None; write `int | None`",
        "variable": "parameter 'a': ~T cannot travel: a type variable says nothing; write the type",
        "grüße": "the name 'grüße' is not ASCII",
        "mixed": "parameter 'a': AsyncIterator[int] in a synchronous method; use Iterator",
        "pitfall": "an `async def` that returns AsyncIterator[int] must be awaited first; declare it as `def pitfall",
        "none": "parameter 'a': None cannot travel: only a result can be None alone",
        "generator": "Generator[int, str, None] cannot travel: a stream only yields",
        "streamed_none": "the result: a stream of None carries nothing",
        "pinned": "parameter 'a': Field(0) is no field number",
        "collide": "the parameters: 'a' and 'b' both have field number 2",
        "reads": "parameter 'file': IO[bytes] cannot travel",
        "default_stream": "parameter 'a': a stream has no default",
        "alike": "the parameters: 'foo_bar' and 'fooBar' are one name in protobuf's JSON",
    }
    assert "good()" not in text
    for line, (name, problem) in enumerate(expected.items(), first + 1):
        assert f"{name}() at {__file__}:{line}: {problem}" in text, (name, text)
    assert "stars() at" in text
    assert "**kwargs cannot travel; use one parameter that is a dict" in text
    assert "anything() at" in text
    assert "the result: object cannot travel" in text


def test_members_that_are_no_methods_are_refused() -> None:
    class Bad(Protocol):
        size: int
        kind = "x"

        async def __aenter__(self) -> None: ...
        def __len__(self) -> int: ...
        @property
        def name(self) -> str: ...
        @classmethod
        def make(cls) -> str: ...
        @staticmethod
        def twice(a: int) -> int: ...
        def _private(self) -> str: ...

    text = refusal(Bad)
    for name, problem in {
        "size": "a data member; an interface has methods only",
        "kind": "a data member",
        "__len__": "a dunder method does not travel",
        "__aenter__": "a dunder method",
        "name": "a property",
        "make": "a classmethod",
        "twice": "a staticmethod",
        "_private": "a private name does not travel",
    }.items():
        assert re.search(rf"{name} at {re.escape(__file__)}:\d+: {problem}", text), (name, text)
    size = Path(__file__).read_text().splitlines().index("        size: int") + 1
    assert f"size at {__file__}:{size}:" in text


def test_only_an_abcs_abstract_methods_travel() -> None:
    class Base(ABC):
        limit_of_retries = staticmethod(lambda: 3)

        def __init__(self) -> None:
            self.calls = 0

        def _hidden(self) -> object:
            return self

        def loud(self) -> str:
            return self.greet().upper()

        @abstractmethod
        def greet(self) -> str: ...

        @contextlib.contextmanager
        def session(self) -> Iterator[object]:
            yield self

    service = Contract(Base).complete()
    assert [method.name for method in service.methods] == ["greet"]
    lines = Path(__file__).read_text().splitlines()
    line = int(service.methods[0].location.rpartition(":")[2])
    assert lines[line - 1].strip().startswith("def greet")

    class Data(Base):
        size: int = 3

    assert "size at" in refusal(Data)


def test_interfaces_inherit() -> None:
    class Louder(Greeter, Protocol):
        def shout(self, text: str) -> str: ...

    class Mixed(Louder, ABC):
        def shout(self, text: str) -> str:
            return text.upper()

    assert [method.name for method in Contract(Louder).complete().methods] == ["greet", "shout"]
    assert [method.name for method in Contract(Mixed).complete().methods] == ["greet"]


def test_what_is_no_interface_is_said() -> None:
    class Plain:
        def greet(self) -> str:
            return ""

    assert "make it a Protocol with methods, or an ABC with abstract ones" in refusal(Plain)
    assert "3 is no interface: Contract takes a Protocol or an ABC" in refusal(3)
    assert 'service "no" is' not in refusal(Greeter, service="no spaces please")
    assert "is no full name" in refusal(Greeter, service="no spaces please")
    assert "errors lists <class 'KeyboardInterrupt'>" in refusal(Greeter, errors=[KeyboardInterrupt])
    with pytest.raises(ContractError, match="is no interface: give a Protocol, an ABC or a Contract"):
        as_contract("greeter")
    contract = Contract(Greeter)
    assert as_contract(contract) is contract
    assert as_contract(Greeter).interface is Greeter


def test_two_methods_of_one_wire_name_are_refused() -> None:
    class Bad(Protocol):
        def get_item(self) -> str: ...
        def getItem(self) -> str: ...

    assert "getItem() at" in refusal(Bad)
    assert "it is GetItem in the service, and so is get_item(); rename one" in refusal(Bad)


def test_dataclasses_that_cannot_travel_are_named_with_the_field() -> None:
    @dataclass
    class Endless:
        inner: Endless

    @dataclass
    class Once:
        name: str
        seed: InitVar[int] = 0

    @dataclass
    class Deep:
        parts: list[complex]

    @dataclass
    class Numbers:
        a: Annotated[int, Field(2)]
        b: int

    class Bad(Protocol):
        def a(self, x: Endless) -> Endless: ...
        def b(self, x: Once) -> None: ...
        def c(self, x: Deep) -> None: ...
        def d(self, x: Numbers) -> None: ...
        def e(self, x: Deep) -> None: ...

    text = refusal(Bad)
    assert "Endless cannot travel: it always contains itself; make that field `T | None`" in text
    assert "Once.seed cannot travel: an InitVar is not kept" in text
    assert text.count("Deep.parts: complex cannot travel: use a dataclass with two floats") == 2
    assert "Numbers: 'a' and 'b' both have field number 2" in text


def test_a_bad_interface_that_is_mentioned_is_named() -> None:
    class Callback(Protocol):
        def call(self, a: Any) -> None: ...

    class Caller(Protocol):
        def run(self, callback: Callback) -> None: ...

    text = refusal(Caller)
    assert "call() at" in text
    assert "Contract(" in text
    assert "Caller) mentions that interface)" in text


def test_interfaces_may_mention_each_other() -> None:
    class Ping(Protocol):
        def ping(self, other: Pong | None) -> None: ...

    class Pong(Protocol):
        def pong(self, other: Ping) -> Ping: ...

    contract = Contract(Ping)
    service = contract.complete()
    shape: Any = service.methods[0].parameters[0].shape
    other = shape.item.contract
    assert other.complete().full_name == "proto.PongService"
    assert other.complete().methods[0].parameters[0].shape.contract is contract


def test_the_contract_of_a_callback_can_be_given() -> None:
    adder = Contract(Greeter, "other.Adder")

    class Caller(Protocol):
        def run(self, greeter: Annotated[Greeter, adder]) -> None: ...

    shape: Any = Contract(Caller).complete().methods[0].parameters[0].shape
    assert shape.contract is adder


def test_asynchronous_methods_are_known() -> None:
    class Async(Protocol):
        async def greet(self) -> str: ...
        def later(self) -> Awaitable[str]: ...
        def watch(self) -> AsyncIterator[int]: ...
        async def upload(self, items: AsyncIterator[int]) -> int: ...
        def talk(self, items: AsyncIterator[int]) -> AsyncIterator[int]: ...

    methods = Contract(Async).complete().methods
    assert all(method.is_async for method in methods)
    assert [method.kind for method in methods] == [
        Kind.UNARY, Kind.UNARY, Kind.SERVER_STREAM, Kind.CLIENT_STREAM, Kind.BIDI,
    ]  # fmt: skip
    assert [method.result for method in methods] == [str, str, int, int, int]


def test_signatures_keep_kinds_and_defaults() -> None:
    class Mixed(Protocol):
        def put(self, key: str, /, value: Annotated[int, Field(7)] = 3, *, deep: bool = False) -> None: ...
        def take(self, key: str, other: str, /) -> Iterator[list[str]]: ...
        def list(self, *, first: int, last: int | None = None) -> str: ...

    method, taking, listing = Contract(Mixed).complete().methods
    assert str(method.signature) == "(key: str, /, value: int = 3, *, deep: bool = False) -> None"
    assert method.declaration == f"put{method.signature}"
    assert taking.declaration == "take(key: str, other: str, /) -> Iterator[list[str]]"
    assert listing.declaration == f"list{listing.signature}" == "list(*, first: int, last: int | None = None) -> str"
    assert [(p.name, p.hint, p.number, p.default) for p in method.parameters[1:]] == [
        ("value", int, 7, 3),
        ("deep", bool, 3, False),
    ]


def test_new_types_and_aliases_are_seen_through() -> None:
    key = typing.NewType("key", str)

    class Store(Protocol):
        def get(self, key: key) -> typing.Optional[key]: ...  # type: ignore[valid-type]  # noqa: UP045

    assert Contract(Store).complete().wire().methods["get"].encode_arguments(("k",), {}, None) == b"\n\x01k"


def test_a_dataclass_made_with_make_dataclass_travels() -> None:
    point = dataclasses.make_dataclass("Point", [("x", int), ("y", int, 0)])

    class Plane(Protocol):
        def mirror(self, point: point) -> point: ...  # type: ignore[valid-type]

    method = Contract(Plane).complete().wire().methods["mirror"]
    assert method.decode_result(method.encode_result(point(1, -2), None), None) == point(1, -2)
