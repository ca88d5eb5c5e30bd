"""Seeing that a file has changed: by its time of change, its number and its size, which is what its metadata tells.

There is no notification to wait for that works on every file system, so whoever watches looks again from time to time.
A change counts once the file has stayed the same between two looks: nobody is given half of what is being written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hybridload import platforms
from hybridload.errors import PluginError

if TYPE_CHECKING:
    from hybridload.external import External
    from hybridload.sources import Resolution

INTERVAL = 0.5
"""Seconds between two looks."""

Signature = tuple[int, int, int] | None
"""What is told about a file; `None` when it is not there."""


def signature(path: Path) -> Signature:
    """What the metadata tells about a file's content, or about that of all Python files in a folder."""
    try:
        found = os.stat(path)
        if not stat.S_ISDIR(found.st_mode):
            return found.st_mtime_ns, found.st_ino, found.st_size
        each = [os.stat(inside) for inside in _sources(path)]
    except OSError:
        return None
    return max((one.st_mtime_ns for one in each), default=0), len(each), sum(one.st_size for one in each)


class WatchedFile:
    """One file that is looked at, or the Python files of one folder.

    :param path: links in it are followed at each look.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = self._last = signature(path)

    def changed(self) -> bool:
        """Look; whether the file is another one than it was, is there, and has been so at the look before too."""
        seen, self._last = self._last, signature(self.path)
        if self._last is None or self._last != seen or self._last == self._known:
            return False
        self._known = self._last
        return True

    def look_again(self) -> None:
        """Have it count as changed at the next look: nothing came of it at this one."""
        self._known = None


def files_of(resolution: Resolution, isolation: str) -> list[Path]:
    """The files that make a plugin what it is, as far as one can tell from outside its process.

    For a program: its own file, and those of its arguments that are files. For a Python object in a process of its own:
    the folder of its package, or the file of its module. In-process there is nothing to watch: what was imported stays.
    """
    if isolation == "external":
        external = resolution.external
        return [] if external is None else _program_files(external)
    python = resolution.python
    if isolation != "subprocess" or python is None or python.entry_point is None or resolution.settings.python:
        return []
    from importlib.util import find_spec

    try:
        spec = find_spec(python.entry_point.module.partition(".")[0])
    except ValueError:  # a module that was made, and not found: it has no file
        return []
    if spec is None:
        return []
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    return folders or ([Path(spec.origin)] if spec.has_location and spec.origin else [])


def _program_files(external: External) -> list[Path]:
    folder = Path(external.cwd or platforms.working_folder() or os.sep)
    try:
        with external.resolve() as (program, *arguments):
            return [Path(program), *(folder / word for word in arguments if (folder / word).is_file())]
    except PluginError:
        return []  # it is being replaced; what was watched before goes on being watched


def forget_bytecode(paths: Iterable[Path]) -> None:
    """Have Python compile again what was edited just after it was compiled.

    Python takes compiled code for current when the source still has the size and, in whole seconds, the time of change
    that it had then. An edit within that second that keeps the size goes unseen: a plugin that is reloaded for it would
    run its old code.

    :param paths: Python files, and folders of such; those of other kinds are left alone.
    """
    from importlib.util import cache_from_source

    for path in paths:
        for source in _sources(path) if path.is_dir() else [path]:
            try:
                compiled = Path(cache_from_source(source))
                if source.suffix == ".py" and compiled.stat().st_mtime < source.stat().st_mtime + _COARSE:
                    compiled.unlink()
            except OSError:
                continue  # it was never compiled, is none of ours to remove, or is being replaced


_COARSE = 2.0
"""Seconds: one that Python does not tell apart, and one that may lie between the reading and the compiled file."""


def _sources(folder: Path) -> Iterator[Path]:
    """The Python files in a folder; what cannot be listed, or goes meanwhile, has none."""
    for inside, _, names in os.walk(folder):
        yield from (Path(inside, name) for name in names if name.endswith(".py"))
