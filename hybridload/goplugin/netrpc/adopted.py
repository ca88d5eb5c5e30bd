"""Objects in a value that was received: each has to be dialled before it can be used, and that may take seconds.

Whoever reads a connection reads for all its calls, under nobody's deadline, and must not wait for an answer that may
come the same way. So an object is made without its methods, and what dials it is left here, in the thread that reads
the value; who reads takes it out (`taken`) and hands it with the value to whoever it is for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

Dialling: TypeAlias = Callable[[], None]
"""Dials one object and gives it its methods."""


class _Left(threading.local):
    def __init__(self) -> None:
        self.diallings: list[Dialling] = []


_left = _Left()


def leave(dialling: Dialling) -> None:
    """Leave it to whoever the value is for to dial an object."""
    _left.diallings.append(dialling)


def taken() -> Sequence[Dialling]:
    """What was left in this thread since it was asked last."""
    found = _left.diallings
    if not found:
        return ()
    _left.diallings = []
    return found


def dial(diallings: Sequence[Dialling]) -> None:
    """Dial the objects of a value, for whoever it is for.

    :raises BrokerError: nobody accepts the id of one.
    :raises CallTimeout: the deadline of the call that this is part of came first.
    """
    for dialling in diallings:
        dialling()
