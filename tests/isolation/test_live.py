"""Switched, reloaded, reconfigured, limited, forked and opened again and again while it is in use."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from hybridload.config import reading
from hybridload.errors import CallTimeout, PluginBusy, PluginClosed, PluginNotFound
from tests.isolation.conftest import (
    PATIENCE,
    WORK,
    WORK_CONFIG,
    Employ,
    Open,
    Story,
    Workplace,
    Write,
    in_thread,
    wait_until,
)


def test_under_load_no_call_is_lost_or_carried_out_twice(employ: Employ) -> None:
    work = employ()
    stop = threading.Event()

    def run(first: int) -> list[int]:
        sent = []
        for number in itertools.count(first):
            if stop.is_set():
                return sent
            assert work.worker.note(number)
            sent.append(number)
        raise AssertionError

    runs = [in_thread(run, 1_000_000 * each) for each in range(8)]
    pids = {work.worker.pid()}
    for _ in range(3):
        work.loader.reload("worker")
        pids.add(work.worker.pid())
    work.loader.switch("worker", "in-process")
    pids.add(work.worker.pid())
    work.loader.switch("worker", "subprocess")
    stop.set()
    sent = [number for each in runs for number in each.result(PATIENCE)]
    assert sorted(sent) == sorted(map(int, (work.folder / "notes").read_text().split()))
    assert len(pids) == 5


def test_a_call_in_flight_ends_where_it_began(employ: Employ) -> None:
    work = employ()
    call, file = work.in_the_middle(work.worker.wait_for)
    before = work.status().pid
    reloading = in_thread(work.loader.reload, "worker")
    work.story.wait_for("running")
    assert work.worker.pid() != before
    Path(file).touch()
    assert call.result(PATIENCE) == before
    reloading.result(PATIENCE)


def test_a_changed_config_disturbs_those_alone_that_it_changes(employ: Employ) -> None:
    work = employ("max_concurrency = 2", watch=True)
    before, text = work.worker.pid(), work.config.read_text()
    work.config.write_text(text.replace("max_concurrency = 2", "max_concurrency = 3"))
    work.story.wait_for("configured")
    assert work.worker.pid() == before
    work.config.write_text("[plugins.worker\n")
    refused = work.story.wait_for("kept")
    assert "not valid TOML" in refused.message
    assert work.worker.pid() == before
    work.config.write_text(text.replace("notes = ", "offset = 1, notes = "))
    work.story.wait_for("configured", 2)
    assert work.worker.double(2) == 5
    assert work.worker.pid() != before


LOST: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "a comment": lambda text: "# to be written\n",
    "no [host]": lambda text: text[text.index("[defaults]") :],
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
def test_a_file_that_is_being_written_ends_nothing(employ: Employ, lose: Callable[[str], str]) -> None:
    work = employ(watch=True)
    before, text = work.worker.pid(), work.config.read_text()
    work.config.write_text(lose(text))
    assert "is it being written?" in work.story.wait_for("kept").message
    assert work.worker.pid() == before
    work.config.write_text(text.replace("notes = ", "offset = 1, notes = "))
    work.story.wait_for("configured")
    assert work.worker.double(2) == 5
    assert work.story.named("closed") == []


def test_a_file_that_cannot_be_read_for_a_moment_is_read_again(employ: Employ, monkeypatch: pytest.MonkeyPatch) -> None:
    work = employ(watch=True)
    read, short = reading.read_file, threading.Event()

    def read_file(path: Path) -> bytes:
        if not short.is_set():
            raise OSError(errno.EMFILE, "Too many open files")
        return read(path)

    monkeypatch.setattr(reading, "read_file", read_file)
    work.config.write_text(work.config.read_text().replace("notes = ", "offset = 1, notes = "))
    assert "Too many open files" in work.story.wait_for("kept").message
    short.set()
    work.story.wait_for("configured")
    assert work.worker.double(2) == 5
    assert len(work.story.named("kept")) == 1


def test_what_is_not_found_for_a_moment_goes_on(
    write_module: Write, install: Callable[..., None], open_loader: Open, tmp_path: Path
) -> None:
    write_module("work_sdk", WORK)
    install(worker="work_sdk:Worker")
    loader = open_loader(config=WORK_CONFIG.partition("[plugins.worker]")[0].replace("[host]", "[host]\nwatch = true"))
    worker = loader.load("worker")
    story, before = Story(loader), worker.pid()
    for entry_points in tmp_path.glob("*.dist-info/entry_points.txt"):
        entry_points.unlink()  # as while it is installed anew
    config = tmp_path / "plugins.toml"
    config.write_text(config.read_text().replace("[defaults]", "[defaults]\nmax_restarts = 7"))
    assert "is not found at the moment" in story.wait_for("kept").message
    assert worker.pid() == before
    config.write_text(config.read_text() + "enabled = false\n")
    story.wait_for("closed")
    with pytest.raises(PluginClosed):
        worker.pid()


def edit(work: Workplace, before: str, after: str) -> None:
    """Change the plugin's code, in the very second it is from and by no byte in size."""
    module = work.folder / "work_sdk.py"
    written = module.stat().st_mtime_ns
    module.write_text(module.read_text().replace(before, after))
    os.utime(module, ns=(written + 1, written + 1))


@pytest.mark.parametrize(("watch", "prefork"), [(True, "false"), (False, "false"), (False, "true")])
def test_edited_code_is_what_runs_after_a_reload(employ: Employ, tmp_path: Path, watch: bool, prefork: str) -> None:
    ahead = int(time.time()) + 60
    os.utime(tmp_path / "work_sdk.py", (ahead, ahead))
    work = employ(f"prefork = {prefork}", watch=watch)
    edit(work, "2 * number", "3 * number")
    if not watch:
        work.loader.reload("worker")
    work.story.wait_for("running")
    assert work.worker.double(2) == 6


def test_a_reload_that_failed_is_tried_again_though_the_files_stay_as_they_are(employ: Employ, tmp_path: Path) -> None:
    """As with a program that is still open for writing when it is looked at for the last time."""
    work = employ(watch=True)
    edit(work, "2 * number", "3 * number + __import__('missing_for_now').NOTHING")
    edit(work, "import asyncio,", "import missing_for_now, asyncio,")
    refused = work.story.wait_for("kept")
    assert "missing_for_now" in refused.message
    assert work.worker.double(2) == 4
    (tmp_path / "missing_for_now.py").write_text("NOTHING = 0")
    work.story.wait_for("running")
    assert work.worker.double(2) == 6
    assert len({event.message for event in work.story.named("kept")}) == len(work.story.named("kept"))


@pytest.mark.parametrize("isolation", ["in-process", "subprocess"])
def test_so_many_calls_at_once(employ: Employ, isolation: str) -> None:
    work = employ("max_concurrency = 2", isolation=isolation)
    calls = [work.in_the_middle(work.worker.wait_for) for _ in range(2)]
    third = in_thread(work.worker.double, 3)
    assert work.status().in_flight == 2
    assert not third.done()
    Path(calls[0][1]).touch()
    assert third.result(PATIENCE) == 6
    Path(calls[1][1]).touch()
    assert all(call.result(PATIENCE) for call, _ in calls)
    assert list(work.worker.count(2)) == [0, 1]
    assert work.status().in_flight == 0


@pytest.mark.parametrize("isolation", ["in-process", "subprocess"])
def test_one_too_many_may_be_an_error(employ: Employ, isolation: str) -> None:
    work = employ("max_concurrency = 1", 'when_busy = "error"', isolation=isolation)
    call, file = work.in_the_middle(work.worker.wait_for)
    with pytest.raises(PluginBusy, match="max_concurrency"):
        work.worker.double(1)
    Path(file).touch()
    call.result(PATIENCE)
    assert work.worker.double(1) == 2


def test_waiting_for_a_turn_ends_with_the_calls_deadline(employ: Employ) -> None:
    work = employ("max_concurrency = 1", "call_timeout = 1.0", isolation="in-process")
    call, file = work.in_the_middle(work.worker.wait_for)
    with pytest.raises(CallTimeout, match="max_concurrency"):
        work.worker.double(1)
    Path(file).touch()
    with pytest.raises(CallTimeout, match="nothing can interrupt"):  # it took that long as well
        call.result(PATIENCE)


def test_an_in_process_host_starts_no_thread(employ: Employ) -> None:
    before = threading.active_count()
    work = employ(isolation="in-process")
    assert work.worker.double(1) == 2
    assert threading.active_count() == before


def test_load_all_gives_every_object_and_collects_what_failed(employ: Employ) -> None:
    work = employ()
    assert work.loader.load_all() == {"worker": work.worker}
    with pytest.raises(ExceptionGroup, match="1 of 2 plugins") as caught:
        work.loader.load_all(["worker", "nobody"])
    assert [type(error) for error in caught.value.exceptions] == [PluginNotFound]


def test_load_all_starts_plugins_side_by_side(write_module: Write, open_loader: Open, tmp_path: Path) -> None:
    """Each waits at its start for the other's sign, so one after the other neither would ever be there."""
    write_module(
        "meeting_sdk",
        """
        import pathlib, time
        from typing import Protocol

        class Meeting(Protocol):
            def name(self) -> str: ...

        class Guest:
            def __init__(self, name, other, folder):
                self._name = name
                pathlib.Path(folder, name).touch()
                while not pathlib.Path(folder, other).exists():
                    time.sleep(0.002)
            def name(self):
                return self._name

        PLUGINS = {"meeting": Meeting}
        """,
    )
    config = '[host]\nplugins = "meeting_sdk:PLUGINS"\n[defaults]\nisolation = "subprocess"\n'
    for name, other in ("ann", "bob"), ("bob", "ann"):
        options = f'{{ name = "{name}", other = "{other}", folder = "{tmp_path}" }}'
        config += (
            f'[plugins.{name}]\nentry_point = "meeting_sdk:Guest"\nisolation = "subprocess"\noptions = {options}\n'
        )
    loaded = open_loader(config=config).load_all()
    assert {name: guest.name() for name, guest in loaded.items()} == {"ann": "ann", "bob": "bob"}


def in_child(work: Workplace, what: Any) -> str:
    """What a forked child of this process says."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, str(what()).encode())
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            work.loader.close()
            os._exit(0)
    os.close(writer)
    with open(reader) as said:
        text = said.read()
    os.waitpid(pid, 0)
    return text


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_in_a_forked_child_the_plugin_is_the_parents(employ: Employ) -> None:
    work = employ()
    before = work.worker.pid()
    assert in_child(work, lambda: work.worker.pid()).startswith(f"{PluginClosed.__name__}: Plugin 'worker' runs for")
    assert work.worker.pid() == before


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("prefork", ["false", "true"])
def test_a_forked_child_may_start_its_own(employ: Employ, prefork: str) -> None:
    work = employ('after_fork = "restart"', f"prefork = {prefork}")
    before = work.worker.pid()
    other = int(in_child(work, lambda: work.worker.pid()))
    assert other != before
    wait_until(lambda: not psutil.pid_exists(other))
    assert work.worker.pid() == before


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_stream_that_a_forked_child_drops_goes_on_in_the_parent(employ: Employ) -> None:
    work = employ()
    streams = [work.worker.count(200_000)]  # more than a window: the plugin waits for us to go on
    assert next(streams[0]) == 0

    def drop() -> str:
        streams.clear()
        gc.collect()
        return "dropped"

    assert in_child(work, drop) == "dropped"
    assert sum(streams[0]) == sum(range(200_000))
    assert work.worker.double(3) == 6


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_stream_that_was_open_at_a_fork_does_not_hold_up_the_child(employ: Employ) -> None:
    work = employ('isolation = "in-process"', "max_concurrency = 1")
    streams = [work.worker.count(2)]

    def drop() -> str:
        streams.clear()
        gc.collect()
        began = time.monotonic()
        work.loader.close()
        return f"{work.status().in_flight} {time.monotonic() - began < 10}"

    assert in_child(work, drop) == "0 True"
    assert list(streams[0]) == [0, 1]
