"""The table of behaviours and rows: ``pytest tests/behaviour --behaviours``.

A cell is ``=`` where the behaviour is the same, and else the letters of the differences that the test came upon there.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

_FOUND = "behaviour"
_SAME = "="
_LETTERS = string.ascii_lowercase + string.ascii_uppercase


class Row(Protocol):
    def differs(self, difference: str) -> bool: ...


@dataclass
class Table:
    """Collects what the tests tell of themselves, also from other processes.

    :param rows: in the order of the columns.
    """

    rows: Sequence[Row]
    met: set[str] = field(default_factory=set)
    """The differences that the test which is running has come upon."""
    _cells: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    _failed: set[tuple[str, str]] = field(default_factory=set)
    _streaming: set[str] = field(default_factory=set)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.met.clear()
        try:
            return (yield)
        finally:
            if isinstance(item, pytest.Function) and "everything" in item.fixturenames:
                found = {
                    "name": f"{item.path.stem.removeprefix('test_')}: {_words(item.function.__name__)}",
                    "row": str(item.callspec.params["row"]),
                    "met": sorted(self.met),
                    "streams": "streaming" in item.fixturenames,
                }
                item.user_properties.append((_FOUND, found))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for key, found in report.user_properties:
            if key == _FOUND and report.when == "call" and isinstance(found, dict):
                name, row = found["name"], found["row"]
                self._cells[name][row].update(found["met"])
                if found["streams"]:
                    self._streaming.add(name)
                if report.failed:
                    self._failed.add((name, row))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("behaviours")
        for line in self.lines():
            terminalreporter.write_line(line)

    def lines(self) -> list[str]:
        """The table, and what its columns and letters stand for."""
        grid = {name: [self._cell(name, row) for row in self.rows] for name in self._cells}
        met = sorted({difference for cells in grid.values() for cell in cells for difference in cell or ()})
        letters = dict(zip(met, _LETTERS, strict=False))
        width = max((len(name) for name in grid), default=0)
        lines = [f"{'':{width}} " + "".join(f"{number:>4}" for number in range(1, len(self.rows) + 1))]
        for name, cells in grid.items():
            shown = [
                "FAIL" if (name, str(row)) in self._failed else _shown(cell, letters)
                for row, cell in zip(self.rows, cells, strict=True)
            ]
            lines.append(f"{name:{width}} " + "".join(f"{each:>4}" for each in shown))
        lines += ["", *(f"{number:>4}  {row}" for number, row in enumerate(self.rows, 1))]
        lines += [f"{_SAME:>4}  the same", *(f"{letter:>4}  {difference}" for difference, letter in letters.items())]
        return [*(line.rstrip() for line in lines), "", "The differences are those of docs/differences.md."]

    def _cell(self, name: str, row: Row) -> set[str] | None:
        """The differences there; `None` where it was not asked."""
        found = self._cells[name].get(str(row))
        if found is None and name in self._streaming and row.differs("no-streams"):
            return {"no-streams"}
        return found


def _words(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")


def _shown(cell: set[str] | None, letters: dict[str, str]) -> str:
    if cell is None:
        return ""
    return "".join(letters[difference] for difference in sorted(cell)) or _SAME
