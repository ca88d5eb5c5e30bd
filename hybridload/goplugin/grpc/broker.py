"""go-plugin's broker: further connections between a host and its plugin, in either direction, under ids.

The rules, read off go-plugin v1.8.0 (grpc_broker.go):

- An id belongs to the side that accepts. Both sides count from 1, each for itself.
- `accept` listens on a fresh address and tells the other side of it over the broker's stream; `dial` waits up to
  `PATIENCE` seconds to be told. What nobody claims within that time is forgotten.
- Multiplexed there are no addresses: the dialer *knocks* for an id, the acceptor acknowledges, and the next stream
  that the dialer opens is for that id. One knock at a time, so that streams and knocks pair up.
- A knock for an id that nobody accepts yet waits for the acceptor, but never longer than its dialer does: an
  acknowledgement that comes too late would give the id somebody else's stream. Go's broker leaves it unanswered; ours
  answers with an error.
- An acknowledgement that comes after its dialer gave up has opened a door all the same: Go gives that id the next
  stream, whoever it is meant for. So a stream is opened for it and closed at once. What was not knocked for opens
  nothing.

The broker's own stream (plugin.GRPCBroker/StartStream) is a pipe to it: `outgoing` is what is to be sent, `receive`
takes what came. Whoever has the stream, client or server, moves the messages. The other side may send any number of
them, wanted or not: all that they make this side remember is bounded (see `pending`).
"""

from __future__ import annotations

import collections
import itertools
import logging
import math
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hybridload.deadlines import end_of_calls
from hybridload.errors import BrokerError, CallTimeout, PluginError
from hybridload.frozen import frozen
from hybridload.goplugin.addresses import AddressRefused
from hybridload.goplugin.grpc import messages
from hybridload.goplugin.grpc.engine import Endpoint, Engine, Server
from hybridload.goplugin.http2.timers import Timers
from hybridload.goplugin.lifetime import Lifetime
from hybridload.goplugin.pending import AT_MOST, Pending
from hybridload.goplugin.streams.base import Listener, Stream, StreamClosed
from hybridload.goplugin.threads import SMALL_STACK, Thread
from hybridload.goplugin.transport import Transport

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a dial waits for the acceptor, and an unclaimed offer is kept."""
_KNOCK_PATIENCE = 0.8
"""The part of a dialer's patience for which a knock is kept: its answer has to arrive as well."""
_KNOCK_AGAIN = 0.01
# A Go plugin may acknowledge a knock a moment before its listener is known to its multiplexer (grpc_broker.go, Accept).
# A stream that comes in that moment ends its accepting for good.
_READY = 0.002
# go-plugin's words for an id whose listener is just being made (grpc_client_muxer.go).
_NOT_YET = "no listener for id"
_CLOSE = 0.001
"""Seconds before a call's deadline that count as after it: clocks and timers are not that exact."""
_LONGEST = 1024
"""Characters of a network and an address; those of a socket have about 100."""
_BACKLOG = 256
"""How many streams wait for a listener to accept them, as in yamux."""
_END = None


class GRPCBroker:
    """Opens and accepts further connections. Safe from any thread.

    :param transport: how connections are made.
    :param engine: what carries gRPC on them.
    :param lanes: the threads that brokered servers run calls on.
    :param name: the plugin's name, for messages.
    :param lifetime: ends with the other side; by default, and in any case, when the broker is closed.
    :param options: grpc channel arguments of brokered channels and servers.
    """

    def __init__(
        self,
        transport: Transport,
        engine: Engine,
        lanes: Any,
        *,
        name: str,
        lifetime: Lifetime | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self.engine = engine
        self.lifetime = lifetime or Lifetime()
        """Ends with the plugin, or for the plugin with its host: what Go hands to `GRPCClient` as a context."""
        self._transport = transport
        self._lanes = lanes
        self._options = options
        self._name = name
        self._ids = itertools.count(1)
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._offers = Pending[Any](PATIENCE)
        self._knocked: int | None = None
        self._answer: Any = None
        self._given_up = Pending[bool](math.inf)  # knocks that were not answered in time
        self._late = 0  # doors that were opened when nobody waited for it any more
        self._knocks = Pending[bool](_KNOCK_PATIENCE * PATIENCE)
        self._refusing = False  # the oldest of them has a timer
        self._accepting: dict[int, KnockedListener] = {}
        self._knocking = threading.Lock()
        self._to_send = threading.Condition(lock)
        # What the other side does not take is dropped when there is more: it is too late for it anyway.
        self._outgoing = collections.deque[Any](maxlen=AT_MOST)
        self._refusals = Timers(f"hybridload {name} knocks")
        self._owned: set[Any] = set()
        self._disposed: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._reaper: threading.Thread | None = None
        self._stream: Outgoing | None = None
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._closed = False
        self.lifetime.when_ended(self._part)

    def next_id(self) -> int:
        """An id that this side has not used yet."""
        return next(self._ids)

    def accept(self, service_id: int) -> Listener:
        """Listen for the other side's connections to an id of this side. The caller closes the listener; the end of the
        plugin does so as well, which wakes whoever accepts there.

        :raises BrokerError: the broker is closed, or the id is being accepted already.
        """
        if self._transport.multiplexed:
            return self._accept_knocks(service_id)
        self._refuse_closed()
        listener = self._transport.listen()
        with self._changed:
            self._listeners.add(listener)
            closed = self._closed
        if closed:
            listener.close()
            self._refuse_closed()
        network, address = self._transport.translated(listener)
        self._send(service_id=service_id, network=network, address=address)
        return listener

    def dial(self, service_id: int) -> Any:
        """A channel to what the other side serves under an id of its own. The caller closes it.

        :returns: shaped as `grpc.Channel`.
        :raises BrokerError: nobody accepts the id within five seconds, or the broker is closed.
        :raises CallTimeout: the deadline of the call that this is part of came first.
        """
        # The first connection is made here, so that whoever dials learns at once when nobody answers.
        try:
            opened = self._opener(service_id)
            first: list[Stream] = [opened(None)]
        except AddressRefused as error:
            raise BrokerError(
                f"Plugin {self._name!r}: the offer of the brokered id {service_id} {error}.", plugin=self._name
            ) from error
        except TimeoutError as error:
            raise self._unanswered(service_id) from error
        channel = self.engine.channel(
            Endpoint(
                lambda timeout: first.pop() if first else opened(timeout), f"brokered id {service_id} of {self._name}"
            ),
            self._options,
        )
        return _Dialled(self, channel, first)

    def accept_and_serve(
        self, service_id: int, register: Callable[[Server], None], *, on_idle: Callable[[], None] | None = None
    ) -> BrokeredServer:
        """Accept an id and serve gRPC on it.

        :param register: adds servicers, e.g. ``lambda server: add_CounterServicer_to_server(counter, server)``.
        :param on_idle: called each time the last connection has ended.
        :returns: the server, which serves until it is closed; closing the broker closes it too.
        :raises BrokerError: as `accept`.
        """
        server = self.engine.server(self._lanes, self._options, on_idle=on_idle)
        served = BrokeredServer(self, server)
        try:
            self._own(served)
            register(server)
            server.serve(self.accept(service_id))
        except BaseException:
            served.close()
            raise
        return served

    def dispose(self, closable: Any) -> None:
        """Close something that was served or dialled here, on a thread of the broker's own. Never blocks, so that a
        finalizer may call it, or a thread that the closing would join."""
        self._disposed.put(closable)

    def dispose_unclaimed(self, served: BrokeredServer, after: float) -> None:
        """Have a server closed unless somebody has connected to it within `after` seconds."""
        self._disposed.put(_Expiry(time.monotonic() + after, weakref.ref(served)))

    def close(self) -> None:
        """End the broker's stream and everything that it serves or dialled. Safe to call twice."""
        self.lifetime.end()
        self._part()
        with self._changed:
            owned, self._owned = self._owned, set()
            reaper, self._reaper = self._reaper, None
            if self._stream is not None:
                self._stream.close()
        if reaper is not None:
            self._disposed.put(_END)
            reaper.join()
        self._refusals.close()
        for each in owned:
            each.close()

    def _part(self) -> None:
        """Nobody is left to dial or to be dialled: end all that waits for that."""
        with self._changed:
            self._closed = True
            listeners = [*self._listeners, *self._accepting.values()]
            self._changed.notify_all()
        for listener in listeners:
            listener.close()

    # -- the broker's own stream

    def outgoing(self) -> Outgoing:
        """The messages for the other side, as they come, until it or the broker is closed. A later one takes over."""
        with self._changed:
            if self._stream is not None:
                self._stream.close()
            self._stream = Outgoing(self._outgoing, self._to_send)
            if self._closed:
                self._stream.close()
            return self._stream

    def receive(self, infos: Iterable[Any]) -> None:
        """Take the messages of the other side as they come, until their end or the broker's."""
        for info in infos:
            with self._changed:
                if self._closed:
                    return
                if not info.HasField("knock"):
                    self._take_offer(info)
                elif info.knock.ack:
                    self._take_answer(info)
                elif info.knock.knock:
                    self._take_knock(info.service_id)

    # -- dialling

    def _opener(self, service_id: int) -> Callable[[float | None], Stream]:
        """What opens a connection to an id, within so many seconds; without a number, as long as a dial may take."""
        if self._transport.multiplexed:
            return lambda timeout: self._knock(service_id, _until(timeout))
        info = self._await(lambda: self._offers.pop(service_id), _until())
        if info is None:
            raise TimeoutError("nobody offered it")
        return lambda timeout: self._transport.connect(info.network, info.address, _left(_until(timeout)))

    def _take_offer(self, info: Any) -> None:
        """Called with the lock held."""
        if len(info.network) + len(info.address) <= _LONGEST:
            self._offers.put(info.service_id, info)
            self._changed.notify_all()

    def _knock(self, service_id: int, deadline: float) -> Stream:
        if not self._knocking.acquire(timeout=_left(deadline)):  # others knock for ids that nobody accepts
            raise TimeoutError(f"others knock, and the brokered id {service_id} had to wait")
        try:
            while True:
                answer = self._ask(service_id, deadline)
                if answer is None:
                    raise TimeoutError(f"nobody accepts the brokered id {service_id}")
                if not answer.error and answer.knock:
                    time.sleep(_READY)
                    return self._transport.open(_left(deadline))
                if not answer.error.startswith(_NOT_YET) or time.monotonic() + _KNOCK_AGAIN > deadline:
                    raise BrokerError(
                        f"Plugin {self._name!r}: the other side refused the brokered id {service_id}: {answer.error}.",
                        plugin=self._name,
                    )
                time.sleep(_KNOCK_AGAIN)
        finally:
            self._knocking.release()

    def _ask(self, service_id: int, deadline: float) -> Any:
        """Knock and wait for the answer; `None` when none came. Called with `_knocking` held."""
        with self._changed:
            self._knocked, self._answer = service_id, None
        try:
            self._send(service_id=service_id, knock={"knock": True})
            while True:
                answer = self._await(lambda: self._answer or self._late, deadline)
                if not self._enter_late_door(deadline):
                    return answer
        finally:
            with self._changed:
                if self._answer is None:
                    self._given_up.put(service_id, True)
                self._knocked, self._answer = None, None

    def _enter_late_door(self, deadline: float) -> bool:
        """Open and close a stream that the other side expects for a dial that was given up; whether there was one."""
        with self._changed:
            if not self._late or time.monotonic() >= deadline:
                return False
            self._late -= 1
        self._transport.open(_left(deadline)).close()
        return True

    def _take_answer(self, info: Any) -> None:
        """Called with the lock held."""
        if info.service_id == self._knocked and self._answer is None:
            self._answer = info.knock
        elif self._given_up.pop(info.service_id) and info.knock.knock and not info.knock.error:
            self._late += 1
        else:
            return
        self._changed.notify_all()

    def _await(self, found: Callable[[], Any], deadline: float) -> Any:
        """What `found` finds, called with the lock held whenever something came; `None` when the time is over.

        :raises BrokerError: the broker was closed.
        """
        value = None

        def arrived() -> bool:
            nonlocal value
            value = found()
            return bool(value) or self._closed

        with self._changed:
            self._changed.wait_for(arrived, _left(deadline))
        if value:
            return value
        self._refuse_closed()
        return None

    def _unanswered(self, service_id: int) -> PluginError:
        if _left(_until()) < _CLOSE:
            return CallTimeout(
                f"Plugin {self._name!r}: nobody accepted the brokered id {service_id} within the time of the call that "
                "it is part of (call_timeout, or the caller's deadline).",
                plugin=self._name,
            )
        return BrokerError(
            f"Plugin {self._name!r}: nobody accepts the brokered id {service_id}; waited {PATIENCE:g} s. "
            "The other side must accept an id within that time of handing it out.",
            plugin=self._name,
        )

    # -- accepting knocks

    def _accept_knocks(self, service_id: int) -> KnockedListener:
        with self._changed:
            self._refuse_closed()
            if service_id in self._accepting:
                raise BrokerError(
                    f"Plugin {self._name!r}: the brokered id {service_id} is being accepted already.", plugin=self._name
                )
            listener = KnockedListener(service_id, self._done_accepting)
            self._accepting[service_id] = listener
            self._answer_knock(service_id)
        return listener

    def _take_knock(self, service_id: int) -> None:
        """Called with the lock held."""
        for forgotten in self._knocks.put(service_id, True):
            self._refuse(forgotten)
        self._answer_knock(service_id)
        self._refuse_later()

    def _answer_knock(self, service_id: int) -> None:
        """Open the door for a knock that waits, if somebody accepts its id; called with the lock held."""
        listener = self._accepting.get(service_id)
        if listener is None or not self._knocks.pop(service_id):
            return
        if self._transport.expect(listener):
            self._send(service_id=service_id, knock={"knock": True, "ack": True})
        else:
            self._refuse(service_id)

    def _refuse_later(self) -> None:
        """Answer knocks with an error when nobody accepts their ids in time. Called with the lock held."""
        due = self._knocks.next_stale
        if due is not None and not self._refusing and not self._closed:
            self._refusing = True
            self._refusals.at(due, self._refuse_stale)

    def _refuse_stale(self) -> None:
        with self._changed:
            self._refusing = False
            for service_id in self._knocks.forget_stale():
                self._refuse(service_id)
            self._refuse_later()

    def _refuse(self, service_id: int) -> None:
        error = f"nobody accepts the id {service_id}"
        self._send(service_id=service_id, knock={"knock": True, "ack": True, "error": error})

    def _done_accepting(self, listener: KnockedListener) -> None:
        with self._changed:
            if self._accepting.get(listener.service_id) is listener:
                del self._accepting[listener.service_id]

    # -- common

    def _send(self, **fields: Any) -> None:
        with self._changed:
            self._outgoing.append(messages.ConnInfo(**fields))
            self._to_send.notify()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise BrokerError(f"Plugin {self._name!r}: its broker is closed, as the plugin is.", plugin=self._name)

    def _own(self, closable: Any) -> None:
        with self._changed:
            self._refuse_closed()
            self._owned.add(closable)
            if self._reaper is None:
                self._reaper = Thread(
                    target=self._reap, name=f"hybridload {self._name} broker", daemon=True, stack=SMALL_STACK
                )
                self._reaper.start()

    def _reap(self) -> None:
        waiting: collections.deque[_Expiry] = collections.deque()  # nearly in order: all wait equally long
        while True:
            due = max(0.0, waiting[0].at - time.monotonic()) if waiting else None
            try:
                disposed = self._disposed.get(timeout=due)
            except queue.Empty:
                disposed = waiting.popleft().served()
                if disposed is None or disposed.claimed:
                    continue
            if disposed is _END:
                return
            if isinstance(disposed, _Expiry):
                waiting.append(disposed)
                continue
            try:
                disposed.close()
            except Exception:
                log.exception("plugin %s: a brokered connection could not be closed", self._name)
            del disposed  # nothing of it is to wait here for the next one

    def _disown(self, closable: Any) -> None:
        with self._changed:
            self._owned.discard(closable)


def _until(timeout: float | None = None) -> float:
    """When a dial that begins now is given up: after `PATIENCE`, or with the deadline of the call it is part of.

    :param timeout: seconds, where it may take less than that.
    """
    until = end_of_calls(PATIENCE if timeout is None else min(timeout, PATIENCE))
    assert until is not None
    return until


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


@frozen
class _Expiry:
    """When a server is closed that nobody has connected to."""

    at: float
    served: weakref.ref[BrokeredServer]
    """Owned by the broker until it is disposed of: most have come and gone long before."""


class Outgoing:
    """What is to be sent over the broker's stream; an iterator that `close` ends, from any thread."""

    def __init__(self, pending: collections.deque[Any], to_send: threading.Condition) -> None:
        self._pending = pending
        self._to_send = to_send
        self._closed = False

    def __iter__(self) -> Outgoing:
        return self

    def __next__(self) -> Any:
        with self._to_send:
            self._to_send.wait_for(lambda: self._pending or self._closed)
            if self._closed:
                raise StopIteration  # what is pending is for the stream that took over
            return self._pending.popleft()

    def close(self) -> None:
        """End the iteration. Safe to call twice."""
        with self._to_send:
            self._closed = True
            self._to_send.notify_all()


class BrokeredServer:
    """A gRPC server on a brokered id."""

    def __init__(self, broker: GRPCBroker, server: Server) -> None:
        self._broker = broker
        self._server = server

    @property
    def claimed(self) -> bool:
        """Whether anybody is connected."""
        return self._server.connected

    def close(self) -> None:
        """Stop serving. Calls in flight are ended. Safe to call twice."""
        self._broker._disown(self)
        self._server.stop(0)


class KnockedListener:
    """The streams that were knocked for under one id."""

    network = "yamux"

    def __init__(self, service_id: int, on_close: Callable[[KnockedListener], None]) -> None:
        self.service_id = service_id
        self.address = f"id {service_id}"
        self._on_close = on_close
        self._streams: queue.SimpleQueue[Stream | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()

    def put(self, stream: Stream) -> None:
        """Hand over a stream that was knocked for; closed at once when nobody accepts any more, or too many wait."""
        with self._lock:
            if not self._closed and self._streams.qsize() < _BACKLOG:
                self._streams.put(stream)
                return
        stream.close()

    def accept(self, timeout: float | None = None) -> Stream:
        """The next stream that the other side opened for this id.

        :raises TimeoutError, StreamClosed: as every listener.
        """
        try:
            stream = self._streams.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"nobody dialled the brokered {self.address} in time") from None
        if stream is None:
            self._streams.put(None)
            raise StreamClosed(f"the listener for the brokered {self.address} was closed")
        return stream

    def close(self) -> None:
        """Accept nothing more. Streams that nobody took are closed. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._on_close(self)
        while True:
            try:
                stream = self._streams.get_nowait()
            except queue.Empty:
                break
            if stream is not None:
                stream.close()
        self._streams.put(None)


class _Dialled:
    """A dialled channel, which the broker closes when its user forgot to."""

    def __init__(self, broker: GRPCBroker, channel: Any, unused: list[Stream]) -> None:
        self._broker = broker
        self._channel = channel
        self._unused = unused
        for name in ("unary_unary", "unary_stream", "stream_unary", "stream_stream", "on_loops"):
            if hasattr(channel, name):  # the last is not every engine's
                setattr(self, name, getattr(channel, name))
        try:
            broker._own(self)
        except BrokerError:
            self.close()
            raise

    def close(self) -> None:
        """Close the channel. Safe to call twice."""
        self._broker._disown(self)
        self._channel.close()
        while self._unused:
            self._unused.pop().close()

    def __enter__(self) -> _Dialled:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
