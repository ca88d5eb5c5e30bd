"""A contract and an object that implements it, as the net/rpc service ``Plugin``.

`async def` methods run on one event loop, and no thread waits for them. A result that the method's hint does not allow
fails the call as it would over gRPC.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from hybridload.contract.hints import misfit
from hybridload.goplugin.event_loop import EventLoop
from hybridload.goplugin.netrpc import adopted
from hybridload.goplugin.netrpc.conventions import Arguments, Conventions, Travelling
from hybridload.goplugin.netrpc.gob import GobError
from hybridload.goplugin.netrpc.server import Behavior, Services

SERVICE = "Plugin"
"""What go-plugin calls the service of every brokered connection."""


def contract_service(conventions: Conventions, implementation: object, loop: EventLoop) -> Services:
    """The methods of `implementation`, by their names in Go.

    :param loop: runs asynchronous methods; the caller closes it.
    """
    return {
        SERVICE: {
            travelling.name: Behavior(
                _run(travelling, getattr(implementation, travelling.method.name)),
                travelling.receive_type,
                travelling.reply_type,
                refuse=partial(_refusal, travelling),
                loop=loop if travelling.method.is_async else None,
            )
            for travelling in conventions.methods
        }
    }


def _run(travelling: Travelling, function: Callable[..., Any]) -> Callable[[Any], Any]:
    unpack, reply = _dialled(travelling.unpack), _reply(travelling)

    def run(argument: Any) -> Any:
        args, kwargs = unpack(argument)
        return reply(function(*args, **kwargs))

    async def awaited(result: Awaitable[Any]) -> Any:
        return reply(await result)

    def begin(argument: Any) -> Any:
        args, kwargs = unpack(argument)
        return awaited(function(*args, **kwargs))

    return begin if travelling.method.is_async else run


def _dialled(unpack: Callable[[Any], Arguments]) -> Callable[[Any], Arguments]:
    """Objects in a map of arguments are found when it is unpacked."""

    def unpack_and_dial(argument: Any) -> Arguments:
        try:
            arguments = unpack(argument)
        except BaseException:
            adopted.taken()
            raise
        if undialled := adopted.taken():
            adopted.dial(undialled)
        return arguments

    return unpack_and_dial


def _reply(travelling: Travelling) -> Callable[[Any], Any]:
    """What is answered for a result of the method's."""
    name, nothing = travelling.method.name, travelling.nothing

    def no_result(result: Any) -> Any:
        if result is not None:
            raise TypeError(f"{name}() result must be None, not {type(result).__qualname__}")
        return nothing

    def some_result(result: Any) -> Any:
        if result is None and not travelling.reply_nilable:
            raise TypeError(f"{name}() result must not be None")
        return result

    return no_result if travelling.reply_expected is None else some_result


def _refusal(travelling: Travelling, result: Any, error: GobError) -> Exception:
    """What is wrong with a result that cannot be sent."""
    method = travelling.method
    wrong = None if method.result_shape is None else misfit(method.result_shape, result, "result")
    return ValueError(f"{method.name}() {error}") if wrong is None else type(wrong)(f"{method.name}() {wrong}")
