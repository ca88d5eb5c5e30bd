"""Plugins that take all they can get: the kernel holds them to their limits, and their host and neighbours live on."""

from __future__ import annotations

import hashlib
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from hybridload import Loader
from hybridload.config import load_settings
from hybridload.errors import ConfigError, NoUsableIsolation, PluginCrashed, PluginNotFound
from hybridload.goplugin.process import describe_exit
from hybridload.limits import Limits
from tests.isolation.conftest import GROUP, PATIENCE, in_thread

SDK = """
from typing import Protocol
from hybridload import Handshake

class Greed(Protocol):
    def limits(self) -> dict[str, str]: ...
    def allocate(self) -> int: ...
    def open_files(self) -> int: ...
    def burn(self) -> int: ...
    def fork(self, user: int) -> int: ...
    def shout(self, megabytes: int, descriptor: int) -> int: ...
    def surroundings(self) -> list[str]: ...
    def double(self, number: int) -> int: ...

PLUGINS = {"greed": Greed}
HANDSHAKE = Handshake("ISOLATION_TEST", "on")
"""

PLUGIN = """
import os, resource, signal, subprocess, sys
at_start = {
    name: str(resource.getrlimit(getattr(resource, name)))
    for name in ("RLIMIT_DATA", "RLIMIT_CPU", "RLIMIT_NOFILE", "RLIMIT_NPROC")
}
environment = sorted(name for name in os.environ if name.startswith("LC_"))

class Greed:
    def limits(self):
        return at_start
    def allocate(self):
        kept = []
        while True:
            kept.append(bytearray(1 << 20))
            if len(kept) > 4000:
                return len(kept)
    def open_files(self):
        kept = []
        while True:
            kept.append(open(os.devnull))
    def burn(self):
        while True:
            pass
    def fork(self, user):
        if user:
            os.setuid(user)
        kept = []
        try:
            while len(kept) < 500:
                kept.append(subprocess.Popen(["sleep", "600"], close_fds=False))
        except BlockingIOError:
            return len(kept)
        finally:
            for each in kept:
                each.kill()
                each.wait()
        return len(kept)
    def shout(self, megabytes, descriptor):
        for _ in range(16 * megabytes):
            os.write(descriptor, b"x" * 65535 + b"\\n")
        return megabytes
    def surroundings(self):
        ignored = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, restore_signals=False)
        return [*environment, sys.argv[0], ignored.stdout.decode().split()[1], str(os.getpid() == os.getpgid(0))]
    def double(self, number):
        return 2 * number

if __name__ == "__main__":
    sys.path.insert(0, os.environ["GREED_FOLDER"])
    from hybridload import serve
    from greed_sdk import HANDSHAKE, PLUGINS
    serve(PLUGINS, {"greed": Greed()}, handshake=HANDSHAKE)
"""
CONFIG = """
[host]
plugins = "greed_sdk:PLUGINS"
handshake = "greed_sdk:HANDSHAKE"
[defaults]
isolation = "@ISOLATION@"
max_restarts = 0
[plugins.modest]
entry_point = "greed_plugin:Greed"
isolation = "subprocess"
[plugins.greedy]
entry_point = "greed_plugin:Greed"
command = "./greed_plugin.py"
env = { GREED_FOLDER = "@FOLDER@" }
"""

Greedy = Callable[..., tuple[Loader, Any]]


@pytest.fixture
def greedy(write_module: Any, open_loader: Callable[..., Loader], tmp_path: Path) -> Greedy:
    """Loads the greedy plugin with the given lines in its table."""
    write_module("greed_sdk", SDK)
    write_module("greed_plugin", PLUGIN)
    program = tmp_path / "greed_plugin.py"
    program.write_text(f"#!{sys.executable}\n{program.read_text()}")
    program.chmod(0o755)

    def load(*lines: str, isolation: str = "subprocess") -> tuple[Loader, Any]:
        if isolation == "preforked":
            isolation, lines = "subprocess", ("prefork = true", *lines)
        config = CONFIG.replace("@FOLDER@", str(tmp_path)).replace("@ISOLATION@", isolation)
        loader = open_loader(config="\n".join([config, *lines]))
        return loader, loader.load("greedy")

    return load


ALL = 'limits = { memory = "512MiB", cpu_seconds = 100, open_files = 100, processes = 5000 }'


@pytest.mark.parametrize("isolation", ["subprocess", "preforked", "external"])
def test_limits_hold_before_the_plugins_code_runs(greedy: Greedy, isolation: str) -> None:
    loader, plugin = greedy(ALL, isolation=isolation)
    assert plugin.limits() == {
        "RLIMIT_DATA": str((512 << 20, 512 << 20)),
        "RLIMIT_CPU": "(100, 101)",
        "RLIMIT_NOFILE": "(100, 100)",
        "RLIMIT_NPROC": "(5000, 5000)",
    }
    assert loader.load("modest").limits()["RLIMIT_CPU"] == str(resource.getrlimit(resource.RLIMIT_CPU))


def test_limits_hold_for_a_program_whose_checksum_was_verified(greedy: Greedy, tmp_path: Path) -> None:
    digest = hashlib.sha256((tmp_path / "greed_plugin.py").read_bytes()).hexdigest()
    _, plugin = greedy(ALL, f'sha256 = "{digest}"', isolation="external")
    assert plugin.limits()["RLIMIT_CPU"] == "(100, 101)"


@pytest.mark.parametrize("isolation", ["subprocess", "preforked", "external"])
def test_a_limited_plugin_starts_as_any_other(greedy: Greedy, isolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LC_") or name == "LANG"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    _, plain = greedy(isolation=isolation)
    _, limited = greedy(ALL, isolation=isolation)
    assert limited.surroundings() == plain.surroundings()


def test_a_missing_folder_is_told_as_ever(greedy: Greedy) -> None:
    with pytest.raises(ConfigError, match=r"working directory .*missing does not exist"):
        greedy("limits = { open_files = 100 }", 'cwd = "missing"', isolation="external")


def test_a_missing_interpreter_is_told_as_ever(greedy: Greedy, tmp_path: Path) -> None:
    (tmp_path / "greed_plugin.py").write_text("#!/nowhere/python\n")
    with pytest.raises(NoUsableIsolation, match="interpreter that its first line names") as caught:
        greedy("limits = { open_files = 100 }", isolation="external")
    assert isinstance(caught.value.__cause__, PluginNotFound)


def test_a_limit_that_is_too_low_to_start_with_is_thought_of(greedy: Greedy) -> None:
    with pytest.raises(NoUsableIsolation, match="limits hold for its start as well: they may be too low"):
        greedy("limits = { open_files = 3 }")


def test_one_that_allocates_without_end_gets_a_memory_error(greedy: Greedy) -> None:
    loader, plugin = greedy('limits = { memory = "400MB" }')
    modest = loader.load("modest")
    with pytest.raises((MemoryError, PluginCrashed)):
        plugin.allocate()
    assert modest.double(4) == 8


GO_SDK = """
from typing import Protocol
from hybridload import Contract, Handshake

class Work(Protocol):
    def echo(self, data: bytes) -> bytes: ...

PLUGINS = {"torture": Contract(Work, service="torture.Torture")}
HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")
"""


@pytest.mark.parametrize("checked", [False, True], ids=["", "of a verified program"])
def test_the_limits_of_a_go_program_hold(
    write_module: Any, go_build: Callable[[str], Path], tmp_path: Path, checked: bool
) -> None:
    write_module("go_limits_sdk", GO_SDK)
    program = go_build("tests/go/greeter")
    digest = f'sha256 = "{hashlib.sha256(program.read_bytes()).hexdigest()}"' if checked else ""
    config = tmp_path / "plugins.toml"

    def loader(memory: str) -> Loader:
        config.write_text(f"""
            [host]
            plugins = "go_limits_sdk:PLUGINS"
            handshake = "go_limits_sdk:HANDSHAKE"
            [plugins.gopher]
            command = "{program}"
            limits = {{ memory = "{memory}", cpu_seconds = 100, open_files = 100 }}
            {digest}
            """)
        return Loader(config=config, group=GROUP)

    with loader("150MB") as enough:
        assert enough.load("gopher").echo(b"x" * 1_000_000) == b"x" * 1_000_000
        process = psutil.Process(enough.status("gopher").pid)
        assert process.rlimit(psutil.RLIMIT_DATA) == (150_000_000, 150_000_000)
        assert process.rlimit(psutil.RLIMIT_CPU) == (100, 101)
        assert process.rlimit(psutil.RLIMIT_NOFILE) == (100, 100)
    with loader("1MB") as too_little, pytest.raises(NoUsableIsolation, match="limits hold for its start as well"):
        too_little.load("gopher")


def test_one_that_opens_files_without_end_gets_an_error(greedy: Greedy) -> None:
    loader, plugin = greedy("limits = { open_files = 64 }")
    with pytest.raises(OSError, match="Too many open files"):
        plugin.open_files()
    assert loader.load("modest").double(4) == 8


def test_one_that_burns_the_processor_is_ended_and_the_error_says_why(greedy: Greedy) -> None:
    loader, plugin = greedy("limits = { cpu_seconds = 2 }")
    modest = loader.load("modest")
    burning = in_thread(plugin.burn)
    answers = 0
    while not burning.done():
        assert modest.double(answers) == 2 * answers
        answers += 1
    with pytest.raises(PluginCrashed, match=r"signal \d+ \(SIGXCPU, its limit of cpu_seconds\)"):
        burning.result(PATIENCE)
    assert answers


def test_one_that_forks_without_end_gets_an_error(greedy: Greedy) -> None:
    # The limit does not hold root: as root, the plugin becomes a user of whom there is nothing else.
    root = os.getuid() == 0
    others = 0 if root else _tasks_of(os.getuid())
    loader, plugin = greedy(f"limits = {{ processes = {others + 60} }}")
    modest = loader.load("modest")
    assert 0 < plugin.fork(54_321 if root else 0) < 60
    assert modest.double(4) == 8


def _tasks_of(user: int) -> int:
    found = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                found += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return found


OUTPUTS = {"stdout": 1, "stderr": 2}
_TAKEN = 50_000_000
"""Bytes by which the host may grow meanwhile, whatever is written."""


@pytest.mark.parametrize("output", OUTPUTS)
def test_others_answer_while_one_writes_100_megabytes(greedy: Greedy, output: str) -> None:
    loader, plugin = greedy()
    measure(f"100 MB to {output}", loader.load("modest"), plugin.shout, 100, OUTPUTS[output])


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_latency_of_others_while_one_takes_all_it_can_get(greedy: Greedy) -> None:
    """Prints the ratios; what they may be depends on the machine and on who else is busy on it."""
    loader, plugin = greedy('limits = { memory = "400MB" }')
    modest = loader.load("modest")
    for output, descriptor in OUTPUTS.items():
        measure(f"1 GB to {output}", modest, plugin.shout, 1024, descriptor)
    measure("allocating without end", modest, plugin.allocate)
    if os.getuid() == 0:
        measure("500 processes", modest, plugin.fork, 0)


def measure(what: str, modest: Any, work: Callable[..., Any], *args: Any) -> None:
    """Call one plugin while another is at something, and tell how long calls took before and meanwhile."""
    this = psutil.Process()
    before = sorted(took(modest) for _ in range(500))
    rss = this.memory_info().rss
    busy = in_thread(work, *args)
    meanwhile, grown = [], 0
    while not busy.done():
        meanwhile.append(took(modest))
        if len(meanwhile) % 50 == 1:
            grown = max(grown, this.memory_info().rss - rss)
    error = busy.exception(PATIENCE)
    print(
        f"{what}: {len(meanwhile)} calls, "
        + ", ".join(
            f"{part} {1e6 * quantile(before, part):.0f} us, then {1e6 * quantile(sorted(meanwhile), part):.0f} us"
            for part in (0.5, 0.9)
        )
        + f"; the host grew {grown >> 20} MiB; it ended with {error!r:.80}"
    )
    assert meanwhile
    assert grown < _TAKEN


def took(modest: Any) -> float:
    began = time.perf_counter()
    assert modest.double(21) == 42
    return time.perf_counter() - began


def quantile(times: list[float], part: float) -> float:
    return times[int(part * len(times))]


def test_those_of_defaults_hold_where_a_plugin_says_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plugins.toml"
    path.write_text(
        '[defaults]\nlimits = { memory = "1GB", open_files = 64 }\n[plugins.a]\nlimits = { open_files = 8 }\n'
    )
    settings = load_settings(path, environ={})
    assert settings.for_plugin("a").limits == Limits(memory=10**9, open_files=8)
    assert settings.for_plugin("b").limits == Limits(memory=10**9, open_files=64)


@pytest.mark.parametrize(
    ("given", "bytes_"), [("12345", 12345), ('"7"', 7), ('"512MB"', 512 * 10**6), ('"2 GiB"', 2 << 30), ('"3kb"', 3000)]
)
def test_sizes_have_units(tmp_path: Path, given: str, bytes_: int) -> None:
    path = tmp_path / "plugins.toml"
    path.write_text(f"[plugins.a]\nlimits = {{ memory = {given} }}\n")
    assert load_settings(path, environ={}).for_plugin("a").limits.memory == bytes_


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('memory = "lots"', "memory is 'lots'; expected a size greater than 0, in bytes or as \"512MB\""),
        ('memory = "5 XB"', "memory is '5 XB'; expected a size"),
        ("memory = 0", "memory is 0; expected a size"),
        ("memory = 1.5", "memory is 1.5; expected a size"),
        ("cpu_seconds = 0.5", "cpu_seconds is 0.5; expected a whole number of seconds"),
        ("open_files = true", "open_files is True; expected a number"),
        ('processes = "10"', "processes is '10'; expected a number"),
        ("files = 3", "'files' is not a limit; expected some of memory, cpu_seconds, open_files, processes"),
    ],
)
def test_a_wrong_limit_is_refused(tmp_path: Path, given: str, message: str) -> None:
    path = tmp_path / "plugins.toml"
    path.write_text(f"[plugins.a]\nlimits = {{ {given} }}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ={})
    assert f"plugins.a.limits: {message}" in str(caught.value)


def test_where_there_is_no_setrlimit_limits_are_an_error(greedy: Greedy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(ConfigError, match="'greedy' has limits, which cannot be enforced here: this system has no"):
        greedy("limits = { open_files = 64 }")


def test_no_other_signal_is_put_down_to_a_limit() -> None:
    assert describe_exit(-9) == "by signal 9 (SIGKILL)"
