"""A time by which calls must have ended, whoever makes them below: ``with deadline(0.5): …``.

It is carried by a context variable, so it holds for everything that the block calls, in this thread or task. Nested
deadlines end with the earliest. A call to a plugin in its own process is given what is left as its timeout. Over gRPC
that cancels the work over there, and a plugin that calls back meanwhile is held to the same deadline. net/rpc has no
deadlines: the call ends here, the work goes on over there, and its answer is passed over.

An in-process call is a plain method call: nothing stands in between that could look at a clock. The deadline holds for
what the plugin calls in turn, and its code can see it (`time_remaining`), but the call itself runs to its end, unless
the plugin has a `call_timeout`: then its calls are held to the caller's deadline as well (`isolation.in_time`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from hybridload.errors import CallTimeout, ConfigError

YEAR = 31_536_000
"""Seconds: far above what anybody waits, far below what a timer can hold."""

_ends: ContextVar[float | None] = ContextVar("hybridload_deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Have every call to a plugin that is made in the block end in time.

    :param seconds: from now until the calls must have ended, all together; with 0 or less they have to have ended
        already.
    :raises CallTimeout: by the calls, not by the block.
    :raises ConfigError: it is no number of seconds, or more than a year of them.
    """
    with ending_at(time.monotonic() + check_seconds("deadline", seconds, past=True)):
        yield


def check_seconds(what: str, value: object, *, past: bool = False, plugin: str | None = None) -> float:
    """A time that somebody gives: the one rule for arguments and deadlines, and the configuration's as well.

    :param what: what it is given for, for the error.
    :param past: whether 0 and less will do.
    :raises ConfigError: it is no number, not a number, or out of bounds.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value <= YEAR and (past or value > 0):
        return float(max(value, -YEAR))
    named = "" if plugin is None else f"Plugin {plugin!r}: "
    least = "" if past else " greater than 0"
    raise ConfigError(f"{named}{what} is {value!r}: give a number of seconds{least}, a year at most.", plugin=plugin)


def time_remaining() -> float | None:
    """Seconds until the calls that are made here must have ended; `None` without a deadline, negative after it.

    For a plugin's code, in any isolation: what is left of the call that it is in. (The name is grpcio's.)
    """
    end = _ends.get()
    return None if end is None else end - time.monotonic()


def end_of_calls(timeout: float | None) -> float | None:
    """When a call that begins now has to have ended, on the clock of `time.monotonic`; `None` for no limit.

    :param timeout: of the call alone, in seconds.
    """
    end = _ends.get()
    if timeout is None:
        return end
    own = time.monotonic() + timeout
    return own if end is None else min(own, end)


def ending_at(end: float | None) -> AbstractContextManager[None]:
    """As `deadline`, with a moment: for a call that is made again, has waited, or goes on in steps.

    It may be entered again after it was left, so one does for all the steps of a stream.

    :param end: on the clock of `time.monotonic`; `None` for no deadline.
    """
    return _NO_DEADLINE if end is None else _Ending(end)


class _Ending:
    """A deadline in the current context. What it is entered for often has to be cheap."""

    __slots__ = ("_end", "_token")

    def __init__(self, end: float) -> None:
        self._end = end

    def __enter__(self) -> None:
        outer = _ends.get()
        self._token = _ends.set(self._end if outer is None else min(self._end, outer))

    def __exit__(self, *_: object) -> None:
        try:
            _ends.reset(self._token)
        except ValueError:
            # A coroutine whose event loop was closed, or a generator that was dropped, is ended in another context
            # than it began in, where nothing was set.
            pass


_NO_DEADLINE = nullcontext()


def whole_in_time(call: Callable[..., Any], timeout: Callable[[], float | None], is_async: bool) -> Callable[..., Any]:
    """A call that does more than to ask and to wait for the answer, as to dial an object that it got: all of it is held
    to the time that it may take.

    :param timeout: seconds that a call which begins now may take.
    """
    if is_async:

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with ending_at(end_of_calls(timeout())):
                return await call(*args, **kwargs)

        return call_async

    def call_now(*args: Any, **kwargs: Any) -> Any:
        with ending_at(end_of_calls(timeout())):
            return call(*args, **kwargs)

    return call_now


def limited(timeout: float | None, plugin: str) -> float | None:
    """What a call may take: its own timeout, or what is left until the deadline.

    :param timeout: in seconds; `None` for no limit of its own.
    :raises CallTimeout: nothing is left.
    """
    end = _ends.get()
    if end is None:
        return timeout
    left = end - time.monotonic()
    if left <= 0:
        raise CallTimeout(f"Plugin {plugin!r} was not called: the deadline has passed already.", plugin=plugin)
    return left if timeout is None else min(timeout, left)
