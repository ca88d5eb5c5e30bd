"""No signal is lost to a section, and none of the program's handlers."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from hybridload.interrupts import held

# Another thread sends signals, of which the handlers of two raise, and waits each time until all have been handled. The
# main thread is in and out of sections meanwhile.
STORM = """
import random, signal, sys, threading, time
from hybridload.interrupts import held

sys.setswitchinterval(1e-5)

class TooLate(ValueError):
    pass

RAISES = {signal.SIGINT: KeyboardInterrupt, signal.SIGALRM: TooLate, signal.SIGTERM: None}
seen = dict.fromkeys(RAISES, 0)

def handle(number, frame):
    seen[number] += 1
    while frame is not None and frame.f_code is not work.__code__:
        frame = frame.f_back
    if frame is not None and RAISES[number] is not None:
        raise RAISES[number]

for number in RAISES:
    signal.signal(number, handle)
lost, done, gate = [], threading.Event(), threading.Lock()
gate.acquire()

def storm():
    ends = time.monotonic() + 1.5
    while time.monotonic() < ends and not lost:
        numbers, before = random.sample(list(RAISES), random.randint(1, 3)), dict(seen)
        for number in numbers:
            signal.pthread_kill(threading.main_thread().ident, number)
        patience = time.monotonic() + 10
        while any(seen[number] == before[number] for number in numbers):
            if time.monotonic() > patience:
                lost.append(numbers)
                break
            time.sleep(0)
    done.set()

def work():
    while not done.is_set():
        for _ in range(random.randint(1, 30)):
            with held:
                random.random()
                if random.random() < 0.1:
                    held.wait(gate, 0.0001)
        time.sleep(0.01)  # nobody hands on what is left behind here

thread = threading.Thread(target=storm)
thread.start()
while not done.is_set():
    try:
        work()
    except (KeyboardInterrupt, TooLate):
        pass
thread.join()
print(lost, [signal.getsignal(number) is handle for number in RAISES], sum(seen.values()) > 20)
with held:
    signal.raise_signal(signal.SIGTERM)
    print(seen[signal.SIGTERM], end=" ")
print(seen[signal.SIGTERM])
"""


def test_what_comes_beside_a_signal_whose_handler_raises_is_handed_on_as_well() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    interrupts = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            _section(signal.SIGINT, signal.SIGTERM)
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupts)


def _section(*numbers: int) -> None:
    with held:
        for number in numbers:
            signal.raise_signal(number)


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 13),
    reason="what a signal handler raises in a loop may get past `finally` on Python 3.13 (cpython#130279)",
)
def test_a_storm_of_signals_loses_none_and_changes_no_handler() -> None:
    done = subprocess.run([sys.executable, "-c", STORM], capture_output=True, text=True, timeout=60, check=True)
    kept, (during, after) = done.stdout.splitlines()[0], done.stdout.splitlines()[1].split()
    assert kept == "[] [True, True, True] True"
    assert int(after) == int(during) + 1
