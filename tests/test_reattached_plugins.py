"""A host uses a plugin that a developer runs: HYBRIDLOAD_REATTACH."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from hybridload import Handshake, Loader
from hybridload.errors import ConfigError, PluginError
from hybridload.goplugin.reattach import read_reattach_variable
from hybridload.testing import in_this_process

HANDSHAKE = Handshake("REATTACHED", "hello")


class Greeter(Protocol):
    def greet(self) -> str: ...


class Hello:
    def greet(self) -> str:
        return "Hello from the debugger!"


PLUGINS = {"greeter": Greeter}


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """The value for a plugin that runs already, and was given to hosts as ``hello``."""
    with in_this_process(PLUGINS, {"greeter": Hello()}, handshake=HANDSHAKE) as client:
        value: dict[str, object] = json.loads(client.reattach_config.to_json())
        monkeypatch.setenv("HYBRIDLOAD_REATTACH", json.dumps({"hello": value}))
        yield value
        assert client.dispense("greeter").greet() == "Hello from the debugger!"  # it is never ended


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plugins.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("isolation", [None, "in-process", "subprocess", ["external", "in-process"]])
def test_it_is_used_in_the_place_of_whatever_is_configured(
    tmp_path: Path, running: dict[str, object], isolation: str | list[str] | None
) -> None:
    path = config(tmp_path, '[plugins.hello]\ncommand = ["./no/such/program"]\nisolation = "external"\n')
    for _ in range(2):
        with Loader(PLUGINS, handshake=HANDSHAKE, config=path) as loader:
            greeter = loader.load("hello", isolation=isolation)
            assert greeter.greet() == "Hello from the debugger!"
            status = loader.status("hello")
            assert (status.isolation, status.pid, status.state) == ("external", os.getpid(), "running")
            assert "HYBRIDLOAD_REATTACH" in status.origin
            assert not status.degraded
            with pytest.raises(ConfigError, match="HYBRIDLOAD_REATTACH"):
                loader.switch("hello", "subprocess")


def test_no_other_source_has_to_have_the_name(running: dict[str, object]) -> None:
    with Loader(PLUGINS, handshake=HANDSHAKE) as loader:
        assert loader.names() == ["hello"]
        assert str(os.getpid()) in loader.status("hello").origin
        assert loader.load("hello").greet() == "Hello from the debugger!"


def test_one_that_is_gone_is_an_error_and_no_fallback(
    tmp_path: Path, running: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if another process had the pid by now.
    monkeypatch.setenv("HYBRIDLOAD_REATTACH", json.dumps({"hello": {**running, "Started": 1}}))
    path = config(tmp_path, '[plugins.hello]\nentry_point = "os:path"\nisolation = ["external", "in-process"]\n')
    with Loader(PLUGINS, handshake=HANDSHAKE, config=path) as loader:
        with pytest.raises(ConfigError, match=r"is another one by now(?s:.)*unset it"):
            loader.load("hello")


@pytest.mark.parametrize(
    "text", ["nonsense", "[]", "{}x", '{"hello": 1}', '{"hello": {"Protocol": "grpc", "Key": "secret"}}']
)
def test_a_value_that_is_none_is_refused_and_not_shown(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDLOAD_REATTACH", text)
    with pytest.raises(ConfigError, match="HYBRIDLOAD_REATTACH") as caught:
        Loader(PLUGINS, handshake=HANDSHAKE)
    assert "secret" not in str(caught.value)


def test_terraforms_form_is_read() -> None:
    value = {
        "registry.example/me/thing": {
            "Protocol": "grpc",
            "ProtocolVersion": 6,
            "Pid": 3382870,
            "Test": True,
            "Addr": {"Network": "unix", "String": "/tmp/plugin713096927"},
        }
    }
    read = read_reattach_variable({"HYBRIDLOAD_REATTACH": json.dumps(value)})
    (thing,) = read.values()
    assert (thing.protocol, thing.protocol_version, thing.pid, thing.test) == ("grpc", 6, 3382870, True)
    assert (thing.network, thing.address) == ("unix", "/tmp/plugin713096927")


def test_an_empty_variable_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDLOAD_REATTACH", " ")
    with Loader(PLUGINS, handshake=HANDSHAKE) as loader, pytest.raises(PluginError):
        loader.load("hello")
