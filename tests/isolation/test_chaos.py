"""Whatever befalls a plugin, every call gets its own right answer or a named error in time, and nothing is left."""

from __future__ import annotations

import collections
import itertools
import os
import random
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from hybridload.errors import PluginError
from tests.isolation.conftest import Employ, Workplace, in_thread

SETTINGS = (
    'isolation = ["subprocess", "in-process"]',
    "max_restarts = 5",
    "restart_window = 2.0",
    "backoff = 0.02",
    "retry_after = 1.0",
    "health_interval = 0.3",
    "health_timeout = 2.0",
    "call_timeout = 30.0",
)
_LATE = 60.0  # seconds; far above the deadline of a call, because the machine may be busy


class Chaos:
    """What is done to the worker, at random."""

    def __init__(self, work: Workplace, seed: int) -> None:
        self.work = work
        self.random = random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self._config = work.config.read_text()

    def act(self) -> None:
        name = self.random.choice(
            ["kill", "stop", "close_sockets", "full_stderr", "exit", "switch", "reload", "configure", "break_config"]
        )
        self.counts[name] += 1
        try:
            getattr(self, f"_{name}")()
        except PluginError as error:
            self.counts[f"{name}: {type(error).__name__}"] += 1

    def _signal(self, number: int) -> None:
        pid = self.work.status().pid
        if pid is not None and pid != os.getpid() and psutil.pid_exists(pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def _close_sockets(self) -> None:
        if self.work.status().isolation == "subprocess":
            self.work.worker.harm("close_sockets", os.getpid())

    def _full_stderr(self) -> None:
        self.work.worker.harm("full_stderr", os.getpid())

    def _exit(self) -> None:
        self.work.worker.harm("exit", os.getpid())

    def _switch(self) -> None:
        self.work.loader.switch("worker", self.random.choice([["subprocess", "in-process"], ["in-process"]]))

    def _reload(self) -> None:
        self.work.loader.reload("worker")

    def _configure(self) -> None:
        self.work.config.write_text(
            self._config.replace("max_restarts = 5", f"max_restarts = {self.random.randint(3, 9)}")
        )

    def _break_config(self) -> None:
        self.work.config.write_text("[plugins.worker\n")


def test_chaos_for_seconds(employ: Employ) -> None:
    run_chaos(employ, 20)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_chaos_for_minutes(employ: Employ) -> None:
    run_chaos(employ, 300)


def run_chaos(employ: Employ, seconds: float) -> None:
    work = employ(*SETTINGS, watch=True)
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    ends = time.monotonic() + seconds
    chaos = Chaos(work, seed=6)

    def call(first: int) -> collections.Counter[str]:
        counts: collections.Counter[str] = collections.Counter()
        for number in itertools.count(first):
            began = time.monotonic()
            if began >= ends:
                return counts
            try:
                answer = work.worker.double(number)
            except PluginError as error:
                counts[type(error).__name__] += 1
            else:
                assert answer == 2 * number
                counts["right"] += 1
            assert time.monotonic() - began < _LATE
        raise AssertionError

    callers = [in_thread(call, each * 10_000_000) for each in range(8)]
    while time.monotonic() < ends:
        chaos.act()
        time.sleep(chaos.random.uniform(0, 0.4))
    total: collections.Counter[str] = collections.Counter()
    for caller in callers:
        total += caller.result(2 * _LATE)
    work.loader.close()
    print(f"chaos, {seconds:g} s: calls {dict(total)}; done {dict(chaos.counts)}; told {dict(told(work))}")
    assert total["right"] > 100
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert threading.active_count() <= threads
    assert list(Path(os.environ["TMPDIR"]).glob("hybridload-*")) == []


def told(work: Workplace) -> collections.Counter[str]:
    return collections.Counter(work.story.told())
