"""The lifeline may be used by whatever interrupts its own work: a signal handler, or a finalizer of the collector's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from hybridload.goplugin.lifeline import Lifeline

HOST = """
import faulthandler, gc, queue, random, signal, subprocess, sys, threading, time
from hybridload.goplugin.lifeline import Lifeline

faulthandler.dump_traceback_later(20, exit=True)
line, interrupted, asked = Lifeline(), [], queue.SimpleQueue()

def use(*_):
    # As a client that is killed here: another thread lets go of its process, and is waited for.
    number, done = line.guard_folder("/nonexistent/other"), threading.Lock()
    done.acquire()
    asked.put((number, done))
    done.acquire()
    interrupted.append(number)

def let_go():
    while True:
        number, done = asked.get()
        line.release_folder(number)
        done.release()

class Cycle:
    def __init__(self):
        self.itself = self
    __del__ = use

threading.Thread(target=let_go, daemon=True).start()
signal.signal(signal.SIGALRM, use)
ends = time.monotonic() + 2
while time.monotonic() < ends:
    if sys.argv[1] == "handler":
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.003))
    else:
        gc.set_threshold(random.randint(1, 50))
        Cycle()
    line.release_folder(line.guard_folder("/nonexistent/one"))
    line.close()
signal.setitimer(signal.ITIMER_REAL, 0)
gc.collect()  # while there is a thread to wait for
line.close()
print(len(interrupted) > 20)
"""


@pytest.mark.parametrize("by", ["handler", "finalizer"])
def test_what_interrupts_the_lifelines_work_may_use_it_and_wait_for_others_who_do(by: str) -> None:
    done = subprocess.run([sys.executable, "-c", HOST, by], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n"


def test_what_is_left_ends_with_the_lifeline_and_what_was_let_go_of_does_not() -> None:
    line = Lifeline()
    left, kept = (subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2))
    try:
        for each in (left, kept):
            line.guard(each.pid)
        line.release(kept.pid)
        line.close()
        assert left.wait(10) == -signal.SIGKILL
        assert kept.poll() is None
    finally:
        for each in (left, kept):
            each.kill()
            each.wait()


def test_another_watcher_has_all_that_is_guarded_and_nothing_else() -> None:
    line = Lifeline()
    first, second, kept = (subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(3))
    try:
        line.guard(first.pid)
        line.guard(kept.pid)
        assert line._watcher is not None
        os.kill(line._watcher.pid, signal.SIGKILL)
        line._watcher.wait()
        line.release(kept.pid)
        line.guard(second.pid)
        line.close()
        assert [each.wait(10) for each in (first, second)] == [-signal.SIGKILL] * 2
        assert kept.poll() is None
    finally:
        for each in (first, second, kept):
            each.kill()
            each.wait()
