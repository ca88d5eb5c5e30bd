"""What a forked child has to let go of, because it is its parent's.

Fork hooks belong to the process and can never be taken back, so there is one, and it finds everybody whom it concerns.
"""

from __future__ import annotations

import logging  # whose own hook has to come before ours, which may log
import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_inherited: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def after_fork(owner: _T, let_go: Callable[[_T], None]) -> None:
    """Have ``let_go(owner)`` called in every child that this process forks while `owner` lives.

    :param let_go: a function that does not hold `owner`, e.g. a method as its class has it. It makes new locks in place
        of those that other threads may have held.
    """
    _inherited[owner] = let_go


def _let_go() -> None:
    for owner, let_go in list(_inherited.items()):
        try:
            let_go(owner)
        except Exception:
            logger.exception("a forked child could not let go of %r", owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
