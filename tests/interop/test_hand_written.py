"""Hand-written plugins: generated stubs and the broker, in both roles, with Go's half or Python's at the other end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "hand_written.py"
GO_PLUGIN = "github.com/hashicorp/go-plugin/examples/bidirectional/plugin-go-grpc"
PATIENCE = 60.0  # seconds
PROTECTIONS = {
    "plain": {"auto_mtls": False},
    "mtls": {"auto_mtls": True},
    "multiplex": {"auto_mtls": False, "multiplex": True},
    "mtls+multiplex": {"auto_mtls": True, "multiplex": True},
}
each_protection = pytest.mark.parametrize("protection", PROTECTIONS)


@pytest.fixture(scope="module")
def stubs(go_plugin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what grpc_tools makes of the example's .proto file."""
    folder = tmp_path_factory.mktemp("stubs")
    source = go_plugin_folder / "examples/bidirectional/proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{source}"]
    subprocess.run(
        [*command, f"--python_out={folder}", f"--grpc_python_out={folder}", "kv.proto"], check=True, timeout=PATIENCE
    )
    return folder


@pytest.fixture
def run(stubs: Path, tmp_path: Path, engine: str) -> Callable[..., Any]:
    """Runs a host in a folder of its own and gives the JSON that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(stubs), "HYBRIDLOAD_ENGINE": engine}
    environment["GOLANG_PROTOBUF_REGISTRATION_CONFLICT"] = "ignore"  # two examples have a proto/kv.proto

    def start(*command: str | Path) -> Any:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    return start


def hosted(protection: str) -> list[str | Path]:
    return [sys.executable, PROGRAM, "host", json.dumps(PROTECTIONS[protection])]


@pytest.mark.leaves("files", reason="a multiplexed plugin of Go's leaves its socket file behind, under Go's host too")
@each_protection
def test_hosts_a_go_plugin(run: Callable[..., Any], go_build: Callable[..., Path], protection: str) -> None:
    seen = run(*hosted(protection), go_build(GO_PLUGIN))
    assert (seen["protocol"], seen["value"], seen["after"]) == ("grpc", 42, 42)
    # Go hands on the error of a callback as it is, and makes UNKNOWN of one of its own.
    assert seen["refused"] == ["OUT_OF_RANGE", "42 and 1 are too much"]
    assert seen["missing"][0] == "UNKNOWN"
    assert "kv_missing" in seen["missing"][1]
    assert seen["returncode"] == 0


@each_protection
def test_is_a_plugin_of_a_go_host(run: Callable[..., Any], go_build: Callable[..., Path], protection: str) -> None:
    flags = [f"-{flag}" for flag in protection.split("+") if flag != "plain"]
    host = [go_build("tests/go/examplehost"), "-example", "bidirectional", *flags]
    answers = run(*host, sys.executable, PROGRAM, "serve")["answers"]
    assert answers[:3] == [None, None, 42]
    assert "42 and 1 are too much" in answers[3]["error"]
    assert answers[4] == 42


@each_protection
def test_both_halves_are_python(run: Callable[..., Any], protection: str) -> None:
    seen = run(*hosted(protection), sys.executable, PROGRAM, "serve")
    assert (seen["value"], seen["after"], seen["returncode"]) == (42, 42, 0)
    assert seen["refused"] == ["OUT_OF_RANGE", "42 and 1 are too much"]
    assert seen["missing"] == ["NOT_FOUND", "open kv_missing: no such file"]
