"""go-plugin's mux broker: further streams between a host and its plugin, in either direction, under ids.

The rules, read off go-plugin v1.8.0 (mux_broker.go):

- An id belongs to the side that accepts. Both sides count from 1, each for itself.
- Whoever dials opens a stream of the session and writes the id on it, little-endian in four bytes. The acceptor writes
  the same back, and from then on the stream belongs to the two.
- A stream whose id nobody accepts within `PATIENCE` seconds is closed by the acceptor.

Two unclaimed streams for one id jam Go's broker, so an id is dialled by one caller at a time. Go's `Dial` waits for
ever; ours for as long as an acceptor may take, and a little more.

The other side may open any number of streams, and have any number of objects served: what waits for its other half is
bounded (see `pending`), and so are the threads that bring streams to their ids.
"""

from __future__ import annotations

import itertools
import logging
import queue
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from hybridload.deadlines import end_of_calls
from hybridload.errors import BrokerError, CallTimeout
from hybridload.goplugin.http2.workers import WorkersClosed
from hybridload.goplugin.netrpc.client import NetRPCClient
from hybridload.goplugin.netrpc.gob import Limits, Registry
from hybridload.goplugin.netrpc.server import NetRPCServer, Services
from hybridload.goplugin.pending import Pending
from hybridload.goplugin.streams.base import Stream, StreamError, StreamReset
from hybridload.goplugin.threads import OutOfThreads, Thread

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that an id waits for its other half."""
_DIAL_PATIENCE = PATIENCE + 1.0
_LOOK = 0.005
_ARRIVING = 256
"""Streams whose ids are waited for at once; further ones stay with the session, which keeps as many and no more."""

_ID = struct.Struct("<I")
_END = None

Take = Callable[[Stream], None]
"""Gets a stream that was claimed, on a thread that may block on it for as long as it lives."""


class Session(Protocol):
    """What the broker needs of a yamux session."""

    def open(self, timeout: float | None = None) -> Stream: ...

    def accept(self, timeout: float | None = None) -> Stream: ...


class MuxBroker:
    """Opens and accepts further streams. Safe from any thread.

    :param session: the streams are its; whoever owns it closes it before the broker.
    :param server: runs what is served.
    :param name: the plugin's name, for messages.
    :param on_lost: called on a thread of the broker's when the other side broke the session off.
    :param limits: what the other side may send on what is dialled or served here.
    """

    def __init__(
        self,
        session: Session,
        server: NetRPCServer,
        *,
        name: str,
        limits: Limits | None = None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.server = server
        self._on_lost = on_lost
        self._limits = limits
        self._session = session
        self._name = name
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        self._expected = Pending[Take](PATIENCE)
        self._awaited: dict[int, Take] = {}  # those that a thread waits for
        self._arriving = threading.BoundedSemaphore(_ARRIVING)
        self._dialling: set[int] = set()
        self._owned: set[Any] = set()
        self._disposed: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closed = False
        # Both block on the session or the queue; `close` ends both.
        self._accepting = Thread(target=self._accept, name=f"hybridload {name} streams", daemon=True)
        self._reaping = Thread(target=self._reap, name=f"hybridload {name} broker", daemon=True)
        self._accepting.start()
        self._reaping.start()

    def next_id(self) -> int:
        """An id that this side has not used yet."""
        return next(self._ids)

    def accept(self, service_id: int, timeout: float = PATIENCE) -> Stream:
        """The stream that the other side opens for an id of this side. The caller closes it.

        :param timeout: in seconds.
        :raises BrokerError: it opened none in time, the broker is closed, or the id is being accepted already.
        """
        streams: queue.SimpleQueue[Stream | None] = queue.SimpleQueue()
        with self._changed:
            self._refuse_taken(service_id)
            self._awaited[service_id] = streams.put
            self._changed.notify_all()
        try:
            stream = streams.get(timeout=timeout)
        except queue.Empty:
            with self._changed:
                forgotten = self._awaited.pop(service_id, None)
            # What cannot be forgotten came just now.
            stream = streams.get() if forgotten is None else None
        if stream is None:
            raise BrokerError(
                f"Plugin {self._name!r}: nobody dialled the brokered id {service_id} within {timeout:g} s.",
                plugin=self._name,
            )
        return stream

    def expect(self, service_id: int, take: Take) -> None:
        """Have `take` called with the stream that the other side opens for an id of this side within five seconds.
        Returns at once.

        :raises BrokerError: the broker is closed, the id is being accepted already, or too many ids wait.
        """
        with self._changed:
            self._expected.forget_stale()
            self._refuse_taken(service_id)
            if self._expected.full:
                raise BrokerError(
                    f"Plugin {self._name!r}: {len(self._expected)} brokered ids wait for somebody to dial them, and no "
                    f"more may. The other side must dial an id within {PATIENCE:g} s of getting it.",
                    plugin=self._name,
                )
            self._expected.put(service_id, take)
            self._changed.notify_all()

    def accept_and_serve(
        self,
        service_id: int,
        services: Services,
        registry: Registry | None = None,
        *,
        failure: Callable[[BaseException], str] = str,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        """Serve net/rpc to whoever opens the id. Returns at once.

        :param failure, on_end: as in `NetRPCServer.serve`.
        :raises BrokerError: as `expect`.
        """
        self.expect(
            service_id,
            lambda stream: self.server.serve(
                stream, services, registry, failure=failure, limits=self._limits, on_end=on_end
            ),
        )

    def dial(self, service_id: int) -> Stream:
        """A stream to what the other side accepts under an id of its own. The caller closes it.

        :raises BrokerError: nobody accepts the id within five seconds, or the session is over.
        :raises CallTimeout: the deadline of the call that this is part of came first.
        """
        with self._changed:
            self._refuse_closed()
            if service_id in self._dialling:
                raise BrokerError(
                    f"Plugin {self._name!r}: the brokered id {service_id} is being dialled already; an id is good for "
                    "one connection.",
                    plugin=self._name,
                )
            self._dialling.add(service_id)
        try:
            return self._dial(service_id)
        finally:
            with self._changed:
                self._dialling.discard(service_id)

    def client(self, service_id: int, registry: Registry | None = None) -> NetRPCClient:
        """As `dial`, for a net/rpc connection. The caller closes it; closing the broker does as well."""
        client = NetRPCClient(
            self.dial(service_id), registry, limits=self._limits, name=f"{self._name} id {service_id}"
        )
        with self._changed:
            if not self._closed:
                self._owned.add(client)
                return client
        client.close()
        raise self._is_closed()

    def dispose(self, closable: Any) -> None:
        """Close something that was dialled here, on a thread of the broker's own. Never blocks, so that a finalizer
        may call it."""
        self._disposed.put(closable)

    def close(self) -> None:
        """End what was dialled here and the broker's threads. The session was closed before. Safe to call twice."""
        with self._changed:
            first, self._closed = not self._closed, True
            owned, self._owned = self._owned, set()
            self._awaited.clear()
            self._expected.clear()
            self._changed.notify_all()
        for client in owned:
            client.close()
        if first:
            self._disposed.put(_END)
        for thread in (self._accepting, self._reaping):
            if thread is not threading.current_thread():
                thread.join()

    # Dialling

    def _dial(self, service_id: int) -> Stream:
        deadline = end_of_calls(_DIAL_PATIENCE)  # nobody's deadline is kept waiting for
        assert deadline is not None
        stream: Stream | None = None
        try:
            stream = self._session.open(max(0.0, deadline - time.monotonic()))
            _await_room(stream, deadline)
            stream.send(_ID.pack(service_id))
            answer = _receive_id(stream, deadline)
        except (StreamError, TimeoutError) as error:
            if stream is not None:
                stream.close()
            end = end_of_calls(None)
            if isinstance(error, TimeoutError) and end is not None and end <= deadline:
                raise CallTimeout(
                    f"Plugin {self._name!r}: nobody accepted the brokered id {service_id} within the time of the call "
                    "that it is part of (call_timeout, or the caller's deadline).",
                    plugin=self._name,
                ) from error
            raise BrokerError(
                f"Plugin {self._name!r}: the brokered id {service_id} cannot be reached: {error}. "
                "The other side must accept an id within five seconds of handing it out.",
                plugin=self._name,
            ) from error
        if answer != service_id:
            stream.close()
            raise BrokerError(
                f"Plugin {self._name!r}: the brokered id {service_id} was answered with {answer}.", plugin=self._name
            )
        return stream

    # Accepting

    def _accept(self) -> None:
        while True:
            self._arriving.acquire()
            try:
                stream = self._session.accept()
            except StreamError as error:
                if isinstance(error, StreamReset):
                    self._on_lost()
                return
            try:
                self.server.workers.submit(partial(self._arrive, stream))
            except (WorkersClosed, OutOfThreads) as error:
                log.debug("plugin %s: a stream is refused: %s", self._name, error)
                self._arriving.release()
                stream.close()

    def _arrive(self, stream: Stream) -> None:
        """Bring a stream to whoever accepts its id."""
        try:
            take = self._claim(stream)
        finally:
            self._arriving.release()
        if take is None:
            stream.close()
        else:
            take(stream)

    def _claim(self, stream: Stream) -> Take | None:
        """Wait for a stream's id and for somebody who accepts it; `None` when one of them does not come."""
        deadline = time.monotonic() + PATIENCE
        try:
            service_id = _receive_id(stream, deadline)
        except (StreamError, TimeoutError) as error:
            log.debug("plugin %s: a stream came without an id: %s", self._name, error)
            return None
        with self._changed:
            self._changed.wait_for(
                lambda: service_id in self._awaited or service_id in self._expected or self._closed,
                max(0.0, deadline - time.monotonic()),
            )
            take = self._awaited.pop(service_id, None) or self._expected.pop(service_id)
        if take is None:
            log.debug("plugin %s: nobody accepts the brokered id %d", self._name, service_id)
            return None
        try:
            stream.send(_ID.pack(service_id))
        except StreamError as error:
            log.debug("plugin %s: the brokered id %d was given up: %s", self._name, service_id, error)
            stream.close()  # whoever takes it is told
        return take

    # Common

    def _reap(self) -> None:
        while (closable := self._disposed.get()) is not _END:
            with self._changed:
                self._owned.discard(closable)
            try:
                closable.close()
            except Exception:
                log.exception("plugin %s: a brokered connection could not be closed", self._name)

    def _refuse_taken(self, service_id: int) -> None:
        """Called with the lock held."""
        self._refuse_closed()
        if service_id in self._awaited or service_id in self._expected:
            raise BrokerError(
                f"Plugin {self._name!r}: the brokered id {service_id} is being accepted already.", plugin=self._name
            )

    def _refuse_closed(self) -> None:
        if self._closed:
            raise self._is_closed()

    def _is_closed(self) -> BrokerError:
        return BrokerError(f"Plugin {self._name!r}: its broker is closed, as the plugin is.", plugin=self._name)


def _await_room(stream: Stream, deadline: float) -> None:
    """Wait until something can be sent without waiting for the other side to read.

    :raises TimeoutError: that did not come in time.
    :raises StreamError: the stream is over.
    """
    while not stream.writable():
        if stream.readable():
            stream.receive(_ID.size, 0.0)  # raises what ended it
            raise BrokerClosed("the other side answered before it was asked")
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the other side does not read")
        time.sleep(min(_LOOK, left))


def _receive_id(stream: Stream, deadline: float) -> int:
    data = b""
    while len(data) < _ID.size:
        part = stream.receive(_ID.size - len(data), max(0.0, deadline - time.monotonic()))
        if not part:
            raise BrokerClosed("the other side closed the stream")
        data += part
    service_id: int = _ID.unpack(data)[0]
    return service_id


class BrokerClosed(StreamError):
    """A brokered stream was closed before it was claimed."""
