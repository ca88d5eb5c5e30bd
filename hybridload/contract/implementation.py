"""Whether an object is what its interface says, asked once when a plugin is loaded and never on a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hybridload.errors import ContractError

if TYPE_CHECKING:
    from hybridload.contract.service import Method, Service


def check(service: Service, implementation: object) -> None:
    """Compare an object's methods with a service's.

    What has no signature (a builtin, a C function) is taken at its word.

    :raises ContractError: naming everything that is missing or differs, and what to do.
    """
    problems = [problem for method in service.methods for problem in _problems(method, implementation)]
    if problems:
        kind = implementation if isinstance(implementation, type) else type(implementation)
        what = getattr(implementation, "__name__", None) or kind.__qualname__
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise ContractError(f"{what} is no {service.interface.__qualname__}:{listed}")


def _problems(method: Method, implementation: object) -> Iterator[str]:
    wanted = f"{method.name}{method.signature}"
    try:
        found = getattr(implementation, method.name)
    except AttributeError:
        yield f"{method.name}() is missing; define {wanted}"
        return
    if not callable(found):
        yield f"{method.name} is {type(found).__qualname__} and cannot be called; define {wanted}"
        return
    try:
        signature = inspect.signature(found)
    except (ValueError, TypeError):
        return
    yield from _parameter_problems(method, signature)
    yield from _async_problems(method, found)


def _parameter_problems(method: Method, signature: inspect.Signature) -> Iterator[str]:
    """A call with every parameter, passed as the interface lets callers pass it, must bind."""
    parameters = method.signature.parameters.values()
    positional = [None for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    keywords = {parameter.name: None for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    named = {parameter.name: None for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    only_positional = [None for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY]
    for args, kwargs, how in ((positional, keywords, ""), (only_positional, named, " when called by name")):
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            yield (
                f"{method.name}{signature} cannot take the arguments of {method.name}{method.signature}{how}: {error}"
            )
            return


def _async_problems(method: Method, found: Callable[..., Any]) -> Iterator[str]:
    call = found if inspect.isroutine(found) else type(found).__call__
    coroutine = inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(call)
    async_generator = inspect.isasyncgenfunction(found) or inspect.isasyncgenfunction(call)
    generator = inspect.isgeneratorfunction(found) or inspect.isgeneratorfunction(call)
    name = method.name
    if not method.is_async and (coroutine or async_generator):
        yield f"{name}() is asynchronous, but the interface's is not; drop `async`, or make the interface's async"
    elif method.is_async and method.kind.streams_result:
        if coroutine:
            yield f"{name}() must be awaited before it yields; use `yield` in it, so that it is an async generator"
        elif generator:
            yield f"{name}() is a generator, but the interface's is asynchronous; define it with `async def`"
    elif method.is_async and (generator or async_generator or _is_plain_function(found)):
        yield f"{name}() is not asynchronous, but the interface's is; define it with `async def`"
    elif not method.kind.streams_result and generator:
        yield f"{name}() is a generator, but the interface's returns one value; return it instead"


def _is_plain_function(found: Any) -> bool:
    """Whether a call certainly returns no awaitable; a decorator around a coroutine function may return one."""
    function = inspect.unwrap(getattr(found, "__func__", found))
    return inspect.isfunction(function) and not inspect.iscoroutinefunction(function)
