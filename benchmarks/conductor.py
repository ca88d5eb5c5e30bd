"""Lets the contenders take turns, and keeps what they measured.

Nobody measures while another does. The order within a turn is a new one each time, so that nobody always comes after
the same neighbour.
"""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders import METRICS, Contender, Metric
from benchmarks.programs import GROUP, INSTALLED, ROOT, environment, many_entry_points

PATIENCE = 60.0
"""Seconds that one measurement may take."""


class Failed(Exception):
    """A worker could not do what it was told to."""


class Worker:
    """One contender's process."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the worker
        self._process = subprocess.Popen(
            contender.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            cwd=ROOT,
            env=environment(**contender.environment),
        )
        self._read = b""

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """:raises Failed: it cannot do it, or has ended, or takes too long."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Failed(self._last_words()) from error
        answer: dict[str, Any] = json.loads(self._line())
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._read:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._process.kill()
                raise Failed(f"no answer within {PATIENCE:.0f} s")
            data = os.read(descriptor, 65536)
            if not data:
                raise Failed(self._last_words())
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _last_words(self) -> str:
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._said.seek(0)
        said = " ".join(self._said.read().decode(errors="replace").split())
        return said[-300:] if said else f"it ended with status {self._process.wait()}"

    def close(self) -> None:
        """End it: the end of its input tells it to."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()


@dataclass
class Results:
    """What was measured: metric -> contender -> one value for each turn (none where that turn failed)."""

    values: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, metric: str, contender: str, value: float | None) -> None:
        self.values.setdefault(metric, {}).setdefault(contender, []).append(value)


Say = Callable[[str], None]


def run(contenders: Iterable[Contender], quick: bool, say: Say) -> Results:
    """Measure everything. Whatever cannot be measured is left out, and `Results.failures` says why."""
    results = Results()
    began = time.monotonic()
    workers: list[Worker] = []
    try:
        for contender in contenders:
            if contender.missing:
                results.failures[contender.name] = contender.missing
            else:
                workers.append(Worker(contender))
        _take_turns(workers, quick, results, say)
        _memory(workers, results)
        _in_process(workers, quick, results)
    finally:
        for worker in workers:
            worker.close()
    _fresh_interpreters(quick, results, say)
    results.seconds = time.monotonic() - began
    return results


def _take_turns(workers: list[Worker], quick: bool, results: Results, say: Say) -> None:
    order = random.Random(1)
    for metric in METRICS:
        taking_part = list(workers)
        turns = metric.turns[1 if quick else 0]
        for turn in range(turns):
            say(f"{metric.title}: turn {turn + 1} of {turns}")
            for worker in order.sample(taking_part, len(taking_part)):
                try:
                    value = worker.ask(metric.request)[metric.figure]
                except Failed as reason:
                    _note(results, worker, metric, str(reason))
                    taking_part.remove(worker)
                    continue
                results.add(metric.key, worker.contender.key, value)


_NO_MATTER = ("there is no", "there are no", "has no attribute 'stream'", "'NoneType' object has no attribute")


def _note(results: Results, worker: Worker, metric: Metric, reason: str) -> None:
    if not any(words in reason for words in _NO_MATTER):
        results.failures.setdefault(worker.contender.name, f"{metric.title}: {reason[:200]}")


def _memory(workers: list[Worker], results: Results) -> None:
    for worker in workers:
        try:
            pid = worker.ask({"do": "pid"})["pid"]
            if worker.contender.key != "in-process":
                results.add("memory", worker.contender.key, resident_memory(pid))
        except (Failed, OSError):
            continue


def resident_memory(pid: int) -> float:
    """Bytes in memory that a process uses, what it shares with others included."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"process {pid} has no memory")


def _in_process(workers: list[Worker], quick: bool, results: Results) -> None:
    worker = next((worker for worker in workers if worker.contender.key == "in-process"), None)
    if worker is None:
        return
    for _ in range(3 if quick else 11):
        try:
            for name, value in worker.ask({"do": "tight", "calls": 20_000}).items():
                results.add("tight", name, value)
        except Failed as reason:
            results.failures.setdefault(worker.contender.name, str(reason))
            return


FRESH = {
    "python -c pass": ("-c", "pass"),
    "import hybridload": ("-c", "import hybridload"),
    "import grpc": ("-c", "import grpc"),
}


def _fresh_interpreters(quick: bool, results: Results, say: Say) -> None:
    """What is measured in an interpreter of its own each time: imports, and loading one entry point of many."""
    folder = {"PYTHONPATH": f"{ROOT}{os.pathsep}{many_entry_points()}"}
    name = f"plugin-{INSTALLED // 2}"
    for turn in range(5 if quick else 15):
        say(f"fresh interpreters: turn {turn + 1}")
        for title, arguments in FRESH.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment(), check=True)
            results.add("import", title, time.perf_counter() - began)
        for library in ("hybridload", "stevedore", "pluggy"):
            command = [sys.executable, "-m", "benchmarks.workers.entry_points", library, GROUP, name]
            ran = subprocess.run(command, cwd=ROOT, env=environment(**folder), capture_output=True, text=True)
            if ran.returncode:
                results.failures.setdefault(f"entry points, {library}", ran.stderr.strip()[-200:])
            else:
                results.add("entry-point", library, float(ran.stdout))
