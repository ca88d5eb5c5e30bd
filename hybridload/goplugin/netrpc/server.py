"""Answers calls on net/rpc connections.

**The reading role.** One thread leads a connection: it reads, and runs each call by itself as soon as it is complete,
so that a call costs no change of threads. A method that takes long, blocks, or is called back must hold up nothing: a
watchdog looks at the leader every few milliseconds, and when it is still in the same method another thread is made
the leader; the one inside finishes its call and leaves. The method is remembered as slow for a while and given a thread
of its own. (The same rules as in `http2.server_link`.)

`_term` says who leads: it is raised whenever the role changes hands, and a thread whose term has passed takes nothing
more from the connection.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hybridload.goplugin.http2.watchdog import Watchdog
from hybridload.goplugin.http2.workers import Job, Workers, WorkersClosed
from hybridload.goplugin.in_flight import InFlight
from hybridload.goplugin.netrpc import adopted
from hybridload.goplugin.netrpc.gob import ANYTHING, GobCorrupt, GobError, GoType, Limits, Registry
from hybridload.goplugin.netrpc.gob.names import type_of
from hybridload.goplugin.netrpc.rpc import Call, Received, Refusal, RpcServer
from hybridload.goplugin.streams.base import Stream, StreamError
from hybridload.goplugin.threads import OutOfThreads

if TYPE_CHECKING:
    from hybridload.goplugin.event_loop import EventLoop

log = logging.getLogger(__name__)

_CHUNK = 65536  # bytes per receive
_HARDLY_SLOW = 0.02  # seconds; a method that was overtaken and returned within them is not remembered as slow
_SLOW_FOR = 16  # how many times in a row a slow method must have been quick before a leader runs it again
_QUICK = 0.001  # seconds


@dataclass(frozen=True, slots=True)
class Behavior:
    """How one method is answered.

    :param run: argument -> reply; `None` travels as a nil interface, whatever the reply's type. With a `loop`, it
        returns at once an awaitable of the reply.
    :param argument_type: `None` passes the argument over, and `run` gets `None`.
    :param reply_type: `None` for what the reply's own type stands for.
    :param waits: it always takes long, so a leader never runs it.
    :param protocol: it is the protocol's own, which goes on when the plugin ends.
    :param refuse: the exception to answer for a reply that cannot be sent; by default what says so.
    :param loop: where the reply is awaited; no thread waits for it. `None` where `run` returns the reply itself.
    """

    run: Callable[[Any], Any]
    argument_type: GoType | None
    reply_type: GoType | None
    waits: bool = False
    protocol: bool = False
    refuse: Callable[[Any, GobError], Exception] | None = None
    loop: EventLoop | None = None


Services = Mapping[str, Mapping[str, Behavior]]


class Refused(Exception):
    """What a behavior raises to have its text answered as it is."""


class NetRPCServer:
    """The threads that answer all of one side's connections.

    :param name: of its threads.
    """

    def __init__(self, name: str) -> None:
        self.workers = Workers(f"hybridload {name} calls")
        self.calls = InFlight()
        self.protocol_calls = InFlight()
        self.refusing = False
        self.slow: dict[str, int] = {}
        self.watchdog = Watchdog(f"hybridload {name} watchdog", self._snapshot)
        self._lock = threading.Lock()
        self._links: set[ServerLink] = set()
        self._watching = False
        self._closed = False

    def serve(
        self,
        stream: Stream,
        services: Services,
        registry: Registry | None = None,
        *,
        failure: Callable[[BaseException], str] = str,
        limits: Limits | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        """Answer the calls of one connection until it ends, on the calling thread to begin with; it may return before.

        :param stream: owned by the connection from now on.
        :param services: by name, their methods by name.
        :param failure: the text to answer for what a method raised.
        :param on_end: called when the connection has ended.
        """
        link = ServerLink(self, stream, services, registry, failure, limits, on_end)
        with self._lock:
            closed = self._closed
            if not closed:
                self._links.add(link)
                if not self._watching:
                    self._watching = True
                    self.watchdog.start()
        if closed:
            link.close()
            return
        link.lead()

    def close(self, timeout: float) -> bool:
        """End all connections; whether all threads ended within `timeout` seconds. Safe to call twice."""
        with self._lock:
            self._closed = True
            links = list(self._links)
        for link in links:
            link.close()
        self.watchdog.close()
        return self.workers.close(timeout)

    def ended(self, link: ServerLink) -> None:
        with self._lock:
            self._links.discard(link)

    def _snapshot(self) -> list[ServerLink]:
        with self._lock:
            return list(self._links)


class ServerLink:
    """One connection. Owns the stream."""

    def __init__(
        self,
        server: NetRPCServer,
        stream: Stream,
        services: Services,
        registry: Registry | None,
        failure: Callable[[BaseException], str],
        limits: Limits | None,
        on_end: Callable[[], None] | None,
    ) -> None:
        self.busy_since = 0.0
        """When the leader entered the method it is in (`time.monotonic`); 0 while it is in none."""
        self.served = 0
        """How many methods leaders have run."""
        self._server = server
        self._stream = stream
        self._registry = registry or Registry()
        self._behaviors = {
            (service, method): behavior for service, each in services.items() for method, behavior in each.items()
        }
        types = {
            service: {name: behavior.argument_type for name, behavior in each.items()}
            for service, each in services.items()
        }
        self._rpc = RpcServer(types, self._registry, limits=limits)
        self._failure = failure
        self._on_end = on_end
        self._sending = threading.Lock()
        self._outcomes = _InTurn(server.workers)
        self._lock = threading.Lock()
        self._ready: deque[Received] = deque()
        self._broken = False
        self._term = 0
        self._leading: Call | None = None
        self._ended = False

    # Leading

    def lead(self, term: int = 0) -> None:
        """Read and answer until the connection ends or the role passes to another thread."""
        try:
            while True:
                while self._ready:
                    if not self._answer(self._ready.popleft(), term):
                        return
                if self._broken:
                    break
                data = self._stream.receive(_CHUNK)
                if not data:
                    break
                self._receive(data)
        except (StreamError, WorkersClosed):
            pass  # the other side, or this one, has no more to say
        except Exception:
            log.exception("reading %s failed", self._stream.peer)
        self.close()

    def overtake(self, since: float) -> None:
        """Let another thread lead, if the leader is still inside the method that it entered at `since`."""
        with self._lock:
            if self.busy_since != since:
                return
            call = self._leading
            self._term += 1
            self.busy_since = 0.0
            self._leading = None
            if call is not None:
                self._server.slow[_name(call)] = _SLOW_FOR
            try:
                self._server.workers.submit(partial(self.lead, self._term))
            except WorkersClosed:
                self._stream.close()
            except OutOfThreads:  # the leader stays; the watchdog finds it there again
                self._term -= 1
                self.busy_since = since
                self._leading = call

    def close(self) -> None:
        """End the connection. Safe to call twice."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._stream.close()
        self._server.ended(self)
        if self._on_end is not None:
            self._on_end()

    def _receive(self, data: bytes) -> None:
        try:
            for received in self._rpc.receive(data):
                self._ready.append(received)
        except GobCorrupt as error:
            log.warning("%s is closed: %s", self._stream.peer, error)
            self._broken = True  # the calls before it are answered

    # Answering

    def _answer(self, received: Received, term: int) -> bool:
        """Answer a call, here or elsewhere. False when this thread does not lead any more."""
        if isinstance(received, Refusal):
            self._send_error(received, received.text)
            return True
        behavior = self._behaviors[received.service, received.method]
        server = self._server
        if server.refusing and not behavior.protocol:
            self._send_error(received, "the plugin is ending and takes no more calls")
            return True
        count = server.protocol_calls if behavior.protocol else server.calls
        count.enter()
        name = _name(received)
        if behavior.waits or (name in server.slow and behavior.loop is None):
            try:
                server.workers.submit(partial(self._run_elsewhere, received, behavior, count))
                return True
            except OutOfThreads as error:
                if not behavior.protocol:  # a slow one would hold up all others
                    count.leave()
                    self._send_error(received, self._failure(error))
                    return True
            except BaseException:
                count.leave()
                raise
        self._leading = received
        self.served += 1
        began = self.busy_since = time.monotonic()
        if server.watchdog.resting:
            server.watchdog.wake()
        try:
            self._run(received, behavior, count)
        finally:
            with self._lock:
                leads = self._term == term
                if leads:
                    self.busy_since = 0.0
                    self._leading = None
        if not leads and time.monotonic() - began < _HARDLY_SLOW:
            server.slow.pop(name, None)
        return leads

    def _run_elsewhere(self, call: Call, behavior: Behavior, count: InFlight) -> None:
        began = time.monotonic()
        self._run(call, behavior, count)
        if time.monotonic() - began < _QUICK:
            self._forgive(_name(call))

    def _forgive(self, name: str) -> None:
        """A slow method was quick: when that happens again and again, a leader may run it."""
        slow = self._server.slow
        left = slow.get(name)
        if left is not None and left > 1:
            slow[name] = left - 1
        else:
            slow.pop(name, None)

    def _run(self, call: Call, behavior: Behavior, count: InFlight) -> None:
        """Run a call, which leaves `count` once it is answered."""
        awaited = False
        try:
            try:
                if call.undialled:
                    adopted.dial(call.undialled)
                reply = behavior.run(call.argument)
                if behavior.loop is not None:
                    self._await(call, behavior, behavior.loop, reply, count)
                    awaited = True
                    return
            except BaseException as error:
                self._send_failure(call, error)
                return
            self._send_reply(call, behavior, reply)
        finally:
            if not awaited:
                count.leave()

    def _await(self, call: Call, behavior: Behavior, loop: EventLoop, reply: Awaitable[Any], count: InFlight) -> None:
        """Have an event loop await a reply, and somebody send it then."""

        def send(outcome: Future[tuple[Any, BaseException | None]]) -> None:
            reply, error = (None, CancelledError()) if outcome.cancelled() else outcome.result()
            try:
                if error is not None:
                    self._send_failure(call, error)
                else:
                    self._send_reply(call, behavior, reply)
            finally:
                count.leave()

        # The loop must not wait for the other side to read: it leaves the sending to a thread.
        loop.submit(_outcome(reply)).add_done_callback(lambda outcome: self._outcomes.add(partial(send, outcome)))

    def _send_failure(self, call: Call, error: BaseException) -> None:
        if isinstance(error, Refused):
            self._send_error(call, str(error))
            return
        if not isinstance(error, Exception):
            log.error("a call raised %s, which would end a program; it fails alone", type(error).__name__)
        self._send_error(call, self._failure(error))

    def _send_reply(self, call: Call, behavior: Behavior, reply: Any) -> None:
        try:
            reply_type = ANYTHING if reply is None else behavior.reply_type or type_of(reply, self._registry)
            with self._sending:
                self._stream.send(self._rpc.reply(call, reply, reply_type))
        except GobError as error:
            self._send_error(call, self._failure(behavior.refuse(reply, error) if behavior.refuse else error))
        except StreamError as error:
            log.debug("an answer could not be sent: %s", error)

    def _send_error(self, call: Received, text: str) -> None:
        try:
            with self._sending:
                self._stream.send(self._rpc.error(call, text))
        except StreamError as error:
            log.debug("an answer could not be sent: %s", error)


class _InTurn:
    """Does one job after the other, on a thread that is there only while there are some."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._working = False

    def add(self, job: Job) -> None:
        """Do `job` after those before it; never blocks. From any thread."""
        with self._lock:
            self._jobs.append(job)
            starts, self._working = not self._working, True
        if starts:
            try:
                self._workers.submit(self._work, patient=True)
            except WorkersClosed:
                log.debug("answers are dropped: the server has stopped")
            except OutOfThreads:  # nor is there one that could do it later
                self._work()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._working = False
                    return
                job = self._jobs.popleft()
            try:
                job()
            except Exception:
                log.exception("sending an answer failed")


async def _outcome(awaitable: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    import asyncio

    try:
        return await awaitable, None
    except asyncio.CancelledError:
        return None, CancelledError()
    except BaseException as error:  # what is no Exception would end the loop, and not this call alone
        return None, error


def _name(call: Call) -> str:
    return f"{call.service}.{call.method}"
