"""The end of the interpreter, and of what nobody holds any more.

When the interpreter ends it first calls what `atexit` knows of, while everything still works but no new thread may be
needed. Then threads that do not hold it up stop for good, wherever they are and whatever lock they have, and objects
are finalized one after the other: nothing can be imported any more, and whoever waits for a thread waits for ever. An
object whose `__del__` closes, calls or reloads a plugin does so then. So all that is still there ends in the first of
these two moments, and finds itself closed in the second.

A finalizer runs amid whatever its thread is at, so it may take no lock; what it has to do is done aside.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_owners: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_ending = threading.Event()


def at_exit(owner: _T, end: Callable[[_T], None]) -> None:
    """Have ``end(owner)`` called when the interpreter is about to end and `owner` is still there, the oldest first.

    :param end: a function that does not hold `owner`, e.g. a method as its class has it. It may import, and wait for
        threads that there are, but not for long; it may start none.
    """
    _owners[owner] = end


def ending() -> bool:
    """Whether that has begun: nothing may be started any more, and nobody waited for."""
    return _ending.is_set()


def aside(work: Callable[[], object], name: str) -> None:
    """Do work on a thread of its own; for a finalizer, which may not take even the locks that starting a thread takes.

    :param name: the thread's name. Nobody joins it.
    :raises RuntimeError: there is no thread to be had.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    _thread.start_new_thread(thread.start, ())


# Registered when this is imported, so that it comes after what the program registers for its own plugins.
@atexit.register
def _end_all() -> None:
    _ending.set()
    for owner, end in list(_owners.items()):
        try:
            end(owner)
        except Exception:
            logger.exception("%r could not be ended with the interpreter", owner)
