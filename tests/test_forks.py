from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from hybridload.forks import after_fork


class Owner:
    def __init__(self, let_go: Callable[[Owner], None]) -> None:
        self.lets_go = False
        after_fork(self, let_go)


def fail(owner: Owner) -> None:
    raise BrokenPipeError("whoever was to be told is gone")


def note(owner: Owner) -> None:
    owner.lets_go = True


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_one_that_cannot_let_go_keeps_no_other_from_it() -> None:
    owners = [Owner(note), Owner(fail), Owner(note)]
    pid = os.fork()
    if not pid:
        os._exit(sum(owner.lets_go for owner in owners))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert not any(owner.lets_go for owner in owners)
