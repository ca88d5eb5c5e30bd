"""A plugin that is a program: where its file is, and what it is started with.

An `External` stands in a configuration (`command`), is found in a folder, or is what an entry point names, so that a
wheel can ship a binary. It is a value: nothing is looked up before `resolve`.

How the first word of a command is found, everywhere:

- a bare name (no separator) is looked up on PATH, as a shell does;
- anything else is a path; a relative one starts at the configuration's folder, and at the current folder when the
  command did not come from a file;
- a resource is a file inside an installed package; when the package is zipped, a private copy is made that lives as
  long as the context of `resolve`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hybridload import platforms
from hybridload.errors import ConfigError, PermissionDenied, PluginError, PluginNotFound

Command = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A program, or a program and its arguments."""


@dataclass(frozen=True, slots=True, init=False)
class External:
    """A go-plugin program, in whatever language.

    :param command: a path, a bare name to look up on PATH, or a list of one of these and its arguments.
    :param sha256: the file's SHA-256 in hexadecimal; the program is started only when it has exactly this one.
    :param env: environment variables to add to what the program inherits.
    :param cwd: folder that the program starts in; the host's own when `None`.
    :raises ConfigError: when one of them cannot be what it stands for.
    """

    command: tuple[str, ...]
    sha256: str | None
    env: Mapping[str, str] = field(hash=False)
    cwd: Path | None
    package: str | None
    """The package that ships the program; `None` when the command names a file or a name on PATH."""

    def __init__(
        self,
        command: Command,
        sha256: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        self._fill(_read_command(command), sha256, env, cwd, None)

    @classmethod
    def resource(
        cls,
        package: str,
        path: str,
        *,
        sha256: str | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> External:
        """A program that is a file inside an installed package.

        :param package: the package's import name.
        :param path: the file inside the package, with `/` between folders, e.g. ``"bin/greeter"``.
        :param args: arguments of the program.
        :raises ConfigError: when one of them cannot be what it stands for.
        """
        if not isinstance(package, str) or not all(part.isidentifier() for part in package.split(".")):
            raise ConfigError(f"External.resource: package {package!r} is not the import name of a package.")
        if not isinstance(path, str) or not path or PurePosixPath(path).is_absolute() or ".." in path.split("/"):
            raise ConfigError(f"External.resource: path {path!r} is not a file inside the package {package}.")
        made = cls.__new__(cls)
        made._fill(_read_command([path, *args]), sha256, env, cwd, package)
        return made

    def _fill(
        self,
        command: tuple[str, ...],
        sha256: str | None,
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        package: str | None,
    ) -> None:
        values = {
            "command": command,
            "sha256": None if sha256 is None else read_sha256(sha256),
            "env": {} if env is None else _read_env(env),
            "cwd": None if cwd is None else _read_cwd(cwd),
            "package": package,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        words = " ".join(self.command)
        return words if self.package is None else f"{words} in package {self.package}"

    def overridden(self, *, sha256: str | None, env: Mapping[str, str], cwd: Path | None) -> External:
        """The same program with what a configuration says about it: what it gives wins, variable by variable."""
        made = External.__new__(External)
        made._fill(self.command, sha256 or self.sha256, {**self.env, **env}, cwd or self.cwd, self.package)
        return made

    @contextmanager
    def resolve(self, base: Path | None = None, *, plugin: str | None = None) -> Iterator[tuple[str, ...]]:
        """The command with the absolute path of a file that can be run; good as long as the context is open.

        Keep the context open as long as the program may be started or runs.

        :param base: folder that a relative path starts at; the current folder when `None`.
        :param plugin: the plugin's name, for errors.
        :raises PluginNotFound: when there is no such file, package or program on PATH.
        :raises PermissionDenied: when what is there cannot be run.
        """
        program, *arguments = self.command
        if self.package is not None:
            with _resource_file(self.package, program, plugin) as path:
                yield (_runnable(path, plugin), *arguments)
        elif is_bare_name(program):
            yield (_on_path(program, base, plugin), *arguments)
        else:
            try:
                path = Path(absolute_program(program, base or Path()))
            except FileNotFoundError as error:
                raise PluginNotFound(
                    f"{_subject(plugin)}{program} is relative to the current folder, which has been removed. Give an "
                    "absolute path.",
                    plugin=plugin,
                ) from error
            yield (_runnable(path, plugin), *arguments)


def is_bare_name(program: str) -> bool:
    """Whether a program is a name to look up on PATH rather than a path."""
    return os.path.basename(program) == program and program not in (os.curdir, os.pardir)


def absolute_program(program: str, base: Path) -> str:
    """A program's path made absolute; a bare name stays as it is."""
    if is_bare_name(program):
        return program
    return os.path.abspath(base / os.path.expanduser(program))


def read_sha256(value: object) -> str:
    """A SHA-256 as lower-case hexadecimal digits.

    :raises ConfigError: when it is not one.
    """
    digits = value.lower() if isinstance(value, str) else ""
    if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise ConfigError(f"sha256 {value!r}: expected 64 hexadecimal digits, as `sha256sum FILE` prints them.")
    return digits


def _read_command(command: object) -> tuple[str, ...]:
    words = [command] if isinstance(command, str | os.PathLike) else command
    if not isinstance(words, Sequence) or isinstance(words, bytes) or not words:
        raise ConfigError(f"External command {command!r}: give a program, or a list of a program and its arguments.")
    texts = []
    for word in words:
        text = os.fspath(word) if isinstance(word, str | os.PathLike) else None
        if not isinstance(text, str) or "\0" in text:
            raise ConfigError(f"External command: {word!r} is not a text that a command can have.")
        texts.append(text)
    if not texts[0].strip():
        raise ConfigError("External command: the program's name is empty.")
    return tuple(texts)


def _read_cwd(cwd: object) -> Path:
    text = os.fspath(cwd) if isinstance(cwd, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"External cwd {cwd!r}: give the path of a folder.")
    return Path(text)


def _read_env(env: object) -> dict[str, str]:
    if not isinstance(env, Mapping):
        raise ConfigError(f"External env {env!r}: give a mapping of names to values.")
    for name, value in env.items():
        if not isinstance(name, str) or not name or set(name) & {"=", "\0"}:
            raise ConfigError(f"External env: {name!r} is not the name of an environment variable.")
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError(f"External env: the value of {name} is not a text that a variable can have.")
    return dict(env)


def _on_path(name: str, base: Path | None, plugin: str | None) -> str:
    import shutil

    found = shutil.which(name)
    if found is not None:
        return os.path.abspath(found)
    beside = Path(base or platforms.working_folder() or os.sep, name)
    hint = f' There is a file {beside}: write "./{name}" for that one.' if beside.is_file() else ""
    raise PluginNotFound(
        f"{_subject(plugin)}there is no program {name!r} on PATH.{hint or ' Install it, or give its path.'}",
        plugin=plugin,
    )


@contextmanager
def _resource_file(package: str, path: str, plugin: str | None) -> Iterator[Path]:
    from importlib import resources

    try:
        found = resources.files(package)
    except ImportError as error:
        raise PluginNotFound(
            f"{_subject(plugin)}package {package}, which ships {path}, cannot be imported: {error}. Install it.",
            plugin=plugin,
        ) from error
    for part in PurePosixPath(path).parts:
        found = found.joinpath(part)
    if isinstance(found, Path):
        yield found
        return
    if not found.is_file():
        raise PluginNotFound(
            f"{_subject(plugin)}package {package} has no file {path}. Install a build of it for this system.",
            plugin=plugin,
        )
    with resources.as_file(found) as copy:
        copy.chmod(stat.S_IRWXU)  # A zip's copy comes without permission bits.
        yield copy


def _runnable(path: Path, plugin: str | None) -> str:
    # `which` also knows what makes a file a program where permission bits do not.
    import shutil

    found = shutil.which(path)
    if found is not None and os.path.isfile(found):
        return os.path.abspath(found)
    raise _why_not_runnable(path, plugin)


def _arguments_inside(path: Path) -> str:
    """A sentence, with a space before it, for a command line that was given as the path of a program."""
    program, blank, _ = str(path).partition(" ")
    if not blank or not os.path.isfile(program):
        return ""
    return f" Arguments are not part of the path: give a list, such as [{program!r}, ...]."


def _why_not_runnable(path: Path, plugin: str | None) -> PluginError:
    try:
        mode = path.stat().st_mode
    except PermissionError:
        return PermissionDenied(
            f"{_subject(plugin)}no permission to look at {path}. Open its folder to this user.", plugin=plugin
        )
    except OSError as error:
        return PluginNotFound(
            f"{_subject(plugin)}there is no program at {path} ({error.strerror or error}). "
            f"Build or install it, or correct the path.{_arguments_inside(path)}",
            plugin=plugin,
        )
    if stat.S_ISDIR(mode):
        reason = "is a directory. Give the path of the program in it."
    elif not stat.S_ISREG(mode):
        reason = "is not a regular file. Give the path of a program."
    else:
        reason = f"is not executable. Make it so: chmod +x {path}"
    return PermissionDenied(f"{_subject(plugin)}{path} {reason}", plugin=plugin)


def _subject(plugin: str | None) -> str:
    return "" if plugin is None else f"Plugin {plugin!r}: "
