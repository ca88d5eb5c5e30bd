"""A contract's methods as callables that travel over a net/rpc connection.

A call's way: bind the arguments, make them one, send, wait. Nothing else happens on it unless it fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hybridload.contract.binding import binder
from hybridload.contract.hints import has_reference, misfit
from hybridload.deadlines import whole_in_time
from hybridload.goplugin.event_loop import settle_soon
from hybridload.goplugin.netrpc import adopted
from hybridload.goplugin.netrpc.client import NetRPCClient, PendingCall
from hybridload.goplugin.netrpc.conventions import Conventions, Travelling
from hybridload.goplugin.netrpc.gob import GobError
from hybridload.goplugin.netrpc.rpc import Reply
from hybridload.goplugin.streams.base import StreamError
from hybridload.handle import named_after

if TYPE_CHECKING:
    from hybridload.contract import Method, Service

_BROKEN = (StreamError, TimeoutError)


class CallContext(Protocol):
    """What a stub must know of the other side."""

    def timeout(self) -> float | None:
        """Seconds that the next call may take; `None` for no limit.

        :raises CallTimeout: there are none left.
        """

    def translate(self, error: Exception, timeout: float | None) -> Exception:
        """The exception that the caller sees when the call could not be answered.

        :param error: `StreamError` or `TimeoutError`.
        """

    def failed(self, reply: Reply, method: str) -> Exception:
        """The exception that the caller sees for an answer that is no result."""


def contract_methods(
    service: Service, client: NetRPCClient, conventions: Conventions, context: CallContext
) -> Mapping[str, Callable[..., Any]]:
    """One callable per method of `service`, named and documented as the method."""

    def stub(travelling: Travelling) -> Callable[..., Any]:
        method = travelling.method
        made: Callable[..., Any] = (_async_unary if method.is_async else _unary)(client, travelling, context)
        return whole_in_time(made, context.timeout, method.is_async) if has_reference(method.result_shape) else made

    return {
        travelling.method.name: named_after(travelling.method, service, stub(travelling))
        for travelling in conventions.methods
    }


def _unary(client: NetRPCClient, travelling: Travelling, context: CallContext) -> Any:
    bind, pack, exchange = binder(travelling.method), travelling.pack, client.exchange
    name, limit = f"Plugin.{travelling.name}", context.timeout
    argument_type, none_type = travelling.argument_type, travelling.none_type
    reply_type = travelling.reply_expected

    def call(*args: Any, **kwargs: Any) -> Any:
        values = bind(args, kwargs)
        argument = pack(values)
        timeout = limit()
        try:
            reply = exchange(name, argument, none_type if argument is None else argument_type, reply_type, timeout)
        except GobError as error:
            failure = _refusal(travelling.method, values, error)
        except _BROKEN as error:
            failure = context.translate(error, timeout)
        else:
            if reply.error is None and reply.mismatch is None:
                if reply.undialled:
                    adopted.dial(reply.undialled)
                return reply.value
            failure = context.failed(reply, name)
        raise failure

    return call


def _async_unary(client: NetRPCClient, travelling: Travelling, context: CallContext) -> Any:
    bind, pack = binder(travelling.method), travelling.pack
    name = f"Plugin.{travelling.name}"

    async def call(*args: Any, **kwargs: Any) -> Any:
        values = bind(args, kwargs)
        argument = pack(values)
        timeout = context.timeout()
        argument_type = travelling.none_type if argument is None else travelling.argument_type
        try:
            async with asyncio.timeout(timeout) as limit:
                reply = await _answer(client, name, argument, argument_type, travelling.reply_expected)
        except GobError as error:
            failure = _refusal(travelling.method, values, error)
        except _BROKEN as error:
            due = limit.when()
            if due is not None and isinstance(error, StreamError):
                error.deadline = time.monotonic() + due - asyncio.get_running_loop().time()
            # Finding out why may wait for the process's end.
            failure = await asyncio.to_thread(context.translate, error, timeout)
        else:
            if reply.error is None and reply.mismatch is None:
                if reply.undialled:
                    await asyncio.to_thread(adopted.dial, reply.undialled)
                return reply.value
            failure = context.failed(reply, name)
        raise failure

    return call


async def _answer(client: NetRPCClient, name: str, argument: Any, argument_type: Any, reply_type: Any) -> Reply:
    """Wait for a call on the running event loop, without a thread of its own."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: PendingCall) -> None:
        settle_soon(waiter)

    pending = client.begin(name, argument, argument_type, reply_type, wake)
    try:
        await waiter
    except asyncio.CancelledError:
        client.forget(pending)
        raise
    return pending.outcome()


def _refusal(method: Method, values: Sequence[Any], error: GobError) -> Exception:
    """What Python would say to arguments that cannot be sent."""
    for parameter, value in zip(method.parameters, values, strict=True):
        wrong = misfit(parameter.shape, value, f"argument {parameter.name!r}")
        if wrong is not None:
            return type(wrong)(f"{method.name}() {wrong}")
    return ValueError(f"{method.name}() {error}")
