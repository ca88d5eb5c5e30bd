"""Whether an object is what its interface says, asked once when a plugin is loaded and never on a call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hybridload.contract.functions import Called, called, takes
from hybridload.errors import ContractError

if TYPE_CHECKING:
    import inspect

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
    try:
        found = getattr(implementation, method.name)
    except AttributeError:
        yield f"{method.name}() is missing; define {method.declaration}"
        return
    if not callable(found):
        yield f"{method.name} is {type(found).__qualname__} and cannot be called; define {method.declaration}"
        return
    if not all(takes(found, positional, named) for positional, named, _ in _ways(method)):
        import inspect

        try:
            signature = inspect.signature(found)
        except (ValueError, TypeError):
            return
        yield from _parameter_problems(method, signature)
    yield from _async_problems(method, called(found))


def _ways(method: Method) -> Iterator[tuple[int, list[str], str]]:
    """How the interface lets callers pass every parameter: how many by position, and the names of the others."""
    count = len(method.parameters)
    keywords = [parameter.name for parameter in method.parameters if parameter.keyword_only]
    named = [parameter.name for parameter in method.parameters if not parameter.positional_only]
    yield count - len(keywords), keywords, ""
    yield count - len(named), named, " when called by name"


def _parameter_problems(method: Method, signature: inspect.Signature) -> Iterator[str]:
    for positional, named, how in _ways(method):
        try:
            signature.bind(*[None] * positional, **dict.fromkeys(named))
        except TypeError as error:
            yield f"{method.name}{signature} cannot take the arguments of {method.declaration}{how}: {error}"
            return


def _async_problems(method: Method, call: Called) -> Iterator[str]:
    name = method.name
    if not method.is_async and (call.coroutine or call.async_generator):
        yield f"{name}() is asynchronous, but the interface's is not; drop `async`, or make the interface's async"
    elif method.is_async and method.kind.streams_result:
        if call.coroutine:
            yield f"{name}() must be awaited before it yields; use `yield` in it, so that it is an async generator"
        elif call.generator:
            yield f"{name}() is a generator, but the interface's is asynchronous; define it with `async def`"
    elif method.is_async and (call.generator or call.async_generator or call.not_awaitable):
        yield f"{name}() is not asynchronous, but the interface's is; define it with `async def`"
    elif not method.kind.streams_result and call.generator:
        yield f"{name}() is a generator, but the interface's returns one value; return it instead"
