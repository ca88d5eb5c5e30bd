"""The benchmarks: what workers answer, how turns become ratios, and that what cannot be measured is said."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from benchmarks import conductor, report
from benchmarks.conductor import Failed, Results, Worker
from benchmarks.contenders import METRICS, Contender

PYTHON = sys.executable


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    opened: list[Worker] = []
    yield opened
    for worker in opened:
        worker.close()


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("echo", ()), ("host", ("in-process",)), ("host", ("subprocess",)), ("bare_grpcio", ())],
)
def test_a_worker_does_what_it_is_told(workers: list[Worker], module: str, arguments: tuple[str, ...]) -> None:
    worker = Worker(Contender("x", "x", (PYTHON, "-m", f"benchmarks.workers.{module}", *arguments)))
    workers.append(worker)
    for method, size in (("greet", 0), ("echo", 100_000)):
        for threads in (1, 4):
            call = {"do": "call", "method": method, "size": size, "calls": 20, "threads": threads}
            figures = worker.ask(call)
            assert figures["p50"] > 0
            assert figures["rate"] > 0
    assert worker.ask({"do": "stream", "count": 100})["rate"] > 0
    assert conductor.resident_memory(worker.ask({"do": "pid"})["pid"]) > 1_000_000
    with pytest.raises(Failed, match="fly"):
        worker.ask({"do": "fly"})


def test_a_worker_that_ends_says_why(workers: list[Worker]) -> None:
    worker = Worker(Contender("x", "x", (PYTHON, "-c", "raise SystemExit('no such thing')")))
    workers.append(worker)
    with pytest.raises(Failed, match="no such thing"):
        worker.ask({"do": "pid"})


def test_ratios_are_taken_turn_by_turn() -> None:
    results = Results()
    for ours, theirs in ((2.0, 1.0), (20.0, 10.0), (3.0, 1.0), (None, 1.0), (8.0, 2.0)):
        results.add("greet", "ours", ours)
        results.add("greet", "theirs", theirs)
    found = report.ratio(results, "greet", "ours", "theirs")
    assert found is not None
    assert (found.median, found.low, found.high) == (2.5, 2.0, 3.25)
    assert report.ratio(results, "greet", "ours", "nobody") is None


def test_a_goal_is_met_missed_or_not_measured() -> None:
    results = Results()
    for contender, value in (("py-go", 0.8), ("go-go", 1.0), ("go-py", 1.1)):
        results.add("greet", contender, value)
    outcomes = {each.title: each.met for each in report.outcomes(results)}
    assert outcomes["Python host, Go plugin : Go host, Go plugin"] is True
    assert outcomes["Go host, Python plugin : Go host, Go plugin"] is False
    assert outcomes["in-process : the object itself, method of 1 µs"] is None


def test_the_table_has_a_row_for_each_that_was_measured() -> None:
    results = Results(failures={"absent": "is not there"})
    results.add("greet", "floor", 1e-5)
    results.add("greet", "slow", 3e-5)
    contenders = [Contender("floor", "the floor"), Contender("slow", "slow"), Contender("absent", "absent")]
    lines = report.table(contenders, results).splitlines()
    assert len(lines) == 4
    assert all(metric.title in lines[0] for metric in METRICS)
    assert lines[3].split() == ["slow", "30", "µs", "3.0x", "±0%"]
