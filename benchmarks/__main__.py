"""``python -m benchmarks [--quick]``: one table, the goals, JSON, and a chart."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks import chart, conductor, contenders, programs, report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer turns: two minutes in place of eight")
    parser.add_argument("--no-peers", action="store_true", help="leave out the other libraries from PyPI")
    parser.add_argument("--only", metavar="KEYS", help="only these contenders, separated by commas")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks.json"), metavar="PATH")
    parser.add_argument("--chart", type=Path, default=Path("build/benchmarks.png"), metavar="PATH")
    parser.add_argument("--markdown", action="store_true", help="print the goals as a Markdown table too")
    given = parser.parse_args()
    say("building and installing what is compared")
    programs.compile_bytecode()
    taking_part = list(contenders.contenders(peers=not given.no_peers))
    if given.only:
        wanted = set(given.only.split(","))
        taking_part = [contender for contender in taking_part if contender.key in wanted]
    results = conductor.run(taking_part, given.quick, say)
    say("")
    print(report.table(taking_part, results))
    print("\nTimes are medians; ratios are to the first row, ± half the distance between the quarters.\n")
    print(report.goals_table(results))
    if given.markdown:
        print(f"\n{report.markdown(results)}")
    for name, reason in results.failures.items():
        print(f"\nnot measured: {name}: {reason}", end="")
    facts = report.machine()
    print(
        f"\n{facts['system']}, {facts['cores']} cores, Python {facts['python']}, {results.seconds:.0f} s, load "
        + " ".join(f"{load:.1f}" for load in facts["load"])
    )
    report.write_json(given.json, taking_part, results)
    print(f"written: {given.json}", end="")
    try:
        chart.draw(given.chart, taking_part, results)
        print(f", {given.chart}")
    except ImportError:
        print(" (no chart: pip install 'hybridload[bench]')")


def say(words: str) -> None:
    """What goes on just now, on one line of the terminal."""
    if os.isatty(sys.stderr.fileno()):
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
