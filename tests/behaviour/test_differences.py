"""docs/differences.md and the suite say the same: every difference is pinned by a test, and none is unlisted."""

from __future__ import annotations

import ast
from pathlib import Path

from .conftest import ROWS, read_differences

FOLDER = Path(__file__).parent


def pinned() -> set[str]:
    """The differences that some test asks for by name."""
    found = set()
    for path in FOLDER.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "differs":
                found.add(ast.literal_eval(node.args[0]))
    return found


def test_every_documented_difference_is_pinned_by_a_test() -> None:
    assert pinned() == set(read_differences())


def test_every_difference_names_rows_of_the_suite() -> None:
    rows = {row.where for row in ROWS}
    for difference, where in read_differences().items():
        assert where, difference
        assert set(where) < rows, f"{difference} holds for {where}"
