"""What is installed, remembered on disk: right after every change, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridload.sources import installed_cache
from hybridload.sources.entry_point import EntryPoint
from hybridload.sources.installed import read_entry_points

GROUP = "hybridload.tests.cached"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("HYBRIDLOAD_CACHE", str(folder))
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, long settled."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    return folder


def install(site: Path, name: str, target: str) -> Path:
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {target}\n")
    return info


def settle(folder: Path, age: float = 3600.0) -> None:
    """As if nothing had changed for an hour: what is new is not remembered."""
    moment = time.time() - age
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (moment, moment))


def names() -> list[str]:
    return sorted(entry.name for entry in read_entry_points(GROUP)[0])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the metadata itself was read."""
    import importlib_metadata

    count = 0
    real = importlib_metadata.entry_points

    def counted(**params: str) -> object:
        nonlocal count
        count += 1
        return real(**params)

    monkeypatch.setattr(importlib_metadata, "entry_points", counted)
    return lambda: count


def test_the_second_look_reads_no_metadata(cache: Path, site: Path, reads: Callable[[], int]) -> None:
    install(site, "hello", "hello_plugin:Hello [extra]")
    settle(site)
    first = read_entry_points(GROUP)
    assert read_entry_points(GROUP) == first
    assert first[0] == (EntryPoint("hello", "hello_plugin:Hello [extra]", GROUP, "hello 1.0"),)
    assert reads() == 1
    assert len(list(cache.iterdir())) == 1


def test_a_process_that_knows_the_answer_imports_no_metadata_library(cache: Path, site: Path) -> None:
    install(site, "hello", "os.path:join")
    settle(site)
    code = (
        "import sys\nfrom hybridload.sources.installed import read_entry_points\n"
        f"found = read_entry_points({GROUP!r})[0]\n"
        "print(found[0].load().__name__, 'importlib_metadata' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    said = [subprocess.run(command, env=environment, capture_output=True, text=True).stdout for _ in range(2)]
    assert said == ["join True\n", "join False\n"]


@pytest.mark.parametrize("settled", [True, False])
def test_what_is_installed_and_uninstalled_is_seen_at_once(cache: Path, site: Path, settled: bool) -> None:
    install(site, "one", "m:X")
    settle(site)
    assert names() == ["one"]
    two = install(site, "two", "m:X")
    if settled:
        settle(site, age=1800)
    assert names() == ["one", "two"]
    for file in two.iterdir():
        file.unlink()
    two.rmdir()
    if settled:
        settle(site, age=900)
    assert names() == ["one"]


def test_what_is_edited_in_place_is_seen(cache: Path, site: Path) -> None:
    info = install(site, "one", "m:X")
    settle(site)
    assert names() == ["one"]
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nother = m:X\n")
    assert names() == ["other"]
    settle(site, age=1800)
    assert names() == names() == ["other"]


def test_entry_points_that_a_distribution_gets_later_are_seen(cache: Path, site: Path) -> None:
    info = install(site, "one", "m:X")
    (info / "entry_points.txt").unlink()
    settle(site)
    assert names() == []
    (info / "entry_points.txt").write_text(f"[{GROUP}]\none = m:X\n")
    assert names() == ["one"]


def test_what_changed_just_now_is_not_remembered(cache: Path, site: Path, reads: Callable[[], int]) -> None:
    install(site, "one", "m:X")
    assert names() == names() == ["one"]
    assert reads() == 2
    assert not cache.exists()


def test_a_record_holds_for_its_path_and_group_only(
    cache: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "one", "m:X")
    settle(site)
    assert names() == ["one"]
    assert read_entry_points("hybridload.tests.other")[0] == ()
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(site)])
    assert names() == []


@pytest.mark.parametrize("damage", ["", "garbage", "\0" * 50, "cut", "lines", "foreign"])
def test_a_damaged_record_is_made_anew(cache: Path, site: Path, reads: Callable[[], int], damage: str) -> None:
    install(site, "one", "m:X")
    settle(site)
    assert names() == ["one"]
    (record,) = cache.iterdir()
    whole = record.read_text()
    text = {
        "cut": whole[: len(whole) // 2],
        "lines": whole.replace("entry\tone", "entry\tone\tmore"),
        "foreign": whole.replace("entry\tone", "what\tone"),
    }.get(damage, damage)
    record.write_text(text)
    assert names() == ["one"]
    assert reads() == 2
    assert record.read_text() == whole


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_record_of_somebody_else_is_not_believed(cache: Path, site: Path, reads: Callable[[], int]) -> None:
    install(site, "one", "m:X")
    settle(site)
    assert names() == ["one"]
    (record,) = cache.iterdir()
    os.chown(record, 12345, -1)
    assert names() == ["one"]
    assert reads() == 2


@pytest.mark.parametrize("value", ["off", "OFF", "0"])
def test_it_can_be_switched_off(
    cache: Path, site: Path, monkeypatch: pytest.MonkeyPatch, reads: Callable[[], int], value: str
) -> None:
    install(site, "one", "m:X")
    settle(site)
    monkeypatch.setenv("HYBRIDLOAD_CACHE", value)
    assert names() == names() == ["one"]
    assert reads() == 2
    assert not Path(value).exists()


def test_it_stands_where_the_system_keeps_such_things(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYBRIDLOAD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    settle(site)
    names()
    folder = tmp_path / "xdg" / "hybridload"
    assert len(list(folder.iterdir())) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_costs_nothing_but_time(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HYBRIDLOAD_CACHE", str(tmp_path / "file" / "cache"))
    install(site, "one", "m:X")
    settle(site)
    assert names() == names() == ["one"]


def test_another_way_to_find_distributions_rules_it_out(
    cache: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Finder:
        @staticmethod
        def find_distributions(context: object) -> list[object]:
            return []

        @staticmethod
        def find_spec(*arguments: object) -> None:
            return None

    install(site, "one", "m:X")
    settle(site)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert names() == ["one"]
    assert not cache.exists()


def test_many_may_write_at_once(cache: Path, site: Path) -> None:
    install(site, "one", "m:X")
    settle(site)
    entry = EntryPoint("one", "m:X", GROUP, "one 1.0")
    seen: list[object] = []

    def work() -> None:
        for _ in range(30):
            installed_cache.remember(GROUP, [entry], [])
            seen.append(installed_cache.recall(GROUP))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {(entry,)}
    assert len(list(cache.iterdir())) == 1


def test_records_of_environments_that_are_gone_make_room(
    cache: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(site)
    before = list(sys.path)
    for number in range(70):
        monkeypatch.setattr(sys, "path", [*before, f"/nowhere/{number}"])
        names()
    assert len(list(cache.iterdir())) == 64
