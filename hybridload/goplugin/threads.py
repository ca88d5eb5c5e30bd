"""Threads of our own: with stacks of a known size, and one error when there is no room for another.

Where memory or the number of processes is limited, threads are what runs out first: Linux gives each a stack as large
as the main thread's, 8 MiB, all of which counts. So ours are as large as they need to be.

**How large that is.** What runs on a thread ends in a RecursionError where it recurses for ever, and only if the stack
holds out until the interpreter's own limit is reached; otherwise the whole process ends. Of what CPython 3.11 to 3.13
recurse through in C (`repr`, `==`, `hash`, calls, attributes, `sorted` with a key, json, pickle, the compiler)
`sorted` in 3.13 takes most, 4.2 MiB, and json 2.1 MiB; `STACK` holds all of it. Lines and messages of a peer are parsed
on our threads as well, so it is the default. `SMALL_STACK` is for threads that wait for something and then do
a fixed and small piece of work.

A program that has set `threading.stack_size` has chosen for all threads, ours too.
"""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import chain
from operator import call
from types import FunctionType
from typing import Any, Final

from hybridload import platforms
from hybridload.errors import PluginError

STACK: Final = 5 << 20
"""Bytes."""

SMALL_STACK: Final = 1 << 20
"""Bytes; for threads that run nobody else's code and parse nothing."""

_SPARE: Final = 1 << 20
"""Bytes that must be left beside a new stack where memory is limited."""

_PAGE: Final = 4096

_CREATE: Final = next(
    (name for name in ("_start_joinable_thread", "_start_new_thread") if hasattr(threading, name)), ""
)


class OutOfThreads(PluginError, RuntimeError):
    """No thread can be started: a limit on memory or on processes is reached, or the interpreter is ending."""


class Thread(threading.Thread):
    """A thread with a stack of `stack` bytes."""

    def __init__(self, *args: Any, stack: int = STACK, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stack = stack

    def start(self) -> None:
        """Start it.

        :raises OutOfThreads: there is no room for another.
        """
        start: Any = threading.Thread.start
        try:
            create = getattr(start, "__globals__", {}).get(_CREATE)
            if create is None or start.__globals__ is not vars(threading):
                start(self)  # somebody has put another in its place
            else:
                # The very code of `Thread.start`, with the one function that it makes threads with replaced.
                replaced = {**start.__globals__, _CREATE: partial(_create, self._stack, create)}
                FunctionType(start.__code__, replaced)(self)
        except (RuntimeError, MemoryError, OSError) as error:
            if self.ident is not None:
                raise  # started twice
            raise _out_of_threads(error) from error


def start_new_thread(function: Callable[[], object]) -> None:
    """Run `function` on a thread that nobody joins, without the locks that starting a `Thread` takes.

    For finalizers: whoever collects garbage may hold any lock.

    :raises OutOfThreads: there is no room for another.
    """
    try:
        _create(STACK, _thread.start_new_thread, function, ())
    except (RuntimeError, MemoryError, OSError) as error:
        raise _out_of_threads(error) from error


def _out_of_threads(error: Exception) -> OutOfThreads:
    return OutOfThreads(
        f"No thread can be started ({error}): the process has reached its limit on memory or on processes. Raise "
        "limits.memory or limits.processes, or what the system or container allows, or make fewer calls at once."
    )


def _create(stack: int, create: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Call `create` while new threads get stacks of `stack` bytes.

    The size is one for the whole process, and a thread that the program starts at that moment must not get ours. So the
    steps (set it, create the thread, set it back) are made by one call into C, in which the interpreter never looks
    whether another thread, or a signal, has its turn.

    A thread that gets the last memory there is fails before it has said that it runs, and whoever starts it waits for
    ever. So some is held back until it exists.
    """
    size = platforms.thread_stack(stack)
    spare = platforms.reserved_memory(_SPARE)
    before: list[int] = []
    steps = chain(
        map(before.append, map(_thread.stack_size, (size,) if size else ())),  # to ask for it is to set it
        map(_thread.stack_size, filter(None, before)),  # the program's own choice
        map(call, (partial(create, *args, **kwargs),)),
        map(_thread.stack_size, before),
        map(spare.resize, (_PAGE,)) if spare else (),  # `close` would let the new thread run first
    )
    try:
        deque(steps, 0)
    except BaseException:
        if before:
            _thread.stack_size(*before)
        raise
    finally:
        if spare:
            spare.close()
