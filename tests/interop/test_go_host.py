"""Plugins that `serve` serves, started by go-plugin's own host."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
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


@pytest.fixture
def host_of(start_go_host: Callable[..., Any], program: Callable[..., list[str]]) -> Callable[..., Any]:
    """Starts the Go host with the plugin whose source is given."""

    def begin(*flags: str, calls: tuple[str, ...] = (), wrapper: str = "", source: str = "main()", **env: str) -> Any:
        command = program(source)
        if wrapper:
            command = ["sh", "-c", " ".join(command) + "; true"]
        told = [word for call in calls for word in ("-call", call)]
        return start_go_host(command, *flags, *told, env={**os.environ, "PYTHONUNBUFFERED": "", **env})

    return begin


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


def test_greets(host_of: Callable[..., Any]) -> None:
    host = host_of(calls=("ping", "greet", "ping"))
    started = host.wait_for("started")
    assert (started["protocol"], started["version"]) == ("grpc", 1)
    stopped = host.wait_for("stopped")
    assert host.answers == [None, "Hello from Python!", None]
    assert stopped["exited"]
    # The host kills what has not ended two seconds after it was asked to; ours ends at once.
    assert stopped["seconds"] < 1.5
    assert stopped["sync_stdout"]["text"] == "closing\n"


@pytest.mark.parametrize("size", [64 * 1024, 10 * 1024 * 1024], ids=["64 KiB", "10 MB"])
def test_takes_what_is_printed_in_the_middle_of_a_call(host_of: Callable[..., Any], size: int) -> None:
    host = host_of(calls=(write("OS_STDOUT", size), write("OS_STDERR", size), "greet"))
    stopped = host.wait_for("stopped")
    assert host.answers[2] == "Hello from Python!"
    out = pattern(size) + b"closing\n"
    assert stopped["sync_stdout"]["size"] == len(out)
    assert stopped["sync_stdout"]["sha256"] == digest(out)
    assert stopped["sync_stderr"]["sha256"] == digest(pattern(size))


@pytest.mark.parametrize("size", [64 * 1024, 10 * 1024 * 1024], ids=["64 KiB", "10 MB"])
def test_takes_what_c_code_writes_to_the_raw_descriptors(host_of: Callable[..., Any], size: int) -> None:
    host = host_of(calls=(write("RAW_STDOUT", size), write("RAW_STDERR", size), "greet"))
    stopped = host.wait_for("stopped")
    assert host.answers[2] == "Hello from Python!"
    assert stopped["stderr"]["size"] >= size


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_print_before_serving_spoils_nothing(host_of: Callable[..., Any], unbuffered: str) -> None:
    host = host_of(calls=("greet",), source="print('before')\nmain()\nprint('after')", PYTHONUNBUFFERED=unbuffered)
    stopped = host.wait_for("stopped")
    assert host.answers == ["Hello from Python!"]
    assert "before\n" in stopped["stderr"]["text"]


def test_gets_log_records_with_level_module_and_fields(host_of: Callable[..., Any]) -> None:
    log = 'torture.Torture/Log={"lines":2,"level":"%s"}'
    levels = ("trace", "debug", "info", "warn", "error")
    source = "import logging\nlogging.getLogger().setLevel(1)\nmain()"
    host = host_of(calls=tuple(log % level for level in levels), source=source)
    records = [record for record in lines(host.wait_for("stopped")) if "number" in record]
    assert [(record["@level"], record["@message"], record["number"]) for record in records] == [
        (level, f"line {number}", number) for level in levels for number in range(2)
    ]
    assert all(record["odd"] == [1, 2] and "timestamp" in record for record in records)


def test_gets_twenty_thousand_log_records_in_order(host_of: Callable[..., Any]) -> None:
    host = host_of(calls=('torture.Torture/Log={"lines":20000,"level":"info","padding":"20"}',))
    records = [record for record in lines(host.wait_for("stopped")) if "number" in record]
    assert [record["number"] for record in records] == list(range(20_000))


def test_gets_a_log_message_that_is_larger_than_its_buffer_in_records(host_of: Callable[..., Any]) -> None:
    host = host_of(calls=('torture.Torture/Log={"lines":1,"level":"warn","padding":"200000"}',))
    parts = [record for record in lines(host.wait_for("stopped")) if "part" in record]
    assert "".join(record["@message"] for record in parts) == "line 0" + "x" * 200_000
    assert {record["@level"] for record in parts} == {"warn"}


def test_gets_errors_with_their_text(host_of: Callable[..., Any]) -> None:
    calls = ('torture.Torture/Fail={"message":"boom"}', 'torture.Torture/Fail={"code":3}', "greet")
    host = host_of(calls=calls)
    host.wait_for("stopped")
    assert "code = InvalidArgument" in host.answers[0]["error"]
    assert "boom" in host.answers[0]["error"]
    assert "code = Unknown" in host.answers[1]["error"]
    assert host.answers[2] == "Hello from Python!"


def test_gets_a_stream(host_of: Callable[..., Any]) -> None:
    host = host_of(calls=('torture.Torture/Count={"count":"2000"}',))
    host.wait_for("stopped")
    assert [int(item.get("number", 0)) for item in host.answers[0]] == list(range(2000))


@pytest.mark.leaves("files", reason="a process that ends by os._exit runs nothing of its own any more")
def test_sees_a_crash(host_of: Callable[..., Any]) -> None:
    host = host_of(calls=('torture.Torture/Exit={"code":7}',))
    stopped = host.wait_for("stopped")
    assert "Unavailable" in host.answers[0]["error"]
    assert any(record.get("error") == "exit status 7" for record in stopped["log"])


def test_without_the_cookie_it_fails_and_logs_the_text_for_humans(host_of: Callable[..., Any]) -> None:
    failed = host_of("-cookie", "BASIC_PLUGIN=wrong").wait_for("failed")
    assert "Unrecognized remote plugin message" in failed["error"]
    assert any("is not meant to be executed directly" in record["@message"] for record in failed["log"])


@pytest.mark.parametrize(("offered", "version"), [("1", 1), ("1,2", 2), ("2,5", 2), ("1,2,3,9", 3)])
def test_agrees_on_the_highest_common_version(host_of: Callable[..., Any], offered: str, version: int) -> None:
    source = """
    kinds, served = {"greeter": GREETER}, {"greeter": GreeterImpl()}
    serve({1: kinds, 2: kinds, 3: kinds}, {1: served, 2: served, 3: served}, handshake=HANDSHAKE)
    """
    host = host_of("-versions", offered, calls=("greet",), source=source)
    assert host.wait_for("started")["version"] == version
    host.wait_for("stopped")
    assert host.answers == ["Hello from Python!"]


@KILLED
def test_reports_that_there_is_no_common_version(host_of: Callable[..., Any]) -> None:
    assert "incompatible API version" in host_of("-versions", "7").wait_for("failed")["error"]


@pytest.mark.parametrize(
    ("engine", "flags"),
    [
        (engine, flags)
        for engine in ("direct", "grpcio")
        for flags in ((), ("-mtls",), ("-multiplex",), ("-mtls", "-multiplex"))
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value) or "plain",
)
def test_every_engine_serves_it(host_of: Callable[..., Any], engine: str, flags: tuple[str, ...]) -> None:
    calls = ("ping", "greet", 'torture.Torture/Count={"count":"100"}', write("OS_STDOUT", 100_000))
    host = host_of(*flags, calls=calls, HYBRIDLOAD_ENGINE=engine)
    stopped = host.wait_for("stopped")
    assert host.answers[1] == "Hello from Python!"
    assert len(host.answers[2]) == 100
    assert stopped["sync_stdout"]["sha256"] == digest(pattern(100_000) + b"closing\n")
    assert stopped["seconds"] < 1.5


def test_may_withhold_its_environment(host_of: Callable[..., Any]) -> None:
    needed = [f"{name}={os.environ[name]}" for name in ("TMPDIR", "HYBRIDLOAD_TEST_ID")]
    flags = [word for each in needed for word in ("-env", each)]
    host = host_of("-skip-host-env", *flags, calls=("greet",))
    host.wait_for("stopped")
    assert host.answers == ["Hello from Python!"]


def test_an_interrupt_from_the_terminal_does_not_end_the_plugin(host_of: Callable[..., Any]) -> None:
    host = host_of("-wait", "stdin", calls=("greet",))
    pid = int(host.wait_for("started")["pid"])
    host.wait_for("waiting")
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGINT)
    assert host.finish().process.returncode == 0


def test_a_stuck_call_does_not_keep_the_plugin_from_ending(host_of: Callable[..., Any]) -> None:
    source = """
    import threading
    class Stuck(GreeterImpl):
        def greet(self):
            threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
            return super().greet()
    served = {"torture": TortureImpl(), "python": PythonImpl(), "greeter": Stuck()}
    serve(PLUGINS, served, handshake=HANDSHAKE)
    """
    host = host_of(calls=("greet",), source=source)
    assert host.wait_for("stopped")["seconds"] < 2


@pytest.mark.parametrize("wrapper", ["", "shell"], ids=["direct", "through a shell"])
def test_a_killed_host_leaves_nothing(host_of: Callable[..., Any], wrapper: str) -> None:
    host = host_of("-wait", "ever", calls=("torture.Torture/Process", "greet"), wrapper=wrapper)
    started = host.wait_for("started")
    host.wait_for("waiting")
    plugin = int(host.answers[0]["pid"])
    assert psutil.pid_exists(plugin)
    folder = Path(started["reattach"]["Addr"]["String"]).parent
    assert folder.name.startswith("hybridload-")
    host.process.kill()
    assert gone(plugin)
    assert not folder.exists()


def test_a_host_that_is_killed_in_the_middle_of_calls_leaves_nothing(host_of: Callable[..., Any]) -> None:
    host = host_of(calls=("torture.Torture/Process", "torture.Torture/Hang"))
    host.wait_for("answer")
    plugin = int(host.answers[0]["pid"])
    host.process.kill()
    assert gone(plugin)


def test_reattaches_to_a_plugin_that_outlived_another_host(host_of: Callable[..., Any]) -> None:
    first = host_of("-no-kill", calls=("greet",), source="main(outlive_host=True)")
    reattach = first.wait_for("started")["reattach"]
    first.wait_for("stopped")
    first.process.wait(PATIENCE)
    calls = ("greet", write("OS_STDOUT", 100_000), write("RAW_STDOUT", 10))
    second = host_of("-reattach", json.dumps(reattach), calls=calls)
    stopped = second.wait_for("stopped")
    assert second.answers[0] == "Hello from Python!"
    # go-plugin's own plugins lose their output here.
    assert stopped["sync_stdout"]["sha256"] == digest(pattern(100_000) + b"closing\n")
    assert gone(reattach["Pid"])


@pytest.mark.parametrize("threads", [1, 8])
def test_many_calls_from_many_threads(host_of: Callable[..., Any], threads: int) -> None:
    bench = host_of("-bench", "2000", "-threads", str(threads)).wait_for("bench")
    assert bench["calls"] == 2000
