"""Programs in folders, by a pattern with one star: the plugin's name is what the star matched.

Only files that can be run count. Of two folders that have one name, the first wins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hybridload.config.settings import is_plugin_name


@dataclass(slots=True)
class Found:
    """What a search of folders found.

    :param programs: (name, folder, path), in the order of precedence.
    :param unusable: what matched but cannot be run, by name: a sentence that says why.
    :param problems: folders that could not be searched and files that were left out, in words.
    """

    programs: list[tuple[str, Path, Path]] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def search(folders: tuple[Path, ...], pattern: str) -> Found:
    """Every program in the folders whose file name matches the pattern."""
    found = Found()
    for folder in folders:
        try:
            files = sorted(os.listdir(folder))
        except OSError as error:
            found.problems.append(
                f"Folder {folder} cannot be searched for plugins: {error.strerror}. "
                "Create it or open it, or take it out of host.path."
            )
            continue
        for name, path in _matching(folder, files, pattern):
            _add(found, name, folder, path)
    return found


def _matching(folder: Path, files: list[str], pattern: str) -> Iterator[tuple[str, Path]]:
    from hybridload.platforms import program_stem

    before, _, after = pattern.partition("*")
    for file in files:
        stem = program_stem(file)
        # The pattern may spell the suffix out where programs have one.
        for text in (stem, file):
            if text is None or len(text) <= len(before) + len(after):
                continue
            if text.startswith(before) and text.endswith(after):
                yield text[len(before) : len(text) - len(after)], folder / file
                break


def _add(found: Found, name: str, folder: Path, path: Path) -> None:
    if not is_plugin_name(name):
        found.problems.append(f"File {str(path)!r} is left out: {name!r} is not a name of a plugin.")
    elif not path.is_file():
        if not path.is_dir():
            found.unusable.setdefault(name, f"{path} is not a regular file.")
    elif not os.access(path, os.X_OK):
        found.unusable.setdefault(name, f"{path} is not executable; make it so: chmod +x {path}")
    else:
        found.programs.append((name, folder, path))
