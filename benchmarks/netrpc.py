"""Python host -> Go net/rpc plugin beside Go host -> the same plugin, in one run.

``python -m benchmarks.netrpc GO_HOST GO_PLUGIN``, where these are `tests/go/host` and `tests/go/netrpc`, built. Prints
one line for each transport, number of threads and host: the median of a call in microseconds, and calls a second. Both
hosts speak over the same transport, plain or AutoMTLS, because TLS alone makes a call half as long again.
"""

from __future__ import annotations

import itertools
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


def go(host: str, plugin: str, threads: int, mtls: bool) -> tuple[float, float]:
    """Median in seconds, and calls a second."""
    command = [host, f"-mtls={str(mtls).lower()}", "-protocols", "netrpc"]
    command += ["-bench", str(CALLS), "-threads", str(threads), "--", plugin]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = next(event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "bench")
    return found["p50"], found["calls"] / found["seconds"]


def python(plugin: str, threads: int, mtls: bool) -> tuple[float, float]:
    """The same."""
    handshake = Handshake("BASIC_PLUGIN", "hello")
    plugins = {"greeter": Contract(Greeter)}
    with Client([plugin], plugins=plugins, handshake=handshake, auto_mtls=mtls) as client:
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
    for _, mtls, threads in itertools.product(range(ROUNDS), (False, True), (1, 4)):
        rows = (("Go", go(host, plugin, threads, mtls)), ("Python", python(plugin, threads, mtls)))
        for name, (median, rate) in rows:
            transport = "AutoMTLS" if mtls else "plain"
            print(f"{transport:<9} {threads} threads  {name:<7} p50 {1e6 * median:7.1f} us  {rate:8.0f} calls/s")


if __name__ == "__main__":
    main()
