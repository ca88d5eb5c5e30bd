"""A plugin's process: drained, watched, ended, with nothing left of it or of what it started."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hybridload.errors import ChecksumMismatch, ConfigError, PermissionDenied, PluginNotFound, ProcessError
from hybridload.goplugin.lifeline import Lifeline, SharedLifeline
from hybridload.goplugin.process import PluginProcess, ProcessSpec, _Pace, describe_exit


class Recorder:
    def __init__(self) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.codes: list[int] = []


@pytest.fixture
def run() -> Iterator[Callable[..., tuple[PluginProcess, Recorder]]]:
    started: list[PluginProcess] = []

    def start(
        *argv: str, sha256: str | None = None, cwd: str | None = None, lifeline: Lifeline | None = None
    ) -> tuple[PluginProcess, Recorder]:
        seen = Recorder()
        process = PluginProcess(
            ProcessSpec(argv, dict(os.environ), cwd, sha256),
            name="test",
            on_stdout=seen.stdout.extend,
            on_stderr=seen.stderr.extend,
            on_exit=seen.codes.append,
            lifeline=lifeline,
        )
        started.append(process)
        return process, seen

    yield start
    for process in started:
        process.close()


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def wait_for(condition: Callable[[], Any], timeout: float = 10) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return value


def test_all_output_and_the_exit_status_arrive(run: Any) -> None:
    process, seen = run(
        *python("import sys; sys.stdout.write('o' * 3_000_000); sys.stderr.write('e' * 3_000_000); sys.exit(7)")
    )
    assert process.wait(30)
    assert (len(seen.stdout), len(seen.stderr), seen.codes) == (3_000_000, 3_000_000, [7])
    assert (process.returncode, process.ended) == (7, True)


def test_a_killed_process_has_its_signal_for_a_return_code(run: Any) -> None:
    process, seen = run("/bin/sleep", "60")
    process.kill()
    assert process.wait(10)
    assert seen.codes == [-signal.SIGKILL]


def test_its_end_counts_and_not_that_of_a_grandchild_which_holds_the_pipes(run: Any) -> None:
    process, seen = run("/bin/sh", "-c", "setsid sleep 60 & echo $!; exit 3")
    try:
        assert process.wait(10)
        assert process.returncode == 3
    finally:
        os.kill(int(seen.stdout), signal.SIGKILL)


def test_what_it_started_in_its_group_goes_with_it(run: Any) -> None:
    process, seen = run("/bin/sh", "-c", "sleep 60 & echo $!; exec sleep 60")
    grandchild = int(wait_for(lambda: bytes(seen.stdout) if seen.stdout.endswith(b"\n") else None))
    process.kill()
    assert process.wait(10)
    wait_for(lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie")


def test_a_sink_that_fails_does_not_stop_the_draining(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    def fail(data: bytes) -> None:
        raise RuntimeError("full")

    process = PluginProcess(
        ProcessSpec(python("print('x' * 1_000_000)"), dict(os.environ)),
        name="test",
        on_stdout=fail,
        on_stderr=lambda data: None,
        on_exit=lambda code: None,
        lifeline=None,
    )
    assert process.wait(10)
    process.close()
    assert "could not be handed on" in caplog.text


def test_a_host_without_memory_reads_later_what_was_written(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read, short = os.read, iter([True] * 3)

    def reads(descriptor: int, size: int) -> bytes:
        if threading.current_thread().name.endswith(" pipes") and next(short, False):
            raise MemoryError
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", reads)
    process, seen = run(*python("import time; print('before', flush=True); time.sleep(60)"))
    wait_for(lambda: seen.stdout == b"before\n")
    assert next(short, None) is None
    assert seen.codes == []
    process.close()
    assert seen.codes == [-signal.SIGKILL]


def test_closing_from_the_exit_callback_does_not_wait_for_itself() -> None:
    done = threading.Event()
    made: list[PluginProcess] = []

    def on_exit(code: int) -> None:
        wait_for(lambda: made)
        made[0].close()
        done.set()

    made.append(
        PluginProcess(
            ProcessSpec(("/bin/true",), {}),
            name="test",
            on_stdout=lambda data: None,
            on_stderr=lambda data: None,
            on_exit=on_exit,
            lifeline=None,
        )
    )
    assert done.wait(10)
    made[0].close()


@pytest.mark.parametrize(
    ("content", "mode", "error", "says"),
    [
        (None, 0o755, PluginNotFound, "no program"),
        ("#!/no/such/interpreter\n", 0o755, PluginNotFound, "interpreter"),
        ("just text\n", 0o755, PermissionDenied, "not a program"),
    ],
)
def test_says_why_a_file_cannot_be_run(
    run: Any, tmp_path: Path, content: str | None, mode: int, error: type[Exception], says: str
) -> None:
    program = tmp_path / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    with pytest.raises(error, match=says):
        run(str(program))


def test_a_missing_working_directory_is_named(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="working directory"):
        run("/bin/true", cwd=str(tmp_path / "nowhere"))


@pytest.mark.skipif(sys.platform != "linux", reason="systems take different sizes")
def test_one_that_is_given_too_much_is_told_so(run: Any) -> None:
    with pytest.raises(ProcessError, match="larger than the system takes"):
        run("/bin/true", "x" * (128 << 10))


def test_a_wrong_checksum_is_refused_with_both_digests(run: Any) -> None:
    with pytest.raises(ChecksumMismatch) as caught:
        run("/bin/true", sha256="0" * 64)
    assert caught.value.expected == "0" * 64
    assert caught.value.actual == hashlib.sha256(Path("/bin/true").read_bytes()).hexdigest()


def test_the_bytes_that_were_checked_are_the_bytes_that_run(tmp_path: Path) -> None:
    """The file is rewritten, in place and by rename, while plugins start: none of them runs the other's bytes."""
    good = b"#!/bin/sh\necho good\n"
    program = tmp_path / "program"
    program.write_bytes(good)
    program.chmod(0o755)
    stop = threading.Event()

    def swap() -> None:
        other = tmp_path / "other"
        while not stop.is_set():
            program.write_bytes(b"#!/bin/sh\necho evil\n")
            other.write_bytes(good)
            other.chmod(0o755)
            other.rename(program)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        ran = refused = 0
        while ran < 10 or refused < 10:
            seen = Recorder()
            try:
                process = PluginProcess(
                    ProcessSpec((str(program),), {}, None, hashlib.sha256(good).hexdigest()),
                    name="test",
                    on_stdout=seen.stdout.extend,
                    on_stderr=seen.stderr.extend,
                    on_exit=seen.codes.append,
                    lifeline=None,
                )
            except ChecksumMismatch:
                refused += 1
                continue
            assert process.wait(10)
            process.close()
            assert bytes(seen.stdout) == b"good\n"
            ran += 1
    finally:
        stop.set()
        swapper.join()


def test_no_descriptor_of_the_host_reaches_the_plugin(run: Any) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        process, seen = run(*python("import os; print(sorted(os.listdir('/proc/self/fd')))"))
        assert process.wait(10)
        # The last one is the listing's own.
        assert bytes(seen.stdout).strip() == b"['0', '1', '2', '3']"
    finally:
        os.close(reader)
        os.close(writer)


HOST = """
import os, signal, sys, time
from hybridload.goplugin.lifeline import Lifeline
from hybridload.goplugin.process import PluginProcess, ProcessSpec
lifeline = Lifeline()
made = [
    PluginProcess(ProcessSpec(("/bin/sh", "-c", "sleep 600 & exec sleep 600"), dict(os.environ)), name=str(n),
        on_stdout=print, on_stderr=print, on_exit=print, lifeline=lifeline)
    for n in range(2)
]
if sys.argv[1] == "watcher-killed":
    lifeline._watcher.kill()
    lifeline._watcher.wait()
    made.append(PluginProcess(ProcessSpec(("/bin/sleep", "600"), dict(os.environ)), name="3",
        on_stdout=print, on_stderr=print, on_exit=print, lifeline=lifeline))
print("ready", flush=True)
time.sleep(600)
"""


def _sleepers(pid: int, enough: int) -> list[psutil.Process] | None:
    family = psutil.Process(pid).children(recursive=True)
    return family if sum(each.name() == "sleep" for each in family) >= enough else None


@pytest.mark.parametrize("how", ["killed", "watcher-killed"])
def test_nothing_outlives_a_host_that_is_killed(how: str) -> None:
    with subprocess.Popen([*python(HOST), how], stdout=subprocess.PIPE) as host:
        try:
            assert host.stdout is not None
            assert host.stdout.readline() == b"ready\n"
            family = wait_for(lambda: _sleepers(host.pid, 4 if how == "killed" else 5))
        finally:
            host.kill()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_the_watcher_lets_go_of_what_was_released(run: Any) -> None:
    lifeline = Lifeline()
    kept, _ = run("/bin/sleep", "60")
    lifeline.guard(kept.pid)
    lifeline.release(kept.pid)
    lifeline.close()
    lifeline.close()
    assert not kept.wait(0.2)


def test_what_nobody_has_let_go_of_ends_with_the_watcher(run: Any) -> None:
    lifeline = Lifeline()
    process, _ = run("/bin/sleep", "60", lifeline=lifeline)
    lifeline.close()
    assert process.wait(10)


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "with exit status 0"), (-9, "by signal 9 (SIGKILL)"), (-99, "by signal 99"), (None, "in an unknown way")],
)
def test_an_exit_is_described_in_words(code: int | None, words: str) -> None:
    assert describe_exit(code) == words


def test_a_status_that_the_system_has_thrown_away_is_not_taken_for_success() -> None:
    """Where SIGCHLD is ignored, nobody learns how a child ended."""
    code = """
import os, signal, sys, threading
from hybridload.goplugin.process import PluginProcess, ProcessSpec
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
ended = threading.Event()
process = PluginProcess(
    ProcessSpec((sys.executable, "-c", "import time; time.sleep(60)"), dict(os.environ), None, None),
    name="test", on_stdout=len, on_stderr=len, on_exit=lambda status: (print(status), ended.set()), lifeline=None,
)
os.kill(process.pid, signal.SIGKILL)
assert ended.wait(10)
process.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_output_without_end_is_taken_at_a_steady_pace() -> None:
    pace, megabyte = _Pace(now=100.0), 1 << 20
    assert [pace.pause_after(megabyte, now=100.0) for _ in range(16)] == [0.0] * 16
    assert pace.pause_after(megabyte, now=100.0) == 1 / 64
    assert pace.pause_after(megabyte, now=100.0 + 1 / 64) == 1 / 64
    # After a quiet while it is taken as fast as ever.
    assert [pace.pause_after(megabyte, now=200.0) for _ in range(16)] == [0.0] * 16
    assert pace.pause_after(megabyte, now=200.0) == 1 / 64


def test_a_shared_lifeline_has_a_watcher_for_as_long_as_somebody_uses_it() -> None:
    shared = SharedLifeline()
    first, second = shared.join(), shared.join()
    assert first is second
    first.open()
    watcher = first._watcher
    assert watcher is not None
    shared.leave(first)
    assert watcher.poll() is None
    shared.leave(second)
    assert watcher.returncode is not None
    third = shared.join()
    assert third is not first
    shared.leave(first)  # as in a forked child: nobody else's is ended
    assert shared.join() is third
    shared.leave(third)
    shared.leave(third)
    assert third._watcher is None


def test_a_forked_child_does_not_end_its_parents_watcher() -> None:
    shared = SharedLifeline()
    lifeline = shared.join()
    lifeline.open()
    watcher = lifeline._watcher
    assert watcher is not None
    pid = os.fork()
    if pid == 0:
        shared.leave(lifeline)
        own = shared.join()
        own.open()
        shared.leave(own)
        os._exit(0 if own is not lifeline else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert watcher.poll() is None
    shared.leave(lifeline)
    assert watcher.returncode is not None
