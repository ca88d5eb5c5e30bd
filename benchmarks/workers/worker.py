"""A process that measures when it is told to: one JSON object a line in, one a line out. Times are seconds.

    {"do": "call", "method": "greet", "size": 0, "calls": 300, "threads": 1}  ->  {"p50": ..., "rate": ...}
    {"do": "stream", "count": 10000}                                          ->  {"rate": ...}
    {"do": "start"}                                                           ->  {"seconds": ...}
    {"do": "pid"}                                                             ->  {"pid": ...}, the plugin's
    {"do": ...}                                                               ->  {"error": "..."} where it cannot

The Go host (`tests/go/benchhost`) speaks the same. Nothing but the standard library: other libraries' environments run
it too.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any


def obey(contender: Any) -> None:
    """Do what comes on standard input with the contender's methods of these names, until it ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # whoever prints does not spoil the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(contender, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def measure(call: Callable[[], object], calls: int, threads: int) -> dict[str, float]:
    """Call again and again, from so many threads at once; a fifth as many calls go ahead to warm up."""
    if threads == 1:
        for _ in range(max(2, calls // 5)):
            call()
        return _figures(*_timed(call, calls))
    each = max(1, calls // threads)
    _in_threads(call, max(1, each // 5), threads)
    return _figures(*_in_threads(call, each, threads))


def _timed(call: Callable[[], object], calls: int) -> tuple[list[float], float]:
    clock = time.perf_counter
    times = []
    began = clock()
    for _ in range(calls):
        start = clock()
        call()
        times.append(clock() - start)
    return times, clock() - began


def _in_threads(call: Callable[[], object], each: int, count: int) -> tuple[list[float], float]:
    times: list[float] = []
    failures: list[BaseException] = []
    ready = threading.Barrier(count + 1)

    def run() -> None:
        ready.wait()
        try:
            times.extend(_timed(call, each)[0])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    if failures:
        raise failures[0]
    return times, elapsed


async def measure_async(call: Callable[[], Awaitable[object]], calls: int, tasks: int) -> dict[str, float]:
    """As `measure`, for libraries that have tasks in place of threads."""
    each = max(1, calls // tasks)
    clock = time.perf_counter
    times: list[float] = []

    async def run(count: int, note: bool) -> None:
        for _ in range(count):
            start = clock()
            await call()
            if note:
                times.append(clock() - start)

    await asyncio.gather(*(run(max(1, each // 5), False) for _ in range(tasks)))
    began = clock()
    await asyncio.gather(*(run(each, True) for _ in range(tasks)))
    return _figures(times, clock() - began)


def _figures(times: list[float], elapsed: float) -> dict[str, float]:
    return {"p50": statistics.median(times), "rate": len(times) / elapsed}
