"""From what was measured to a table: ratios within a turn, their median, and how far half of them spread around it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.conductor import Results
from benchmarks.contenders import METRICS, Contender, Metric


@dataclass(frozen=True, slots=True)
class Ratio:
    """One value over another, turn by turn.

    :param low: a quarter of the turns were below.
    :param high: a quarter of the turns were above.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x [{self.low:.2f}, {self.high:.2f}]"


def ratio(results: Results, metric: str, of: str, to: str) -> Ratio | None:
    """How one contender compares to another; `None` where either has no values."""
    values = results.values.get(metric, {})
    pairs = zip(values.get(of, ()), values.get(to, ()), strict=False)
    found = sorted(a / b for a, b in pairs if a is not None and b)
    if not found:
        return None
    if len(found) < 3:
        return Ratio(statistics.median(found), found[0], found[-1])
    low, median, high = statistics.quantiles(found, n=4, method="inclusive")
    return Ratio(median, low, high)


def middle(results: Results, metric: str, contender: str) -> float | None:
    values = [value for value in results.values.get(metric, {}).get(contender, ()) if value is not None]
    return statistics.median(values) if values else None


@dataclass(frozen=True, slots=True)
class Goal:
    """What was aimed at.

    :param most: the ratio is to be at most that.
    :param least: the ratio is to be at least that.
    :param seconds: in place of a ratio: the difference (or, with no `to`, the value) is to be at most that.
    """

    title: str
    metric: str
    of: str
    to: str = ""
    most: float | None = None
    least: float | None = None
    seconds: float | None = None


GOALS = (
    Goal("Python host, Go plugin : Go host, Go plugin", "greet", "py-go", "go-go", most=0.85),
    Goal("the same with AutoMTLS", "greet", "py-go-mtls", "go-go-mtls", most=1.0),
    Goal("the same, calls a second on 4 threads", "threads4", "py-go", "go-go", least=1.2),
    Goal("the same, 1 MiB there and back", "echo1m", "py-go", "go-go", most=1.0),
    Goal("Go host, Python plugin : Go host, Go plugin", "greet", "go-py", "go-go", most=1.0),
    Goal("the same with AutoMTLS", "greet", "go-py-mtls", "go-go-mtls", most=1.0),
    Goal("Python subprocess : raw socket echo", "greet", "subprocess", "floor", most=1.8),
    Goal("Python subprocess : grpcio alone", "greet", "subprocess", "grpcio", most=0.25),
    Goal("net/rpc, Python host : Go host", "greet", "py-go-netrpc", "go-go-netrpc", most=1.0),
    Goal("in-process : the object itself, method of 1 µs", "tight", "handle", "bare", most=1.05),
    Goal("start of a Go plugin, Python host : Go host", "start", "py-go", "go-go", most=1.3),
    Goal("the same with AutoMTLS", "start", "py-go-mtls", "go-go-mtls", most=1.3),
    Goal("start of a Python subprocess : engine grpcio", "start", "subprocess", "subprocess-grpcio", most=0.6),
    Goal("start of a Python subprocess", "start", "subprocess", seconds=0.080),
    Goal("start of a Python subprocess, preforked", "start", "subprocess-prefork", seconds=0.015),
    Goal("import hybridload, over a bare interpreter", "import", "import hybridload", "python -c pass", seconds=0.020),
    Goal("one of 200 entry points : stevedore's DriverManager", "entry-point", "hybridload", "stevedore", most=1.0),
    Goal("one of 200 entry points : pluggy", "entry-point", "hybridload", "pluggy", most=1.0),
    Goal("memory of a Python plugin : engine grpcio", "memory", "subprocess", "subprocess-grpcio", most=0.5),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A goal with what came of it; `met` is `None` where it could not be measured."""

    title: str
    aim: str
    measured: str
    met: bool | None


def outcomes(results: Results) -> list[Outcome]:
    return [_outcome(results, goal) for goal in GOALS]


def _outcome(results: Results, goal: Goal) -> Outcome:
    if goal.seconds is not None:
        aim = f"<= {goal.seconds * 1e3:.0f} ms"
        value = middle(results, goal.metric, goal.of)
        base = middle(results, goal.metric, goal.to) if goal.to else 0.0
        if value is None or base is None:
            return Outcome(goal.title, aim, "-", None)
        return Outcome(goal.title, aim, f"{(value - base) * 1e3:.1f} ms", value - base <= goal.seconds)
    aim = f"<= {goal.most}x" if goal.most is not None else f">= {goal.least}x"
    found = ratio(results, goal.metric, goal.of, goal.to)
    if found is None:
        return Outcome(goal.title, aim, "-", None)
    met = found.median <= goal.most if goal.most is not None else found.median >= (goal.least or 0)
    return Outcome(goal.title, aim, str(found), met)


def table(contenders: Iterable[Contender], results: Results) -> str:
    """Everything, a row for each contender: the value, and its ratio to the first row's, with the spread."""
    rows = [["", *(metric.title for metric in METRICS), "memory"]]
    for contender in contenders:
        if contender.name in results.failures and not _measured(results, contender.key):
            continue
        cells = [_cell(results, metric, contender.key) for metric in METRICS]
        rows.append([contender.name, *cells, _memory(results, contender.key)])
    return _aligned(rows)


def _measured(results: Results, key: str) -> bool:
    return any(key in values for values in results.values.values())


def _cell(results: Results, metric: Metric, key: str) -> str:
    value = middle(results, metric.key, key)
    found = ratio(results, metric.key, key, "floor")
    if value is None:
        return ""
    if found is None:
        return metric.shown(value)
    spread = (found.high - found.low) / 2 / found.median
    digits = 1 if found.median >= 1 else 2
    return f"{metric.shown(value)} {found.median:.{digits}f}x ±{spread:.0%}"


def _memory(results: Results, key: str) -> str:
    value = middle(results, "memory", key)
    return "" if value is None else f"{value / 2**20:.1f} MiB"


def goals_table(results: Results) -> str:
    marks = {True: "met", False: "MISSED", None: "not measured"}
    rows = [["ratio, median [quarter below, quarter above]", "goal", "measured", ""]]
    rows += [[each.title, each.aim, each.measured, marks[each.met]] for each in outcomes(results)]
    return _aligned(rows)


def markdown(results: Results) -> str:
    """The goals as a table for the README."""
    lines = ["| | goal | measured |", "|---|---|---|"]
    lines += [f"| {each.title} | {each.aim} | {each.measured} |" for each in outcomes(results)]
    return "\n".join(lines)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first = row[0].ljust(widths[0])
        lines.append("  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


def machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": sys.version.split()[0],
        "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def write_json(path: Path, contenders: Iterable[Contender], results: Results) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(),
        "seconds": results.seconds,
        "contenders": {contender.key: contender.name for contender in contenders},
        "values": results.values,
        "failures": results.failures,
        "goals": [asdict(outcome) for outcome in outcomes(results)],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
