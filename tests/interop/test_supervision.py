"""Crashes, hangs and what becomes of the calls, when the plugin is a Go program; `tests/isolation` has the rest."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from hybridload import Contract, Handshake, Loader, idempotent
from hybridload.contract import NetRPC
from hybridload.errors import PluginClosed, PluginCrashed
from tests.isolation.conftest import PATIENCE, Story, in_thread, wait_until


class Work(Protocol):
    """A part of tests/go/protocol/torture.proto."""

    def echo(self, data: bytes) -> bytes: ...
    def hang(self) -> None: ...
    @idempotent
    def sleep(self, seconds: float) -> None: ...
    def exit(self, code: int = 0) -> None: ...
    def freeze(self) -> None: ...


class Substitute:
    """Python's, which answers so that one can tell."""

    def echo(self, data: bytes) -> bytes:
        return b"Python " + data

    def hang(self) -> None: ...
    def sleep(self, seconds: float) -> None: ...
    def exit(self, code: int = 0) -> None: ...
    def freeze(self) -> None: ...


PLUGINS = {"torture": Contract(Work, service="torture.Torture", netrpc=NetRPC(arguments="struct"))}
HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")
CONFIG = """
[plugins.gopher]
command = ["@PROGRAM@"]
entry_point = "supervised_substitute:Substitute"
isolation = @ISOLATION@
env = { TORTURE_PROTOCOL = "@PROTOCOL@" }
backoff = 0.01
"""


@dataclass
class Scene:
    """A loader with the Go plugin, and what happened to it."""

    loader: Loader
    gopher: Any
    story: Story

    def pid(self) -> int:
        pid = self.loader.status("gopher").pid
        assert pid is not None
        return pid

    def kill(self, number: int = signal.SIGKILL) -> int:
        pid = self.pid()
        assert pid != os.getpid()
        os.kill(pid, number)
        return pid


Play = Callable[..., Scene]


@pytest.fixture(params=["grpc", "netrpc"])
def play(
    request: pytest.FixtureRequest,
    go_build: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Play]:
    """Loads the plugin with the given lines in its table."""
    loaders: list[Loader] = []
    module = types.ModuleType("supervised_substitute")
    module.Substitute = Substitute  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def begin(*lines: str, program: Path | None = None, plugins: Any = None) -> Scene:
        chain = '["external", "in-process"]' if plugins is None else '"external"'
        text = CONFIG.replace("@PROTOCOL@", request.param).replace("@ISOLATION@", chain)
        text = text.replace("@PROGRAM@", str(program or go_build("tests/go/greeter")))
        path = tmp_path / "plugins.toml"
        path.write_text("\n".join([text, *lines]))
        loaders.append(loader := Loader(plugins or PLUGINS, handshake=HANDSHAKE, config=path))
        scene = Scene(loader, loader.load("gopher"), Story(loader))
        assert loader.status("gopher").protocol == request.param
        return scene

    yield begin
    for loader in loaders:
        loader.close()


over_grpc = pytest.mark.parametrize("play", ["grpc"], indirect=True)


def test_one_that_crashes_is_started_again(play: Play) -> None:
    scene = play()
    before = scene.pid()
    with pytest.raises(PluginCrashed, match="exit status 7") as caught:
        scene.gopher.exit(7)
    assert caught.value.returncode == 7
    assert scene.gopher.echo(b"again") == b"again"
    assert scene.pid() != before
    scene.story.wait_for("running")
    assert scene.story.told() == ["crashed", "starting", "running"]
    assert scene.loader.status("gopher").restarts == 1


def test_one_that_hangs_is_found_and_replaced(play: Play) -> None:
    scene = play("health_interval = 0.1", "health_timeout = 1.0")
    hanging = in_thread(scene.gopher.hang)
    wait_until(lambda: scene.loader.status("gopher").in_flight == 1)
    before = scene.kill(signal.SIGSTOP)
    with pytest.raises(PluginCrashed, match="does not answer and was killed"):
        hanging.result(PATIENCE)
    scene.story.wait_for("running")
    assert scene.gopher.echo(b"again") == b"again"
    assert scene.pid() != before


def test_an_idempotent_call_in_flight_is_sent_again(play: Play) -> None:
    scene = play()
    sleeping = in_thread(scene.gopher.sleep, 0.5)
    wait_until(lambda: scene.loader.status("gopher").in_flight == 1)
    scene.kill()
    assert sleeping.result(PATIENCE) is None
    scene.story.wait_for("running")
    assert scene.story.told() == ["crashed", "starting", "running"]


def test_a_used_up_budget_leads_to_python_and_back(play: Play) -> None:
    scene = play("max_restarts = 0", "retry_after = 0.5")
    scene.kill()
    over = scene.story.wait_for("failed over")
    assert (over.isolation, over.pid) == ("in-process", os.getpid())
    assert isinstance(over.error, PluginCrashed)
    back = scene.story.wait_for("running")
    assert back.isolation == "external"
    assert scene.gopher.echo(b"again") == b"again"
    assert scene.story.told() == ["crashed", "starting", "failed over", "running"]
    assert not scene.loader.status("gopher").degraded


@over_grpc
def test_while_python_serves_its_object_is_the_one_that_answers(play: Play) -> None:
    scene = play("max_restarts = 0", "retry_after = 600")
    scene.kill()
    scene.story.wait_for("failed over")
    assert scene.gopher.echo(b"hello") == b"Python hello"


@over_grpc
def test_a_program_that_is_replaced_is_reloaded(play: Play, go_build: Callable[[str], Path], tmp_path: Path) -> None:
    program, new = tmp_path / "gopher", tmp_path / "new"
    shutil.copy(go_build("tests/go/greeter"), program)
    scene = play("watch = true", program=program)
    before = scene.pid()
    shutil.copy(program, new)
    new.replace(program)  # as an installer does it: the one that runs cannot be written to
    scene.story.wait_for("running")
    assert scene.pid() != before
    assert scene.gopher.echo(b"again") == b"again"


class ByHand:
    """A hand-written plugin: what it makes belongs to the process that its channel leads to."""

    def grpc_client(self, broker: Any, channel: Any) -> Calls:
        return Calls(channel)

    def grpc_server(self, broker: Any, server: Any) -> None:
        raise NotImplementedError


class Calls:
    def __init__(self, channel: Any) -> None:
        self._echo = channel.unary_unary("/torture.Torture/Echo")

    def echo(self, data: bytes) -> bytes:
        answer: bytes = self._echo(bytes((10, len(data))) + data)
        return answer[2:]

    def __call__(self, data: bytes) -> bytes:
        return self.echo(data)


@over_grpc
def test_the_object_of_a_hand_written_plugin_leads_to_the_process_that_runs(play: Play) -> None:
    scene = play(plugins={"torture": ByHand()})
    assert isinstance(scene.gopher, Calls)
    assert scene.gopher.echo(b"hello") == scene.gopher(b"hello") == b"hello"
    before = scene.kill()
    scene.story.wait_for("running")
    assert scene.gopher.echo(b"again") == scene.gopher(b"again") == b"again"
    assert scene.loader.load("gopher") is scene.gopher
    assert repr(scene.gopher) == f"<Calls 'gopher' (external, pid {scene.pid()})>"
    assert scene.pid() != before
    scene.loader.close()
    with pytest.raises(PluginClosed, match="was closed with its loader"):
        scene.gopher.echo(b"late")
