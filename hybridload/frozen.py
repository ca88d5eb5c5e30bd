"""Frozen values that take little to define.

`dataclasses.dataclass(frozen=True, slots=True)` writes the source of six methods for each class and has it compiled. A
plugin's process has nearly fifty such classes, and that was a quarter of its start. `frozen` has one method compiled,
`__init__`; the others are below, and all classes share them. What it makes is a dataclass: `fields`, `replace` and
`match` work on it.

For values that are made once, not for those of every call: each field is set through a function. A class that derives
from one of them is a ``dataclass(frozen=True)``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def frozen(cls: type[_T]) -> type[_T]:
    """Make a class one of frozen values, as ``dataclass(frozen=True, slots=True)`` does."""
    own = vars(cls)
    made = dataclasses.dataclass(repr=False, eq=False, slots=True)(cls)
    for name, method in _METHODS.items():
        if name not in own:
            setattr(made, name, method)
    vars(made)["__dataclass_params__"].frozen = True  # what dataclasses let others derive from it
    return made


def _repr(self: Any) -> str:
    shown = (f"{each.name}={getattr(self, each.name)!r}" for each in dataclasses.fields(self) if each.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _compared(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, each.name) for each in dataclasses.fields(self) if each.compare)


def _eq(self: Any, other: object) -> Any:
    return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _set(self: Any, name: str, value: object) -> None:
    if hasattr(self, name):
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
    object.__setattr__(self, name, value)  # it is being made


def _delete(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, each.name) for each in dataclasses.fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for each, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, each.name, value)


_METHODS = {
    "__repr__": _repr,
    "__eq__": _eq,
    "__hash__": _hash,
    "__setattr__": _set,
    "__delattr__": _delete,
    "__getstate__": _state,
    "__setstate__": _set_state,
}
