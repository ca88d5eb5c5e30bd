"""A host uses a plugin that a developer runs: HYBRIDLOAD_REATTACH."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridload import Handshake, Loader
from hybridload.errors import ConfigError, NoUsableIsolation, PluginError, PluginNotFound
from hybridload.frozen import replace
from hybridload.goplugin import Client, ReattachConfig
from hybridload.goplugin.certificates import Certificate, generate_certificate
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
    ("change", "words"),
    [
        ({"Addr": {"Network": "unix", "String": "/no/such/socket"}}, "but no gRPC server answers there"),
        ({"ProtocolVersion": 7}, "serves version 7"),
    ],
)
def test_one_that_cannot_be_used_says_what_named_it(
    running: dict[str, object], monkeypatch: pytest.MonkeyPatch, change: dict[str, object], words: str
) -> None:
    monkeypatch.setenv("HYBRIDLOAD_REATTACH", json.dumps({"hello": {**running, **change}}))
    with Loader(PLUGINS, handshake=HANDSHAKE) as loader:
        with pytest.raises(
            NoUsableIsolation, match=rf"{words}(?s:.)*HYBRIDLOAD_REATTACH names it(?s:.)*unset it"
        ) as it:
            loader.load("hello")
    assert "standard error" not in str(it.value)  # which nobody here sees


@pytest.mark.parametrize(
    "text", ["nonsense", "[]", "{}x", '{"hello": 1}', '{"hello": {"Protocol": "grpc", "Key": "secret"}}']
)
def test_a_value_that_is_none_is_refused_and_not_shown(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDLOAD_REATTACH", text)
    with pytest.raises(ConfigError, match="HYBRIDLOAD_REATTACH") as caught:
        Loader(PLUGINS, handshake=HANDSHAKE)
    assert "secret" not in str(caught.value)


GOOD = {"Protocol": "grpc", "Pid": 1, "Addr": {"Network": "unix", "String": "/tmp/p"}}
BAD = {
    "a pid that no process has": ({**GOOD, "Pid": 2**31}, "Pid"),
    "a pid of thousands of digits": ('{"Protocol":"grpc","Pid":' + "1" * 5000 + "}", "Pid|range"),
    "a pid that is text": ({**GOOD, "Pid": "12"}, "Pid"),
    "a process group": ({**GOOD, "Pid": -1}, "Pid"),
    "no pid": ({**GOOD, "Pid": None}, "Pid"),
    "a version that is true": ({**GOOD, "ProtocolVersion": True}, "ProtocolVersion"),
    "a test that is text": ({**GOOD, "Test": "no"}, "Test"),
    "a time that is text": ({**GOOD, "Started": "now"}, "Started"),
    "another protocol": ({**GOOD, "Protocol": "http"}, "Protocol"),
    "another network": ({**GOOD, "Addr": {"Network": "udp", "String": "x"}}, "Network"),
    "an address with a NUL": ({**GOOD, "Addr": {"Network": "unix", "String": "a\0b"}}, "String"),
    "an empty address": ({**GOOD, "Addr": {"Network": "unix", "String": ""}}, "String"),
    "brackets without end": ("[" * 100_000, "RecursionError|recursion|array"),
    "brackets in a field": ('{"Protocol": ' + "[" * 100_000, "RecursionError|recursion|Protocol"),
    "a certificate that is none": ({**GOOD, "Certificate": "x", "Key": "secret"}, "certificate"),
    "a certificate that is no text": ('{"Protocol":"grpc","Certificate":"\\ud800","Key":"secret"}', "surrogate|JSON"),
    "a plugin's certificate that is no base64": ({**GOOD, "PluginCertificate": "!"}, "PluginCertificate"),
}


def json_is_sound(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@pytest.mark.parametrize("case", BAD)
def test_a_config_that_is_none_is_an_error_that_names_what_is_wrong(case: str, tmp_path: Path) -> None:
    given, words = BAD[case]
    text = given if isinstance(given, str) else json.dumps(given)
    for read in (
        ReattachConfig.from_json,
        lambda text: read_reattach_variable({"HYBRIDLOAD_REATTACH": f'{{"p":{text}}}'}),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            read(text)
        assert "secret" not in str(caught.value)
    if json_is_sound(text) and "certificate that" not in case:
        assert "HYBRIDLOAD_REATTACH: the config of plugin 'p' is not what it should be" in str(caught.value)
    (tmp_path / "config").write_bytes(b"\xff" + text.encode())
    with pytest.raises(ConfigError, match="cannot be read"):
        ReattachConfig.load(tmp_path / "config")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda v: (
            st.lists(v)
            | st.dictionaries(
                st.sampled_from([*GOOD, "Test", "Started", "Certificate", "Key", "Network", "String"])
                | st.text(max_size=3),
                v,
            )
        ),
    )
)
def test_any_json_is_a_config_or_refused(value: object) -> None:
    text = json.dumps(value)
    for written in (text, json.dumps({**GOOD, **value}) if isinstance(value, dict) else text):
        try:
            ReattachConfig.from_json(written)
        except ConfigError:
            continue


def test_what_a_program_says_of_a_process_that_cannot_be_is_refused_too() -> None:
    config = ReattachConfig("grpc", 1, "unix", "/tmp/p", pid=2**31)
    with pytest.raises(PluginNotFound, match="no longer runs"):
        Client.reattach(config, plugins=PLUGINS, handshake=HANDSHAKE).start()


@pytest.mark.parametrize("der", [b"", b"x", b"\x30\x82\xff\xff" + bytes(50)])
def test_a_key_or_a_certificate_that_tls_refuses_is_an_error_of_the_plugin(
    running: dict[str, object], der: bytes
) -> None:
    good = generate_certificate("P-256")
    for own in (good, Certificate(good.pem, good.der, b"no key")):
        config = replace(
            ReattachConfig.from_json(json.dumps(running)), certificate=own, plugin_certificate=der or good.der
        )
        if own is good and not der:
            continue
        with pytest.raises(PluginError, match="certificate"):
            Client.reattach(config, plugins=PLUGINS, handshake=HANDSHAKE).start()


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
