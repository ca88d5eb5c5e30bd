"""docs/differences.md and the suite say the same: every difference is pinned by a test, and none is unlisted."""

from __future__ import annotations

import ast
from pathlib import Path

from .conftest import ROWS, read_differences

FOLDER = Path(__file__).parent


def pinned() -> set[str]:
    """The differences that some test asks for by name."""
    found = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(attr="differs"), args=[ast.Constant(value=str(difference))]):
                    found.add(difference)
    return found


def test_every_documented_difference_is_pinned_by_a_test() -> None:
    assert pinned() == set(read_differences())


def test_every_difference_names_rows_of_the_suite() -> None:
    names = frozenset[str]().union(*(row.names for row in ROWS))
    for difference, where in read_differences().items():
        assert where, difference
        assert set(where) <= names, f"{difference} holds for {where}"
        assert not all(row.differs(difference) for row in ROWS), f"{difference} holds everywhere"
