"""What the tests with real Go at the other end share: a Go host, the torture plugin's interface, and the examples.

The Go programs and their knobs are described in `tests/go/README.md`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Protocol

import pytest

from hybridload import Contract, Handshake, PluginSet
from hybridload.contract import NetRPC
from hybridload.goplugin import Client

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"
PATIENCE = 60.0  # seconds


# A Go host


class GoHost:
    """A running `tests/go/host`: its events are read as they come, its standard error is kept for messages."""

    def __init__(self, command: Sequence[str | Path], env: dict[str, str] | None) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
        )
        self.events: list[dict[str, Any]] = []
        self.stderr = bytearray()
        self._arriving: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._read_events, name="go-host-events"),
            threading.Thread(target=self._read_stderr, name="go-host-stderr"),
        ]
        for thread in self._threads:
            thread.start()

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._arriving.put(json.loads(line))
        self._arriving.put(None)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        while chunk := self.process.stderr.read1(65536):  # type: ignore[attr-defined]
            self.stderr += chunk

    def wait_for(self, name: str) -> dict[str, Any]:
        """The next event of that name; those before it stay in `events`."""
        while event := self._arriving.get(timeout=PATIENCE):
            self.events.append(event)
            if event["event"] == name:
                return event
        raise AssertionError(f"the Go host ended without {name!r}: {self.events}\n{self.stderr.decode()}")

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    def finish(self) -> GoHost:
        """Close its standard input, and wait until it ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        while event := self._arriving.get(timeout=PATIENCE):
            self.events.append(event)
        self.process.wait(PATIENCE)
        return self

    @property
    def answers(self) -> list[Any]:
        """What each call answered; for a failed one ``{"error": …}``."""
        return [{"error": a["error"]} if "error" in a else a["value"] for a in self.named("answer")]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


StartGoHost = Callable[..., GoHost]


@pytest.fixture
def start_go_host(go_build: Callable[[str], Path]) -> Iterator[StartGoHost]:
    """Starts the Go host: ``start_go_host(command, "-call", "greet", "-wait", "stdin", env=…)``."""
    program = go_build("tests/go/host")
    with ExitStack() as stack:

        def start(command: Sequence[str | Path], *flags: str, env: dict[str, str] | None = None) -> GoHost:
            host = GoHost([program, *flags, "--", *command], env)
            stack.callback(host.close)
            return host

        yield start


@pytest.fixture
def go_host(start_go_host: StartGoHost) -> StartGoHost:
    """Runs the Go host to its end, with the same arguments."""

    def run(command: Sequence[str | Path], *flags: str, env: dict[str, str] | None = None) -> GoHost:
        return start_go_host(command, *flags, env=env).finish()

    return run


# The torture plugin's interface


@dataclass(frozen=True, slots=True)
class Item:
    number: int
    padding: bytes = b""


@dataclass(frozen=True, slots=True)
class Sum:
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    pid: int
    parent: int
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    interrupts: int


class Torture(Protocol):
    """`tests/go/protocol/torture.proto`, which says what each call does."""

    def echo(self, data: bytes) -> bytes: ...
    def write(self, target: int = 0, size: int = 0, line_length: int = 0, text: bytes = b"") -> int: ...
    def log(self, format: int = 0, lines: int = 0, level: str = "", padding: int = 0) -> None: ...
    def sleep(self, seconds: float) -> None: ...
    def hang(self) -> None: ...
    def freeze(self) -> None: ...
    def exit(self, code: int = 0, after_answer: bool = False, signal: int = 0) -> None: ...
    def panic(self, message: str) -> None: ...
    def fail(self, code: int, message: str, details: bytes = b"") -> None: ...
    def count(self, count: int, size: int = 0, pause: float = 0.0, fail_after: int = 0) -> Iterator[Item]: ...
    def collect(self, items: Iterator[Item]) -> Sum: ...
    def chat(self, data: Iterator[bytes]) -> Iterator[bytes]: ...
    def process(self) -> ProcessInfo: ...
    def spawn(self, seconds: float, keep_pipes: bool = False) -> int: ...
    def call_back(self, service_id: int, times: int) -> list[str]: ...
    def offer(self, count: int) -> list[int]: ...


class TortureCalls(Protocol):
    """What of it net/rpc can carry."""

    def echo(self, data: bytes) -> bytes: ...
    def write(self, target: int = 0, size: int = 0, line_length: int = 0, text: bytes = b"") -> int: ...
    def log(self, format: int = 0, lines: int = 0, level: str = "", padding: int = 0) -> None: ...
    def sleep(self, seconds: float) -> None: ...
    def hang(self) -> None: ...
    def freeze(self) -> None: ...
    def exit(self, code: int = 0, after_answer: bool = False, signal: int = 0) -> None: ...
    def panic(self, message: str) -> None: ...
    def fail(self, code: int, message: str, details: bytes = b"") -> None: ...
    def process(self) -> ProcessInfo: ...
    def spawn(self, seconds: float, keep_pipes: bool = False) -> int: ...
    def call_back(self, service_id: int, times: int) -> list[str]: ...
    def offer(self, count: int) -> list[int]: ...


class Greeter(Protocol):
    def greet(self) -> str: ...


@dataclass(frozen=True, slots=True)
class GoPlugins:
    """The plugin set of `tests/go/greeter`, and the constants of its `Write` and `Log`."""

    plugins: PluginSet
    over_netrpc: PluginSet
    handshake: Handshake = field(default_factory=lambda: Handshake("BASIC_PLUGIN", "hello"))
    os_stdout: int = 0
    os_stderr: int = 1
    raw_stdout: int = 2
    raw_stderr: int = 3
    hclog: int = 0
    tagged: int = 1
    plain: int = 2


@pytest.fixture(scope="session")
def go_plugins() -> GoPlugins:
    torture = Contract(Torture, service="torture.Torture", proto=ROOT / "tests/go/protocol/torture.proto")
    calls = Contract(TortureCalls, netrpc=NetRPC(arguments="struct"))
    greeter = Contract(Greeter, service="proto.GreeterService")
    return GoPlugins({"greeter": greeter, "torture": torture}, {"greeter": greeter, "torture": calls})


# A Python host


@pytest.fixture(params=["direct", "grpcio"])
def engine(request: pytest.FixtureRequest) -> str:
    """What carries gRPC in the host."""
    engine: str = request.param
    return engine


NewClient = Callable[..., Client]


@pytest.fixture
def new_client(go_build: Callable[[str], Path], go_plugins: GoPlugins, engine: str) -> Iterator[NewClient]:
    """Makes clients, of `tests/go/greeter` unless a command is given, which are killed when the test is over.

    A module whose tests hold for both protocols has ``engine`` give "netrpc" as well.
    """
    netrpc = engine == "netrpc"
    with ExitStack() as stack:

        def new(*command: str | Path, **options: Any) -> Client:
            defaults = {
                "plugins": go_plugins.over_netrpc if netrpc else go_plugins.plugins,
                "handshake": go_plugins.handshake,
                "engine": None if netrpc else engine,
            }
            if netrpc:
                options["env"] = {"TORTURE_PROTOCOL": "netrpc", **options.get("env", {})}
            client = Client(command or [go_build("tests/go/greeter")], **{**defaults, **options})
            stack.callback(client.kill)
            return client

        yield new


@pytest.fixture(scope="session")
def brokering() -> Iterator[Any]:
    """The module `brokering.py`, which is a plugin program as well."""
    path = Path(__file__).with_name("brokering.py")
    spec = importlib.util.spec_from_file_location("brokering", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["brokering"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["brokering"]


# The examples


@dataclass(frozen=True, slots=True)
class Examples:
    """A copy of `examples/` that a test may change, and an environment in which its packages are installed."""

    folder: Path
    environment: dict[str, str]

    def run(self, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("bin", "__pycache__"))
    site = tmp_path / "site"
    for project in folder.glob("*/*/pyproject.toml"):
        install(project, site)
    return Examples(folder, {"PYTHONPATH": str(site)})


def install(project: Path, site: Path) -> None:
    """What `pip install` leaves, without a network: the package, and the metadata with its entry points."""
    metadata = tomllib.loads(project.read_text())["project"]
    name = metadata["name"]
    try:
        distribution(name)
    except PackageNotFoundError:
        folder = site / f"{name.replace('-', '_')}-{metadata['version']}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {metadata['version']}\n")
        groups = metadata.get("entry-points", {}).items()
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups]
        (folder / "entry_points.txt").write_text("\n".join(lines))
        for package in project.parent.glob("*/__init__.py"):
            shutil.copytree(package.parent, site / package.parent.name)


# The table of pairings


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What passed between Go and Python, with times; each row is a test's property ``pairing``."""
    reports = terminalreporter.stats.get("passed", ()) if terminalreporter.verbosity > 0 else ()
    noted = sorted(value for report in reports for name, value in report.user_properties if name == "pairing")
    rows = {tuple(row[:5]): row for row in reversed(noted)}.values()  # the fastest of several runs
    if not rows:
        return
    terminalreporter.section("pairings (milliseconds)")
    layout = "{:<20} {:<17} {:<12} {:<7} {:<15} {:>7} {:>7}"
    terminalreporter.write_line(layout.format("example", "host", "plugin", "engine", "", "start", "calls"))
    for example, host, plugin, engine, protection, start, calls in sorted(rows):
        times = (f"{1000 * start:.0f}", f"{1000 * calls:.1f}")
        terminalreporter.write_line(layout.format(example, host, plugin, engine, protection, *times))
