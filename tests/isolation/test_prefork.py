"""Plugins of a loader that are forked: one fork server for all that ask for it, and none where nobody does."""

from __future__ import annotations

import os
import signal
import sys
import time

import psutil
import pytest

from hybridload import platforms
from hybridload.errors import PluginCrashed
from tests.isolation.conftest import PATIENCE, Employ, Workplace

pytestmark = pytest.mark.skipif(not platforms.has_fork_server(), reason="plugins are not forked on this system")

ANOTHER = '[plugins.another]\nentry_point = "work_sdk:Worker"\n'


def parent(work: Workplace, name: str = "worker") -> int:
    return psutil.Process(work.loader.status(name).pid).ppid()


def test_those_that_ask_for_it_share_one_fork_server_and_others_have_none(employ: Employ) -> None:
    work = employ("prefork = true", f"{ANOTHER}prefork = true", '[plugins.plain]\nentry_point = "work_sdk:Worker"')
    for name in ("another", "plain"):
        assert work.loader.load(name).double(4) == 8
    assert parent(work) == parent(work, "another") != os.getpid()
    assert psutil.Process(parent(work)).ppid() == parent(work, "plain") == os.getpid()


@pytest.mark.parametrize("lines", [(), ("prefork = true", f'python = "{sys.executable}"')], ids=["unasked", "python"])
def test_there_is_none_where_nobody_can_use_it(employ: Employ, lines: tuple[str, ...]) -> None:
    work = employ(*lines)
    assert work.worker.double(2) == 4
    assert parent(work) == os.getpid()
    running = {each.pid for each in psutil.Process().children()}
    assert [pid for pid in running if "fork server" in " ".join(psutil.Process(pid).cmdline())] == []


def test_one_that_crashes_is_forked_again(employ: Employ) -> None:
    work = employ("prefork = true")
    server = parent(work)
    with pytest.raises(PluginCrashed, match="signal 9") as caught:
        work.worker.last_words("no more paper")
    assert (caught.value.returncode, caught.value.stderr[-1]) == (-signal.SIGKILL, "no more paper")
    work.story.wait_for("running")
    assert work.worker.double(2) == 4
    assert parent(work) == server


def test_the_end_of_the_fork_server_is_that_of_its_plugins_which_another_one_starts_again(employ: Employ) -> None:
    work = employ("prefork = true")
    server, pid = parent(work), work.status().pid
    os.kill(server, signal.SIGKILL)
    work.story.wait_for("running")
    assert work.worker.double(2) == 4
    assert (parent(work), work.status().pid) != (server, pid)
    assert work.status().restarts == 1


def test_one_that_is_stopped_holds_up_no_news_of_a_crash(employ: Employ) -> None:
    work = employ("prefork = true", f"{ANOTHER}prefork = true")
    work.loader.load("another")
    server = parent(work)
    call, _ = work.in_the_middle(work.worker.wait_for)
    os.kill(server, signal.SIGSTOP)
    try:
        started = time.monotonic()
        work.kill()
        with pytest.raises(PluginCrashed) as caught:
            call.result(PATIENCE)
        assert time.monotonic() - started < 5
        assert caught.value.returncode == -signal.SIGKILL
        work.story.wait_for("running")
        assert work.worker.double(2) == 4
        assert parent(work) != server
    finally:
        if psutil.pid_exists(server):
            os.kill(server, signal.SIGCONT)
