"""What happens to plugins, told to whoever listens.

Every event is a log record too. Events are told one at a time and in the order in which they came about, on the thread
that brought the oldest one about; meanwhile others leave theirs to it. No lock is held while a listener runs, so it may
use the loader; it should not take long, because whoever comes next waits for nothing but the one after does.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

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
    """Keeps what happened until it is told. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[PluginEvent] = deque()
        self._telling = False
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Tell `listener` of every event from now on, until what is returned is called."""
        with self._lock:
            self._listeners = [*self._listeners, listener]

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = [each for each in self._listeners if each is not listener]

        return unsubscribe

    def add(self, event: PluginEvent) -> None:
        """Note an event; locks may be held."""
        with self._lock:
            self._waiting.append(event)

    def deliver(self) -> None:
        """Tell what was noted, unless another thread is at it, which does so then. No lock may be held."""
        while True:
            with self._lock:
                if self._telling or not self._waiting:
                    return
                self._telling = True
                event, listeners = self._waiting.popleft(), self._listeners
            try:
                _tell(event, listeners)
            finally:
                with self._lock:
                    self._telling = False

    def forked(self) -> None:
        """In a forked child: forget what the parent was telling."""
        self._lock = threading.Lock()
        self._waiting.clear()
        self._telling = False


def _tell(event: PluginEvent, listeners: list[Listener]) -> None:
    subject = "" if event.plugin is None else f"plugin {event.plugin}: "
    log.log(_LEVELS.get(event.what, logging.INFO), "%s%s", subject, event.message)
    for listener in listeners:
        try:
            listener(event)
        except Exception:
            log.exception("a listener failed at the event %r", event.what)
