"""What happens to plugins, told to whoever listens.

Every event is a log record too. Events are told one at a time and in the order in which they came about, on the thread
that brought the oldest one about, or one of the loop's own where nobody asked for it; meanwhile others leave theirs to
it. No lock is held while a listener runs, so it may use the loader; it should not take long, because whoever comes next
waits for nothing but the one after does. What a listener or a log handler raises changes nothing for the others: it is
logged, or printed where that fails. Only what is no `Exception` reaches the caller who is told, after all else.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Callable

from hybridload.complain import complain
from hybridload.frozen import frozen

log = logging.getLogger(__name__)

Listener = Callable[["PluginEvent"], object]

_LEVELS = {
    "starting": logging.INFO,
    "running": logging.INFO,
    "crashed": logging.WARNING,
    "backing off": logging.INFO,
    "failed over": logging.WARNING,
    "failed": logging.ERROR,
    "closed": logging.DEBUG,
    "configured": logging.INFO,
    "kept": logging.WARNING,
    "cut off": logging.WARNING,
}


@frozen
class PluginEvent:
    """Something that happened to a plugin.

    :param plugin: its name; `None` for what concerns the configuration as a whole.
    :param what: the state that it came to (``"starting"``, ``"running"``, ``"crashed"``, ``"backing off"``,
        ``"failed over"``, ``"failed"``, ``"closed"``); ``"configured"`` when a changed configuration was applied,
        ``"kept"`` when a change or a reload was refused and what ran before goes on, ``"cut off"`` when calls were
        still in flight long after the place that they ran in was left.
    :param message: a sentence about it, which the log record has too.
    :param isolation: where it runs, is being started, or ran last.
    :param pid: of the process that it runs in.
    :param error: the reason, when it is an error.
    :param delay: seconds until something is done about it.
    """

    plugin: str | None
    what: str
    message: str
    isolation: str | None = None
    pid: int | None = None
    error: Exception | None = None
    delay: float | None = None


class Events:
    """Keeps what happened until it is told. Safe from any thread, signal handler and finalizer."""

    def __init__(self) -> None:
        self._waiting: deque[PluginEvent] = deque()
        self._telling = threading.Lock()  # held by the thread that tells; nobody waits for it
        self._listeners: dict[object, Listener] = {}

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Tell `listener` of every event from now on, until what is returned is called."""
        key = object()
        self._listeners[key] = listener

        def unsubscribe() -> None:
            self._listeners.pop(key, None)

        return unsubscribe

    def add(self, event: PluginEvent) -> None:
        """Note an event; locks may be held."""
        self._waiting.append(event)

    def deliver(self) -> None:
        """Tell what was noted, unless another thread is at it, which does so then. No lock may be held.

        :raises BaseException: what a listener raised that is no `Exception`, as `SystemExit` or an interrupt.
        """
        stop: BaseException | None = None
        # Looked at again after the lock was let go: whoever found it held has left an event behind.
        while self._waiting and self._telling.acquire(blocking=False):
            try:
                while self._waiting:
                    stop = _tell(self._waiting.popleft(), list(self._listeners.values())) or stop
            finally:
                self._telling.release()
        if stop is not None:
            raise stop

    def forked(self) -> None:
        """In a forked child: forget what the parent was telling."""
        self._telling = threading.Lock()
        self._waiting.clear()


def _tell(event: PluginEvent, listeners: list[Listener]) -> BaseException | None:
    """Tell everybody; the last of what they raised that is not ours to keep."""
    subject = "" if event.plugin is None else f"plugin {event.plugin}: "
    level = _LEVELS.get(event.what, logging.INFO)
    told: list[Callable[[], object]] = [functools.partial(log.log, level, "%s%s", subject, event.message)]
    told += [functools.partial(listener, event) for listener in listeners]
    stop: BaseException | None = None
    for each in told:
        try:
            each()
        except Exception as error:
            complain(log, "a listener failed at the event %r", event.what, error=error)
        except BaseException as error:
            stop = error
    return stop
