"""What differs between operating systems: one function for each difference, and nothing else asks which one it is.

Linux is where everything is tested. Where another system lacks something, the function says what is done instead.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mmap
    import socket
    import subprocess

    from hybridload.limits import Limits

# What else is needed is imported where it is needed: hosts that start no process import this too.
_CREDENTIALS = "3i"  # pid, uid, gid; unix(7)
_SEALS = ("F_SEAL_WRITE", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


def own_session() -> dict[str, Any]:
    """Arguments for `subprocess.Popen` that give a child its own session and process group."""
    if sys.platform == "win32":
        import subprocess

        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def limit_numbers(limits: Limits) -> list[str] | None:
    """Limits as `setrlimit` takes them, each as ``resource:soft:hard``; `None` where the system has no such thing.

    On Linux the limit on memory is one on private memory alone; elsewhere that leaves out what is mapped, so that it is
    the whole address space there.
    """
    try:
        import resource
    except ImportError:
        return None
    memory = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    given = (
        (memory, limits.memory, 0),
        (resource.RLIMIT_CPU, limits.cpu_seconds, 1),  # a second for whoever ignores SIGXCPU
        (resource.RLIMIT_NOFILE, limits.open_files, 0),
        (resource.RLIMIT_NPROC, limits.processes, 0),
    )
    return [f"{kind}:{most}:{most + grace}" for kind, most, grace in given if most is not None]


def thread_stack(needed: int) -> int:
    """How large the stack of a thread of ours is to be, in bytes; 0 for the system's own choice.

    Linux takes the limit of the main thread's stack, 8 MiB as a rule, for every thread. Elsewhere Python, or the
    system, has chosen a size that fits how deep Python recurses there.
    """
    return needed if sys.platform == "linux" else 0


def reserved_memory(size: int) -> mmap.mmap | None:
    """Memory that counts as used until it is closed; `None` where this process is under no limit that it counts for.

    :raises OSError: there is no room for it.
    """
    if sys.platform != "linux":
        return None
    import resource

    if all(
        resource.getrlimit(kind)[0] == resource.RLIM_INFINITY for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)
    ):
        return None
    import mmap

    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)


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


def is_child(pid: int) -> bool:
    """Whether a child is still to be waited for. It is not where the host ignores SIGCHLD, or waits for children that
    are not its own: then its pid may be another's by now."""
    if not hasattr(os, "waitid"):
        return True
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def kill_orphaned_group(pid: int) -> None:
    """Kill what is left of the group of a leader that has been reaped: no new process gets the id of a group that has
    members, so whoever has it leads another one."""
    if not _exists(pid):
        _ignore_gone(os.killpg, pid, signal.SIGKILL)


def reap(child: subprocess.Popen[bytes]) -> int | None:
    """Wait for a child's end: its exit status, or minus the signal; `None` when somebody else has taken it."""
    if sys.platform == "win32":
        return child.wait()
    try:
        child.returncode = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    except ChildProcessError:
        child.returncode = 0  # there is nothing left to wait for
        return None
    return child.returncode


def _ignore_gone(kill: Any, pid: int, number: int) -> None:
    try:
        kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_marked(variable: str) -> None:
    """Kill every process that was started with a variable in its environment: what a program has started is found by
    it, in whatever session that is and whoever is its parent by now.

    On systems without proc(5) nothing can tell, and nothing is done.

    :param variable: ``NAME=value``, of nobody else.
    """
    if sys.platform != "linux":
        return
    wanted = os.fsencode(variable)
    for _ in range(_ROUNDS):
        found = [int(name) for name in os.listdir("/proc") if name.isdigit() and wanted in _environment(int(name))]
        for pid in found:
            try:
                process = os.pidfd_open(pid)
            except OSError:
                continue  # it has ended
            try:
                if wanted in _environment(pid):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            except OSError:
                continue
            finally:
                os.close(process)
        if not found:
            return


def _environment(pid: int) -> list[bytes]:
    """What a process was started with, as far as that is ours to read."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            return file.read().split(b"\0")
    except OSError:
        return []


_ROUNDS = 10
"""How often one looks for processes that start others meanwhile."""


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


def has_fork_server() -> bool:
    """Whether plugins can be forked from a process that is none: it takes a watch for what is no child of the host, and
    what proc(5) tells about a process."""
    if sys.platform != "linux" or not os.path.exists("/proc/thread-self/status"):
        return False
    watch = open_exit_watch(os.getpid())
    if watch is None:
        return False
    os.close(watch)
    return True


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


def reopened_pipe(descriptor: int) -> int:
    """The reading end of a pipe once more, so that it blocks whether or not the given descriptor does.

    Where a pipe cannot be opened anew, a duplicate, which shares that with the given one. The caller closes it.
    """
    try:
        # Without O_NONBLOCK this would wait for a writer, which may have ended.
        fresh = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return os.dup(descriptor)
    os.set_blocking(fresh, True)
    return fresh


def beyond_standard(descriptor: int) -> int:
    """A descriptor to be handed to a child under its own number: the same, or where this process has closed its
    standard input, output or error and the system gave it that number, a duplicate with one that no child puts its own
    in the place of. The caller closes what is returned, and nothing else."""
    if descriptor > 2:
        return descriptor
    import fcntl

    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


@contextmanager
def program_copy(fill: Callable[[int], None], name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A program that nobody can change any more: its path, and the descriptors that a child must inherit.

    On Linux a sealed memory file, which no process, not even ours, can write to. Elsewhere a copy in a private folder,
    removed afterwards. The program has to be started within the context.

    :param fill: writes the program to the descriptor that it is given.
    :param name: a name to show in process lists.
    """
    descriptor = _memory_file(name)
    if descriptor is not None:
        import fcntl

        try:
            fill(descriptor)
            os.fchmod(descriptor, 0o500)
            seals = 0
            for seal in _SEALS:
                seals |= getattr(fcntl, seal)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            yield f"/proc/self/fd/{descriptor}", (descriptor,)
        finally:
            os.close(descriptor)
        return
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="hybridload-")
    try:
        path = os.path.join(folder, name)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o500)
        try:
            fill(descriptor)
        finally:
            os.close(descriptor)
        yield path, ()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _memory_file(name: str) -> int | None:
    """A descriptor of a memory file that can be sealed and run; `None` where there is no such thing.

    :raises OSError: there is, and the system has no room for one more.
    """
    if not hasattr(os, "memfd_create"):
        return None
    # Executable memory files can be forbidden by vm.memfd_noexec; the flag asks for one where the kernel knows it.
    for extra in (0x0010, 0):  # MFD_EXEC, Linux 6.3
        try:
            return beyond_standard(os.memfd_create(name, os.MFD_ALLOW_SEALING | extra))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOSYS):
                raise
    return None


def working_folder() -> str | None:
    """The working directory; `None` when it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def temporary_folder() -> str:
    """Where temporary files go: what `tempfile.gettempdir` says, which takes milliseconds to import."""
    if sys.platform != "win32":
        for variable in ("TMPDIR", "TEMP", "TMP"):
            folder = os.environ.get(variable)
            if folder and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
                return folder
        if os.path.isdir("/tmp") and os.access("/tmp", os.W_OK | os.X_OK):
            return "/tmp"
    import tempfile

    return tempfile.gettempdir()


def cache_folder() -> str:
    """Where what can be made again is kept for this user, not necessarily made yet."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~\\AppData\\Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "hybridload")


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


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped a process, with SIGSTOP or in a debugger; no, where the system does not tell."""
    return _stat(pid)[:1] in (["T"], ["t"])


def zombie_status(pid: int) -> int | None:
    """The exit status, or minus the signal, of a process of this user that has ended and that nobody has waited for;
    `None` where the system does not tell."""
    fields = _stat(pid)
    try:
        if fields[:1] != ["Z"] or os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return None
        return os.waitstatus_to_exitcode(int(fields[49]))  # field 52 of proc(5), counted from 1
    except (OSError, ValueError, IndexError):
        return None


def _stat(pid: int) -> list[str]:
    """What proc(5) has of a process from its state on; empty where there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name before the last parenthesis may hold anything.
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int | None:
    """When a process started, in the system's own unit: with the pid it names a process for good. `None`: unknown."""
    try:
        return int(_stat(pid)[19])  # field 22
    except (ValueError, IndexError):
        return None


class ForeignProcess:
    """A process that is no child of ours: waited for and killed without ever meaning another one with its pid.

    On Linux a pidfd. Elsewhere the pid is asked for twice a second, and may have become another's in between.
    """

    _INTERVAL = 0.5

    def __init__(self, pid: int, descriptor: int | None) -> None:
        self._pid = pid
        self._descriptor = descriptor
        self._reader, self._writer = os.pipe()

    @classmethod
    def open(cls, pid: int) -> ForeignProcess | None:
        """Hold the process with this pid; `None` when there is none."""
        if not 0 < pid < 2**31:
            return None
        if hasattr(os, "pidfd_open"):
            import selectors

            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                return None
            except OSError:
                return cls(pid, None) if _exists(pid) else None
            with selectors.DefaultSelector() as selector:
                selector.register(descriptor, selectors.EVENT_READ)
                ended = bool(selector.select(0))  # nobody has waited for it yet, but it has ended
            if ended:
                os.close(descriptor)
                return None
            return cls(pid, descriptor)
        return cls(pid, None) if _exists(pid) else None

    def wait(self) -> bool:
        """Wait until the process has ended (true) or somebody called `stop_waiting` (false)."""
        import selectors

        with selectors.DefaultSelector() as selector:
            selector.register(self._reader, selectors.EVENT_READ)
            if self._descriptor is not None:
                selector.register(self._descriptor, selectors.EVENT_READ)
            while True:
                ready = [key.fd for key, _ in selector.select(None if self._descriptor is not None else self._INTERVAL)]
                if self._descriptor in ready or (self._descriptor is None and not _exists(self._pid)):
                    return True
                if self._reader in ready:
                    return False

    def kill(self) -> None:
        """Kill the process; nothing when it has ended."""
        if self._descriptor is not None:
            try:
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        elif sys.platform == "win32":
            _ignore_gone(os.kill, self._pid, signal.SIGTERM)
        else:
            _ignore_gone(os.kill, self._pid, signal.SIGKILL)

    def stop_waiting(self) -> None:
        """Have `wait` return."""
        if self._writer >= 0:
            os.write(self._writer, b"\0")

    def close(self) -> None:
        """Let go of the process; after `wait` has returned. Safe to call twice."""
        for descriptor in (self._reader, self._writer, -1 if self._descriptor is None else self._descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self._reader = self._writer = -1
        self._descriptor = None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def peer_pid(connected: socket.socket) -> int | None:
    """Which process connected a unix socket, or was connected to; `None` where the system does not tell."""
    if sys.platform == "linux":
        import socket
        import struct

        credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_CREDENTIALS))
        pid: int = struct.unpack(_CREDENTIALS, credentials)[0]
        return pid
    return None


class NamelessSocket:
    """A bound unix socket whose file is gone: only this process still has a path that leads to it.

    On Linux a descriptor of the file is as good as its name. Elsewhere the file stays until `close`, and who may enter
    its folder decides.

    :param path: where the socket was bound.
    :param remove: removes the file.
    """

    def __init__(self, path: str, remove: Callable[[], None]) -> None:
        self.address = path
        """A path to connect to, within this process."""
        self._remove: Callable[[], None] | None = remove
        self._descriptor = -1
        if hasattr(os, "O_PATH"):
            self._descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            known = f"/proc/self/fd/{self._descriptor}"
            if is_socket(known):
                self.address = known
                self._remove = None
                remove()

    def close(self) -> None:
        """Let go of the socket, and remove its file where that has not been done. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        remove, self._remove = self._remove, None
        if remove is not None:
            remove()
