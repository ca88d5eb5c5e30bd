"""Nothing of a plugin is left when its host is gone, however it went.

One thread waits for the first of two signs:

- The parent process ended. A descriptor of the process (pidfd) tells at once; where there is none, the thread looks
  every `POLL` seconds whether it still has the same parent.
- Nobody reads standard output any more. The host holds the other end of that pipe, so this tells of its end also when a
  shell between the two lives on, and when the host was gone before this process could look. A host that is alive has to
  drain it for ever, by the protocol.

What Linux offers as parent-death signal is bound to the *thread* that started the child, and the threads of a Go host
come and go; so it is not used.

On the host's death the plugin is asked to end in its own way. When that takes longer than `LIMIT` seconds, the process
ends without more ado, and a timer that does not need the interpreter stands behind that, should C code hold it by then.
One thing is out of reach: C code that holds the interpreter from before the host's death and never lets go.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from hybridload import platforms
from hybridload.goplugin.threads import SMALL_STACK, Thread

LIMIT = 2.0
"""Seconds that the plugin has to end in its own way."""
POLL = 1.0
"""Seconds between two looks at the parent where it has to be looked at."""

_EXIT_STATUS = 1


class HostWatch:
    """Watches the host on a thread of its own until `close`. Until `attend`, a death ends the process at once.

    :param stdout: the descriptor that carries the handshake line; a copy is kept.
    """

    def __init__(self, stdout: int) -> None:
        self._attending: tuple[Callable[[], None], Callable[[], None]] | None = None
        self._closed = threading.Event()
        self._parent = os.getppid()
        self._wake_reader, self._wake_writer = os.pipe()
        self._pidfd = platforms.open_exit_watch(self._parent) if self._parent > 0 else None
        # No event is asked of standard output: an error or a hang-up is reported in any case.
        self._descriptors = {self._wake_reader: select.POLLIN, os.dup(stdout): 0}
        if self._pidfd is not None:
            self._descriptors[self._pidfd] = select.POLLIN
        self._thread = Thread(target=self._run, name="hybridload host watch", daemon=True, stack=SMALL_STACK)
        self._thread.start()

    def attend(self, on_death: Callable[[], None], last_will: Callable[[], None]) -> None:
        """Say what is to be done when the host is gone.

        :param on_death: called once, on the watch's thread; must not block.
        :param last_will: called before the process is ended the hard way; must not block for long.
        """
        self._attending = on_death, last_will

    def close(self) -> None:
        """Stop watching and join the thread. Safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        os.close(self._wake_writer)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            if self._wait_for_death():
                self._end()
        finally:
            for descriptor in self._descriptors:
                os.close(descriptor)

    def _wait_for_death(self) -> bool:
        poll = select.poll()
        for descriptor, events in self._descriptors.items():
            poll.register(descriptor, events)
        timeout = POLL * 1000 if self._pidfd is None else None
        while not self._closed.is_set():
            # The parent may have ended before its descriptor was opened, which is another process's then.
            if os.getppid() != self._parent:
                return True
            if any(descriptor != self._wake_reader for descriptor, _ in poll.poll(timeout)):
                return not self._closed.is_set()
        return False

    def _end(self) -> None:
        if self._attending is None:
            os._exit(_EXIT_STATUS)
        on_death, last_will = self._attending
        # Not disarmed when serving has ended: what the program does then is for nobody any more.
        _arm_backstop(LIMIT + 1.0)
        on_death()
        if not self._closed.wait(LIMIT):
            try:
                last_will()
            finally:
                os._exit(_EXIT_STATUS)


def _arm_backstop(seconds: float) -> None:
    """End the process after a time by a timer in C, which runs whoever holds the interpreter."""
    import faulthandler

    try:
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    except (OSError, ValueError, RuntimeError):
        # Without a standard error there is no such timer.
        return
