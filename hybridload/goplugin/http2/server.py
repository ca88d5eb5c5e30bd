"""The server: of the shape of `grpc.Server`, fed with streams and listeners instead of ports.

Everything that ``*_pb2_grpc.py`` does with a server works on it: handlers are asked for by duck typing, so grpc's own
handler objects do as well as any others. There are no interceptors and no credentials: who may connect is decided by
whoever opens the listener.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from hybridload.goplugin.streams.base import Listener, Stream, StreamError
from hybridload.goplugin.threads import SMALL_STACK, OutOfThreads, Thread

from .context import Request
from .limits import Limits
from .link import AGAIN
from .server_link import ServerLink
from .timers import Timers
from .watchdog import INTERVAL, Watchdog
from .workers import Workers, WorkersClosed

logger = logging.getLogger(__name__)

_JOIN_TIMEOUT: Final = 1.0
"""Seconds that a stop waits for handlers that do not return although their calls are over."""


class Server:
    """Answers calls on the streams that it is given.

    :param handlers: generic handlers, as for `add_generic_rpc_handlers`.
    :param max_receive: the largest request, in bytes; `None` for no limit.
    :param max_send: the largest response, in bytes; `None` for no limit.
    """

    def __init__(
        self,
        handlers: Sequence[Any] = (),
        *,
        max_receive: int | None = None,
        max_send: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.max_receive = max_receive
        self.max_send = max_send
        self.limits = limits or Limits()
        self.workers = Workers("hybridload-http2-serve")
        self.timers = Timers("hybridload-http2-serve-deadlines")
        self.watchdog = Watchdog("hybridload-http2-watchdog", self._snapshot)
        self.latest = 0
        """The `id` of the connection whose leader answered last, which may have ended and is not kept for this. One
        that finds itself there again is probably the only one."""
        self.slow: dict[str, int] = {}
        """Methods that took long lately, and how often they must be quick before that is forgotten."""
        self._handlers = list(handlers)
        self._registered: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._links: set[ServerLink] = set()
        self._listeners: list[Listener] = []
        self._accepting: list[threading.Thread] = []
        self._started = False
        self._stopped: Stopped | None = None

    # What generated code calls

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any]) -> None:
        """Add objects with ``service(handler_call_details) -> handler or None``."""
        self._handlers += generic_rpc_handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """Add handlers by the name of their method. They come before the generic ones."""
        for method, handler in method_handlers.items():
            self._registered[f"/{service_name}/{method}"] = handler

    # Connections

    def add_listener(self, listener: Listener) -> None:
        """Serve whoever connects there. The server owns the listener; one that is stopping closes it."""
        with self._changed:
            refused = self._stopped is not None
            if not refused:
                self._listeners.append(listener)
                if self._started:
                    self._accept_from(listener)
        if refused:
            listener.close()

    def serve(self, stream: Stream) -> None:
        """Serve one connection, in threads of the server's. The server owns the stream.

        A server that is stopping closes it, and one that has no thread for it.
        """
        link = self._adopt(stream)
        if link is not None and not self._begin(link):
            link.close()

    def _adopt(self, stream: Stream) -> ServerLink | None:
        with self._changed:
            if self._stopped is None:
                link = ServerLink(stream, self)
                self._links.add(link)
                return link
        stream.close()
        return None

    def _begin(self, link: ServerLink) -> bool:
        """Have a thread read a connection. False when none can be started."""
        try:
            self.workers.submit(link.lead)
        except WorkersClosed:
            link.close()
        except OutOfThreads as error:
            logger.debug("%s waits to be read: %s", link.stream.peer, error)
            return False
        return True

    def start(self) -> None:
        """Begin to accept from the listeners."""
        with self._changed:
            if self._started:
                raise ValueError("Cannot start already-started server!")
            self._started = True
            listeners = list(self._listeners)
            self.watchdog.start()
        for listener in listeners:
            self._accept_from(listener)

    def stop(self, grace: float | None) -> Stopped:
        """Accept nothing more; end the calls that are open, after giving them `grace` seconds.

        Returns at once, or at the end where no thread can be started. Safe to call twice: a shorter grace then counts.

        :returns: an event that is set when all has ended.
        """
        deadline = time.monotonic() + (grace or 0.0)
        with self._changed:
            stopped = self._stopped
            if stopped is not None:
                stopped.deadline = min(deadline, stopped.deadline)
                self._changed.notify_all()
                return stopped
            stopped = self._stopped = Stopped(self._stop, deadline)
            try:
                stopped.begin()
            except OutOfThreads:
                pass
            else:
                return stopped
        stopped.run()
        return stopped

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait until the server has stopped. True when the wait timed out, as in grpc.

        :param timeout: in seconds.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped is not None and self._stopped.is_set(), timeout)
            return self._stopped is None or not self._stopped.is_set()

    # For the links

    def handler_of(self, request: Request) -> Any:
        """The handler for a request; `None` where nobody knows the method."""
        if self._registered:
            handler = self._registered.get(request.path)
            if handler is not None:
                return handler
        for generic in self._handlers:
            try:
                handler = generic.service(request.details)
            except Exception:
                logger.exception("a generic handler failed to look %s up", request.path)
                continue
            if handler is not None:
                return handler
        return None

    def forgive(self, path: str, took: float) -> None:
        """A slow method has run in a thread of its own: if it is quick again and again, a reader may run it."""
        left = self.slow.get(path)
        if left is None:
            return
        if took > INTERVAL / 3:
            return
        if left > 1:
            self.slow[path] = left - 1
        else:
            self.slow.pop(path, None)

    def is_read_beside(self, link: ServerLink) -> bool:
        """Whether the leader of any other connection is in no handler."""
        return any(not each.busy_since for each in self._snapshot() if each is not link)

    def call_ended(self) -> None:
        if self._stopped is not None:
            with self._changed:
                self._changed.notify_all()

    def link_ended(self, link: ServerLink) -> None:
        with self._changed:
            self._links.discard(link)
            self._changed.notify_all()

    def _snapshot(self) -> list[ServerLink]:
        with self._changed:
            return list(self._links)

    def _accept_from(self, listener: Listener) -> None:
        name = f"hybridload-http2-accept-{listener.address}"
        thread = Thread(target=self._accept, args=(listener,), name=name, daemon=True, stack=SMALL_STACK)
        thread.start()
        self._accepting.append(thread)

    def _accept(self, listener: Listener) -> None:
        while True:
            try:
                stream = listener.accept()
            except StreamError as error:
                if self._stopped is None:
                    logger.debug("nothing more is accepted on %s: %s", listener.address, error)
                return
            self._take_on(stream)
            del stream  # nothing is kept of the last connection while the next is waited for

    def _take_on(self, stream: Stream) -> None:
        link = self._adopt(stream)
        while link is not None and not self._begin(link):
            with self._changed:
                self._changed.wait(AGAIN)  # its client waits, as do those who connect after it

    def _stop(self, stopped: Stopped) -> None:
        for listener in self._listeners:
            listener.close()
        for link in self._snapshot():
            link.go_away()
        with self._changed:
            while any(not link.is_idle for link in self._links):
                remaining = stopped.deadline - time.monotonic()
                if remaining <= 0:
                    break
                # Calls end without telling us; how soon that is noticed is of no great importance.
                self._changed.wait(min(remaining, 0.05))
        for link in self._snapshot():
            link.close()
        self.watchdog.close()
        self.timers.close()
        if not self.workers.close(_JOIN_TIMEOUT):
            logger.debug("a handler has not returned %g s after its server stopped", _JOIN_TIMEOUT)
        for thread in self._accepting:
            thread.join()
        with self._changed:
            stopped.set()
            self._changed.notify_all()


class Stopped(threading.Event):
    """Set when a server has stopped: no thread and no connection of its are left."""

    def __init__(self, stop: Any, deadline: float) -> None:
        super().__init__()
        self.deadline = deadline
        self._stop = partial(stop, self)
        self._thread = Thread(target=self._stop, name="hybridload-http2-stop", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def run(self) -> None:
        """Do without a thread."""
        self._stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, in seconds; whether the server has stopped."""
        done = super().wait(timeout)
        if done and self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()
        return done
