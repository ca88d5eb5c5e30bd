"""What the documents say, held against what the code does."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from hybridload.config.schema import DEFAULTS, HOST, PLUGIN
from hybridload.goplugin import Client
from hybridload.supervise import Policy

ROOT = Path(__file__).resolve().parent.parent


def sections() -> dict[str, dict[str, list[str]]]:
    """Heading -> key -> the other cells of its row, of docs/configuration.md."""
    found: dict[str, dict[str, list[str]]] = {}
    for part in (ROOT / "docs" / "configuration.md").read_text("utf-8").split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        rows = [line.strip("|").split(" | ") for line in body.splitlines() if line.startswith("| `")]
        found[heading] = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows}
    return found


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("`[host]`", HOST.keys()),
        ("`[plugins.<name>]` alone", PLUGIN.keys() - DEFAULTS.keys()),
        ("`[plugins.<name>]` and `[defaults]`", DEFAULTS.keys()),
    ],
)
def test_every_key_is_documented_and_no_other(heading: str, keys: Any) -> None:
    assert sections()[heading].keys() == keys


def test_documented_defaults_are_those_of_the_code() -> None:
    documented = {key: cells[1] for rows in sections().values() for key, cells in rows.items() if len(cells) == 3}
    client = inspect.signature(Client.__init__).parameters
    expected = {each.name: each.default for each in dataclasses.fields(Policy)}
    expected |= {key: client[key].default for key in ("start_timeout", "auto_mtls", "multiplex")}
    for key, value in expected.items():
        assert documented[key].strip("`") == (str(value).lower() if isinstance(value, bool) else f"{value:g}"), key


def test_links_between_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
