"""Python host -> Go net/rpc plugin beside Go host -> the same plugin, in one run.

``python -m benchmarks.netrpc GO_HOST GO_PLUGIN [ROUNDS]``, where these are `tests/go/host` and `tests/go/netrpc`,
built. The two take turns, in an order that changes from round to round. Printed are, for each transport and number of
threads, the median of a call in microseconds, calls a second, and the ratio of the two: medians over the rounds, and
the ratio's least and greatest. Both hosts speak over the same transport, plain or AutoMTLS, because TLS alone makes a
call half as long again.
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

CALLS = 4000
ROUNDS = 5
Figures = tuple[float, float]


class Greeter(Protocol):
    def greet(self) -> str: ...


def go(host: str, plugin: str, threads: int, mtls: bool) -> Figures:
    """Median in seconds, and calls a second."""
    command = [host, f"-mtls={str(mtls).lower()}", "-protocols", "netrpc"]
    command += ["-bench", str(CALLS), "-threads", str(threads), "--", plugin]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = next(event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "bench")
    return found["p50"], found["calls"] / found["seconds"]


def python(plugin: str, threads: int, mtls: bool) -> Figures:
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
    host, plugin, *rounds = sys.argv[1:]
    rows = list(itertools.product((False, True), (1, 4)))
    measured: dict[tuple[bool, int], list[tuple[Figures, Figures]]] = {row: [] for row in rows}
    for turn in range(int(rounds[0]) if rounds else ROUNDS):
        for mtls, threads in rows:
            if turn % 2:
                ours, theirs = python(plugin, threads, mtls), go(host, plugin, threads, mtls)
            else:
                theirs, ours = go(host, plugin, threads, mtls), python(plugin, threads, mtls)
            measured[mtls, threads].append((theirs, ours))
    for (mtls, threads), pairs in measured.items():
        transport = "AutoMTLS" if mtls else "plain"
        medians = _row([theirs[0] * 1e6 for theirs, _ in pairs], [ours[0] * 1e6 for _, ours in pairs])
        rates = _row([theirs[1] for theirs, _ in pairs], [ours[1] for _, ours in pairs])
        print(f"{transport:<9} {threads} threads  p50 (us): {medians}\n{'':<20} calls/s:  {rates}")


def _row(theirs: list[float], ours: list[float]) -> str:
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    middle = [f"{statistics.median(each):8.1f}" for each in (theirs, ours)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"Go {middle[0]}  Python {middle[1]}  Python/Go {statistics.median(ratios):.2f} ({spread})"


if __name__ == "__main__":
    main()
