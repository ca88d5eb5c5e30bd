"""The examples do what they say, are as well typed as they claim, and their Go parts really are Go."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parent.parent.parent
GoBuild = Callable[[str], Path]
TYPED = {
    "greeter": ("demo.py", "greeter/host/host.py", "greeter/sdk/greeter_sdk", "greeter/python-plugin/hello_plugin"),
    "kv": ("kv/host/host.py", "kv/sdk/kv_sdk", "kv/python-plugin/memory_store"),
}
IMPORT_PATH = ("greeter/sdk", "greeter/python-plugin", "kv/sdk", "kv/python-plugin")


@pytest.fixture
def gopher(examples: Any, go_build: GoBuild) -> None:
    """The Go greeter, built and where the host application expects it."""
    put(go_build("examples/greeter/go-plugin"), examples.folder / "greeter/go-plugin/bin/greeter-go")


@pytest.fixture
def store_go(examples: Any, go_build: GoBuild) -> None:
    put(go_build("examples/kv/go-plugin"), examples.folder / "kv/go-plugin/bin/store-go")


def put(program: Path, target: Path) -> None:
    target.parent.mkdir()
    shutil.copy(program, target)


# The demo


def test_the_demo_shows_every_isolation(examples: Any, gopher: None, go_build: GoBuild) -> None:
    put(go_build("examples/greeter/go-host"), examples.folder / "greeter/go-host/bin/go-host")
    done = examples.run("demo.py")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = done.stdout.splitlines()[2:]
    assert [re.split(r" {2,}", row)[0] for row in rows] == [
        "in-process",
        "subprocess",
        "external",
        "external, but the file is missing",
        "a Go host runs the Python plugin",
    ]
    assert "this process" in rows[0]
    assert "Python, process" in rows[1]
    assert re.search(r"Go, process \d+ +Good morning from Go!", rows[2])
    assert re.search(r"this process, after PluginNotFound +Hello from Python!", rows[3])
    assert re.search(r"Python, started by Go +Hello from Python!", rows[4])


@pytest.mark.skipif(
    shutil.which("go", path=str(Path(sys.executable).parent)) is not None, reason="Go is beside Python, off PATH or not"
)
def test_the_demo_says_how_to_get_go_where_it_is_missing(examples: Any, tmp_path: Path) -> None:
    done = examples.run("demo.py", env={"PATH": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    left_out = [line for line in done.stdout.splitlines() if "Go is missing. Get Go 1.24 or newer" in line]
    assert [line.split("  ")[0] for line in left_out] == ["external", "a Go host runs the Python plugin"]


def test_the_demo_fails_when_a_row_does(examples: Any, gopher: None, go_build: GoBuild) -> None:
    put(go_build("examples/greeter/go-host"), examples.folder / "greeter/go-host/bin/go-host")
    (examples.folder / "greeter/go-plugin/main.go").write_text("package main\n")
    done = examples.run("demo.py")
    assert done.returncode == 1
    assert "FAILED, see below" in done.stdout
    assert "go build in" in done.stdout


# The host applications


def test_the_host_greets_with_every_plugin(examples: Any, gopher: None) -> None:
    done = examples.run("greeter/host/host.py")
    assert done.stdout.splitlines() == [
        "gopher (external): Good morning from Go!",
        "hello (in-process): Good morning from Python!",
    ], done.stderr
    # What plugins log, wherever they run.
    assert "INFO hybridload.plugin.gopher" in done.stderr
    assert "INFO hello_plugin: said hello 1 times" in done.stderr


def test_one_line_switches_the_isolation(examples: Any, gopher: None) -> None:
    config = examples.folder / "greeter/host/plugins.toml"
    config.write_text(config.read_text().replace('isolation = "in-process"', 'isolation = "subprocess"'))
    done = examples.run("greeter/host/host.py")
    assert "hello (subprocess): Good morning from Python!" in done.stdout, done.stderr
    assert re.search(r"INFO \S*hello\S*: said hello 1 times", done.stderr)


def test_without_the_binary_the_host_falls_back_and_warns_once(examples: Any) -> None:
    done = examples.run("greeter/host/host.py")
    assert "gopher (in-process): Hello from Python!" in done.stdout
    assert done.stderr.count("WARNING") == 1


@pytest.mark.parametrize("isolation", ["in-process", "subprocess"])
def test_the_memory_store_keeps_and_misses(examples: Any, isolation: str) -> None:
    done = examples.run("kv/host/host.py", "memory", env={"HYBRIDLOAD_ISOLATION": isolation})
    assert done.stdout.splitlines() == [
        f"memory ({isolation}): pi is b'3.14159'",
        "tau: KeyError: 'tau'",
    ], done.stderr


def test_the_go_store_keeps_and_misses(examples: Any, store_go: None, tmp_path: Path) -> None:
    done = examples.run("kv/host/host.py", "files", env={"STORE_FOLDER": str(tmp_path)})
    assert done.stdout.splitlines() == [
        "files (external): pi is b'3.14159'",
        'tau: NOT_FOUND: no value under "tau"',
    ], done.stderr


# Python plugins under Go hosts


@pytest.mark.parametrize("mtls", ["true", "false"])
def test_the_go_host_runs_the_python_plugin(examples: Any, go_build: GoBuild, mtls: str) -> None:
    host = go_build("examples/greeter/go-host")
    done = subprocess.run(
        [host, f"-mtls={mtls}", "-log", "info", sys.executable, "-m", "hello_plugin"],
        env={**os.environ, **examples.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "Hello from Python!\n", done.stderr
    assert "said hello 1 times" in done.stderr


def test_a_go_host_gets_values_and_errors_from_the_python_store(examples: Any, go_host: Callable[..., Any]) -> None:
    host = go_host(
        [sys.executable, "-m", "memory_store"],
        *("-cookie", "KV_PLUGIN=store"),
        *("-call", "put:pi=3.14", "-call", "get:pi", "-call", "get:tau"),
        env={**os.environ, **examples.environment},
    )
    assert host.answers[:2] == [None, "3.14"]
    assert "NotFound" in host.answers[2]["error"]


# What the examples claim


def test_the_stores_proto_file_is_what_the_contract_derives(examples: Any, tmp_path: Path) -> None:
    printed = tmp_path / "printed.binpb"
    done = examples.run(
        "-c",
        f"import sys, kv_sdk; open({str(printed)!r}, 'wb').write(kv_sdk.STORE.complete().wire().file_descriptor_set())",
    )
    assert done.returncode == 0, done.stderr
    written = tmp_path / "written.binpb"
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{examples.folder / 'kv'}"]
    subprocess.run([*protoc, f"--descriptor_set_out={written}", "kv.proto"], check=True)
    assert shape(printed) == shape(written)


def shape(descriptor_set: Path) -> Any:
    """Messages, fields and methods of the file that has a service."""
    files = FileDescriptorSet.FromString(descriptor_set.read_bytes()).file
    file: FileDescriptorProto = next(file for file in files if file.service)
    service = file.service[0]
    methods = [(method.name, method.input_type, method.output_type) for method in service.method]
    fields = {m.name: [(field.name, field.number, field.type) for field in m.field] for m in file.message_type}
    return file.package, service.name, methods, fields


@pytest.mark.parametrize("paths", TYPED.values(), ids=TYPED)
def test_a_users_code_passes_strict_mypy(paths: tuple[str, ...], tmp_path: Path) -> None:
    folder = ROOT / "examples"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", *paths],
        cwd=folder,
        env={**os.environ, "MYPYPATH": os.pathsep.join([str(ROOT), *(str(folder / part) for part in IMPORT_PATH)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_users_code_passes_strict_pyright() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(ROOT / "examples")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_users_code_needs_no_ignore_and_no_cast() -> None:
    for path in (ROOT / "examples").rglob("*.py"):
        assert not re.search(r"type: *ignore|pyright: *ignore|\bcast\(|\bAny\b|noqa", path.read_text()), path


@pytest.mark.parametrize("module", ["greeter/go-sdk", "greeter/go-plugin", "greeter/go-host", "kv/go-plugin"])
def test_a_go_example_has_a_module_of_its_own_on_the_release(module: str) -> None:
    text = (ROOT / "examples" / module / "go.mod").read_text()
    assert re.search(r"github\.com/hashicorp/go-plugin v1\.8\.0\b", text)
