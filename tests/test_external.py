"""Programs: which file a command means, and what is said when it cannot be run."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybridload import External
from hybridload.errors import ConfigError, PermissionDenied, PluginError, PluginNotFound

SCRIPT = "#!/bin/sh\necho ran $*\n"
DIGEST = "0123456789abcdef" * 4


def program(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SCRIPT)
    path.chmod(mode)
    return path


def resolved(external: External, base: Path | None = None) -> tuple[str, ...]:
    with external.resolve(base) as command:
        return command


def refusal(external: External, kind: type[PluginError], base: Path | None = None) -> str:
    with pytest.raises(kind) as caught, external.resolve(base, plugin="gopher"):
        pass
    assert caught.value.plugin == "gopher"
    message = str(caught.value)
    assert message.startswith("Plugin 'gopher': ")
    return message


class TestAPath:
    def test_is_made_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = program(tmp_path / "bin" / "gopher")
        assert resolved(External(path)) == (str(path),)
        assert resolved(External(str(path))) == (str(path),)
        monkeypatch.chdir(tmp_path)
        assert resolved(External("bin/gopher")) == (str(path),)
        assert resolved(External(["./bin/../bin/gopher", "./x"])) == (str(path), "./x")

    def test_starts_at_the_given_folder(self, tmp_path: Path) -> None:
        path = program(tmp_path / "bin" / "gopher")
        assert resolved(External("bin/gopher"), tmp_path) == (str(path),)
        assert resolved(External("./gopher"), tmp_path / "bin") == (str(path),)
        assert resolved(External(path), Path("/")) == (str(path),)

    def test_keeps_the_name_of_a_link(self, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(program(tmp_path / "gopher"))
        assert resolved(External(link)) == (str(link),)

    def test_may_have_blanks_and_bytes_that_are_not_utf8(self, tmp_path: Path) -> None:
        path = program(tmp_path / os.fsdecode(b"my g\xf6pher"))
        assert subprocess.check_output(resolved(External(path))) == b"ran\n"

    @pytest.mark.parametrize("path", ["missing", "file/below", "loop", "dangling", "x" * 300])
    def test_where_nothing_is_is_not_found(self, tmp_path: Path, path: str) -> None:
        program(tmp_path / "file")
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "dangling").symlink_to("nothing")
        message = refusal(External(tmp_path / path), PluginNotFound)
        assert f"there is no program at {tmp_path / path} (" in message
        assert "Build or install it, or correct the path." in message

    def test_of_a_directory_cannot_be_run(self, tmp_path: Path) -> None:
        assert f"{tmp_path} is a directory. Give the path of" in refusal(External(tmp_path), PermissionDenied)

    def test_of_a_pipe_cannot_be_run(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe", 0o777)
        assert "is not a regular file" in refusal(External(tmp_path / "pipe"), PermissionDenied)

    def test_of_a_file_without_permission_says_how_to_give_it(self, tmp_path: Path) -> None:
        path = program(tmp_path / "gopher", mode=0o644)
        assert f"is not executable. Make it so: chmod +x {path}" in refusal(External(path), PermissionDenied)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may look everywhere")
    def test_in_a_locked_folder_cannot_be_run(self, tmp_path: Path) -> None:
        path = program(tmp_path / "locked" / "gopher")
        path.parent.chmod(0)
        try:
            assert "no permission to look at" in refusal(External(path), PermissionDenied)
        finally:
            path.parent.chmod(0o700)


class TestABareName:
    def test_is_looked_up_on_the_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = program(tmp_path / "bin" / "gopher")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        program(tmp_path / "gopher")
        assert resolved(External(["gopher", "serve"]), tmp_path) == (str(path), "serve")

    def test_found_in_a_relative_folder_of_the_path_is_absolute_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = program(tmp_path / "bin" / "gopher")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PATH", "bin")
        assert resolved(External("gopher")) == (str(path),)

    def test_that_is_nowhere_is_not_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        message = refusal(External("gopher"), PluginNotFound, tmp_path)
        assert "there is no program 'gopher' on PATH. Install it, or give its path." in message

    def test_that_is_a_file_nearby_gets_a_hint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        path = program(tmp_path / "gopher")
        message = refusal(External("gopher"), PluginNotFound, tmp_path)
        assert f'There is a file {path}: write "./gopher" for that one.' in message


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Puts a folder or zip on the import path; what is imported from it is forgotten afterwards."""
    before = set(sys.modules)

    def put(path: Path) -> None:
        monkeypatch.syspath_prepend(str(path))
        importlib.invalidate_caches()

    yield put
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("shipped", "zipped"):
            del sys.modules[name]


class TestAResource:
    def test_is_a_file_inside_an_installed_package(self, tmp_path: Path, importable: Callable[[Path], None]) -> None:
        path = program(tmp_path / "shipped" / "inner" / "bin" / "gopher")
        (tmp_path / "shipped" / "__init__.py").touch()
        (tmp_path / "shipped" / "inner" / "__init__.py").touch()
        importable(tmp_path)
        external = External.resource("shipped.inner", "bin/gopher", args=("serve",))
        assert resolved(external) == (str(path), "serve")
        assert str(external) == "bin/gopher serve in package shipped.inner"

    def test_may_be_in_a_namespace_package(self, tmp_path: Path, importable: Callable[[Path], None]) -> None:
        path = program(tmp_path / "shipped" / "gopher")
        importable(tmp_path)
        assert resolved(External.resource("shipped", "gopher")) == (str(path),)

    def test_of_a_zipped_package_lives_as_long_as_the_context(
        self, tmp_path: Path, importable: Callable[[Path], None]
    ) -> None:
        archive = tmp_path / "zipped.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("zipped/__init__.py", "")
            file.writestr("zipped/bin/gopher", SCRIPT)
        importable(archive)
        with External.resource("zipped", "bin/gopher", args=["x"]).resolve() as command:
            assert subprocess.check_output(command) == b"ran x\n"
            assert os.stat(command[0]).st_mode & 0o077 == 0
        assert not Path(command[0]).exists()
        message = refusal(External.resource("zipped", "bin/other"), PluginNotFound)
        assert "package zipped has no file bin/other. Install a build of it for this system." in message

    def test_of_a_missing_package_is_not_found(self) -> None:
        message = refusal(External.resource("no_such_package", "bin/gopher"), PluginNotFound)
        assert "package no_such_package, which ships bin/gopher, cannot be imported" in message

    def test_that_the_package_lacks_is_not_found(self, tmp_path: Path, importable: Callable[[Path], None]) -> None:
        (tmp_path / "shipped").mkdir()
        (tmp_path / "shipped" / "__init__.py").touch()
        importable(tmp_path)
        refusal(External.resource("shipped", "bin/gopher"), PluginNotFound)

    @pytest.mark.parametrize("package", ["", "a-b", ".a", "a..b", 5, None])
    def test_needs_the_name_of_a_package(self, package: str) -> None:
        with pytest.raises(ConfigError, match="import name of a package"):
            External.resource(package, "gopher")

    @pytest.mark.parametrize("path", ["", "/bin/gopher", "../gopher", "a/../../gopher", 5, None])
    def test_does_not_lead_out_of_its_package(self, path: str) -> None:
        with pytest.raises(ConfigError, match="not a file inside the package"):
            External.resource("shipped", path)


class TestTheValue:
    def test_is_compared_hashed_and_pickled_by_what_it_says(self) -> None:
        one = External("gopher", DIGEST.upper(), {"A": "b"}, "/tmp")
        other = External(["gopher"], sha256=DIGEST, env={"A": "b"}, cwd=Path("/tmp"))
        assert one == other
        assert hash(one) == hash(other)
        assert pickle.loads(pickle.dumps(one)) == one
        assert one != External("gopher")
        assert External("a") != External.resource("p", "a")

    def test_cannot_be_changed(self) -> None:
        env = {"A": "b"}
        external = External("gopher", env=env)
        env["A"] = "c"
        assert external.env == {"A": "b"}
        with pytest.raises(AttributeError):
            external.command = ("other",)  # type: ignore[misc]

    def test_takes_what_a_configuration_says_on_top(self) -> None:
        external = External.resource("p", "a", args=["x"], sha256=DIGEST, env={"A": "1", "B": "2"}, cwd="/tmp")
        assert external.overridden(sha256=None, env={}, cwd=None) == external
        other = external.overridden(sha256="f" * 64, env={"B": "3"}, cwd=Path("/"))
        assert (other.package, other.command) == ("p", ("a", "x"))
        assert (other.sha256, other.env, other.cwd) == ("f" * 64, {"A": "1", "B": "3"}, Path("/"))

    @pytest.mark.parametrize("command", ["", " ", [], [""], None, 5, b"gopher", [b"gopher"], ["a", 5], "a\0b", {"a"}])
    def test_needs_a_command(self, command: str) -> None:
        with pytest.raises(ConfigError, match="External command"):
            External(command)

    @pytest.mark.parametrize("sha256", ["", "abc", "g" * 64, 5, b"0" * 64])
    def test_needs_a_checksum_that_is_one(self, sha256: str) -> None:
        with pytest.raises(ConfigError, match="expected 64 hexadecimal digits"):
            External("gopher", sha256)

    @pytest.mark.parametrize(
        "env", [{"": "x"}, {"A=B": "x"}, {"A": 5}, {5: "x"}, {"A": "\0"}, {"A\0": "x"}, ["A"], "A"]
    )
    def test_needs_an_environment_that_is_one(self, env: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match="External env"):
            External("gopher", env=env)

    @pytest.mark.parametrize("cwd", ["", "a\0b", 5, b"/tmp"])
    def test_needs_a_folder_that_is_one(self, cwd: str) -> None:
        with pytest.raises(ConfigError, match="External cwd"):
            External("gopher", cwd=cwd)


def test_without_a_current_folder_an_absolute_path_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = program(tmp_path / "bin" / "there")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with External(there).resolve() as command:
        assert command == (str(there),)
    with pytest.raises(PluginNotFound, match="current folder, which has been removed"), External("./there").resolve():
        raise AssertionError("it was found")
