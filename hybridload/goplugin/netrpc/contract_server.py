"""A contract and an object that implements it, as the net/rpc service ``Plugin``.

`async def` methods run on one event loop; the call's own thread waits. A result that the method's hint does not allow
fails the call as it would over gRPC.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hybridload.contract.hints import misfit
from hybridload.goplugin.event_loop import EventLoop
from hybridload.goplugin.netrpc.conventions import Conventions, Travelling
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
                _run(travelling, getattr(implementation, travelling.method.name), loop),
                travelling.receive_type,
                travelling.reply_type,
                refuse=partial(_refusal, travelling),
            )
            for travelling in conventions.methods
        }
    }


def _run(travelling: Travelling, function: Callable[..., Any], loop: EventLoop) -> Callable[[Any], Any]:
    unpack, nothing = travelling.unpack, travelling.nothing
    if travelling.method.is_async:
        awaited = function

        def function(*args: Any, **kwargs: Any) -> Any:
            return loop.submit(awaited(*args, **kwargs)).result()

    if travelling.reply_expected is None:

        def run_without_result(argument: Any) -> Any:
            args, kwargs = unpack(argument)
            result = function(*args, **kwargs)
            if result is not None:
                raise TypeError(f"{travelling.method.name}() result must be None, not {type(result).__qualname__}")
            return nothing

        return run_without_result

    def run(argument: Any) -> Any:
        args, kwargs = unpack(argument)
        result = function(*args, **kwargs)
        if result is None and not travelling.reply_nilable:
            raise TypeError(f"{travelling.method.name}() result must not be None")
        return result

    return run


def _refusal(travelling: Travelling, result: Any, error: GobError) -> Exception:
    """What is wrong with a result that cannot be sent."""
    method = travelling.method
    wrong = None if method.result_shape is None else misfit(method.result_shape, result, "result")
    return ValueError(f"{method.name}() {error}") if wrong is None else type(wrong)(f"{method.name}() {wrong}")
