"""Plugin programs in a folder, for hosts without a `Loader` (go-plugin's `Discover`)."""

from __future__ import annotations

import os
from pathlib import Path

from hybridload import platforms


def discover(glob: str, path: str | os.PathLike[str] = ".") -> list[Path]:
    """Find programs.

    Unlike go-plugin's, which takes whatever has a matching name, this leaves out what cannot be run.

    :param glob: a pattern for the file's name, e.g. ``"greeter-*"``; may hold folders, e.g. ``"*/bin/greeter-*"``.
    :param path: the folder to look in; one that does not exist has no programs.
    :returns: absolute paths, sorted.
    :raises ValueError: the pattern is empty or absolute.
    """
    if not glob or Path(glob).is_absolute():
        raise ValueError(f"glob is {glob!r}: give a pattern of names, such as 'greeter-*'; the folder is `path`.")
    here = platforms.working_folder()
    if here is None and not Path(path).is_absolute():
        return []
    return sorted(found for found in Path(here or os.sep, path).glob(glob) if _is_program(found))


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK) and platforms.program_stem(path.name) is not None
