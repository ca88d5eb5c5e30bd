"""`hybridload call`, as programs see it: exit code, standard output, standard error."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


ISOLATIONS = ("in-process", "subprocess")

ITEM = {"name": "pen", "price": 2, "color": "blue", "added": "2026-01-31T12:00:00Z"}


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    ("method", "arguments", "expected"),
    [
        ("add", [ITEM, 3], [{**ITEM, "price": 2.0, "tags": ["3"]}]),
        (
            "add",
            {"item": {"name": "pen", "price": 1.5}},
            [{"name": "pen", "price": 1.5, "color": "red", "added": None, "tags": ["1"]}],
        ),
        ("photo", ["AQID"], ["AwIB"]),
        ("clear", None, [None]),
        (
            "find",
            [["b", "aa"], {"1": 1, "2": 2.5}, {"true": "yes"}],
            [
                [
                    {"name": n, "price": p, "color": "red", "added": None, "tags": ["yes"]}
                    for n, p in (("aa", 2.5), ("b", 1.0))
                ]
            ],
        ),
        ("level", [1], [1]),
        ("odd", ["THAT"], [2]),
        ("odd", [2], [2]),
        ("lasting", [1.5], ["PT3S"]),
        ("lasting", ["PT1M"], ["PT120S"]),
        ("maybe", None, [None]),
        ("maybe", "just text", ["just text"]),
        ("count", [3], [0, 1, 2]),
        ("count", 0, []),
        ("total", [[1, 2, 3]], [6]),
        ("echo", {"words": ["a", "b"]}, ["A", "B"]),
    ],
)
def test_values_of_every_kind_go_in_and_come_out_as_json(
    hybridload: Any, isolation: str, method: str, arguments: Any, expected: list[Any]
) -> None:
    given = [] if arguments is None else [json.dumps(arguments)]
    outcome = hybridload("call", "corner", method, *given, "--isolation", isolation, "--json")
    assert outcome.code == 0, outcome.err
    assert [json.loads(line) for line in outcome.out.splitlines()] == expected
