"""From type hints to Go types: what an interface's own annotations mean to a Go program.

======================================  =======================================================================
`bool`, `str`, `bytes`                  `bool`, `string`, `[]byte`
`int`, `float`, `complex`               `int64`, `float64`, `complex128`; other widths by `Annotated[int, Uint(8)]`
`list[T]`, `Sequence[T]`,               `[]T`
`tuple[T, ...]`
`dict[K, V]`, `Mapping[K, V]`           `map[K]V`; a bare `dict` is `map[string]interface{}`
a dataclass                             a struct; `service_name` is the field `ServiceName`, others by `Name("ID")`
`T | None`                              `*T`
`object`, `Any`, other unions           `interface{}`
`datetime`, `timedelta`                 `time.Time`, `time.Duration`
an `Enum`                               what its values are
======================================  =======================================================================
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Final, NewType, Union

from hybridload.goplugin.netrpc.gob.errors import GobError
from hybridload.goplugin.netrpc.gob.types import (
    Adapted,
    Bool,
    Bytes,
    Complex,
    Deferred,
    Field,
    Float,
    GoType,
    Int,
    Interface,
    Map,
    Name,
    Pointer,
    Slice,
    String,
    Struct,
    Time,
)

_MICROSECOND: Final = datetime.timedelta(microseconds=1)
DURATION: Final = Adapted(
    Int(),
    load=lambda nanoseconds: datetime.timedelta(microseconds=nanoseconds // 1000),
    dump=lambda duration: duration // _MICROSECOND * 1000,
)
"""Go's `time.Duration`; what is finer than a microsecond is cut off on receipt."""

_SCALARS: Final[Mapping[Any, GoType]] = {
    bool: Bool(),
    int: Int(),
    float: Float(),
    complex: Complex(),
    str: String(),
    bytes: Bytes(),
    datetime.datetime: Time(),
    datetime.timedelta: DURATION,
    object: Interface(),
    Any: Interface(),
    list: Slice(Interface()),
    tuple: Adapted(Slice(Interface()), tuple, list),
    dict: Map(String(), Interface()),
}
_LISTS: Final = frozenset({list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection})
_DICTS: Final = frozenset({dict, collections.abc.Mapping, collections.abc.MutableMapping})


class Hints:
    """Turns hints into descriptions and remembers those of classes, so that each dataclass has one `Struct`."""

    def __init__(self) -> None:
        self._known: dict[Any, GoType] = {}

    def go_type(self, hint: Any) -> GoType:
        """:raises GobError: for a hint that has no Go type. A dataclass's fields are looked at when first needed."""
        if isinstance(hint, GoType):
            return hint
        if typing.get_origin(hint) is Annotated:
            inner, *extras = typing.get_args(hint)
            return next((extra for extra in extras if isinstance(extra, GoType)), None) or self.go_type(inner)
        if isinstance(hint, NewType):
            return self.go_type(hint.__supertype__)
        if type(hint).__name__ == "TypeAliasType":  # `type Nest = list[Nest]`, from Python 3.12 on
            return self._known.setdefault(hint, Deferred(hint.__name__, lambda: self.go_type(hint.__value__)))
        if (scalar := scalar_type(hint)) is not None:
            return scalar
        if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, enum.Enum)):
            if hint not in self._known:
                self._known[hint] = enum_type(hint) if issubclass(hint, enum.Enum) else self._struct(hint)
            return self._known[hint]
        return self._generic(hint, typing.get_origin(hint), typing.get_args(hint))

    def _generic(self, hint: Any, origin: Any, args: tuple[Any, ...]) -> GoType:
        if origin is Union or origin is types.UnionType:
            return self._union(args)
        if origin in _LISTS:
            return self._slice(args[0])
        if origin is tuple and len(args) == 2 and args[1] is ...:
            return Adapted(self._slice(args[0]), tuple, list)
        if origin in _DICTS:
            return Map(self.go_type(args[0]), self.go_type(args[1]))
        raise GobError(
            f"The hint {hint!r} has no Go type: use bool, int, float, complex, str, bytes, list, dict, a dataclass, an "
            f"Enum, datetime, timedelta, Optional or object, or describe it, e.g. Annotated[int, Uint(8)]."
        )

    def _union(self, args: tuple[Any, ...]) -> GoType:
        some = [arg for arg in args if arg is not types.NoneType]
        if len(some) > 1 or not some:
            return Interface()
        target = self.go_type(some[0])
        return target if isinstance(target, Interface) else Pointer(target)

    def _slice(self, elem: Any) -> GoType:
        return Slice(self.go_type(elem))

    def _struct(self, kind: type) -> Struct:
        return Struct(kind.__name__, lambda: self._fields(kind), kind)

    def _fields(self, kind: type) -> list[Field]:
        hints = typing.get_type_hints(kind, include_extras=True)
        return [
            Field(go_name(field.name, hints[field.name]), self.go_type(hints[field.name]), field.name)
            for field in dataclasses.fields(kind)
            if field.init
        ]


def from_hint(hint: Any) -> GoType:
    """The Go type of a type hint, on its own; a `Registry` gives the same `Struct` for a dataclass each time.

    :raises GobError: for a hint that has no Go type.
    """
    return Hints().go_type(hint)


def scalar_type(hint: Any) -> GoType | None:
    """What a hint stands for that has no hints in it; `None` for others."""
    try:
        return _SCALARS.get(hint)
    except TypeError:  # A hint need not be hashable.
        return None


def go_name(attribute: str, hint: Any) -> str:
    """The Go name of what is `attribute` in Python: in capitals, or what a `Name` in its hint says.

    :raises GobError: it has none.
    """
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Name):
            return extra.name
    name = "".join(part[:1].upper() + part[1:] for part in attribute.split("_"))
    if not name[:1].isupper():
        raise GobError(f"The field {attribute!r} has no Go name: give it one with Annotated[..., Name('Field')].")
    return name


def enum_type(kind: type[enum.Enum]) -> GoType:
    """What an enumeration's values are.

    :raises GobError: they are of several kinds, or of one that has no Go type.
    """
    value_kinds = {type(member.value) for member in kind}
    scalar = _SCALARS.get(value_kinds.pop()) if len(value_kinds) == 1 else None
    if not isinstance(scalar, Bool | Int | Float | String | Bytes):
        raise GobError(f"The enumeration {kind.__qualname__} has no Go type: give all members an int or a str.")
    return Adapted(scalar, kind, lambda member: kind(member).value)
