"""What a plugin logs, warns of and prints."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import pytest

from .conftest import Heard, Row


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR"])
def test_a_log_record_arrives_with_its_level_and_fields(
    everything: Any, row: Row, heard: Heard, key: str, level: str
) -> None:
    everything.log("behaviour.shop", level, f"sold {key}", {"article": "tea", "buyer": "ü"})
    record = heard.wait_for(f"sold {key}")
    assert record.levelno == logging.getLevelNamesMapping()[level]
    assert (record.article, record.buyer) == ("tea", "ü")  # type: ignore[attr-defined]
    prefix = "hybridload.plugin.everything." if row.differs("logger-names") else ""
    assert record.name == f"{prefix}behaviour.shop"


def test_a_logged_exception_arrives_with_its_traceback(everything: Any, row: Row, heard: Heard, key: str) -> None:
    everything.log_exception(key)
    record = heard.wait_for(key)
    assert record.levelno == logging.ERROR
    if row.differs("go-log-errors"):
        assert record.error == "logged, not raised"  # type: ignore[attr-defined]
    elif row.differs("logged-exceptions"):
        assert "ValueError: logged, not raised" in record.exception  # type: ignore[attr-defined]
        assert "Traceback" in record.exception  # type: ignore[attr-defined]
    else:
        assert record.exc_info is not None
        assert record.exc_info[0] is ValueError


def test_a_warning_is_seen(everything: Any, row: Row, heard: Heard, key: str) -> None:
    if row.differs("warnings"):
        everything.warn(key)
        assert heard.wait_for(key).name == "hybridload.plugin.everything.stderr"
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            everything.warn(key)
        assert [str(warning.message) for warning in caught] == [key]


def test_what_is_printed_is_seen(
    everything: Any, row: Row, heard: Heard, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    everything.say(key)
    if row.differs("prints"):
        record = heard.wait_for(key)
        assert (record.name, record.levelno) == ("hybridload.plugin.everything.stdout", logging.INFO)
        assert capsys.readouterr().out == ""
    else:
        assert capsys.readouterr().out == f"{key}\n"


def test_where_it_runs(everything: Any, row: Row) -> None:
    assert (everything.pid() == os.getpid()) is (row.isolation == "in-process")
