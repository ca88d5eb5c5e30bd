"""Plugins that `serve` serves, started by go-plugin's own host."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

PROGRAMS = Path(__file__).parent.parent / "goplugin"
PATIENCE = 30.0

KILLED = pytest.mark.leaves("files", reason="a Go host kills a plugin at once that it does not come to terms with")


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., list[str]]:
    """A plugin's command: the given lines, which may use what `torture_plugin` has."""

    def make(source: str = "main()", before: str = "") -> list[str]:
        path = tmp_path / f"plugin{len(list(tmp_path.iterdir()))}.py"
        lines = (before, f"import sys; sys.path.insert(0, {str(PROGRAMS)!r})", "from torture_plugin import *", source)
        path.write_text("\n".join(textwrap.dedent(part).strip() for part in lines))
        return [sys.executable, str(path)]

    return make


class GoHost:
    """tests/go/host, and what it reports."""

    def __init__(self, host: Path, arguments: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [str(host), *arguments],
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.events: list[dict[str, Any]] = []

    def until(self, event: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == event:
                return self.events[-1]
        raise AssertionError(f"the host reported no {event}, but {self.events}")

    @property
    def answers(self) -> list[Any]:
        """The values, or the errors, of all calls."""
        return [event.get("error", event["value"]) for event in self.events if event["event"] == "answer"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def go_host(go_build: Callable[[str], Path], program: Callable[..., list[str]]) -> Iterator[Callable[..., GoHost]]:
    """Runs the Go host with the plugin whose source is given; flags and calls come after it."""
    hosts: list[GoHost] = []
    host = go_build("tests/go/host")

    def begin(
        *flags: str, calls: tuple[str, ...] = (), wrapper: str = "", source: str = "main()", **env: str
    ) -> GoHost:
        command = program(source)
        if wrapper:
            command = ["sh", "-c", " ".join(command) + "; true"]
        told = [word for call in calls for word in ("-call", call)]
        env.setdefault("PYTHONUNBUFFERED", "")
        hosts.append(GoHost(host, ["-start-timeout", "60s", *flags, *told, *command], env))
        return hosts[-1]

    yield begin
    for each in hosts:
        each.close()


def write(target: str, size: int, line_length: int = 100) -> str:
    return "torture.Torture/Write=" + json.dumps({"target": target, "size": size, "line_length": line_length})


def pattern(size: int) -> bytes:
    return ((b"x" * 99 + b"\n") * (size // 100 + 1))[:size]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def lines(stopped: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of the plugin's own loggers, without the host's."""
    return [record for record in stopped["log"] if record.get("@module") == "torture.log"]


def gone(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_greets(go_host: Callable[..., GoHost]) -> None:
    host = go_host(calls=("ping", "greet", "ping"))
    started = host.until("started")
    assert (started["protocol"], started["version"]) == ("grpc", 1)
    stopped = host.until("stopped")
    assert host.answers == [None, "Hello from Python!", None]
    assert stopped["exited"]
    # The host kills what has not ended two seconds after it was asked to; ours ends at once.
    assert stopped["seconds"] < 1.5
    assert stopped["sync_stdout"]["text"] == "closing\n"


@pytest.mark.parametrize("size", [64 * 1024, 10 * 1024 * 1024], ids=["64 KiB", "10 MB"])
def test_takes_what_is_printed_in_the_middle_of_a_call(go_host: Callable[..., GoHost], size: int) -> None:
    host = go_host(calls=(write("OS_STDOUT", size), write("OS_STDERR", size), "greet"))
    stopped = host.until("stopped")
    assert host.answers[2] == "Hello from Python!"
    out = pattern(size) + b"closing\n"
    assert stopped["sync_stdout"]["size"] == len(out)
    assert stopped["sync_stdout"]["sha256"] == digest(out)
    assert stopped["sync_stderr"]["sha256"] == digest(pattern(size))


@pytest.mark.parametrize("size", [64 * 1024, 10 * 1024 * 1024], ids=["64 KiB", "10 MB"])
def test_takes_what_c_code_writes_to_the_raw_descriptors(go_host: Callable[..., GoHost], size: int) -> None:
    host = go_host(calls=(write("RAW_STDOUT", size), write("RAW_STDERR", size), "greet"))
    stopped = host.until("stopped")
    assert host.answers[2] == "Hello from Python!"
    assert stopped["stderr"]["size"] >= size


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_print_before_serving_spoils_nothing(go_host: Callable[..., GoHost], unbuffered: str) -> None:
    host = go_host(calls=("greet",), source="print('before')\nmain()\nprint('after')", PYTHONUNBUFFERED=unbuffered)
    stopped = host.until("stopped")
    assert host.answers == ["Hello from Python!"]
    assert "before\n" in stopped["stderr"]["text"]


def test_gets_log_records_with_level_module_and_fields(go_host: Callable[..., GoHost]) -> None:
    log = 'torture.Torture/Log={"lines":2,"level":"%s"}'
    levels = ("trace", "debug", "info", "warn", "error")
    source = "import logging\nlogging.getLogger().setLevel(1)\nmain()"
    host = go_host(calls=tuple(log % level for level in levels), source=source)
    records = [record for record in lines(host.until("stopped")) if "number" in record]
    assert [(record["@level"], record["@message"], record["number"]) for record in records] == [
        (level, f"line {number}", number) for level in levels for number in range(2)
    ]
    assert all(record["odd"] == [1, 2] and "timestamp" in record for record in records)


def test_gets_twenty_thousand_log_records_in_order(go_host: Callable[..., GoHost]) -> None:
    host = go_host(calls=('torture.Torture/Log={"lines":20000,"level":"info","padding":"20"}',))
    records = [record for record in lines(host.until("stopped")) if "number" in record]
    assert [record["number"] for record in records] == list(range(20_000))


def test_gets_a_log_message_that_is_larger_than_its_buffer_in_records(go_host: Callable[..., GoHost]) -> None:
    host = go_host(calls=('torture.Torture/Log={"lines":1,"level":"warn","padding":"200000"}',))
    parts = [record for record in lines(host.until("stopped")) if "part" in record]
    assert "".join(record["@message"] for record in parts) == "line 0" + "x" * 200_000
    assert {record["@level"] for record in parts} == {"warn"}


def test_gets_errors_with_their_text(go_host: Callable[..., GoHost]) -> None:
    calls = ('torture.Torture/Fail={"message":"boom"}', 'torture.Torture/Fail={"code":3}', "greet")
    host = go_host(calls=calls)
    host.until("stopped")
    assert "code = InvalidArgument" in host.answers[0]
    assert "boom" in host.answers[0]
    assert "code = Unknown desc = 3" in host.answers[1]
    assert host.answers[2] == "Hello from Python!"


def test_gets_a_stream(go_host: Callable[..., GoHost]) -> None:
    host = go_host(calls=('torture.Torture/Count={"count":"2000"}',))
    host.until("stopped")
    assert [int(item.get("number", 0)) for item in host.answers[0]] == list(range(2000))


@pytest.mark.leaves("files", reason="a process that ends by os._exit runs nothing of its own any more")
def test_sees_a_crash(go_host: Callable[..., GoHost]) -> None:
    host = go_host(calls=('torture.Torture/Exit={"code":7}',))
    stopped = host.until("stopped")
    assert "Unavailable" in host.answers[0]
    assert any(record.get("error") == "exit status 7" for record in stopped["log"])


def test_without_the_cookie_it_fails_and_logs_the_text_for_humans(go_host: Callable[..., GoHost]) -> None:
    failed = go_host("-cookie", "BASIC_PLUGIN=wrong").until("failed")
    assert "Unrecognized remote plugin message" in failed["error"]
    assert any("is not meant to be executed directly" in record["@message"] for record in failed["log"])


@pytest.mark.parametrize(("offered", "version"), [("1", 1), ("1,2", 2), ("2,5", 2), ("1,2,3,9", 3)])
def test_agrees_on_the_highest_common_version(go_host: Callable[..., GoHost], offered: str, version: int) -> None:
    source = """
    kinds, served = {"greeter": GREETER}, {"greeter": GreeterImpl()}
    serve({1: kinds, 2: kinds, 3: kinds}, {1: served, 2: served, 3: served}, handshake=HANDSHAKE)
    """
    host = go_host("-versions", offered, calls=("greet",), source=source)
    assert host.until("started")["version"] == version
    host.until("stopped")
    assert host.answers == ["Hello from Python!"]


@KILLED
def test_reports_that_there_is_no_common_version(go_host: Callable[..., GoHost]) -> None:
    assert "incompatible API version" in go_host("-versions", "7").until("failed")["error"]


def test_may_withhold_its_environment(go_host: Callable[..., GoHost]) -> None:
    needed = [f"{name}={os.environ[name]}" for name in ("TMPDIR", "HYBRIDLOAD_TEST_ID")]
    flags = [word for each in needed for word in ("-env", each)]
    host = go_host("-skip-host-env", *flags, calls=("greet",))
    host.until("stopped")
    assert host.answers == ["Hello from Python!"]


def test_an_interrupt_from_the_terminal_does_not_end_the_plugin(go_host: Callable[..., GoHost]) -> None:
    host = go_host("-wait", "stdin", calls=("greet",))
    pid = int(host.until("started")["pid"])
    host.until("waiting")
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGINT)
    host.process.communicate(timeout=PATIENCE)
    assert host.process.returncode == 0


def test_a_stuck_call_does_not_keep_the_plugin_from_ending(go_host: Callable[..., GoHost]) -> None:
    source = """
    import threading
    class Stuck(GreeterImpl):
        def greet(self):
            threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
            return super().greet()
    served = {"torture": TortureImpl(), "python": PythonImpl(), "greeter": Stuck()}
    serve(PLUGINS, served, handshake=HANDSHAKE)
    """
    host = go_host(calls=("greet",), source=source)
    assert host.until("stopped")["seconds"] < 2


@pytest.mark.parametrize("wrapper", ["", "shell"], ids=["direct", "through a shell"])
def test_a_killed_host_leaves_nothing(go_host: Callable[..., GoHost], wrapper: str) -> None:
    host = go_host("-wait", "ever", calls=("torture.Torture/Process", "greet"), wrapper=wrapper)
    started = host.until("started")
    host.until("waiting")
    plugin = int(host.answers[0]["pid"])
    assert psutil.pid_exists(plugin)
    folder = Path(started["reattach"]["Addr"]["String"]).parent
    assert folder.name.startswith("hybridload-")
    host.process.kill()
    assert gone(plugin)
    assert not folder.exists()


def test_a_host_that_is_killed_in_the_middle_of_calls_leaves_nothing(go_host: Callable[..., GoHost]) -> None:
    host = go_host(calls=("torture.Torture/Process", "torture.Torture/Hang"))
    host.until("answer")
    plugin = int(host.answers[0]["pid"])
    host.process.kill()
    assert gone(plugin)


def test_reattaches_to_a_plugin_that_outlived_another_host(go_host: Callable[..., GoHost]) -> None:
    first = go_host("-no-kill", calls=("greet",), source="main(outlive_host=True)")
    reattach = first.until("started")["reattach"]
    first.until("stopped")
    first.process.wait(PATIENCE)
    calls = ("greet", write("OS_STDOUT", 100_000), write("RAW_STDOUT", 10))
    second = go_host("-reattach", json.dumps(reattach), calls=calls)
    stopped = second.until("stopped")
    assert second.answers[0] == "Hello from Python!"
    # go-plugin's own plugins lose their output here.
    assert stopped["sync_stdout"]["sha256"] == digest(pattern(100_000) + b"closing\n")
    assert gone(reattach["Pid"])


@pytest.mark.parametrize("threads", [1, 8])
def test_many_calls_from_many_threads(go_host: Callable[..., GoHost], threads: int) -> None:
    bench = go_host("-bench", "2000", "-threads", str(threads)).until("bench")
    assert bench["calls"] == 2000
