"""The way of a call into a plugin, wherever that runs at the moment.

A door leads to one place: a running plugin with its gate. While the plugin is started again it leads nowhere, and
calls wait in front of it, within their deadline or for `PATIENCE` seconds; once the plugin has failed or was closed,
calls are refused there and then. What follows from that:

- A call that arrives while the plugin is away is sent when it is back, as if it had come then.
- A call that is in flight when the plugin dies raises `PluginCrashed`: nobody knows whether it was carried out. Only a
  method whose interface marks it `hybridload.idempotent` is sent again, to the new process, within its deadline and
  `TRIES` times in all, so that a request which kills every plugin that it meets does not use up the restarts.
- Waiting and every try count towards one deadline: the earlier of the plugin's `call_timeout` and the caller's own.
- A switch opens the door to the new place first and closes the old one's gate then: a call is counted in one of them,
  and is answered where it is counted.
- What is awaited on an event loop that was closed is never gone on with: it counts no more (`sweep`), collected or not.

In-process calls do not come through here, unless they are to be counted: their slot is the object's own bound method.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from hybridload.contract import Kind, is_idempotent
from hybridload.deadlines import end_of_calls, ending_at
from hybridload.drain import CountedAsyncStream, CountedStream, Gate, Limit, Permit
from hybridload.errors import CallTimeout, PluginBusy, PluginCrashed
from hybridload.handle import named_after

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    from hybridload.contract import Method, Service
    from hybridload.handle import Methods

PATIENCE = 30.0
"""Seconds that a call without a deadline waits for a plugin that is being started again."""
TRIES = 3

Steps = Generator[tuple["Future[Any]", float | None], None, Permit]


class Place(Protocol):
    """A running plugin, as calls see it."""

    @property
    def gate(self) -> Gate:
        """Counts the calls in flight there."""

    @property
    def methods(self) -> Mapping[str, Methods]:
        """Kind -> method name -> callable."""


class Door:
    """Leads calls to where the plugin runs. Safe from any thread and from event loops.

    :param name: the plugin's.
    :param doubt: told of a place when a call there raised `PluginCrashed`.
    :param absence: why nobody can be let in at the moment, for the error of a call that has waited long enough.
    """

    def __init__(self, name: str, *, doubt: Callable[[Any], None], absence: Callable[[str], Exception]) -> None:
        self.name = name
        self.limit = Limit(math.inf)
        self.waits_when_busy = True
        self.call_timeout: float | None = None
        self._doubt = doubt
        self._absence = absence
        self._begin_anew()
        self._place: Any = None
        self._refusal: Callable[[], Exception] | None = None
        self._summon: Callable[[], None] | None = None
        # Event loop -> the permits of the calls that are awaited there.
        self._awaited: dict[asyncio.AbstractEventLoop, set[Permit]] = {}

    def _begin_anew(self) -> None:
        self._lock = threading.RLock()  # as a gate's
        self._arrival = _arrival()

    # -- for whoever moves the plugin

    def open(self, place: Place) -> None:
        """Lead to another place."""
        with self._lock:
            self._place, self._refusal, self._summon = place, None, None
            self._arrived()

    def shut(self, place: Place) -> None:
        """Let nobody in to a place, until it is reopened or the door leads to another."""
        with self._lock:
            place.gate.shut()

    def reopen(self, place: Place) -> None:
        """Let calls in to a place that was shut."""
        with self._lock:
            place.gate.reopen()
            self._arrived()

    def refuse(self, error: Callable[[], Exception]) -> None:
        """Refuse every call, until the door is opened.

        :param error: makes the exception of one call.
        """
        with self._lock:
            self._refusal = error
            if self._place is not None:
                self._place.gate.shut()
            self._arrived()

    def summon(self, start: Callable[[], None]) -> None:
        """Lead nowhere, and have `start` called by whoever comes first."""
        with self._lock:
            self._place, self._refusal, self._summon = None, None, start

    def forked(self) -> None:
        """In a forked child: nobody waits here, and nobody is inside."""
        self._begin_anew()
        self._awaited = {}
        self.limit = Limit(self.limit.most)

    def _arrived(self) -> None:
        arrival, self._arrival = self._arrival, _arrival()
        arrival.set_result(None)

    # -- for calls

    def enter(self, until: float | None) -> Permit:
        """Be counted where the plugin runs, and be told where; waits for that.

        :param until: the call's deadline, on the clock of `time.monotonic`.
        :raises PluginBusy, CallTimeout, PluginCrashed, PluginClosed, NoUsableIsolation: why it cannot be.
        """
        permit = self.enter_now()
        if permit is not None:
            return permit
        steps = self._entering(until)
        try:
            future, patience = next(steps)
            while True:
                try:
                    future.result(_remaining(until, patience))
                except TimeoutError as error:
                    future, patience = steps.throw(error)
                else:
                    future, patience = next(steps)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            steps.close()

    def enter_now(self) -> Permit | None:
        """The same if it takes no waiting; `None`, and not counted, otherwise."""
        limit = self.limit
        seat = [limit.token] if limit.most == math.inf else limit.seat()
        if not seat:
            return None
        try:
            place = self._place
            if place is not None:
                gate = place.gate
                seat.append(gate.token)
                if gate.is_open:
                    return Permit(place, gate, limit, seat)
        except BaseException:  # Ctrl-C; whoever keeps the exception keeps what is in these frames
            seat.clear()
            raise
        seat.clear()
        limit.left()
        return None

    async def enter_async(self, until: float | None) -> Permit:
        """The same on an event loop, which goes on meanwhile."""
        permit = self.enter_now()
        if permit is not None:
            return permit
        import asyncio

        steps = self._entering(until)
        try:
            future, patience = next(steps)
            while True:
                try:
                    async with asyncio.timeout(_remaining(until, patience)):
                        await asyncio.wrap_future(future)
                except TimeoutError as error:
                    future, patience = steps.throw(error)
                else:
                    future, patience = next(steps)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            steps.close()

    def awaited(self) -> set[Permit]:
        """The permits of the calls that are awaited on the event loop that runs here, to be added to."""
        import asyncio

        loop = asyncio._get_running_loop()
        permits = None if loop is None else self._awaited.get(loop)
        if permits is None:
            permits = set()
            if loop is not None:
                self.sweep()
                permits = self._awaited.setdefault(loop, permits)
        return permits

    def sweep(self) -> None:
        """Count no more what is awaited on event loops that were closed."""
        for loop in list(self._awaited):
            if loop.is_closed():
                for permit in list(self._awaited.pop(loop, ())):
                    permit.leave()

    def crashed(self, place: Place) -> None:
        """A call in that place raised `PluginCrashed`."""
        self._doubt(place)

    def deadline(self) -> float | None:
        """When a call that begins now has to have ended, on the clock of `time.monotonic`."""
        return end_of_calls(self.call_timeout)

    def _entering(self, until: float | None) -> Steps:
        """What has to be waited for, each with the seconds that it is waited for at the most; returns the permit."""
        limit = self.limit
        seat = limit.seat()
        if not seat:
            self.sweep()
            seat = limit.seat()
        if not seat:
            seat = yield from self._take_turn(limit, until)
        try:
            while True:
                place = self._place
                if place is not None:
                    gate = place.gate
                    seat.append(gate.token)
                    if gate.is_open:
                        return Permit(place, gate, limit, seat)
                    seat.pop()
                    gate.left()
                arrival = self._arrival_after(place)
                if arrival is None:
                    continue
                try:
                    yield arrival, PATIENCE
                except TimeoutError:
                    raise self._late(until) from None
        except BaseException:
            seat.clear()
            limit.left()
            raise

    def _take_turn(
        self, limit: Limit, until: float | None
    ) -> Generator[tuple[Future[Any], float | None], None, list[object]]:
        if not self.waits_when_busy:
            raise PluginBusy(
                f"Plugin {self.name!r} has {limit.most} calls in flight, as many as max_concurrency allows. Call it "
                'later, raise max_concurrency, or set when_busy = "wait".',
                plugin=self.name,
            )
        turn = limit.queue()
        try:
            yield turn, None
        except BaseException as error:
            if not turn.cancel():
                turn.result().clear()
                limit.left()
            if isinstance(error, TimeoutError):
                raise CallTimeout(
                    f"Plugin {self.name!r}: the call's deadline came while it waited for one of the {limit.most} that "
                    "max_concurrency allows at once.",
                    plugin=self.name,
                ) from None
            raise
        return turn.result()

    def _arrival_after(self, place: Any) -> Future[None] | None:
        """What is done when calls may be let in; `None` when there may be news already."""
        with self._lock:
            if self._refusal is not None:
                raise self._refusal()
            if self._place is not place or (place is not None and place.gate.is_open):
                return None
            arrival, summon, self._summon = self._arrival, self._summon, None
        if summon is not None:
            try:
                summon()
            except BaseException:
                self._summon = summon  # for whoever comes next
                raise
        return arrival

    def _late(self, until: float | None) -> Exception:
        if until is not None and time.monotonic() >= until:
            return CallTimeout(
                f"Plugin {self.name!r} was being started again, and was not back before the call's deadline.",
                plugin=self.name,
            )
        return self._absence(f"and was not back within {PATIENCE:g} s")


class Slots(dict[str, Callable[..., Any]]):
    """The methods of a plugin's object: each call goes through the door.

    :param holder: lives as long as any of them, and as long as a stream that one of them has begun.
    """

    def __init__(self, service: Service, kind: str, door: Door, holder: object = None) -> None:
        super().__init__()
        for method in service.methods:
            make = _SLOTS[method.kind in _STREAMS, method.is_async]
            slot: Any = named_after(method, service, make(door, kind, method, service, holder))
            slot.__hybridload_holder__ = holder
            self[method.name] = slot


def _arrival() -> Future[None]:
    from concurrent.futures import Future

    arrival: Future[None] = Future()
    # Several wait for it: who gives up must not cancel it for the others.
    arrival.set_running_or_notify_cancel()
    return arrival


def _remaining(until: float | None, patience: float | None) -> float | None:
    if until is None:
        return patience
    remaining = max(0.0, until - time.monotonic())
    return remaining if patience is None else min(remaining, patience)


def _tries(method: Method, service: Service) -> int:
    return TRIES if is_idempotent(getattr(service.interface, method.name)) else 1


def _call(door: Door, kind: str, method: Method, service: Service, holder: object) -> Callable[..., Any]:
    name, tries = method.name, _tries(method, service)
    enter = door.enter_now

    def call(*args: Any, **kwargs: Any) -> Any:
        until, left = None if door.call_timeout is None else door.deadline(), tries
        permit, limit = enter(), None  # a call that neither waits nor is repeated has all its time
        while True:
            if permit is None:
                until = door.deadline() if until is None else until
                permit, limit = door.enter(until), until
            try:
                if limit is None:
                    return permit.place.methods[kind][name](*args, **kwargs)
                with ending_at(limit):
                    return permit.place.methods[kind][name](*args, **kwargs)
            except PluginCrashed:
                door.crashed(permit.place)
                left -= 1
                if not left:
                    raise
            finally:
                permit.leave()
            permit = None

    return call


def _async_call(door: Door, kind: str, method: Method, service: Service, holder: object) -> Callable[..., Any]:
    name, tries = method.name, _tries(method, service)

    async def call(*args: Any, **kwargs: Any) -> Any:
        until, left = door.deadline(), tries
        permit, limit = door.enter_now(), None  # as above
        while True:
            if permit is None:
                permit, limit = await door.enter_async(until), until
            awaited = door.awaited()
            awaited.add(permit)
            try:
                if limit is None:
                    return await permit.place.methods[kind][name](*args, **kwargs)
                with ending_at(limit):
                    return await permit.place.methods[kind][name](*args, **kwargs)
            except PluginCrashed:
                door.crashed(permit.place)
                left -= 1
                if not left:
                    raise
            finally:
                awaited.discard(permit)
                permit.leave()
            permit = None

    return call


def _stream(door: Door, kind: str, method: Method, service: Service, holder: object) -> Callable[..., Any]:
    name = method.name

    def call(*args: Any, **kwargs: Any) -> Any:
        until = door.deadline()
        permit = door.enter_now()
        if permit is not None:
            return _opened(door, permit, kind, name, args, kwargs, CountedStream, holder)
        permit = door.enter(until)
        with ending_at(until):
            return _opened(door, permit, kind, name, args, kwargs, CountedStream, holder)

    return call


def _async_stream(door: Door, kind: str, method: Method, service: Service, holder: object) -> Callable[..., Any]:
    name = method.name

    def call(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        permit = door.enter_now()
        if permit is not None:
            return _opened(door, permit, kind, name, args, kwargs, CountedAsyncStream, holder)  # type: ignore[no-any-return]
        return _async_items(door, kind, name, args, kwargs, holder)

    return call


async def _async_items(
    door: Door, kind: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], holder: object
) -> AsyncIterator[Any]:
    until = door.deadline()
    permit = await door.enter_async(until)
    stream = _opened(door, permit, kind, name, args, kwargs, CountedAsyncStream, holder)
    try:
        with ending_at(until):  # the call is made when its first item is asked for
            item = await anext(stream, _END)
        while item is not _END:
            yield item
            item = await anext(stream, _END)
    finally:
        await stream.aclose()


def _opened(
    door: Door,
    permit: Permit,
    kind: str,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    counted: Any,
    holder: object,
) -> Any:
    """Begin a stream, which is in flight until it ends."""
    try:
        stream = permit.place.methods[kind][name](*args, **kwargs)
    except BaseException as error:
        permit.leave()
        if isinstance(error, PluginCrashed):
            door.crashed(permit.place)
        raise
    awaited: set[Permit] = set()
    if counted is CountedAsyncStream:
        awaited = door.awaited()
        awaited.add(permit)
    leave = functools.partial(_leave, permit, awaited, holder)
    when_done = getattr(stream, "add_done_callback", None)
    if when_done is None:
        return counted(stream, leave)
    when_done(leave)
    return stream


def _leave(permit: Permit, awaited: set[Permit], holder: object) -> None:
    awaited.discard(permit)
    permit.leave()


_END = object()
_STREAMS = (Kind.SERVER_STREAM, Kind.BIDI)
_SLOTS: Mapping[tuple[bool, bool], Callable[[Door, str, Method, Service, object], Callable[..., Any]]] = {
    (False, False): _call,
    (False, True): _async_call,
    (True, False): _stream,
    (True, True): _async_stream,
}
