"""What lies where a file is expected: FIFOs, devices, links to them, and what has no end. Named at once, no hang."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import pytest

from hybridload import Contract, Handshake, Loader
from hybridload.errors import ConfigError, ContractError, PluginError
from hybridload.files import LARGEST, read_file
from hybridload.goplugin import Client, ReattachConfig
from hybridload.goplugin.probe import Probe
from hybridload.sources import installed_cache

PATIENCE = 30.0  # seconds
GROUP = "hybridload.tests.files"


class Greeter(Protocol):
    def greet(self) -> str: ...


PLUGINS = {"greeter": Contract(Greeter)}
HANDSHAKE = Handshake("KEY", "value")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("behind"))
    path.symlink_to("behind")


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_terminal(path: Path) -> None:
    path.symlink_to("/dev/tty")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def folder(path: Path) -> None:
    path.mkdir()


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


PLACED = [fifo, link_to_fifo, link_to_zeros, link_to_terminal, link_to_itself, folder, unix_socket, huge]


def in_time(call: Callable[[], Any]) -> BaseException | None:
    """What a call raised, which must not wait for anybody."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert raised, "it hangs"
    return raised[0]


@pytest.fixture(params=PLACED, ids=lambda place: place.__name__)
def placed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "odd"
    request.param(path)
    yield path
    for left in tmp_path.iterdir():  # what hung, goes on
        if left.is_fifo():
            with closing(os.fdopen(os.open(left, os.O_RDWR | os.O_NONBLOCK))):
                pass


def test_a_configuration_is_a_file(placed: Path) -> None:
    error = in_time(lambda: Loader(PLUGINS, handshake=HANDSHAKE, config=placed))
    assert isinstance(error, ConfigError)
    assert str(placed) in str(error)


def test_a_reattach_config_is_a_file(placed: Path) -> None:
    error = in_time(lambda: ReattachConfig.load(placed))
    assert isinstance(error, ConfigError)
    assert str(placed) in str(error)


def test_a_record_of_the_cache_is_a_file_or_none(placed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDLOAD_CACHE", str(tmp_path))
    placed.rename(tmp_path / installed_cache._file_name(installed_cache._key(GROUP)))
    found: list[Any] = []
    assert in_time(lambda: found.append(installed_cache.recall(GROUP))) is None
    assert found == [None]


def test_a_folder_of_odd_records_is_made_room_in(placed: Path, tmp_path: Path) -> None:
    placed.rename(tmp_path / "entry-points-00000000")
    (tmp_path / "entry-points-00000001").symlink_to("gone")
    for number in range(2, installed_cache._KEPT + 10):
        (tmp_path / f"entry-points-{number:08}").touch()
    assert in_time(lambda: installed_cache._make_room(str(tmp_path))) is None
    assert len(list(tmp_path.glob("entry-points-*"))) <= installed_cache._KEPT + 1  # a folder stays


def client(command: Any = "true", **options: Any) -> Client:
    return Client(command, plugins=PLUGINS, handshake=HANDSHAKE, start_timeout=PATIENCE, **options)


# What else is a path -> how it is used. A huge file may well be one of these, and a folder may be a folder.
OTHERS: dict[str, Callable[[Path], Any]] = {
    "command": lambda path: client([path]).start(),
    "command with a checksum": lambda path: client([path], sha256="0" * 64).start(),
    "cwd": lambda path: client(cwd=path).start(),
    "proto of a probe": lambda path: Probe("true", proto=path),
    "proto of a contract": lambda path: Contract(Greeter, service="p.Greeter", proto=str(path)).complete(),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("place", [fifo, link_to_fifo, link_to_zeros, link_to_itself], ids=lambda each: each.__name__)
def test_what_else_is_a_path(what: str, place: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "odd"
    place(path)
    error = in_time(lambda: OTHERS[what](path))
    assert isinstance(error, PluginError | ContractError), repr(error)


def test_a_file_may_be_linked_to_and_be_anybodys(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link") == b"x" * 1000
    with pytest.raises(OSError, match="no regular file"):
        read_file(tmp_path / "link", own=True)
    with open(tmp_path / "file", "wb") as file:
        file.truncate(LARGEST)
    assert len(read_file(tmp_path / "file", own=True)) == LARGEST
