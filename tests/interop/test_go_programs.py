"""Go with Go: what the other tests rely on when they put Python in the place of one of the two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GoBuild = Callable[[str], Path]
RunGoHost = Callable[..., Any]


@pytest.mark.leaves("files", reason="a multiplexed plugin of Go's leaves its socket file behind, under Go's host too")
@pytest.mark.parametrize("flags", [(), ("-mtls",), ("-multiplex",), ("-mtls", "-multiplex")], ids=" ".join)
def test_host_and_plugin_over_grpc(go_host: RunGoHost, go_build: GoBuild, flags: tuple[str, ...]) -> None:
    calls = ("ping", "greet", "put:pi=3.14", "get:pi", "get:tau")
    host = go_host([go_build("tests/go/greeter")], *flags, *(part for call in calls for part in ("-call", call)))
    assert host.answers == [
        None,
        "Hello from Go!",
        None,
        "3.14",
        {"error": 'rpc error: code = NotFound desc = no value under "tau"'},
    ]


@pytest.mark.parametrize("flags", [(), ("-mtls",)], ids=" ".join)
def test_host_and_plugin_over_netrpc(go_host: RunGoHost, go_build: GoBuild, flags: tuple[str, ...]) -> None:
    calls = ("ping", "greet", "put:pi=3.14", "get:pi", "get:tau")
    host = go_host([go_build("tests/go/netrpc")], *flags, *(part for call in calls for part in ("-call", call)))
    assert host.answers[1:] == [
        "Hello from Go, over net/rpc!",
        None,
        "3.14",
        {"error": 'no value under "tau"'},
    ]


def test_the_highest_common_version_is_chosen(go_host: RunGoHost, go_build: GoBuild) -> None:
    host = go_host(
        [go_build("tests/go/greeter")], "-versions", "2,3", "-env", "TORTURE_VERSIONS=1,2,3,4", "-call", "greet"
    )
    assert host.named("started")[0]["version"] == 3
    assert host.answers == ["Hello from Go, version 3!"]


def test_output_arrives_where_the_plugin_put_it(go_host: RunGoHost, go_build: GoBuild) -> None:
    def write(target: str, size: int) -> tuple[str, str]:
        return "-call", "torture.Torture/Write=" + json.dumps({"target": target, "size": size, "line_length": 27})

    host = go_host(
        [go_build("tests/go/greeter")],
        *write("OS_STDOUT", 270),
        *write("OS_STDERR", 540),
        *write("RAW_STDOUT", 270),
        *write("RAW_STDERR", 54),
        *("-call", "sleep:0.2"),  # Go's host loses what is still on its way when it stops the plugin
    )
    stopped = host.named("stopped")[0]
    alphabet = "abcdefghijklmnopqrstuvwxyz\n"
    assert stopped["sync_stdout"]["size"] == 270
    assert stopped["sync_stderr"]["size"] == 540
    assert stopped["stderr"]["text"].count(alphabet) == 1


def test_a_host_reattaches(start_go_host: RunGoHost, go_build: GoBuild) -> None:
    first = start_go_host([go_build("tests/go/greeter")], "-wait", "stdin", "-no-kill")
    reattach = first.wait_for("started")["reattach"] | {"ProtocolVersion": 0}
    second = start_go_host([], "-reattach", json.dumps(reattach), "-call", "greet").finish()
    assert second.answers == ["Hello from Go!"]
    first.finish()


def test_a_bad_plugin_is_reported(go_host: RunGoHost, go_build: GoBuild) -> None:
    host = go_host([go_build("tests/go/badplugins"), "cookie"])
    assert "Unrecognized remote plugin message" in host.named("failed")[0]["error"]


@pytest.mark.parametrize("flags", [("-network", "tcp", "-fields", "5"), ("-fields", "7"), ("-ending", "\r\n")])
def test_a_bare_plugin_is_a_plugin(go_host: RunGoHost, go_build: GoBuild, flags: tuple[str, ...]) -> None:
    host = go_host([go_build("tests/go/bareplugin"), *flags], "-call", "ping", "-call", "greet")
    assert host.answers == [None, "Hello from a bare server!"]
