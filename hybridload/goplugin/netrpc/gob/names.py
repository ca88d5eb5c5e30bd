"""The names under which Go programs register the types that travel inside interfaces.

Go registers its basic types and slices of them by itself, under the names that the language gives them: ``"int"``,
``"[]string"``, ``"[]uint8"``. A program registers others with `gob.Register`, and their names follow rules that
surprise:

- a type without a name of its own has its spelling, with a space: ``"map[string]interface {}"``, ``"[]interface {}"``;
- a named type has the full import path, ``"example.com/shop/model.Item"``, and ``"main.Item"`` in a program's own
  package;
- a pointer to a named type has the package's last name only: ``"*model.Item"``.

A name that is made of basic types says all about its type and needs no registration here.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from hybridload.goplugin.netrpc.gob.errors import GobError, Misfit
from hybridload.goplugin.netrpc.gob.hints import Hints
from hybridload.goplugin.netrpc.gob.types import (
    Adapted,
    Array,
    Bool,
    Bytes,
    Complex,
    Float,
    GobValue,
    GoType,
    Int,
    Interface,
    Map,
    Pointer,
    Slice,
    String,
    Struct,
    Time,
    Uint,
)

_BASICS: Final[Mapping[str, GoType]] = {
    "bool": Bool(),
    "string": String(),
    "int": Int(),
    **{f"int{bits}": Int(bits) for bits in (8, 16, 32, 64)},
    "uint": Uint(),
    "uintptr": Uint(),
    **{f"uint{bits}": Uint(bits) for bits in (8, 16, 32, 64)},
    "float32": Float(32),
    "float64": Float(),
    "complex64": Complex(64),
    "complex128": Complex(),
    "interface {}": Interface(),
}
_BASIC: Final = "|".join(map(re.escape, sorted(_BASICS, key=len, reverse=True)))
_LAYER: Final = re.compile(rf"\[\]|\[(?P<length>[0-9]{{1,18}})\]|map\[(?P<key>{_BASIC})\]")
_SPELLING: Final = re.compile(rf"(?:\[[0-9]{{0,18}}\]|map\[(?:{_BASIC})\])*(?:{_BASIC})")
_TIME: Final = "time.Time"

SLICE_NAMES: Final[Mapping[type, str]] = {
    bool: "[]bool",
    int: "[]int",
    float: "[]float64",
    complex: "[]complex128",
    str: "[]string",
}
SCALAR_NAMES: Final[Mapping[type, str]] = {
    bool: "bool",
    int: "int",
    float: "float64",
    complex: "complex128",
    str: "string",
    bytes: "[]uint8",
    bytearray: "[]uint8",
    datetime.datetime: _TIME,
}


def is_spelling(name: str) -> bool:
    """Whether a registered name is the spelling of a type made of Go's basic types."""
    return _SPELLING.fullmatch(name) is not None


def spelled(name: str) -> GoType | None:
    """The type that is spelled by a registered name, e.g. ``"map[string][]int32"``; `None` when it is no spelling."""
    if not is_spelling(name):
        return None
    wrappers: list[Callable[[GoType], GoType]] = []
    start = 0
    while layer := _LAYER.match(name, start):
        wrappers.append(_wrapper(layer))
        start = layer.end()
    go_type = _BASICS[name[start:]]
    for wrap in reversed(wrappers):
        go_type = wrap(go_type)
    return go_type


def spelling(go_type: GoType) -> str | None:
    """The name under which a type made of Go's basic types travels inside an interface; `None` for any other.

    Widths that Python does not tell apart are Go's usual ones: `Int()` is ``"int"``, `Uint()` ``"uint"``.
    """
    match go_type:
        case Bytes() | Slice(Uint(8)):
            return "[]uint8"
        case Interface():
            return "interface {}"
        case Time():
            return _TIME
        case Slice(elem):
            return _around("[]", elem)
        case Array(length, elem):
            return _around(f"[{length}]", elem)
        case Map(key, elem):
            inner = spelling(key)
            return None if inner not in _BASICS else _around(f"map[{inner}]", elem)
        case Adapted(inner_type, _, _):
            return spelling(inner_type)
        case Pointer(target):
            return spelling(target)
    return next((name for name, basic in _BASICS.items() if basic == go_type), None)


def _around(layer: str, elem: GoType) -> str | None:
    inner = spelling(elem)
    return None if inner is None else layer + inner


def _wrapper(layer: re.Match[str]) -> Callable[[GoType], GoType]:
    length, key = layer["length"], layer["key"]
    if key:
        return lambda elem: Map(_BASICS[key], elem)
    if length:
        return lambda elem: Array(int(length), elem)
    return lambda elem: Bytes() if elem == Uint(8) else Slice(elem)


class Registry:
    """What one program knows about registered names, and about the Go types behind Python's.

    Fill it before it is used on a connection; any number of connections may share it.
    """

    def __init__(self) -> None:
        self._types: dict[str, GoType] = {_TIME: Time()}
        self._names: dict[type, str] = {}
        self._hints = Hints()

    def register(self, name: str, kind: Any) -> None:
        """Tell what a registered name stands for, as `gob.RegisterName` does in Go.

        An instance of a registered dataclass may then be put where an interface is sent, and comes out of one.

        :param name: the name that the Go program has for the type.
        :param kind: a description (`Struct`, `Map`, ...) or a type hint, such as a dataclass.
        :raises GobError: when the name is taken by something else, or the hint has no Go type.
        """
        go_type = self.go_type(kind)
        if not name or self._types.setdefault(name, go_type) != go_type:
            raise GobError(f"gob name {name!r} is empty or stands for something else already: register another.")
        if isinstance(go_type, Struct | Adapted) and isinstance(kind, type):
            self._names[kind] = name

    def go_type(self, kind: Any) -> GoType:
        """The description of a type hint: the same one each time for one dataclass. A description is its own.

        :raises GobError: for a hint that has no Go type.
        """
        return self._hints.go_type(kind)

    def registered(self, name: str) -> GoType | None:
        """What was registered under the name; `None` for a mere spelling."""
        return self._types.get(name)

    def concrete(self, value: object) -> tuple[str, GoType, object]:
        """What to send for a value inside an interface: the name of its Go type, the type, and the value itself.

        :raises Misfit: for a value that has no registered Go type.
        """
        if isinstance(value, GobValue):
            if value.type is not None:
                return value.name, value.type, value.value
            name, value = value.name, value.value
        else:
            name = self._name_of(value)
        go_type = self._types.get(name) or spelled(name)
        if go_type is None:
            raise Misfit(f"the type {name!r} is not known here; Registry.register({name!r}, ...) says what it is")
        return name, go_type, value

    def _name_of(self, value: object) -> str:
        for kind in type(value).__mro__:
            if name := SCALAR_NAMES.get(kind) or self._names.get(kind):
                return name
        if isinstance(value, Mapping):
            return "map[string]interface {}" if _all_are(str, value) else "map[interface {}]interface {}"
        if isinstance(value, list | tuple):
            kind = type(value[0]) if value else object
            return SLICE_NAMES[kind] if kind in SLICE_NAMES and _all_are(kind, value) else "[]interface {}"
        raise Misfit(
            f"a {type(value).__name__} has no Go type that could travel inside an interface; send a GobValue with its "
            f"name, or call Registry.register with the name that the Go program has for it"
        )


def _all_are(kind: type, values: Iterable[object]) -> bool:
    return all(type(value) is kind for value in values)


def type_of(value: object, registry: Registry) -> GoType:
    """The Go type that a value's own type stands for, where nothing else says; `None` is a nil interface."""
    kind = type(value)
    if value is None or isinstance(value, GobValue):
        return Interface()
    if isinstance(value, list | tuple) and value:
        inner = type(value[0])
        if inner in SLICE_NAMES and _all_are(inner, value):
            return Slice(registry.go_type(inner))
    return registry.go_type(kind)
