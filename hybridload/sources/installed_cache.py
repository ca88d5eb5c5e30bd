"""What was found installed, remembered on disk: reading the metadata of 200 distributions takes longer than all else.

A record holds for one import path and one group. It says what it was made from: the folders of the path, and of each
distribution its metadata folder and its entry points, with the time and size that they had. All of them are looked at
each time, and one that differs makes the record worthless: so what pip installs, updates or removes is seen at once.
A record is not made while something is so new that a later change could leave its time as it is.

The folder is `$XDG_CACHE_HOME/hybridload` or what the system has in its place; the environment variable
`HYBRIDLOAD_CACHE` names another one, or switches remembering off (``off``). It is the user's own: what somebody else
owns is not read, nor a link, nor what is no file. Whatever is wrong with it costs time, never a plugin: a record that
cannot be read is made anew. It is written to a file of its own that then takes the record's name, so any number of
processes may do so at once.
"""

from __future__ import annotations

import binascii
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Final

from hybridload import platforms
from hybridload.files import read_file
from hybridload.sources.entry_point import EntryPoint

log = logging.getLogger(__name__)

_FORMAT: Final = "hybridload entry points 1"
_STANDARD: Final = ("importlib_metadata", "_frozen_importlib_external", "importlib")
_SETTLED: Final = 2.0
"""Seconds after which a change gets another time on every file system."""

_KEPT: Final = 64
"""Records. There is one for each environment and group; those of environments that are gone make room."""


def recall(group: str) -> tuple[EntryPoint, ...] | None:
    """The entry points of a group, if they are on record and nothing has changed since."""
    folder = _folder()
    if folder is None or not _is_standard():
        return None
    key = _key(group)
    try:
        lines = _read(os.path.join(folder, _file_name(key))).split("\n")
        if lines[: len(key)] != key or lines[-1] != f"end {len(lines)}":
            return None
        return _understood(lines[len(key) : -1], group)
    except (OSError, ValueError):
        return None


def remember(group: str, found: Iterable[EntryPoint], metadata: Iterable[str]) -> None:
    """Put the entry points of a group on record.

    :param metadata: the metadata folders of all distributions, those without entry points too.
    """
    folder = _folder()
    if folder is None or not _is_standard():
        return
    key = _key(group)
    folders = [*_path(), *metadata]
    marks = [(file, _mark(file)) for file in folders]
    # A file that is not there yet changes its folder when it comes.
    files = [(file, _mark(file)) for file in (os.path.join(each, "entry_points.txt") for each in folders)]
    marks += [(file, mark) for file, mark in files if mark != "-"]
    if any(_is_new(mark) for _, mark in marks):
        return
    lines = [*key, *(f"file\t{mark}\t{file}" for file, mark in marks)]
    lines += ["\t".join(("entry", entry.name, entry.value, entry.distribution)) for entry in found]
    text = "\n".join([*lines, f"end {len(lines) + 1}"])
    if text.count("\n") != len(lines):
        return  # a line feed in a name
    try:
        _write(folder, _file_name(key), text)
    except OSError as error:
        log.debug("entry points are not remembered in %s: %s", folder, error)


def _folder() -> str | None:
    chosen = os.environ.get("HYBRIDLOAD_CACHE", "")
    if chosen.lower() in ("off", "0", "false", "no"):
        return None
    return chosen or platforms.cache_folder()


def _is_standard() -> bool:
    """Whether distributions are only found in the folders of the import path."""
    for finder in sys.meta_path:
        kind = finder if isinstance(finder, type) else type(finder)
        if getattr(finder, "find_distributions", None) and kind.__module__.partition(".")[0] not in _STANDARD:
            return False
    return True


def _path() -> list[str]:
    here = platforms.working_folder() or ""
    return [os.path.normpath(os.path.join(here, entry)) for entry in sys.path if isinstance(entry, str)]


def _key(group: str) -> list[str]:
    """The lines that a record begins with: it holds for nothing else."""
    return [_FORMAT, f"group {group}", *(f"path {entry}" for entry in _path())]


def _file_name(key: Sequence[str]) -> str:
    # Two keys with one name take turns: the key itself is in the record.
    return f"entry-points-{binascii.crc32(chr(10).join(key).encode('utf-8', 'surrogateescape')):08x}"


def _mark(file: str) -> str:
    """What changes when the file does; ``-`` where there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return "-"
    return f"{found.st_mtime_ns} {found.st_size}"


def _is_new(mark: str) -> bool:
    return mark != "-" and int(mark.partition(" ")[0]) / 1e9 > time.time() - _SETTLED


def _understood(lines: Iterable[str], group: str) -> tuple[EntryPoint, ...] | None:
    """:raises ValueError: it is no record."""
    found = []
    for line in lines:
        what, _, rest = line.partition("\t")
        if what == "file":
            mark, _, file = rest.partition("\t")
            if _mark(file) != mark:
                return None
        elif what == "entry":
            name, value, distribution = rest.split("\t")
            found.append(EntryPoint(name, value, group, distribution))
        else:
            raise ValueError(f"{what!r} in a record")
    return tuple(found)


def _read(path: str) -> str:
    return read_file(path, own=True).decode("utf-8", "surrogateescape")


def _write(folder: str, name: str, text: str) -> None:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    own = os.path.join(folder, f"{name}.{os.getpid()}-{time.monotonic_ns():x}")
    try:
        with open(own, "x", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.write(text)
        os.replace(own, os.path.join(folder, name))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(own)
        raise
    _make_room(folder)


def _make_room(folder: str) -> None:
    with os.scandir(folder) as entries:
        records = [
            (entry.stat(follow_symlinks=False).st_mtime, entry.path)
            for entry in entries
            if entry.name.startswith("entry-points-")
        ]
    for _, path in sorted(records)[:-_KEPT]:
        with contextlib.suppress(OSError):
            os.unlink(path)
