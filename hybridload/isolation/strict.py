"""In-process calls that travel through the contract, so that a host's tests find what it shares before it isolates.

Arguments and results are encoded and decoded as for a process, and so are exceptions and objects that are called back:
what arrives is a copy, and what could not be sent is refused. Only the bytes stay where they are. What strictness does
not change: the plugin runs in the host's interpreter and on the caller's thread, which no deadline interrupts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, closing
from functools import partial
from typing import TYPE_CHECKING, Any

from hybridload.contract import Kind, decode_exception, encode_exception
from hybridload.handle import handle_class, named_after, new_handle

if TYPE_CHECKING:
    from hybridload.contract import Contract, Service
    from hybridload.contract.wire import WireMethod

_RAISED = (Exception, SystemExit)
"""What crosses as an exception; others are the host's own business."""

Finish = Callable[..., Any]
"""What is done with a call's arguments: one result is made of them, or a stream."""


def strict_methods(service: Service, implementation: object, plugin: str) -> Mapping[str, Callable[..., Any]]:
    """The methods of an object, each behind its contract.

    :param plugin: the plugin's name, for errors.
    :raises ContractError: the contract cannot be turned into messages.
    """
    wire, border = service.wire(), _Border(service.contract, plugin)
    methods: dict[str, Callable[..., Any]] = {}
    for method in service.methods:
        strict = _STRICT[method.kind, method.is_async](
            getattr(implementation, method.name), wire.methods[method.name], border
        )
        methods[method.name] = named_after(method, service, strict)
    return methods


class _Border:
    """What crosses besides plain values."""

    def __init__(self, contract: Contract[Any], plugin: str) -> None:
        self._contract = contract
        self._plugin = plugin

    def objects(self) -> _Objects:
        return _Objects(self._plugin)

    def crossed(self, error: BaseException, *, stream: bool = False) -> Exception:
        """An exception as the caller would get it from a process."""
        return decode_exception(encode_exception(error, self._contract), self._contract, self._plugin, stream=stream)


class _Objects:
    """Carries the objects of one call; see `contract.Objects`."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self._exported: list[object] = []

    def export(self, implementation: object, contract: Contract[Any]) -> int:
        contract.complete().check_implementation(implementation)
        self._exported.append(implementation)
        return len(self._exported)

    def adopt(self, service_id: int, contract: Contract[Any]) -> object:
        service = contract.complete()
        methods = strict_methods(service, self._exported[service_id - 1], self._plugin)
        return new_handle(handle_class(service), methods, lambda: f"id {service_id}")


class _Requests:
    """The requests of a stream, and the exception that the caller's own iterator raised while they were taken."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def watch(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from chunks
        except Exception as error:
            self.error = error
            raise

    async def watch_async(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield chunk
        except Exception as error:
            self.error = error
            raise

    def check(self) -> None:
        """Raise that exception, though the plugin may have made something of it."""
        if self.error is not None:
            raise self.error


def _call(finish: Finish, real: Any, wire: WireMethod, border: _Border) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        objects = border.objects()
        request = wire.encode_arguments(args, kwargs, objects)
        return finish(lambda: wire.decode_arguments(request, objects), real, wire, border, objects, _Requests())

    return call


def _call_with_stream(finish: Finish, real: Any, wire: WireMethod, border: _Border) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        objects, requests = border.objects(), _Requests()
        chunks = requests.watch(wire.encode_argument_stream(args, kwargs, objects))
        return finish(lambda: wire.decode_argument_stream(chunks, objects), real, wire, border, objects, requests)

    return call


def _result(
    arguments: Any, real: Any, wire: WireMethod, border: _Border, objects: _Objects, requests: _Requests
) -> Any:
    try:
        given, named = arguments()
        response = wire.encode_result(real(*given, **named), objects)
    except _RAISED as error:
        failure = requests.error or border.crossed(error)
    else:
        requests.check()
        return wire.decode_result(response, objects)
    raise failure


def _results(
    arguments: Any, real: Any, wire: WireMethod, border: _Border, objects: _Objects, requests: _Requests
) -> Iterator[Any]:
    try:
        given, named = arguments()
        with closing(_closable(iter(real(*given, **named)))) as items:
            for item in items:
                yield wire.decode_result(wire.encode_result(item, objects), objects)
    except _RAISED as error:
        failure = requests.error or border.crossed(error, stream=True)
    else:
        requests.check()
        return
    raise failure


def _closable(items: Any) -> Any:
    return items if hasattr(items, "close") else (item for item in items)


def _async_call(finish: Finish, real: Any, wire: WireMethod, border: _Border) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        objects = border.objects()
        request = wire.encode_arguments(args, kwargs, objects)

        async def arguments() -> Any:
            return wire.decode_arguments(request, objects)

        return finish(arguments, real, wire, border, objects, _Requests())

    return call


def _async_call_with_stream(finish: Finish, real: Any, wire: WireMethod, border: _Border) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        objects, requests = border.objects(), _Requests()
        chunks = requests.watch_async(wire.encode_argument_stream_async(args, kwargs, objects))

        async def arguments() -> Any:
            return await wire.decode_argument_stream_async(chunks, objects)

        return finish(arguments, real, wire, border, objects, requests)

    return call


def _awaited(make: Any, real: Any, wire: WireMethod, border: _Border) -> Any:
    """As `make` would have it, but nothing happens before it is awaited: an `async def` method is one here as well."""
    begin = make(_async_result, real, wire, border)

    async def call(*args: Any, **kwargs: Any) -> Any:
        return await begin(*args, **kwargs)

    return call


async def _async_result(
    arguments: Any, real: Any, wire: WireMethod, border: _Border, objects: _Objects, requests: _Requests
) -> Any:
    try:
        given, named = await arguments()
        response = wire.encode_result(await real(*given, **named), objects)
    except _RAISED as error:
        failure = requests.error or border.crossed(error)
    else:
        requests.check()
        return wire.decode_result(response, objects)
    raise failure


async def _async_results(
    arguments: Any, real: Any, wire: WireMethod, border: _Border, objects: _Objects, requests: _Requests
) -> AsyncIterator[Any]:
    try:
        given, named = await arguments()
        async with aclosing(_async_closable(aiter(real(*given, **named)))) as items:
            async for item in items:
                yield wire.decode_result(wire.encode_result(item, objects), objects)
    except _RAISED as error:
        failure = requests.error or border.crossed(error, stream=True)
    else:
        requests.check()
        return
    raise failure


def _async_closable(items: Any) -> Any:
    return items if hasattr(items, "aclose") else (item async for item in items)


_STRICT: Mapping[tuple[Kind, bool], Callable[[Any, WireMethod, _Border], Any]] = {
    (Kind.UNARY, False): partial(_call, _result),
    (Kind.CLIENT_STREAM, False): partial(_call_with_stream, _result),
    (Kind.SERVER_STREAM, False): partial(_call, _results),
    (Kind.BIDI, False): partial(_call_with_stream, _results),
    (Kind.UNARY, True): partial(_awaited, _async_call),
    (Kind.CLIENT_STREAM, True): partial(_awaited, _async_call_with_stream),
    (Kind.SERVER_STREAM, True): partial(_async_call, _async_results),
    (Kind.BIDI, True): partial(_async_call_with_stream, _async_results),
}
