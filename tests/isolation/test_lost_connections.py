"""Connections that break under a plugin that lives: what becomes of the calls on them, of its output, and of itself."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import pytest

from hybridload.errors import PluginCrashed
from hybridload.goplugin.grpc.connection import GRPCConnection
from tests.isolation.conftest import Employ, wait_until

pytestmark = pytest.mark.parametrize("engine", ["direct", "grpcio"])


@pytest.fixture(autouse=True)
def chosen(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDLOAD_ENGINE", engine)


def entered(file: str) -> list[str]:
    return Path(f"{file}.entered").read_text().split()


def test_calls_end_as_at_a_crash_and_idempotent_ones_are_sent_again(employ: Employ) -> None:
    work = employ()
    pid = work.worker.pid()
    once, once_file = work.in_the_middle(work.worker.wait_for)
    again, again_file = work.in_the_middle(work.worker.wait_again)
    with pytest.raises(PluginCrashed, match="connection broke"):
        work.worker.drop_connections()
    with pytest.raises(PluginCrashed, match="only methods marked idempotent"):
        once.result(60)
    wait_until(lambda: len(entered(again_file)) == 2)
    for file in (once_file, again_file):
        Path(file).touch()
    assert again.result(60) == pid
    assert entered(again_file) == [str(pid)] * 2
    assert entered(once_file) == [str(pid)]
    assert (work.worker.pid(), work.status().restarts) == (pid, 0)


def test_output_goes_on_over_another_connection(employ: Employ, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    work = employ()
    pid = work.worker.pid()
    with contextlib.suppress(PluginCrashed):
        work.worker.drop_connections()

    def heard() -> bool:
        work.worker.say("after")
        return "after" in caplog.messages

    wait_until(heard)
    assert work.worker.pid() == pid


def test_a_plugin_that_cannot_be_reached_any_more_is_replaced_though_nobody_calls_it(employ: Employ) -> None:
    work = employ("health_interval = 0")
    before = work.worker.pid()
    work.worker.close_sockets_at(str(work.folder / "now"))
    (work.folder / "now").touch()
    work.story.wait_for("running")
    assert work.worker.pid() != before


def test_one_that_answered_over_its_last_connection_just_before_that_broke_is_replaced_too(
    employ: Employ, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = GRPCConnection._answers
    asked: list[float] = []

    def answered(connection: GRPCConnection, timeout: float) -> bool:
        asked.append(timeout)
        if len(asked) > 1:
            return answers(connection, timeout)
        wait_until(lambda: not answers(connection, 0.0))
        return True

    monkeypatch.setattr(GRPCConnection, "_answers", answered)
    work = employ("health_interval = 0")
    work.worker.close_sockets_at(str(work.folder / "now"))
    (work.folder / "now").touch()
    work.story.wait_for("running")
    assert len(asked) > 1
