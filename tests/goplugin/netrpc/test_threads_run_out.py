"""A plugin out of threads refuses what needs one, and lives on; one that breaks its session has crashed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import pytest

from hybridload import Contract, Handshake
from hybridload.errors import PluginCrashed, RemoteError
from hybridload.goplugin import Client

CALLERS = 12
PROGRAM = f"""
import gc, sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from running_out import no_more_threads
from test_threads_run_out import HANDSHAKE, PLUGINS
from hybridload import serve
from hybridload.goplugin.streams.mux import Mux

class Working:
    shortage = None
    def work(self, seconds):
        time.sleep(seconds)
        return "worked"
    def starve(self):
        self.shortage = no_more_threads()
        self.shortage.__enter__()
    def feed(self):
        self.shortage.__exit__(None, None, None)
    def hang_up(self):
        for each in gc.get_objects():
            if isinstance(each, Mux):
                each._below.close()

sys.path.pop(0)
serve(PLUGINS, {{"worker": Working()}}, handshake=HANDSHAKE, protocols=("netrpc",))
"""


class Worker(Protocol):
    def work(self, seconds: float) -> str: ...

    def starve(self) -> None: ...

    def feed(self) -> None: ...

    def hang_up(self) -> None: ...


PLUGINS = {"worker": Contract(Worker)}
HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    program = tmp_path / "plugin.py"
    program.write_text(PROGRAM)
    env = {"PYTHONPATH": str(Path(__file__).parent)}
    client = Client([sys.executable, str(program)], plugins=PLUGINS, handshake=HANDSHAKE, env=env)
    client.start()
    yield client
    client.kill()


@pytest.mark.parametrize("known", [False, True], ids=["not known to be slow", "known to be slow"])
def test_calls_that_need_a_thread_are_refused_or_wait_and_the_others_go_on(client: Client, known: bool) -> None:
    worker, pid = client.dispense("worker"), client.pid
    if known:
        assert worker.work(0.2) == "worked"
    worker.starve()

    def work(_: int) -> str:
        try:
            said: str = worker.work(0.1)
        except RemoteError as error:
            return str(error)
        return said

    with ThreadPoolExecutor(CALLERS) as pool:
        said = list(pool.map(work, range(CALLERS)))
    assert all(text == "worked" or "No thread can be started" in text for text in said), said
    client.ping()
    worker.feed()
    with ThreadPoolExecutor(CALLERS) as pool:
        assert list(pool.map(work, range(CALLERS))) == ["worked"] * CALLERS
    assert client.pid == pid


def test_a_plugin_that_breaks_its_session_has_crashed_though_nobody_calls_it(client: Client) -> None:
    worker = client.dispense("worker")
    with pytest.raises(PluginCrashed):
        worker.hang_up()
    deadline = time.monotonic() + 30
    while not client.exited and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.exited
