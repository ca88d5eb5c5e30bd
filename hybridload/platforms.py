"""What differs between operating systems: one function for each difference, and nothing else asks which one it is.

Linux is where everything is tested. Where another system lacks something, the function says what is done instead.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SEALS = ("F_SEAL_WRITE", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


def own_session() -> dict[str, Any]:
    """Arguments for `subprocess.Popen` that give a child its own session and process group."""
    if sys.platform == "win32":
        import subprocess

        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def kill_group(pid: int) -> None:
    """Kill a child that leads its own process group, and whatever it started in that group.

    The child must not have been waited for yet: until then neither its pid nor its group's id can be anyone else's.
    """
    if sys.platform == "win32":
        _ignore_gone(os.kill, pid, signal.SIGTERM)
        return
    _ignore_gone(os.killpg, pid, signal.SIGKILL)
    # The group does not exist yet when the child has not reached setsid, and the leader may have left it.
    _ignore_gone(os.kill, pid, signal.SIGKILL)


def _ignore_gone(kill: Any, pid: int, number: int) -> None:
    try:
        kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def open_exit_watch(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; `None` where there is none (a thread must wait then).

    The caller closes it.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def has_ended(pid: int) -> bool:
    """Whether a child that nobody has waited for has ended; it is left to be reaped.

    Where the system cannot tell without reaping it, the answer is no.
    """
    if not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # the host ignores SIGCHLD, or waits for children that are not its own


def wait_without_reaping(pid: int) -> None:
    """Block until a child has ended, leaving it to be reaped: its pid stays its own until then."""
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pass


@contextmanager
def verified_copy(content: bytes, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Bytes as a program that nobody can change any more: its path, and the descriptors that a child must inherit.

    On Linux a sealed memory file, which no process, not even ours, can write to. Elsewhere a copy in a private folder,
    removed afterwards. The program has to be started within the context.

    :param name: a name to show in process lists.
    """
    if hasattr(os, "memfd_create"):
        import fcntl

        # Executable memory files can be forbidden by vm.memfd_noexec; the flag asks for one where the kernel knows it.
        flags = os.MFD_ALLOW_SEALING
        descriptor = -1
        for extra in (0x0010, 0):  # MFD_EXEC, Linux 6.3
            try:
                descriptor = os.memfd_create(name, flags | extra)
                break
            except OSError:
                continue
        if descriptor >= 0:
            try:
                _write_all(descriptor, content)
                os.fchmod(descriptor, 0o500)
                seals = 0
                for seal in _SEALS:
                    seals |= getattr(fcntl, seal)
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
                yield f"/proc/self/fd/{descriptor}", (descriptor,)
            finally:
                os.close(descriptor)
            return
    folder = tempfile.mkdtemp(prefix="hybridload-")
    try:
        path = Path(folder) / name
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o500)
        try:
            _write_all(descriptor, content)
        finally:
            os.close(descriptor)
        yield str(path), ()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def is_socket(path: str) -> bool:
    """Whether a path is a unix socket."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def program_stem(file_name: str) -> str | None:
    """What a program's file is called without what marks it as one; `None` when its name says that it is none.

    On Windows programs end in ``.exe``; elsewhere the permission bits tell, and any name will do.
    """
    if sys.platform != "win32":
        return file_name
    stem, dot, suffix = file_name.rpartition(".")
    return stem if dot and suffix.lower() == "exe" else None
