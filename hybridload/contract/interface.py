"""Which methods an interface has, and why others cannot travel.

Rules:

- A Protocol's methods all travel. Of an ABC only the abstract ones do: its concrete methods run on the host's side, on
  top of the remote ones.
- An interface has methods only. Data members, properties, class and static methods, private names and dunder methods
  that would have to travel are refused. Classes nested in an interface are left alone.
- An interface may inherit from others; what is nearest in the resolution order counts.
"""

from __future__ import annotations

import abc
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from hybridload.frozen import frozen

_MACHINERY = frozenset({"_abc_impl", "_is_protocol", "_is_runtime_protocol"})
_CLASS_HOOKS = frozenset({"__init_subclass__", "__subclasshook__", "__class_getitem__", "__new__"})
_TYPING = frozenset({"typing", "typing_extensions", "abc", "_py_abc"})


@frozen
class Member:
    """One name of an interface.

    :param function: the plain function, when that is what it is and it can travel by name.
    :param problem: why it cannot travel, otherwise.
    """

    name: str
    owner: type
    function: types.FunctionType | None
    problem: str = ""
    location: str = ""


def members(interface: type) -> list[Member]:
    """Every name of an interface that travels or is refused, in the order of definition, base interfaces first."""
    bases = [base for base in interface.__mro__ if base not in (object, typing.Protocol, typing.Generic, abc.ABC)]
    order = {name: None for base in reversed(bases) for name in (*vars(base), *_annotated(base))}
    found = (_member(name, bases) for name in order if name not in _MACHINERY)
    return [member for member in found if member is not None]


def location(function: object) -> str:
    """Where a method is defined, as ``file:line``; the line of its `def`, not of its first decorator."""
    import inspect
    import linecache

    code = getattr(inspect.unwrap(function), "__code__", None)  # type: ignore[arg-type]
    if code is None:
        return "<unknown>"
    line = code.co_firstlineno
    for number in range(line, line + 20):
        if linecache.getline(code.co_filename, number).lstrip().startswith(("def ", "async def ")):
            line = number
            break
    return f"{code.co_filename}:{line}"


def class_location(cls: type, name: str = "") -> str:
    """Where a class is defined, or the line in it that first mentions a data member, as ``file:line``."""
    import inspect

    try:
        lines, first = inspect.getsourcelines(cls)
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}"
    offset = next((at for at, line in enumerate(lines) if name and line.lstrip().startswith(name)), 0)
    return f"{inspect.getsourcefile(cls)}:{first + offset}"


def names_around(interface: type) -> Mapping[str, Any]:
    """The local names of the function in which an interface is defined, while that function is still running.

    Hints in strings name what is local to that function, and only its frame knows them.
    """
    enclosing = interface.__qualname__.rpartition(".<locals>.")[0]
    if not enclosing:
        return {}
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_qualname == enclosing and frame.f_globals.get("__name__") == interface.__module__:
            return dict(frame.f_locals)
        frame = frame.f_back  # type: ignore[assignment]
    return {}


def _annotated(cls: type) -> Mapping[str, Any]:
    """The annotations of a class itself; one written in C has none."""
    return getattr(cls, "__annotations__", {})


def is_protocol(cls: type) -> bool:
    """Whether a class is itself a Protocol, not merely a subclass of one."""
    return bool(vars(cls).get("_is_protocol", False))


def _member(name: str, bases: list[type]) -> Member | None:
    owner = next((base for base in bases if name in vars(base)), None)
    if owner is None:
        owner = next(base for base in bases if name in _annotated(base))
        return _refused(name, owner, None, "a data member; an interface has methods only, so make it a method")
    value = vars(owner)[name]
    wrapped = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
    if name.startswith("__") and name.endswith("__"):
        return _dunder(name, owner, value, wrapped)
    if not is_protocol(owner) and not getattr(value, "__isabstractmethod__", False):
        return _concrete(name, owner, value, wrapped)
    return _travelling(name, owner, value, wrapped)


def _dunder(name: str, owner: type, value: Any, wrapped: Any) -> Member | None:
    ours = isinstance(wrapped, types.FunctionType) and wrapped.__module__ not in _TYPING
    must_travel = is_protocol(owner) or getattr(value, "__isabstractmethod__", False)
    if name in _CLASS_HOOKS or not ours or not must_travel:
        return None
    return _refused(name, owner, wrapped, "a dunder method does not travel; give it an ordinary name")


def _concrete(name: str, owner: type, value: Any, wrapped: Any) -> Member | None:
    """What an ABC brings along: methods stay on the host's side, data has no side to be on."""
    private = name.startswith("_")
    runs_here = isinstance(value, (types.FunctionType, classmethod, staticmethod, property, type)) or callable(value)
    if private or runs_here:
        return None
    return _refused(name, owner, wrapped, "a data member; an interface has methods only, so make it a method")


def _travelling(name: str, owner: type, value: Any, wrapped: Any) -> Member | None:
    if isinstance(value, type):
        return None
    if name.startswith("_"):
        return _refused(name, owner, wrapped, "a private name does not travel; drop the underscore or the method")
    if isinstance(value, property):
        return _refused(name, owner, wrapped, "a property; an interface has methods only, so make it a method")
    if isinstance(value, (classmethod, staticmethod)):
        kind = type(value).__name__
        return _refused(name, owner, wrapped, f"a {kind}; methods are called on an object, so make it an ordinary one")
    if not isinstance(value, types.FunctionType):
        return _refused(name, owner, wrapped, "a data member; an interface has methods only, so make it a method")
    return Member(name, owner, value)


def _refused(name: str, owner: type, function: Any, problem: str) -> Member:
    known = isinstance(function, types.FunctionType)
    where = location(function) if known else class_location(owner, name)
    return Member(name, owner, None, problem, where)
