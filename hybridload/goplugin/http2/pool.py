"""Which connection a call goes on.

A unary call gets a connection of its own when there is an idle one, or room for one more: then its thread writes and
reads by itself, which is the fastest way there is. When all are taken it shares the one that streams share (below);
when there is none, it waits its turn, first come, first served, but never for long: after `PATIENCE` it shares the
least busy one, because a call may be nested in another (host calls plugin calls host calls plugin) or be meant to
block, and waiting for those is waiting for ever.

Where a connection takes long to open (TLS), a call that finds none idle shares one as well, and another is opened
meanwhile in a thread of its own, for the calls to come.

Streams and futures share: one connection, read by a background thread, takes all of them, up to what the server allows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from hybridload.goplugin.streams.base import Stream, StreamError
from hybridload.goplugin.threads import OutOfThreads

from .client_link import ClientLink
from .workers import Workers, WorkersClosed

logger = logging.getLogger(__name__)

PATIENCE: Final = 0.02
"""Seconds."""

_FRESH: Final = 0.002
"""Seconds for which an idle connection is taken to be alive because it was a moment ago. When it is not after all, the
request cannot be sent, and the call is made again on another."""


Dial = Callable[[float | None], Stream]
"""Opens a connection, in at most so many seconds; `None` leaves it its own time."""


class PoolClosed(Exception):
    """No more connections are handed out."""


class _Turn:
    """One thread that waits for a connection."""

    __slots__ = ("arrived", "link")

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.link: ClientLink | None = None


class Pool:
    """Connections to one server.

    :param dial: opens one, within so many seconds at the most; whatever it raises goes to the caller who needed it.
    :param max_connections: how many there are at most.
    :param ahead: opens connections while calls go on without them; `None` has the caller who needs one open it.
    :param leaves_idle: whether another connection costs next to nothing, and the other side takes it for granted.
    """

    def __init__(
        self,
        dial: Dial,
        adopt: Callable[[Stream], ClientLink],
        max_connections: int,
        ahead: Workers | None = None,
        leaves_idle: bool = False,
    ) -> None:
        self._dial = dial
        self._adopt = adopt
        self._max = max_connections
        self._ahead = ahead
        self._leaves_idle = leaves_idle
        self._lock = threading.Lock()
        self._links: list[ClientLink] = []
        self._idle: list[ClientLink] = []  # the last one used is the first to be used again
        self._parting: set[ClientLink] = set()  # not to be handed out any more, with calls that go on
        self._dialling = 0
        self._turns: deque[_Turn] = deque()
        self._closed = False
        self.latest = 0
        """The `id` of what the latest unary call went on, which may have ended and is not kept for this. A caller that
        finds its own there again is probably alone."""

    def take(self, deadline: float | None = None) -> ClientLink:
        """A connection for one unary call. Give it back.

        :param deadline: of the call, on the clock of `time.monotonic`.
        :raises PoolClosed: the pool is closed.
        :raises StreamError, TimeoutError: none can be opened, or not by then.
        """
        while self._idle:
            with self._lock:
                if not self._idle:
                    break
                link = self._idle.pop()
                link.users = 1
            # Right after another call there is no need to ask the system whether the connection is still there.
            if time.monotonic() - link.rested_since < _FRESH or self._is_alive(link):
                return link
        return self._take_new_or_wait(deadline)

    def take_shared(self, deadline: float | None = None) -> ClientLink:
        """A connection for a stream or a future, which others use at the same time. Give it back when the call ends.

        :param deadline: as for `take`, and what is raised is the same.
        """
        return self.take_shared_now() or self._take_new_or_wait(deadline)

    def take_for_stream(self, deadline: float | None = None) -> ClientLink:
        """As `take_shared`, but the first stream leaves an idle connection to the calls, where that was asked for.

        A plugin's start ends with a call and a stream: the user's first call need not open a connection then.
        """
        with self._lock:
            link = self._share(lambda link: link.has_reader and (link.in_background or link.users == 0))
            opens = (
                link is None
                and self._leaves_idle
                and bool(self._idle)
                and len(self._links) + self._dialling < self._max
            )
            self._dialling += opens
        if link is not None and self._is_alive(link):
            return link
        if opens:
            try:
                return self._connect(deadline)
            except (StreamError, TimeoutError) as error:
                logger.debug("no further connection was opened: %s", error)
        return self.take_shared(deadline)

    def take_shared_now(self, found: object = None) -> ClientLink | None:
        """The same if it takes no waiting; `None` otherwise.

        :param found: a connection that `take_shared` gave: it may be shared, even with a unary call that reads.
        """
        while True:
            with self._lock:
                link = self._share(lambda link: link.in_background or link.users == 0 or link is found)
            if link is None or self._is_alive(link):
                return link

    def give_back(self, link: ClientLink) -> None:
        """The call on `link` is over."""
        usable = link.ended is None and not link.connection.going_away and not link.spoiled  # `link.usable`
        with self._lock:
            link.users = users = link.users - 1
            if usable:
                if users or self._closed:
                    return
                if self._turns:
                    self._hand_over(link)
                else:
                    link.rested_since = time.monotonic()
                    self._idle.append(link)
                return
            self._forget(link)
        if not users:
            link.close()

    def close(self) -> list[ClientLink]:
        """Hand out nothing more; returns the connections, which the caller closes."""
        with self._lock:
            self._closed = True
            links, self._links = [*self._links, *self._parting], []
            self._parting = set()
            self._idle = []
            while self._turns:
                self._turns.popleft().arrived.set()
        return links

    def _take_new_or_wait(self, deadline: float | None) -> ClientLink:
        while True:
            turn = shared = None
            with self._lock:
                if self._closed:
                    raise PoolClosed
                if len(self._links) + self._dialling < self._max:
                    if self._ahead is not None:
                        shared = self._share(lambda link: link.in_background)
                    if shared is None or not self._dialling:
                        self._dialling += 1
                        if shared is not None:
                            self._dial_ahead()
                else:
                    shared = self._share(lambda link: link.in_background)
                    if shared is None:
                        turn = _Turn()
                        self._turns.append(turn)
            if turn is not None:
                shared = self._wait(turn)
            elif shared is None:
                return self._connect(deadline)
            if shared is None and deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError("no connection had room for the call in time")
            if shared is not None and self._is_alive(shared):
                return shared

    def _connect(self, deadline: float | None = None) -> ClientLink:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            link = self._adopt(self._dial(left))
        except BaseException:
            with self._lock:
                self._dialling -= 1
                self._wake_one()
            raise
        link.users = 1
        with self._lock:
            self._dialling -= 1
            closed = self._closed
            if not closed:
                self._links.append(link)
        if closed:
            link.close()
            raise PoolClosed
        return link

    def _dial_ahead(self) -> None:
        """Open a connection in a thread of its own. Called with the lock held, and counted in `_dialling`."""
        assert self._ahead is not None
        try:
            self._ahead.submit(self._connect_ahead)
        except (WorkersClosed, OutOfThreads):
            self._dialling -= 1

    def _connect_ahead(self) -> None:
        link: ClientLink | None = None
        try:
            link = self._connect()
            link.get_ready()  # a Go server that is to stop waits for connections that have not said what they are
        except (PoolClosed, StreamError, TimeoutError) as error:
            # Whoever needs one finds out for itself.
            logger.debug("no further connection was opened: %s", error)
            if link is not None:
                self._drop(link)
        else:
            self.give_back(link)

    def _wait(self, turn: _Turn) -> ClientLink | None:
        """The connection that another call gave back, or after a while a shared one; none to look again."""
        woken = turn.arrived.wait(PATIENCE)
        with self._lock:
            if turn in self._turns:
                self._turns.remove(turn)
            if woken or turn.link is not None or self._closed:
                return turn.link
            return self._share(lambda link: True)

    def _share(self, suits: Callable[[ClientLink], bool]) -> ClientLink | None:
        """A connection that others may be using, counted as used once more."""
        link = self._least_busy(suits)
        if link is not None:
            if link.users == 0 and link in self._idle:
                self._idle.remove(link)
            link.users += 1
        return link

    def _is_alive(self, link: ClientLink) -> bool:
        if link.still_usable():
            return True
        self._drop(link)
        return False

    def _least_busy(self, suits: Callable[[ClientLink], bool]) -> ClientLink | None:
        """A connection with room for another call: rather one that is read in the background than one in use."""
        fit = [link for link in self._links if link.usable and link.users < link.connection.max_streams and suits(link)]
        return min(fit, key=lambda link: (not link.in_background, link.users), default=None)

    def _drop(self, link: ClientLink) -> None:
        """A connection that turned out to be dead, or going away."""
        with self._lock:
            link.users -= 1
            self._forget(link)
            last = link.users == 0
        if last:
            link.close()

    def _forget(self, link: ClientLink) -> None:
        if link in self._links:
            self._links.remove(link)
        if link in self._idle:
            self._idle.remove(link)
        if link.users:
            self._parting.add(link)
        else:
            self._parting.discard(link)
        self._wake_one()

    def _wake_one(self) -> None:
        """There may be room for a new connection: whoever has waited longest looks again."""
        if self._turns:
            self._turns.popleft().arrived.set()

    def _hand_over(self, link: ClientLink) -> None:
        turn = self._turns.popleft()
        link.users += 1
        turn.link = link
        turn.arrived.set()
