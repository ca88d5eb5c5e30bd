"""Python host -> Go net/rpc plugin beside Go host -> the same plugin, in one run.

``python -m benchmarks.netrpc GO_HOST GO_PLUGIN``, where these are `tests/go/host` and `tests/go/netrpc`, built. Prints
one line for each host and number of threads: the median of a call in microseconds, and calls a second.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from typing import Protocol

from hybridload import Contract, Handshake
from hybridload.goplugin import Client

CALLS = 8000
ROUNDS = 3


class Greeter(Protocol):
    def greet(self) -> str: ...


def go(host: str, plugin: str, threads: int) -> tuple[float, float]:
    """Median in seconds, and calls a second."""
    command = [host, "-protocols", "netrpc", "-bench", str(CALLS), "-threads", str(threads), "--", plugin]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = next(event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "bench")
    return found["p50"], found["calls"] / found["seconds"]


def python(plugin: str, threads: int) -> tuple[float, float]:
    """The same."""
    handshake = Handshake("BASIC_PLUGIN", "hello")
    with Client([plugin], plugins={"greeter": Contract(Greeter)}, handshake=handshake) as client:
        greet = client.dispense("greeter").greet
        times: list[float] = []

        def work() -> None:
            for _ in range(CALLS // threads):
                began = time.perf_counter()
                greet()
                times.append(time.perf_counter() - began)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return statistics.median(times), len(times) / (time.perf_counter() - began)


def main() -> None:
    host, plugin = sys.argv[1:]
    for _ in range(ROUNDS):
        for threads in (1, 4):
            for name, (median, rate) in (("Go", go(host, plugin, threads)), ("Python", python(plugin, threads))):
                print(f"{name:<7} {threads} threads  p50 {1e6 * median:7.1f} us  {rate:8.0f} calls/s")


if __name__ == "__main__":
    main()
