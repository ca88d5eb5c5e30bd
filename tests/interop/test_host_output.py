"""What a Go plugin prints and logs, in the middle of calls, arrives whole and in order; nothing of it stops anybody."""

from __future__ import annotations

import io
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from hybridload.errors import PluginClosed, PluginCrashed
from hybridload.goplugin import Client, process
from hybridload.goplugin.logs import TRACE

NewClient = Callable[..., Client]

SIZES = [64 * 1024, 10 * 1024 * 1024]
CHANNELS = ["stdout", "stderr"]


@pytest.fixture(params=["direct", "grpcio", "netrpc"])
def engine(request: pytest.FixtureRequest) -> str:
    """What carries the calls: all this holds for both protocols."""
    found: str = request.param
    return found


class Records(logging.Handler):
    """Keeps what plugins log."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[logging.LogRecord] = []
        self.emit = self.all.append  # type: ignore[method-assign]

    def of(self, name: str) -> list[logging.LogRecord]:
        return [record for record in list(self.all) if record.name == name]

    def lines(self, name: str) -> list[str]:
        return [record.getMessage() for record in self.of(name)]


@pytest.fixture
def records() -> Iterator[Records]:
    handler = Records()
    logger = logging.getLogger("hybridload.plugin")
    logger.addHandler(handler)
    logger.setLevel(TRACE)
    logger.propagate = False
    yield handler
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


def eventually(condition: Callable[[], Any], timeout: float = 20) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return value


def pattern(size: int, line_length: int = 0) -> bytes:
    """What the plugin's `Write` writes."""
    text = bytearray((b"abcdefghijklmnopqrstuvwxyz" * (size // 26 + 1))[:size])
    if line_length:
        text[line_length - 1 :: line_length] = b"\n" * (size // line_length)
    return bytes(text)


# Files of the host


class Collector:
    """A binary file without any of a file's other methods."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> int:
        self.content += data
        return len(data)


def opened(kind: str, path: Path) -> tuple[IO[Any] | Any, Callable[[], bytes]]:
    if kind == "BytesIO":
        memory = io.BytesIO()
        return memory, memory.getvalue
    if kind == "StringIO":
        text = io.StringIO()
        return text, lambda: text.getvalue().encode()
    if kind == "collector":
        collector = Collector()
        return collector, lambda: bytes(collector.content)
    file: IO[Any] = {
        "text": lambda: path.open("w"),
        "binary": lambda: path.open("wb"),
        "unbuffered": lambda: path.open("wb", buffering=0),
    }[kind]()
    return file, path.read_bytes


@pytest.mark.parametrize("kind", ["BytesIO", "StringIO", "collector", "text", "binary", "unbuffered"])
@pytest.mark.parametrize("channel", CHANNELS)
def test_what_is_printed_in_a_call_arrives_whole_in_the_hosts_file(
    new_client: NewClient, tmp_path: Path, channel: str, kind: str
) -> None:
    file, content = opened(kind, tmp_path / "output")
    torture = new_client(**{f"sync_{channel}": file}).dispense("torture")
    for size in SIZES:
        before = len(content())
        assert torture.write(target=CHANNELS.index(channel), size=size) == size
        eventually(lambda before=before, size=size: len(content()) == before + size)
    assert content() == b"".join(pattern(size) for size in SIZES)
    getattr(file, "close", lambda: None)()


def test_both_channels_at_once_from_many_threads(new_client: NewClient) -> None:
    stdout, stderr = io.BytesIO(), io.BytesIO()
    torture = new_client(sync_stdout=stdout, sync_stderr=stderr).dispense("torture")
    size = 512 * 1024
    threads = [threading.Thread(target=torture.write, kwargs={"target": n % 2, "size": size}) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: len(stdout.getvalue()) == len(stderr.getvalue()) == 4 * size)


def test_a_character_that_comes_in_two_pieces_is_one_character(new_client: NewClient) -> None:
    text = io.StringIO()
    torture = new_client(sync_stdout=text).dispense("torture")
    for piece in ("€".encode()[:1], "€".encode()[1:], b"\xff", "😀\n".encode()):
        torture.write(text=piece)
    eventually(lambda: text.getvalue().endswith("\n"))
    assert text.getvalue() == "€\N{REPLACEMENT CHARACTER}😀\n"


def test_a_file_that_cannot_hold_a_character_gets_its_number(new_client: NewClient, tmp_path: Path) -> None:
    with (tmp_path / "output").open("w", encoding="ascii") as file:
        new_client(sync_stdout=file).dispense("torture").write(text="5 €\n".encode())
        eventually(lambda: (tmp_path / "output").read_text() == "5 \\u20ac\n")


def test_the_raw_descriptor_goes_to_the_same_file(new_client: NewClient, go_plugins: Any) -> None:
    """What C code prints, and what was printed before the plugin served."""
    stdout = io.BytesIO()
    size = 1024 * 1024
    torture = new_client(sync_stdout=stdout).dispense("torture")
    torture.write(target=go_plugins.raw_stdout, size=size)
    eventually(lambda: stdout.getvalue() == pattern(size))


class Failing:
    """A file that raises after so many writes."""

    def __init__(self, error: Exception, after: int = 0) -> None:
        self.error = error
        self.left = after

    def write(self, data: bytes) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return len(data)


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("closed"), RuntimeError("no"), KeyError("x")], ids=repr
)
def test_a_file_that_fails_is_given_up_and_the_rest_is_logged(
    new_client: NewClient, records: Records, channel: str, error: Exception
) -> None:
    client = new_client(name="greeter", **{f"sync_{channel}": Failing(error)})
    torture = client.dispense("torture")
    torture.write(target=CHANNELS.index(channel), size=1024 * 1024, line_length=64)
    name = f"hybridload.plugin.greeter.{channel}"
    eventually(lambda: len(records.of(name)) == 1 + 1024 * 1024 // 64)
    told, *rest = records.of(name)
    assert (told.levelno, str(error) in told.getMessage()) == (logging.WARNING, True)
    assert "\n".join([record.getMessage() for record in rest] + [""]).encode() == pattern(1024 * 1024, 64)
    assert torture.echo(b"still here") == b"still here"


def test_a_closed_file_and_a_full_pipe_are_files_that_fail(new_client: NewClient, records: Records) -> None:
    closed = io.StringIO()
    closed.close()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "wb", buffering=0) as full:
        client = new_client(name="greeter", sync_stdout=closed, sync_stderr=full)
        torture = client.dispense("torture")
        for target in (0, 1):
            torture.write(target=target, size=1024 * 1024)
        for channel in CHANNELS:
            [told] = eventually(lambda channel=channel: records.of(f"hybridload.plugin.greeter.{channel}"))
            assert told.levelno == logging.WARNING
        client.kill()
    os.close(reader)


def test_a_handler_that_raises_does_not_stop_the_output(
    new_client: NewClient, records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(record: logging.LogRecord) -> None:
        raise RuntimeError("this handler is broken")

    records.emit = fail  # type: ignore[method-assign]
    client = new_client()
    torture = client.dispense("torture")
    for target in range(4):
        torture.write(target=target, size=1024 * 1024, line_length=64)
    torture.log(lines=100)
    assert torture.echo(b"still here") == b"still here"
    client.kill()
    # Told once for each way in: log lines, standard output, standard error.
    assert 1 <= capsys.readouterr().err.count("this handler is broken") <= 6


# Lines in logging


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("target", "name"), [("os_stdout", "stdout"), ("os_stderr", "stderr"), ("raw_stdout", "stdout")], ids=str
)
def test_by_default_what_is_printed_is_logged_line_by_line(
    new_client: NewClient, records: Records, go_plugins: Any, target: str, name: str, size: int
) -> None:
    torture = new_client(name="greeter").dispense("torture")
    torture.write(target=getattr(go_plugins, target), size=size, line_length=1024)
    name = f"hybridload.plugin.greeter.{name}"
    eventually(lambda: len(records.of(name)) == size // 1024)
    assert "\n".join([*records.lines(name), ""]).encode() == pattern(size, 1024)
    assert {(record.levelno, record.plugin) for record in records.of(name)} == {(logging.INFO, "greeter")}  # type: ignore[attr-defined]


def test_half_a_line_is_logged_at_the_end(new_client: NewClient, records: Records) -> None:
    client = new_client(name="greeter")
    client.dispense("torture").write(text=b"a line\nand half a one")
    name = "hybridload.plugin.greeter.stdout"
    eventually(lambda: records.lines(name))
    client.kill()
    assert records.lines(name) == ["a line", "and half a one"]


def test_half_a_line_of_the_stream_is_not_completed_by_the_raw_pipe(
    new_client: NewClient, records: Records, go_plugins: Any
) -> None:
    client = new_client(name="greeter")
    torture = client.dispense("torture")
    torture.write(target=go_plugins.os_stdout, text=b"streamed, ")
    torture.write(target=go_plugins.raw_stdout, text=b"raw\n")
    name = "hybridload.plugin.greeter.stdout"
    eventually(lambda: records.lines(name))
    torture.write(target=go_plugins.os_stdout, text=b"and streamed again\n")
    eventually(lambda: len(records.lines(name)) == 2)
    assert records.lines(name) == ["raw", "streamed, and streamed again"]


def test_hclog_records_keep_level_module_fields_and_order(
    new_client: NewClient, records: Records, go_plugins: Any
) -> None:
    torture = new_client(name="greeter").dispense("torture")
    levels = {"trace": TRACE, "debug": 10, "info": 20, "warn": 30, "error": 40}
    for level in levels:
        torture.log(format=go_plugins.hclog, lines=3, level=level)
    name = "hybridload.plugin.greeter.torture"
    eventually(lambda: len(records.of(name)) == 15)
    assert [(record.levelno, record.getMessage(), record.number) for record in records.of(name)] == [  # type: ignore[attr-defined]
        (number, f"line {line}", line) for number in levels.values() for line in range(3)
    ]
    record = records.of(name)[0]
    assert (record.plugin, record.plugin_module, record.levelname) == ("greeter", "torture", "TRACE")  # type: ignore[attr-defined]
    assert abs(record.created - time.time()) < 60


def test_tags_give_text_lines_their_level(new_client: NewClient, records: Records, go_plugins: Any) -> None:
    torture = new_client(name="greeter").dispense("torture")
    levels = {"trace": TRACE, "debug": 10, "info": 20, "warn": 30, "error": 40}
    for level in levels:
        torture.log(format=go_plugins.tagged, lines=1, level=level)
    torture.log(format=go_plugins.plain, lines=1)

    def said() -> list[logging.LogRecord]:
        return [record for record in records.of("hybridload.plugin.greeter") if "line 0" in record.getMessage()]

    eventually(lambda: len(said()) == 6)
    assert [record.levelno for record in said()] == [*levels.values(), logging.DEBUG]


@pytest.mark.parametrize("format_name", ["hclog", "tagged", "plain"])
def test_twenty_thousand_lines_are_no_burden(
    new_client: NewClient,
    records: Records,
    go_plugins: Any,
    format_name: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Go's host takes 30 ms for them; with a hop to another thread for each line it was 4.5 s."""
    torture = new_client(name="greeter").dispense("torture")
    name = "hybridload.plugin.greeter" + (".torture" if format_name == "hclog" else "")
    before = len(records.of(name))
    began, hops = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    torture.log(format=getattr(go_plugins, format_name), lines=20_000)
    eventually(lambda: len(records.of(name)) >= before + 20_000)
    took, hops = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - hops
    record_property("seconds", took)
    print(f"20,000 {format_name} lines: {took:.3f} s, {hops} waits", file=sys.stderr)
    assert hops < 10_000
    said = records.lines(name)[before:]
    assert [line.removeprefix("[INFO] ") for line in said] == [f"line {n}" for n in range(20_000)]


@pytest.mark.parametrize("format_name", ["hclog", "tagged", "plain"])
def test_lines_of_a_megabyte_are_neither_lost_nor_reordered(
    new_client: NewClient, records: Records, go_plugins: Any, format_name: str
) -> None:
    torture = new_client(name="greeter").dispense("torture")
    chosen = getattr(go_plugins, format_name)
    padding = 1024 * 1024
    for size in (0, padding, 0):
        torture.log(format=chosen, lines=3, level="warn", padding=size)
    name = "hybridload.plugin.greeter" + (".torture" if format_name == "hclog" else "")

    def said() -> list[str]:
        return [line.removeprefix("[WARN] ") for line in records.lines(name) if "line " in line[:20]]

    eventually(lambda: len(said()) == 9)
    assert said() == [f"line {n}" + "x" * size for size in (0, padding, 0) for n in range(3)]


def test_a_line_beyond_all_bounds_comes_in_pieces_and_whole(
    new_client: NewClient, records: Records, go_plugins: Any
) -> None:
    torture = new_client(name="greeter").dispense("torture")
    size = 10 * 1024 * 1024
    before = len(records.of("hybridload.plugin.greeter"))
    torture.write(target=go_plugins.raw_stderr, size=size)
    torture.write(target=go_plugins.raw_stderr, text=b"\nand the next\n")
    eventually(lambda: records.all[-1].getMessage() == "and the next")
    *pieces, _ = records.lines("hybridload.plugin.greeter")[before:]
    assert "".join(pieces).encode() == pattern(size)
    assert len(pieces) > 1


# Panics


def test_a_panic_is_quoted_and_logged_as_errors(new_client: NewClient, records: Records) -> None:
    client = new_client(name="greeter")
    with pytest.raises(PluginCrashed, match="exit status 2 while it was in use") as caught:
        client.dispense("torture").panic("the sky is falling")
    error = caught.value
    assert error.returncode == 2
    assert error.plugin == "greeter"
    assert "panic: the sky is falling" in error.stderr
    assert "panic: the sky is falling" in str(error)
    assert any(line.startswith("goroutine ") for line in error.stderr)
    [at] = [n for n, record in enumerate(records.all) if record.getMessage().startswith("panic: ")]
    trace = records.all[at : at + 3]
    assert {record.levelno for record in trace} == {logging.ERROR}


# Whoever takes the output is slow


class Blocking:
    """A file whose every write waits until the host says go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.reached.set()
        self.go.wait()
        self.size += len(data)
        return len(data)


def quiet(pid: int) -> None:
    """Wait until a process has stopped writing."""
    counter = psutil.Process(pid).io_counters().write_chars
    while True:
        time.sleep(0.2)
        before, counter = counter, psutil.Process(pid).io_counters().write_chars
        if counter == before:
            return


@pytest.mark.parametrize("target", ["os_stdout", "raw_stdout"])
def test_output_that_is_not_taken_holds_the_plugin_up_and_fills_no_memory(
    new_client: NewClient, go_plugins: Any, target: str
) -> None:
    file = Blocking()
    client = new_client(sync_stdout=file)
    torture = client.dispense("torture")
    size = 40 * 1024 * 1024
    before = psutil.Process().memory_info().rss
    writing = threading.Thread(target=torture.write, kwargs={"target": getattr(go_plugins, target), "size": size})
    writing.start()
    try:
        assert file.reached.wait(10)
        assert client.pid is not None
        quiet(client.pid)
        assert psutil.Process().memory_info().rss - before < size // 2
        assert writing.is_alive()
        # Other calls do not wait for the output.
        assert torture.echo(b"meanwhile") == b"meanwhile"
    finally:
        file.go.set()
        writing.join()
    eventually(lambda: file.size == size, timeout=60)


@pytest.mark.parametrize("target", ["os_stdout", "raw_stdout", "raw_stderr"])
def test_a_sink_that_blocks_for_ever_does_not_keep_a_plugin_from_being_killed(
    new_client: NewClient, go_plugins: Any, records: Records, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(process, "_PATIENCE", 0.2)
    monkeypatch.setattr("hybridload.goplugin.grpc.stdio_client._PATIENCE", 0.2)
    monkeypatch.setattr("hybridload.goplugin.netrpc.stdio._PATIENCE", 0.2)
    file = Blocking()
    client = new_client(sync_stdout=file)
    torture = client.dispense("torture")
    records.emit = lambda record: file.write(b"") and None  # type: ignore[assignment, method-assign]
    torture.write(target=getattr(go_plugins, target), text=b"something\n")
    assert file.reached.wait(10)
    began = time.monotonic()
    client.kill()
    assert time.monotonic() - began < 5
    assert client.pid is not None
    assert not psutil.pid_exists(client.pid)
    file.go.set()


def test_the_end_of_a_process_is_known_while_its_log_is_held_up(new_client: NewClient, records: Records) -> None:
    file = Blocking()
    client = new_client(name="greeter")
    torture = client.dispense("torture")
    records.emit = lambda record: file.write(b"") and None  # type: ignore[assignment, method-assign]
    torture.log(lines=1)
    assert file.reached.wait(10)
    began = time.monotonic()
    with pytest.raises(PluginCrashed, match="exit status 7"):
        torture.exit(code=7)
    assert time.monotonic() - began < 3
    file.go.set()


def test_a_plugin_may_be_killed_from_where_its_output_is_taken(
    new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_PATIENCE", 0.2)
    killed = threading.Event()

    class Killer:
        def write(self, data: bytes) -> int:
            client.kill()
            killed.set()
            return len(data)

    client = new_client(sync_stdout=Killer())
    with suppress(PluginClosed):  # the output may be taken before the answer
        client.dispense("torture").write(text=b"x\n")
    assert killed.wait(10)
    assert client.exited
