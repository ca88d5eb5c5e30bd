"""A plugin's process on this machine: started, drained, watched and ended.

- One thread per process reads both pipes for as long as it lives, because a plugin whose pipe is full blocks for ever,
  and learns of its end. The thread is joined by `close`.
- The process leads its own session and process group. When it ends, what it started in that group is killed before the
  leader is reaped (until then no id can be anyone else's), so that nothing is left of a plugin that crashed.
- What it started in a session of its own is found by a variable that its environment has, and killed then as well.
- The end of the *process* counts, not the end of its pipes: a grandchild may hold those open. It is known at once even
  when that thread is held up by whoever takes the output (`poll`).
- Output that nobody takes holds the plugin up, by the pipe's own capacity, and never fills this process's memory. One
  that writes without end is held up as well, or it and whoever reads that would take two processors from all others.
- Limits are in force before the program is: its process begins as a small program of ours that sets them and becomes
  the other, with the same pid.
- The bytes whose checksum was verified are the bytes that run: they are hashed on their way into a copy that nobody can
  change, see `platforms.program_copy`.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import hmac
import logging
import os
import selectors
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from hybridload import platforms
from hybridload.complain import complain
from hybridload.errors import (
    ChecksumMismatch,
    ConfigError,
    PermissionDenied,
    PluginNotFound,
    ProcessError,
    start_failed,
)
from hybridload.frozen import field, frozen, replace
from hybridload.goplugin.lifeline import Lifeline, end_keeper, start_keeper
from hybridload.limits import Limits

log = logging.getLogger(__name__)

MARK = "HYBRIDLOAD_PROCESS"
"""Tells a plugin's process, and all that it starts, from every other."""

_CHUNK = 256 * 1024
_PIECE = 1024 * 1024
_LARGEST_PROGRAM = 4 * 1024**3
"""Bytes of a program with a checksum, whose copy is kept in memory while it runs."""
# What a pipe can hold at the most after its writer has ended (Linux's default limit for an unprivileged process).
_PIPE_CAPACITY = 1024 * 1024
_WAIT_FOR_MEMORY = 0.1
"""Seconds until output for which the host had no memory is read again."""
_BURST = 16 * 1024 * 1024
"""Bytes that a plugin may write as fast as it can."""
_RATE = 64 * 1024 * 1024
"""Bytes a second that are taken from one that goes on."""
_PATIENCE = 5.0
"""Seconds that `close` waits for whoever takes the last output: a logging handler may be blocked for ever."""


@frozen
class ProcessSpec:
    """What to run.

    :param argv: the program's absolute path, then its arguments.
    :param env: the whole environment.
    :param cwd: working directory; `None` for the host's.
    :param sha256: lower-case hexadecimal digest that the program's bytes must have; `None` to run whatever is there.
    :param outlive_host: have somebody else drain its output when the host has died, so that it does not die of that.
    :param limits: what it may use at the most.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str | None = None
    sha256: str | None = None
    outlive_host: bool = False
    limits: Limits = field(default_factory=Limits)


class Child(Protocol):
    """A process as whoever started it has it: to be watched, killed and reaped.

    :param pid: its id, which leads its own process group.
    :param stdout: the reading end of its standard output.
    :param stderr: the same of its standard error.
    """

    pid: int
    stdout: int
    stderr: int

    def open_exit_watch(self) -> int | None:
        """A descriptor that becomes readable when it ends; whoever asks closes it. `None` where there is none, and
        `platforms.wait_without_reaping` waits for it."""

    def has_ended(self) -> bool:
        """Whether it has ended; no, where the system cannot tell without reaping it."""

    def kill_group(self) -> None:
        """Kill it and its group; not after `reap`."""

    def reap(self) -> int | None:
        """Wait for its end: the exit status, minus the signal, or `None` when nobody can tell. Called once."""

    def close(self) -> None:
        """Close its pipes and whatever else belongs to it."""


class PluginProcess:
    """A running plugin process.

    :param name: the plugin's name, for errors and thread names.
    :param on_stdout: called with each chunk of standard output, from the process's thread; ``b""`` is its end.
    :param on_stderr: the same for standard error.
    :param on_exit: called once from that thread, after the last chunk, with the exit status or minus the signal; `None`
        when nobody can tell.
    :param lifeline: kills the process when the host ends without having done so; `None` to let it live on.
    :param spawn: starts it; a program of its own by default.
    :raises PluginNotFound: there is no such program, or its interpreter is missing.
    :raises PermissionDenied: the program cannot be run.
    :raises ChecksumMismatch: it is not the one whose digest was given.
    :raises ProcessError: the system refuses to start a process at all.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        *,
        name: str,
        on_stdout: Callable[[bytes], None],
        on_stderr: Callable[[bytes], None],
        on_exit: Callable[[int | None], None],
        lifeline: Lifeline | None,
        spawn: Callable[[ProcessSpec, str], Child] | None = None,
    ) -> None:
        self.name = name
        self.returncode: int | None = None
        self._reaped = False
        self._on_exit = on_exit
        self._lifeline = lifeline
        self._ended = threading.Event()
        # Held while signalling and while reaping, so that no signal goes to a pid that is already someone else's.
        # Reentrant, for a signal handler that kills amid that.
        self._reaping = threading.RLock()
        # What the plugin starts in a session of its own is found by it.
        self._mark: tuple[int, str] | None = None
        if lifeline is not None:
            token = os.urandom(16).hex()
            variable = f"{MARK}={token}"
            self._mark = (lifeline.guard_mark(variable), variable)
            spec = replace(spec, env={**spec.env, MARK: token})
        try:
            self._child = (spawn or start_program)(spec, name)
        except Exception:
            self._release_mark()
            raise
        except BaseException:  # an interrupt amid it: a process that has started is known by its mark alone
            self._kill_strays()
            raise
        self.pid = self._child.pid
        self._keeper: subprocess.Popen[bytes] | None = None
        try:
            if spec.outlive_host:
                self._keeper = start_keeper(self._child.stdout, self._child.stderr)
            if lifeline is not None:
                lifeline.guard(self.pid)
            # What the thread needs is taken here: a thread that lacks it could tell nobody.
            with ExitStack() as stack:
                sinks: dict[int, Callable[[bytes], None]] = {}
                pace = _Pace(time.monotonic())
                for pipe, sink in ((self._child.stdout, on_stdout), (self._child.stderr, on_stderr)):
                    os.set_blocking(pipe, False)
                    sinks[pipe] = functools.partial(_take, sink, pace)
                watch = self._child.open_exit_watch()
                if watch is None:
                    watch = stack.enter_context(_WaitingThread(self.pid, name))
                else:
                    stack.callback(os.close, watch)
                selector = stack.enter_context(selectors.DefaultSelector())
                for descriptor in (watch, *sinks):
                    selector.register(descriptor, selectors.EVENT_READ)
                stack.callback(self._reap)  # before the others: one of them may be a thread that waits for its end
                needs = stack.pop_all()
            self._thread = threading.Thread(
                target=self._run, args=(selector, watch, sinks, needs), name=f"hybridload {name} pipes", daemon=True
            )
            try:
                self._thread.start()
            except BaseException:
                needs.close()
                raise
        except BaseException:
            self._reap()
            self._close_pipes()
            self._kill_strays()
            raise

    @property
    def ended(self) -> bool:
        """Whether the process is gone, its last output read and `on_exit` called."""
        return self._ended.is_set()

    def poll(self) -> bool:
        """Whether the process has ended, though its last output may still be on its way; `returncode` is known then."""
        with self._reaping:
            if not self._reaped and self._child.has_ended():
                self._reap_now()
            return self._reaped

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the process is gone, as `ended` has it.

        :param timeout: in seconds; `None` waits for ever.
        :returns: whether it is gone.
        """
        return self._ended.wait(timeout)

    def kill(self) -> None:
        """Kill the process and its group. Returns at once; a process that is gone is left alone."""
        with self._reaping:
            if not self._reaped:
                self._child.kill_group()

    def close(self) -> None:
        """Kill what still runs, and wait until process, thread and pipes are gone. Safe to call twice.

        The thread is not waited for by itself, nor for longer than a few seconds when whoever takes the output is
        blocked; the process is gone even so.
        """
        self.kill()
        if threading.current_thread() is not self._thread:
            self._thread.join(_PATIENCE)
            self.poll()

    def _run(
        self, selector: selectors.BaseSelector, watch: int, sinks: dict[int, Callable[[bytes], None]], needs: ExitStack
    ) -> None:
        try:
            with needs:
                self._drain(selector, watch, sinks)
        finally:
            self._end()

    def _drain(self, selector: selectors.BaseSelector, watch: int, sinks: dict[int, Callable[[bytes], None]]) -> None:
        running = True
        while running:
            for key, _ in selector.select():
                if key.fd == watch:
                    running = False
                elif not _pump(key.fd, sinks[key.fd]):
                    selector.unregister(key.fd)
        self._reap()
        for descriptor, sink in sinks.items():
            _pump(descriptor, sink, limit=_PIPE_CAPACITY)

    def _reap(self) -> int | None:
        with self._reaping:
            if not self._reaped:
                self._reap_now()
            return self.returncode

    def _reap_now(self) -> None:
        """Take the exit status; called once, with the lock held. Until it is taken, pid and group are the process's."""
        self._child.kill_group()
        if self._lifeline is not None:
            self._lifeline.release(self.pid)
        self.returncode = self._child.reap()
        self._reaped = True

    def _close_pipes(self) -> None:
        if self._keeper is not None:
            end_keeper(self._keeper)
        self._child.close()

    def _end(self) -> None:
        returncode = self._reap()
        self._close_pipes()
        try:
            self._on_exit(returncode)
        except BaseException as error:
            complain(log, "plugin %s: what was to happen at its end failed", self.name, error=error)
        finally:
            self._ended.set()
        self._kill_strays()

    def _kill_strays(self) -> None:
        if self._mark is None:
            return
        try:
            platforms.kill_marked(self._mark[1])
        except OSError as error:  # no descriptor is left to look with: the lifeline has it, and does so with the host
            log.warning("plugin %s: what it may have started is not looked for: %s", self.name, error)
            return
        self._release_mark()

    def _release_mark(self) -> None:
        if self._mark is not None and self._lifeline is not None:
            self._lifeline.release_mark(self._mark[0])


def _pump(descriptor: int, sink: Callable[[bytes], None], limit: int = _CHUNK) -> bool:
    """Hand what can be read now to the sink, up to `limit` bytes; whether more may come."""
    while limit > 0:
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return True
        except MemoryError:
            time.sleep(_WAIT_FOR_MEMORY)  # the pipe keeps it
            return True
        except OSError:
            data = b""
        try:
            sink(data)
        except BaseException as error:  # as a log handler of the user's may raise it; nobody interrupts this thread
            # The pipe has to be drained whatever becomes of what was in it.
            complain(log, "what a plugin wrote could not be handed on", error=error)
        if not data:
            return False
        limit -= len(data)
    return True


class _Pace:
    """How fast output is taken: `_BURST` bytes at once, and `_RATE` bytes a second from then on."""

    def __init__(self, now: float) -> None:
        self._left = float(_BURST)
        self._since = now

    def pause_after(self, size: int, now: float) -> float:
        """Seconds to wait when so many bytes were taken.

        :param now: seconds, on a clock that only goes forward.
        """
        self._left = min(_BURST, self._left + (now - self._since) * _RATE) - size
        self._since = now
        return max(0.0, -self._left / _RATE)


def _take(sink: Callable[[bytes], None], pace: _Pace, data: bytes) -> None:
    try:
        sink(data)
    finally:
        pause = pace.pause_after(len(data), time.monotonic())
        if pause:
            time.sleep(pause)


class _WaitingThread:
    """Stands in for a pidfd: a descriptor that becomes readable when the child has ended."""

    def __init__(self, pid: int, name: str) -> None:
        self._reader, self._writer = os.pipe()
        self._thread = threading.Thread(target=self._wait, args=(pid,), name=f"hybridload {name} exit", daemon=True)

    def _wait(self, pid: int) -> None:
        platforms.wait_without_reaping(pid)
        os.write(self._writer, b"\0")

    def __enter__(self) -> int:
        try:
            self._thread.start()
        except BaseException:  # there is no thread to be had
            os.close(self._reader)
            os.close(self._writer)
            raise
        return self._reader

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)


class _Program:
    """A child of this process.

    :param popen: with both pipes.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        assert popen.stdout is not None
        assert popen.stderr is not None
        self._popen = popen
        self.pid = popen.pid
        self.stdout = popen.stdout.fileno()
        self.stderr = popen.stderr.fileno()

    def open_exit_watch(self) -> int | None:
        return platforms.open_exit_watch(self.pid)

    def has_ended(self) -> bool:
        return platforms.has_ended(self.pid)

    def kill_group(self) -> None:
        if platforms.is_child(self.pid):
            platforms.kill_group(self.pid)
        else:
            platforms.kill_orphaned_group(self.pid)

    def reap(self) -> int | None:
        return platforms.reap(self._popen)

    def close(self) -> None:
        for pipe in (self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()


def start_program(spec: ProcessSpec, name: str) -> Child:
    """Start a program.

    :raises PluginError: as `PluginProcess`.
    """
    program = spec.argv[0]
    with ExitStack() as stack:
        executable, inherited = program, tuple[int, ...]()
        if spec.sha256 is not None:
            copy = functools.partial(_copy_verified, program, spec.sha256, name)
            try:
                executable, inherited = stack.enter_context(platforms.program_copy(copy, Path(program).name))
            except OSError as error:
                raise start_failed(error, name) from error
        try:
            if spec.limits:
                return _Program(_popen_limited(spec, executable, inherited, name))
            return _Program(_popen(spec, list(spec.argv), executable, inherited))
        except OSError as error:
            raise start_error(error, spec, name) from error
        except ValueError as error:
            raise ConfigError(
                f"Plugin {name!r} cannot be started with this command or environment: {error}.", plugin=name
            ) from error


def _popen(spec: ProcessSpec, argv: list[str], executable: str, inherited: tuple[int, ...]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        executable=executable,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd=spec.cwd,
        env=dict(spec.env),
        pass_fds=inherited,
        **platforms.own_session(),
    )


_LIMITED = """
import os, resource, signal, sys
told, limits, had_ctype, program, *argv = sys.argv[1:]
os.set_inheritable(int(told), False)
for each in limits.split():
    kind, soft, hard = map(int, each.split(":"))
    most = resource.getrlimit(kind)[1]
    below = most if most != resource.RLIM_INFINITY else hard
    resource.setrlimit(kind, (min(soft, below), min(hard, below)))
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
if not had_ctype:
    os.environ.pop("LC_CTYPE", None)
try:
    os.execve(program, argv, os.environ)
except OSError as error:
    os.write(int(told), b"%d" % error.errno)
    os._exit(127)
"""
"""Sets limits and becomes another program. What an interpreter changes by itself is put back: two signals that it
ignores, and the locale that it sets when there is none (PEP 538)."""


def _popen_limited(
    spec: ProcessSpec, executable: str, inherited: tuple[int, ...], name: str
) -> subprocess.Popen[bytes]:
    """Start a program under its limits; what keeps it from starting is raised as `subprocess.Popen` does."""
    limits = platforms.limit_numbers(spec.limits)
    if limits is None or not sys.executable:
        raise ConfigError(
            f"Plugin {name!r} has limits, which cannot be enforced here: "
            + ("this system has no setrlimit" if limits is None else "the host's interpreter has no file to run")
            + ". Remove them, or limit it from outside.",
            plugin=name,
        )
    reader, writer = os.pipe()
    try:
        writer = platforms.beyond_standard(writer)
        words = [str(writer), " ".join(limits), "y" if "LC_CTYPE" in spec.env else "", executable, *spec.argv]
        argv = [sys.executable, "-I", "-S", "-c", _LIMITED, *words]
        try:
            popen = _popen(spec, argv, sys.executable, (*inherited, writer))
        finally:
            os.close(writer)
        failure = os.read(reader, 16)  # empty once it has become the program
    finally:
        os.close(reader)
    if failure:
        with popen:  # it ends by itself, and closes its pipes
            popen.wait()
        raise OSError(int(failure), os.strerror(int(failure)), executable)
    return popen


def _copy_verified(program: str, expected: str, name: str, to: int) -> None:
    """Copy a program to a descriptor, if its bytes have the digest that they should have.

    In pieces, and no more than `_LARGEST_PROGRAM`: a program is what a user named, and may be any file.
    """
    try:
        # Whatever took the program's place meanwhile, opening it must not wait.
        file = os.open(program, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        raise PluginNotFound(f"Plugin {name!r}: there is no file {program}.", plugin=name) from error
    except PermissionError as error:
        raise _unreadable(program, error.strerror, name) from error
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise _unreadable(program, "it is not a regular file", name)
        if found.st_size > _LARGEST_PROGRAM:
            raise _unreadable(program, f"it has {found.st_size} bytes, and a program {_LARGEST_PROGRAM} at most", name)
        digest, left = hashlib.sha256(), found.st_size
        while left > 0 and (piece := os.read(file, min(_PIECE, left))):
            left -= len(piece)
            digest.update(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(to, view) :]
    finally:
        os.close(file)
    actual = digest.hexdigest()
    if not hmac.compare_digest(actual, expected.lower()):
        raise ChecksumMismatch(
            f"Plugin {name!r}: {program} has the SHA-256 {actual}, but {expected.lower()} was expected. "
            "Either the file is not the one that was meant, or sha256 was not updated with it: find out which before "
            "you change sha256.",
            plugin=name,
            expected=expected.lower(),
            actual=actual,
        )


def _unreadable(program: str, why: str | None, name: str) -> PermissionDenied:
    return PermissionDenied(f"Plugin {name!r}: {program} cannot be read for its checksum: {why}.", plugin=name)


def start_error(error: OSError, spec: ProcessSpec, name: str) -> Exception:
    """What kept a process from starting, in words."""
    program = spec.argv[0]
    if spec.cwd is not None and not os.path.isdir(spec.cwd):
        return ConfigError(f"Plugin {name!r}: its working directory {spec.cwd} does not exist.", plugin=name)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if os.path.exists(program):
            return PluginNotFound(
                f"Plugin {name!r}: {program} is there, but the interpreter that its first line names is not.",
                plugin=name,
            )
        return PluginNotFound(
            f"Plugin {name!r}: there is no program {program}. Build or install it, or correct the command.", plugin=name
        )
    if isinstance(error, PermissionError):
        what = "is a directory" if os.path.isdir(program) else "may not be executed by this user (chmod +x?)"
        return PermissionDenied(f"Plugin {name!r}: {program} {what}.", plugin=name)
    if error.errno in (errno.ENOEXEC, errno.EISDIR):
        return PermissionDenied(
            f"Plugin {name!r}: {program} is not a program that this system can run ({error.strerror}): "
            "is it a text file without a #! line, or built for another system?",
            plugin=name,
        )
    if error.errno == errno.E2BIG:
        return ProcessError(
            f"Plugin {name!r}: its command and environment, which its options are in, are larger than the system takes "
            "(on Linux 128 KiB a variable, and a few MiB in all). Give it what is large in a file.",
            plugin=name,
        )
    return start_failed(error, name)


def describe_exit(returncode: int | None) -> str:
    """How a process ended, in words: ``"exit status 1"`` or ``"signal 9 (SIGKILL)"``."""
    if returncode is None:
        return "in an unknown way"
    if returncode >= 0:
        return f"with exit status {returncode}"
    try:
        number = signal.Signals(-returncode)
        limit = ", its limit of cpu_seconds" if number.name == "SIGXCPU" else ""
        return f"by signal {-returncode} ({number.name}{limit})"
    except ValueError:
        return f"by signal {-returncode}"
