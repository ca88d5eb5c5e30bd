"""The mark of a method that may be carried out twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

MARK = "__hybridload_idempotent__"

F = TypeVar("F", bound=Callable[..., object])


def idempotent(method: F) -> F:
    """Mark a method of an interface: carrying it out twice does what carrying it out once does.

    A call of it that is in flight when its plugin dies is sent again, to the process that takes the dead one's place,
    instead of raising `PluginCrashed`. Not for methods with a stream.

    :param method: defined in a Protocol or an ABC.
    """
    setattr(method, MARK, True)
    return method


def is_idempotent(method: object) -> bool:
    """Whether a method of an interface has the mark."""
    return bool(getattr(method, MARK, False))
