"""What a function takes, read off its code.

`inspect` says the same of every callable, but takes as long to import as a tenth of a plugin's start. So a plain
function, or a method of one, is read here; whatever else is called (what is decorated, what says itself which signature
it has, what is written in C) is left to `inspect`, and so are the words of every refusal.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import FunctionType, MethodType
from typing import Any

from hybridload.contract.idempotent import MARK
from hybridload.frozen import frozen

# Numbered as by inspect.
POSITIONAL_ONLY, POSITIONAL_OR_KEYWORD, VAR_POSITIONAL, KEYWORD_ONLY, VAR_KEYWORD = range(5)
NO_DEFAULT: Any = type("no default", (), {"__slots__": (), "__repr__": lambda self: "<no default>"})()

_VAR_POSITIONAL, _VAR_KEYWORD, _GENERATOR, _COROUTINE, _ASYNC_GENERATOR = 0x04, 0x08, 0x20, 0x80, 0x200
# Attributes that change nothing of how a function is called. With any other, it may be decorated.
_MARKS = {"__isabstractmethod__", "__override__", "__final__", MARK}


@frozen
class Declared:
    """One parameter.

    :param kind: one of the numbers above.
    :param default: or `NO_DEFAULT`.
    """

    name: str
    kind: int
    default: Any = NO_DEFAULT


@frozen
class Called:
    """What a call of something gives.

    :param not_awaitable: whether that is certain; a decorator may return what an ``async def`` beneath it returns.
    """

    coroutine: bool
    generator: bool
    async_generator: bool
    not_awaitable: bool


def plain_function(found: Any) -> FunctionType | None:
    """The function behind a function or method, when it is one that can be read here."""
    function = found.__func__ if type(found) is MethodType else found
    return function if type(function) is FunctionType and vars(function).keys() <= _MARKS else None


def parameters_of(function: FunctionType) -> list[Declared]:
    """The parameters of a function, in their order; decorated ones have those of what they wrap, as `inspect` says."""
    if plain_function(function) is None:
        import inspect

        return [
            Declared(each.name, int(each.kind), NO_DEFAULT if each.default is each.empty else each.default)
            for each in inspect.signature(function).parameters.values()
        ]
    code = function.__code__
    names, flags = code.co_varnames, code.co_flags
    defaults, named_defaults = function.__defaults__ or (), function.__kwdefaults__ or {}
    required = code.co_argcount - len(defaults)
    after = code.co_argcount + code.co_kwonlyargcount
    found = [
        Declared(
            name,
            POSITIONAL_ONLY if index < code.co_posonlyargcount else POSITIONAL_OR_KEYWORD,
            NO_DEFAULT if index < required else defaults[index - required],
        )
        for index, name in enumerate(names[: code.co_argcount])
    ]
    if flags & _VAR_POSITIONAL:
        found.append(Declared(names[after], VAR_POSITIONAL))
    found += [
        Declared(name, KEYWORD_ONLY, named_defaults.get(name, NO_DEFAULT)) for name in names[code.co_argcount : after]
    ]
    if flags & _VAR_KEYWORD:
        found.append(Declared(names[after + bool(flags & _VAR_POSITIONAL)], VAR_KEYWORD))
    return found


def takes(found: Any, positional: int, named: Iterable[str]) -> bool:
    """Whether a call certainly binds; `False` when it does not, or when `inspect` has to be asked.

    :param found: a function, a method or a class.
    :param positional: how many arguments are given by position.
    :param named: the names of the others.
    """
    named = set(named)
    if isinstance(found, type):
        kind: Any = found
        if type(kind).__call__ is not type.__call__ or kind.__new__ is not object.__new__:
            return False
        if hasattr(kind, "__signature__"):
            return False
        if kind.__init__ is object.__init__:
            return not positional and not named
        found = kind.__init__
        positional += 1
    elif type(found) is MethodType:
        positional += 1
    function = plain_function(found)
    return function is not None and _binds(parameters_of(function), positional, named)


def _binds(parameters: Iterable[Declared], positional: int, named: set[str]) -> bool:
    for each in parameters:
        if each.kind == VAR_POSITIONAL:
            positional = 0
        elif each.kind == VAR_KEYWORD:
            named = set()
        elif positional and each.kind != KEYWORD_ONLY:
            positional -= 1
            if each.kind == POSITIONAL_OR_KEYWORD and each.name in named:
                return False
        elif each.kind != POSITIONAL_ONLY and each.name in named:
            named.remove(each.name)
        elif each.default is NO_DEFAULT:
            return False
    return not positional and not named


def called(found: Any) -> Called:
    """What a call of something gives, as far as can be known."""
    function = plain_function(found)
    if function is not None:
        flags = function.__code__.co_flags
        coroutine = bool(flags & _COROUTINE)
        return Called(coroutine, bool(flags & _GENERATOR), bool(flags & _ASYNC_GENERATOR), not coroutine)
    import inspect

    call = found if inspect.isroutine(found) else type(found).__call__
    unwrapped = inspect.unwrap(getattr(found, "__func__", found))
    return Called(
        coroutine=inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(call),
        generator=inspect.isgeneratorfunction(found) or inspect.isgeneratorfunction(call),
        async_generator=inspect.isasyncgenfunction(found) or inspect.isasyncgenfunction(call),
        not_awaitable=inspect.isfunction(unwrapped) and not inspect.iscoroutinefunction(unwrapped),
    )
