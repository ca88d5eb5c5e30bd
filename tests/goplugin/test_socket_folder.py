"""Where sockets are, and that they go away."""

from __future__ import annotations

import atexit
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hybridload.goplugin.socket_folder import SocketFolder


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_folder_of_our_own_is_private_and_goes_away_with_everything_in_it() -> None:
    folder = SocketFolder()
    first, second = folder.new_path(), folder.new_path()
    assert mode(folder.path) == 0o700
    assert Path(folder.path).name.startswith("hybridload-")
    assert first != second
    Path(first).touch()
    folder.close()
    folder.close()
    assert not os.path.exists(folder.path)


def test_the_hosts_folder_stays_and_only_our_sockets_go(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    folder = SocketFolder(str(tmp_path))
    path = Path(folder.new_path())
    path.touch()
    assert path.parent == tmp_path
    folder.close()
    assert [each.name for each in tmp_path.iterdir()] == ["other"]


def test_a_group_gets_just_what_it_needs() -> None:
    folder = SocketFolder(group=str(os.getgid()))
    path = folder.new_path()
    Path(path).touch(0o600)
    folder.share(path)
    assert (mode(folder.path), mode(path)) == (0o710, 0o660)
    folder.close()


def test_a_folder_or_group_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="does not exist"):
        SocketFolder(str(tmp_path / "none"))
    with pytest.raises(LookupError):
        SocketFolder(group="no such group")


def test_it_is_removed_at_exit_but_not_by_a_forked_child() -> None:
    code = (
        "import os, sys\n"
        "from hybridload.goplugin.socket_folder import SocketFolder\n"
        "folder = SocketFolder()\n"
        "pid = os.fork()\n"
        "if not pid: sys.exit()\n"
        "os.waitpid(pid, 0)\n"
        "print(os.path.isdir(folder.path), folder.path)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[0] == "True"
    assert not os.path.exists(out[1])


def test_folders_that_come_and_go_leave_no_hook_in_the_interpreter() -> None:
    before = atexit._ncallbacks()
    for _ in range(3):
        SocketFolder().close()
    assert atexit._ncallbacks() == before
