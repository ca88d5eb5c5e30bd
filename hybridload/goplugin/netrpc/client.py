"""Calls on one net/rpc connection, from any number of threads.

Who reads the stream is a role, as below it in `streams.reading`: a caller that waits while nobody reads takes the role,
settles whatever answers come, and when its own is among them passes the role to another caller that waits. So a caller
that is alone sends its call and receives its answer without any other thread being woken, and without going to sleep
where the answer comes soon (see `streams.spinning`). Calls of which nobody waits on a thread (those of `async def`
methods) are followed by a thread that starts with the first of them and reads only while no caller does.

net/rpc cannot cancel: a caller that gives up is forgotten, and its answer is passed over when it comes. So is one that
is interrupted (Ctrl-C): what it does for others as well is done as a whole, see `hybridload.interrupts`.

Sending is combined: a call is encoded into what is unsent, and whoever finds that nobody sends, sends all of it. So one
system call carries what several threads asked meanwhile, and none of them waits for another's.

Locks are taken in this order: `_sending`, `_encoding`, `_lock`. None is held while the stream is received from, and
only `_sending` while it is sent on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from hybridload.errors import RemoteError
from hybridload.goplugin.netrpc.gob import ANYTHING, GobCorrupt, GoType, Limits, Registry
from hybridload.goplugin.netrpc.gob.names import type_of
from hybridload.goplugin.netrpc.rpc import Reply, RpcClient
from hybridload.goplugin.streams.base import ROOM, Stream, StreamClosed, StreamError, StreamReset, again
from hybridload.goplugin.streams.mux import MuxStream
from hybridload.goplugin.threads import OutOfThreads, Thread
from hybridload.interrupts import held

_CHUNK = 65536  # bytes per receive, and unsent for a sender that is busy
_SLICE = 0.05  # seconds
_SMALL = 1024  # bytes that are sent by who calls while others call


class NetRPCClient:
    """The calling side of one connection, in the shape of Go's `rpc.Client`. Safe from any thread.

    :param stream: carries the connection, which owns it.
    :param registry: names of the types inside interfaces, both ways.
    :param limits: what the server may send.
    :param name: of the following thread.
    """

    def __init__(
        self, stream: Stream, registry: Registry | None = None, *, limits: Limits | None = None, name: str = "netrpc"
    ) -> None:
        self.registry = registry or Registry()
        self._stream = stream
        self._receive_soon = stream.receive_soon if isinstance(stream, MuxStream) else stream.receive
        self._send_all = stream.send_within if isinstance(stream, MuxStream) else stream.send_all
        self._is_quiet = stream.is_quiet if isinstance(stream, MuxStream) else stream.writable
        self._name = name
        self._rpc = RpcClient(self.registry, limits=limits)
        self._sending = threading.Lock()
        self._encoding = threading.Lock()  # guards the sending half of `_rpc`, and the next four
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._unsent_changed = threading.Condition(self._encoding)
        # Blocks on that and on the peer; the end of the connection lets it go, `close` joins it.
        self._sender: threading.Thread | None = None
        self._lock = threading.Lock()
        self._calls: dict[int, PendingCall] = {}
        self._reader: PendingCall | None = None  # who has the role of reading
        self._asleep: dict[PendingCall, None] = {}  # callers that wait for an answer or the role, in order
        self._followed = 0  # calls that nobody waits for on a thread of its own
        self._may_follow = threading.Condition(self._lock)
        self._follower: threading.Thread | None = None
        self._ended: StreamError | None = None

    def __repr__(self) -> str:
        return f"<NetRPCClient on {self._stream.peer}>"

    def call(
        self,
        method: str,
        argument: Any = None,
        argument_type: Any = None,
        reply_type: Any = ANYTHING,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Call a method and return its reply.

        :param method: service and method, e.g. ``"Plugin.Greet"``.
        :param argument_type: description or hint of the argument's Go type; by default what the value's own type
            stands for: `None` is an empty interface, a dict a ``map[string]interface{}``.
        :param reply_type: description or hint of the reply's; by default whatever comes, as plain Python. `None`
            passes it over.
        :param timeout: in seconds; `None` waits for ever.
        :raises RemoteError: the method failed; its message is the error's text.
        :raises GobError: the argument cannot be sent.
        :raises GobMismatch: the reply is of another type.
        :raises TimeoutError: no answer came in time.
        :raises StreamError: the connection is broken, or was closed.
        """
        go_type = type_of(argument, self.registry) if argument_type is None else self.registry.go_type(argument_type)
        expected = None if reply_type is None else self.registry.go_type(reply_type)
        reply = self.exchange(method, argument, go_type, expected, timeout)
        if reply.mismatch is not None:
            raise reply.mismatch
        if reply.error is not None:
            raise RemoteError(reply.error)
        return reply.value

    def exchange(
        self, method: str, argument: Any, argument_type: GoType, reply_type: GoType | None, timeout: float | None
    ) -> Reply:
        """As `call`, for descriptions alone; a failure of the method is part of the reply."""
        with held:
            if timeout is None and not held.here:
                return self._wait(self._send(method, argument, argument_type, reply_type), None)
            # Who may be interrupted leaves to a thread what could wait: half a call must not be all that is sent.
            deadline = None if timeout is None else time.monotonic() + timeout
            try:
                call = self._send_at_once(method, argument, argument_type, reply_type, deadline)
                return self._wait(call, None if deadline is None else max(0.0, deadline - time.monotonic()))
            except StreamError as error:
                error.deadline = deadline
                raise

    def begin(
        self,
        method: str,
        argument: Any,
        argument_type: GoType,
        reply_type: GoType | None,
        on_done: Callable[[PendingCall], None],
    ) -> PendingCall:
        """Call without waiting. `on_done` is called once, from whichever thread reads, and must not block.

        :raises GobError, StreamError: as `exchange`.
        """
        with held:
            call = self._send_at_once(method, argument, argument_type, reply_type, None, on_done)
            with self._lock:
                if self._follower is None and self._ended is None:
                    name = f"hybridload {self._name} replies"
                    follower = Thread(target=self._follow, name=name, daemon=True)
                    follower.start()
                    self._follower = follower
                self._may_follow.notify_all()
            return call

    def forget(self, call: PendingCall) -> None:
        """Nobody waits for this call any more."""
        with held, self._lock:
            self._forget(call)

    def close(self) -> None:
        """End the connection; calls under way fail. Safe to call twice, and from any thread."""
        self._end(StreamClosed(f"{self._stream.peer} was closed on this side"))
        for thread in (self._follower, self._sender):
            if thread is not None and thread is not threading.current_thread():
                thread.join()

    # Sending

    def _send(self, method: str, argument: Any, argument_type: GoType, reply_type: GoType | None) -> PendingCall:
        """Send a call, for as long as it takes the peer to let it in."""
        with self._encoding:
            call = self._queue(method, argument, argument_type, reply_type, None)
        # Whoever is sending takes it along, unless that is so much that it had better be waited for.
        while self._unsent and self._sending.acquire(blocking=self._unsent_bytes > _CHUNK):
            try:
                self._send_unsent()
            finally:
                self._sending.release()
        return call

    def _send_at_once(
        self,
        method: str,
        argument: Any,
        argument_type: GoType,
        reply_type: GoType | None,
        deadline: float | None,
        on_done: Callable[[PendingCall], None] | None = None,
    ) -> PendingCall:
        """Send a call without waiting for a peer that may be stopped: what could block is left to a thread.

        :param deadline: of waiting for others to be sent, when there is much already; `None` does not wait.
        :raises TimeoutError: that came. Nothing of the call is sent.
        """
        with self._encoding:
            while deadline is not None and self._unsent_bytes > _CHUNK and self._ended is None:
                remaining = deadline - time.monotonic()
                if held.here:
                    remaining = min(remaining, _SLICE)
                    held.pause(int)
                if not self._unsent_changed.wait(remaining) and time.monotonic() >= deadline:
                    raise TimeoutError("the calls before it were not sent in time")
            at_most = _SMALL if self._calls else ROOM
            alone = deadline is None and on_done is None and not self._calls and self._is_quiet()
            call = self._queue(method, argument, argument_type, reply_type, on_done)
        # Whoever is sending takes it along.
        while self._unsent and self._sending.acquire(blocking=False):
            try:
                # Who is alone and may wait need not ask whether there is room, which costs more than to send.
                blocks = self._unsent_bytes > at_most or not (alone or self._stream.writable())
                if not blocks:
                    self._send_unsent()
            finally:
                self._sending.release()
            if blocks:
                self._send_aside()
                break
        return call

    def _queue(
        self,
        method: str,
        argument: Any,
        argument_type: GoType,
        reply_type: GoType | None,
        on_done: Callable[[PendingCall], None] | None,
    ) -> PendingCall:
        """Called with `_encoding` held."""
        if self._ended is not None:
            raise again(self._ended)
        seq, data = self._rpc.call(method, argument, argument_type, reply_type)
        call = PendingCall(seq, on_done)
        self._register(call)
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        return call

    def _send_aside(self) -> None:
        alone = False  # without a thread to leave it to, it has to be waited for
        with self._encoding:
            if self._sender is None and self._ended is None:
                name = f"hybridload {self._name} requests"
                sender = Thread(target=self._keep_sending, name=name, daemon=True)
                try:
                    sender.start()
                except OutOfThreads:
                    alone = True
                else:
                    self._sender = sender
            self._unsent_changed.notify_all()
        if alone:
            with self._sending:
                self._send_unsent()

    def _keep_sending(self) -> None:
        while True:
            with self._encoding:
                while not self._unsent and self._ended is None:
                    self._unsent_changed.wait()
                if self._ended is not None:
                    return
            with self._sending:
                self._send_unsent()

    def _register(self, call: PendingCall) -> None:
        with self._lock:
            if self._ended is not None:
                raise again(self._ended)
            self._calls[call.seq] = call
            if call.on_done is not None:
                self._followed += 1

    def _send_unsent(self) -> None:
        """Called with `_sending` held. When it fails, all calls do, and that is how their callers learn of it."""
        with self._encoding:
            unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
            if self._sender is not None:
                self._unsent_changed.notify_all()
        if not unsent:
            return
        try:
            self._send_all(unsent)
        except StreamError as error:
            self._end(error)
        except BaseException as error:
            if held.here and held.harmless:  # interrupted before anything of it was sent
                with self._encoding:
                    self._unsent[:0] = unsent
                    self._unsent_bytes += sum(map(len, unsent))
                self._send_aside()
                raise
            # What is lost may be others' calls, and types that the next ones are of.
            self._end(StreamReset(f"sending on {self._stream.peer} was broken off on this side: {error!r}"))
            raise

    # Waiting and reading

    def _wait(self, call: PendingCall, timeout: float | None) -> Reply:
        deadline = None if timeout is None else time.monotonic() + timeout
        remaining = timeout
        with self._lock:
            try:
                while not call.done:
                    if self._reader is None:
                        self._reader = call
                    if self._reader is call:
                        self._read(remaining)
                    else:
                        self._sleep(call, remaining)
                    if deadline is not None and not call.done:
                        remaining = deadline - time.monotonic()
                        if remaining <= 0:
                            break
            finally:
                if not call.done:
                    self._forget(call)
                if self._reader is call:
                    self._pass_on()
        return call.outcome()

    def _sleep(self, call: PendingCall, timeout: float | None) -> None:
        """Wait for the answer or the role. Called with the lock held, which it lets go."""
        gate = call.gate = call.gate or threading.Lock()
        gate.acquire(blocking=False)
        self._asleep[call] = None
        try:
            self._lock.release()
            held.wait(gate, timeout)
        finally:
            self._lock.acquire()
            self._asleep.pop(call, None)

    def _pass_on(self) -> None:
        """Give the role to the caller that came last, whose answer is the furthest; without one, to the follower.

        It is given, not left to be taken: a caller that comes back at once would take it, and the other be woken for
        nothing. Called with the lock held, by whoever has the role.
        """
        if self._asleep:
            self._reader = heir = next(reversed(self._asleep))
            self._wake(heir)
        else:
            self._reader = None
            if self._followed:
                self._may_follow.notify()

    def _wake(self, call: PendingCall) -> None:
        if call in self._asleep:
            del self._asleep[call]
            assert call.gate is not None
            call.gate.release()

    def _read(self, timeout: float | None) -> None:
        """Receive once and settle the calls that are answered. Called with the lock held, which it lets go."""
        receive = self._stream.receive if len(self._calls) > 1 else self._receive_soon
        failure: StreamError | None = None
        replies: list[Reply] = []
        try:
            try:
                self._lock.release()
                data = receive(_CHUNK, timeout)
                if not data:
                    raise StreamReset(f"{self._stream.peer} was ended by the other side")
                for reply in self._rpc.receive(data):
                    replies.append(reply)
            except TimeoutError:
                pass
            except StreamError as error:
                failure = error
            except GobCorrupt as error:
                failure = StreamReset(f"{self._stream.peer}: {error}")
            except BaseException as error:
                if not (held.here and held.harmless):
                    # Some bytes may be lost, and with them the thread of what follows.
                    self._end(StreamReset(f"reading {self._stream.peer} was broken off on this side: {error!r}"))
                raise
        finally:
            self._lock.acquire()
        for reply in replies:
            self._settle(reply)
        if failure is not None:
            self._lock.release()
            try:
                self._end(failure)
            finally:
                self._lock.acquire()

    def _settle(self, reply: Reply) -> None:
        call = self._calls.pop(reply.seq, None)
        if call is not None:
            call.reply = reply
            self._finish(call)

    def _finish(self, call: PendingCall) -> None:
        call.done = True
        self._wake(call)
        if call.on_done is not None:
            self._followed -= 1
            call.on_done(call)

    def _forget(self, call: PendingCall) -> None:
        """Called with the lock held."""
        if self._calls.pop(call.seq, None) is not None:
            self._rpc.forget(call.seq)
            if call.on_done is not None:
                self._followed -= 1

    def _follow(self) -> None:
        me = PendingCall(-1, None)
        with self._lock:
            while self._ended is None:
                if self._followed and self._reader is None:
                    self._reader = me
                    self._read(None)
                    # Callers come first. Nobody is told when there are none: the next turn of this loop sees to it.
                    self._reader = None
                    if self._asleep:
                        self._pass_on()
                else:
                    self._may_follow.wait()

    def _end(self, why: StreamError) -> None:
        """The connection is over; the first reason counts. Called without the lock."""
        with self._lock:
            if self._ended is None:
                self._ended = again(why)
                calls = list(self._calls.values())
                self._calls.clear()
                for call in calls:
                    call.failure = again(why)
                    self._finish(call)
                self._may_follow.notify_all()
        self._stream.close()
        with self._encoding:
            self._unsent_changed.notify_all()


class PendingCall:
    """A call on its way."""

    __slots__ = ("done", "failure", "gate", "on_done", "reply", "seq")

    def __init__(self, seq: int, on_done: Callable[[PendingCall], None] | None) -> None:
        self.seq = seq
        self.on_done = on_done
        self.done = False
        self.reply: Reply | None = None
        self.failure: StreamError | None = None
        self.gate: threading.Lock | None = None

    def outcome(self) -> Reply:
        """The answer.

        :raises StreamError: the connection ended before it came.
        :raises TimeoutError: it has not come.
        """
        if self.failure is not None:
            raise self.failure
        if self.reply is None:
            raise TimeoutError("no answer came in time")
        return self.reply
