"""A hand-written plugin's object as the net/rpc service ``Plugin``: what go-plugin does with a Go object's methods.

Every public method is served, under its name in capitals (``get`` and ``Get`` are both ``Plugin.Get``). It takes the
call's one argument, or nothing, and returns the reply. Its hints say of which Go types they are; a parameter without
one gets whatever comes as plain Python, and a result without one is sent as what its own type stands for.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

from hybridload.contract.service import camel_case
from hybridload.errors import ContractError
from hybridload.goplugin.event_loop import EventLoop
from hybridload.goplugin.netrpc.contract_server import SERVICE
from hybridload.goplugin.netrpc.gob import ANYTHING, GobError, GoType, Registry
from hybridload.goplugin.netrpc.server import Behavior, Services


def plugin_service(served: object, registry: Registry, loop: EventLoop) -> Services:
    """The methods of an object.

    :param registry: gives the Go types of hints, and is the one of the connection.
    :param loop: runs asynchronous methods; the caller closes it.
    :raises ContractError: a method takes more than one argument, or has a hint without a Go type.
    """
    if isinstance(served, type):
        raise ContractError(f"{served.__qualname__} is a class: netrpc_server must return an instance.")
    behaviors: dict[str, Behavior] = {}
    for name, method in inspect.getmembers(served, callable):
        if name.startswith("_") or isinstance(method, type):
            continue
        try:
            behaviors[camel_case(name)] = _behavior(method, registry, loop)
        except (GobError, TypeError) as error:
            raise ContractError(f"{type(served).__qualname__}.{name} cannot be served over net/rpc: {error}") from error
    return {SERVICE: behaviors}


def _behavior(method: Callable[..., Any], registry: Registry, loop: EventLoop) -> Behavior:
    parameters = list(inspect.signature(method).parameters.values())
    if len(parameters) > 1 or any(each.kind is each.KEYWORD_ONLY for each in parameters):
        raise TypeError("a call has one argument; make the parameters one, a dict or a dataclass, say")
    hints = typing.get_type_hints(method, include_extras=True)
    takes = bool(parameters)
    argument_type: GoType | None = None
    if takes:
        hint = hints.get(parameters[0].name)
        argument_type = ANYTHING if hint is None else registry.go_type(hint)
    run: Callable[[Any], Any] = method if takes else lambda argument: method()
    awaited = loop if inspect.iscoroutinefunction(method) else None
    result = hints.get("return", inspect.Signature.empty)
    if result is inspect.Signature.empty:
        return Behavior(run, argument_type, None, loop=awaited)
    reply_type = ANYTHING if result is type(None) else registry.go_type(result)
    return Behavior(run, argument_type, reply_type, loop=awaited)
