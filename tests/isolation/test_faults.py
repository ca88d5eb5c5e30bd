"""A start that lacks something is refused by name or falls back, leaves nothing, and the next one works.

Each row is a way to run a plugin; `faults.SITES` has what may fail, and how. Another row, or another site, is a line.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridload import Loader, platforms
from hybridload.errors import ChecksumMismatch, NoUsableIsolation, PermissionDenied, PluginError
from hybridload.goplugin import Client, process
from tests.isolation.conftest import GREETER_SDK, Write

FAULTS = Path(__file__).parent / "faults.py"
HOST = """
[host]
plugins = "faults_sdk:PLUGINS"
handshake = "faults_sdk:HANDSHAKE"
"""
GO = ('isolation = "external"', 'command = ["@GO@"]')
PYTHON = ('isolation = "subprocess"', 'entry_point = "faults_sdk:Hello"')
NETRPC = 'env = { TORTURE_PROTOCOL = "netrpc" }'
ROWS: dict[str, tuple[str, ...]] = {
    "external": GO,
    "external, plain": (*GO, "auto_mtls = false"),
    "external, multiplexed": (*GO, "multiplex = true"),
    "external, net/rpc": (*GO, NETRPC),
    "external, net/rpc, plain": (*GO, NETRPC, "auto_mtls = false"),
    "external, checksum and limits": (*GO, 'sha256 = "@SHA@"', "limits = { open_files = 256 }"),
    "subprocess": PYTHON,
    "subprocess, net/rpc, plain": (*PYTHON, 'protocols = ["netrpc"]', "auto_mtls = false"),
    "prefork": (*PYTHON, "prefork = true"),
    "falls back": ('isolation = ["external", "in-process"]', 'command = ["@GO@"]', 'entry_point = "faults_sdk:Hello"'),
}
SHORTAGES = ("EMFILE", "ENOSPC", "ENOMEM", "EAGAIN", "thread", "memory")
"""Two for each row, in turn; ``HYBRIDLOAD_ALL_FAULTS=1`` has every row take all of them, which takes minutes."""

Site = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path, write_module: Write, go_build: Any) -> Site:
    """Writes a configuration with one plugin, ``one``."""
    write_module("faults_sdk", GREETER_SDK)
    go = go_build("tests/go/greeter")

    def write(*lines: str) -> Path:
        path = tmp_path / "plugins.toml"
        text = "\n".join([HOST, "[plugins.one]", *lines, ""]).replace("@GO@", str(go))
        path.write_text(text.replace("@SHA@", hashlib.sha256(go.read_bytes()).hexdigest()))
        return path

    return write


def ask(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(FAULTS), json.dumps(request)]
    path = os.pathsep.join((str(folder), str(FAULTS.parents[2])))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="what is left is read off /proc")
@pytest.mark.parametrize("row", ROWS)
def test_a_start_that_lacks_something_leaves_nothing_and_the_next_one_works(site: Site, row: str) -> None:
    number = list(ROWS).index(row)
    every = os.environ.get("HYBRIDLOAD_ALL_FAULTS") == "1"
    errors = SHORTAGES if every else (SHORTAGES[number % 4], "memory" if number % 4 == 1 else "thread")
    config = site(*ROWS[row])
    answers = ["Hello from Go!", "Hello from Go, over net/rpc!", "Hello from Python!"]
    told = ask({"config": str(config), "errors": errors, "answers": answers}, config.parent)
    assert told["findings"] == []
    assert all(count > 2 for count in told["counts"].values()), told["counts"]


@pytest.mark.skipif(sys.platform != "linux", reason="what is left is read off /proc")
def test_a_host_at_its_limit_of_open_files_says_so(site: Site) -> None:
    """The system's own word: whatever the limit is, nothing else leaves `load`."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = 0
    for room in (before, *range(24)):  # the first one imports what is imported once
        with Loader(config=site(*GO)) as loader:
            taken = set(map(int, os.listdir("/proc/self/fd")))
            free = (number for number in itertools.count() if number not in taken)
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(before, next(itertools.islice(free, room, None))), most))
            try:
                loader.load("one")
            except PluginError:
                refused += 1
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
            assert loader.load("one").greet() == "Hello from Go!"
    assert 0 < refused < 24


def test_a_temporary_folder_without_room_is_no_reason_not_to_fall_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(path: str, mode: int = 0o777) -> None:
        raise OSError(28, "No space left on device", path)

    config = site(*ROWS["falls back"])
    with Loader(config=config) as loader, monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", no_room)
        assert loader.load("one").greet() == "Hello from Python!"
        assert "TMPDIR" in str(loader.status("one").attempts[0].error)
    with Loader(config=config) as loader, monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", no_room)
        with pytest.raises(NoUsableIsolation, match="No space left on device"):
            loader.load("one", isolation="external")


def test_a_name_that_the_system_has_no_bytes_for_is_refused_by_name(site: Site) -> None:
    with Loader(config=site(*GO)) as loader:
        command = loader.sources.describe("one").external
    assert command is not None
    from faults_sdk import HANDSHAKE, PLUGINS  # type: ignore[import-not-found]

    for changed in ({"env": {"GREETING": "\ud800"}}, {"cwd": "/tmp/\ud800"}, {"unix_socket_dir": "/tmp/\ud800"}):
        client = Client(command, plugins=PLUGINS, handshake=HANDSHAKE, **changed)  # type: ignore[arg-type]
        with pytest.raises(PluginError):
            client.start()


# Checksums


def test_a_file_too_large_for_a_program_is_refused_before_it_is_read(tmp_path: Path, site: Site) -> None:
    huge = tmp_path / "huge"
    huge.touch(0o755)
    os.truncate(huge, 60 << 30)
    lines = ('isolation = ["external", "in-process"]', f'command = ["{huge}"]', f'sha256 = "{"0" * 64}"')
    with Loader(config=site(*lines, 'entry_point = "faults_sdk:Hello"')) as loader:
        assert loader.load("one").greet() == "Hello from Python!"
        assert isinstance(loader.status("one").attempts[0].error, PermissionDenied)


def test_a_program_is_read_for_its_checksum_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.read

    def read(descriptor: int, size: int) -> bytes:
        asked.append(size)
        return real(descriptor, size)

    program = tmp_path / "program"
    program.write_bytes(b"x" * (5 * process._PIECE + 1))
    monkeypatch.setattr(os, "read", read)
    with (
        pytest.raises(ChecksumMismatch) as caught,
        platforms.program_copy(lambda to: process._copy_verified(str(program), "0" * 64, "test", to), "test"),
    ):
        raise AssertionError("it was let through")
    assert caught.value.actual == hashlib.sha256(program.read_bytes()).hexdigest()
    assert max(asked) <= process._PIECE
    assert len(asked) >= 6


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("row", ["external", "external, checksum and limits", "subprocess", "prefork"])
def test_a_host_that_has_closed_its_standard_streams_starts_plugins_all_the_same(
    site: Site, tmp_path: Path, closed: tuple[int, ...], row: str
) -> None:
    program = """
import os, sys
sys.path.insert(0, sys.argv[1])
from hybridload import Loader
for descriptor in map(int, sys.argv[3].split()):
    os.close(descriptor)
with Loader(config=sys.argv[2]) as loader:
    answer = loader.load("one").greet()
with open(sys.argv[4], "w") as file:
    file.write(answer)
"""
    answer = Path(tempfile.mkdtemp(dir=tmp_path), "answer")
    numbers = " ".join(map(str, closed))
    arguments = [str(tmp_path), str(site(*ROWS[row])), numbers, str(answer)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert answer.read_text().startswith("Hello")
