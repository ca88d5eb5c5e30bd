"""The host's side of its fork server: it is started when it is first needed, and ended with the host.

A plugin is forked unless it asks for what a forked process cannot have; it is started by itself then, as without a fork
server. That is so where its environment differs from the fork server's in a variable that an interpreter reads when it
starts (`PYTHON…`, `LC_…`, `LANG`, `LD_…` and the like), where the host is another one than it was when it started the
fork server (it has dropped privileges, say), where a signal handler or a finalizer that has interrupted a request asks
for it, and on systems other than Linux.

Threads: one lock, held for one request and its reply, and while the fork server starts. There is no thread. A reply
that does not come in time, or whose wait is interrupted, is the end of the fork server: coming later, it would be taken
for the next one's.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from hybridload import platforms
from hybridload.errors import ProcessError, StartTimeout
from hybridload.forks import after_fork

if TYPE_CHECKING:
    import socket
    import subprocess

    from hybridload.goplugin.lifeline import Lifeline
    from hybridload.goplugin.process import Child, ProcessSpec

log = logging.getLogger(__name__)

_START_TIMEOUT = 60.0
"""Seconds, where no other time is given: as `Client` has it."""
_REAP_TIMEOUT = 10.0
"""Seconds for the status of a process that has ended already."""
_REAP_PATIENCE = 0.1
"""Seconds that the news of a crash waits for it."""
_READ_AT_START = ("PYTHON", "LC_", "LD_", "MALLOC_", "PROTOCOL_BUFFERS_", "OPENSSL_", "CRYPTOGRAPHY_")
_READ_AT_START_TOO = ("LANG", "GLIBC_TUNABLES")
_HANDED_ON = ("Umask:", "Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "Seccomp", "Cpus_allowed:", "Mems_allowed:")
"""What proc(5) has of a thread and every process that it starts has as well."""
_NOT_ITS_BUSINESS = ("PLUGIN_", "HYBRIDLOAD_LAUNCH")


class ForkServer:
    """Starts Python plugins as forks of a warm process; see the package. Safe from any thread.

    Whoever has it closes it, after the plugins.
    """

    def __init__(self) -> None:
        # Reentrant, for a signal handler or a finalizer that interrupts a request: `_busy` tells it.
        self._lock = threading.RLock()
        self._busy = False
        self._server: _Server | None = None
        after_fork(self, ForkServer._let_go_in_child)

    @property
    def pid(self) -> int | None:
        """The fork server's id; `None` while there is none."""
        server = self._server
        return None if server is None else server.pid

    def start(
        self, spec: ProcessSpec, name: str, *, lifeline: Lifeline, timeout: float | None = _START_TIMEOUT
    ) -> Child:
        """Fork a plugin, or start it by itself where it cannot be forked.

        :param spec: a `LaunchSpec`'s command and environment.
        :param lifeline: ends the fork server with the host.
        :param timeout: seconds until it must have been forked, the fork server's own start included.
        :raises PluginError: why it cannot be started.
        """
        from hybridload.goplugin.process import start_error, start_program

        if platforms.has_fork_server() and self._fits(spec.env):
            try:
                with ExitStack() as stack:
                    return self._fork(spec, name, lifeline, stack, timeout or _START_TIMEOUT)
            except OSError as error:
                raise start_error(error, spec, name) from error
            except _Interrupted:
                pass
        return start_program(spec, name)

    def close(self) -> None:
        """End the fork server. Safe to call twice."""
        with self._lock:
            self._drop()

    def _fits(self, environment: Mapping[str, str]) -> bool:
        server = self._server
        if server is None:
            return _read_at_start(environment) == _read_at_start(os.environ)
        return _read_at_start(environment) == server.read_at_start and _handed_on() == server.handed_on

    def _fork(self, spec: ProcessSpec, name: str, lifeline: Lifeline, stack: ExitStack, timeout: float) -> Child:
        """:raises OSError: what the system refuses."""
        from hybridload.goplugin.prefork.messages import Fork

        has_input = _is_inherited(0)
        given = [0] if has_input else []
        kept = stack.enter_context(ExitStack())
        pipes: list[int] = []
        for _ in range(2):
            reader, writer = os.pipe()
            kept.callback(os.close, reader)
            stack.callback(os.close, writer)
            pipes.append(reader)
            given.append(writer)
        folder = os.open(spec.cwd or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        given.append(folder)
        request = Fork(name, list(spec.argv[-1:]), spec.env, platforms.limit_numbers(spec.limits) or (), has_input)
        server, answer = self._ask({"fork": request.to_dict()}, given, name, lifeline, timeout)
        if "error" in answer:
            raise OSError(answer["error"], os.strerror(answer["error"]))
        child = _Forked(server, answer["pid"], *pipes)
        kept.pop_all()  # they are the child's from now on
        return child

    def _ask(
        self, request: Mapping[str, Any], descriptors: Sequence[int], name: str, lifeline: Lifeline, timeout: float
    ) -> tuple[_Server, dict[str, Any]]:
        ends = time.monotonic() + timeout
        why = _Gone("is busy with another plugin")
        with self._turn(timeout) as has_turn:
            # One that was killed a moment ago is found out by asking it.
            for _ in range(2 if has_turn else 0):
                server = self._current(lifeline)
                try:
                    return server, server.ask(request, descriptors, timeout=max(0.001, ends - time.monotonic()))
                except BaseException as error:
                    self._drop()
                    if not isinstance(error, _Gone):
                        raise
                    why = error
                if time.monotonic() >= ends:
                    break
        if time.monotonic() >= ends:
            raise StartTimeout(
                f"Plugin {name!r} was not forked within {timeout:.3g} s: the fork server {why}. Give it a longer "
                "start_timeout, or set prefork = false.",
                plugin=name,
            ) from why
        raise ProcessError(
            f"Plugin {name!r} cannot be forked: the fork server {why}. See what it wrote on standard error, or set "
            "prefork = false.",
            plugin=name,
        ) from why

    @contextmanager
    def _turn(self, timeout: float) -> Iterator[bool]:
        """Hold the lock, if it is to be had within `timeout` seconds; yields whether it is held.

        :raises _Interrupted: this very thread is amid a request.
        """
        if not self._lock.acquire(timeout=timeout):
            yield False
            return
        try:
            if self._busy:
                raise _Interrupted
            self._busy = True
            try:
                yield True
            finally:
                self._busy = False
        finally:
            self._lock.release()

    def _current(self, lifeline: Lifeline) -> _Server:
        # One that somebody has stopped answers nobody, for as long as that pleases them.
        if self._server is not None and (self._server.has_ended() or platforms.is_stopped(self._server.pid)):
            self._drop()
        if self._server is None:
            self._server = _Server(lifeline)
        return self._server

    def _drop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _let_go_in_child(self) -> None:
        """In a forked child: the fork server is the parent's, and must see the end of the socket when that ends."""
        self._lock, self._busy = threading.RLock(), False
        server, self._server = self._server, None
        if server is not None:
            server.let_go()


class _Interrupted(Exception):
    """Whoever asks has interrupted another request on its own thread, which will be answered when it has returned."""


class _Gone(Exception):
    """The fork server did not reply; the rest of a sentence about it."""


class _Server:
    """One fork server's process. Called with the lock of whoever has it held, but for `reap` and what only looks."""

    def __init__(self, lifeline: Lifeline) -> None:
        import socket
        import subprocess

        from hybridload.goplugin.launch_spec import fork_server_command, fork_server_environment

        self._lifeline = lifeline
        self._lock = threading.Lock()
        self._owed = 0  # replies that nobody has waited for long enough
        self._to_reap: deque[int] = deque()
        self.read_at_start = _read_at_start(os.environ)
        self.handed_on = _handed_on()
        ours, theirs = socket.socketpair()
        self._socket: socket.socket = ours
        try:
            given = platforms.beyond_standard(theirs.detach())
        except BaseException:
            ours.close()
            raise
        try:
            lifeline.open()
            environment = {key: value for key, value in os.environ.items() if not key.startswith(_NOT_ITS_BUSINESS)}
            self._popen: subprocess.Popen[bytes] = subprocess.Popen(
                fork_server_command(given),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if _is_inherited(2) else subprocess.DEVNULL,
                env={**environment, **fork_server_environment()},
                pass_fds=(given,),
                **platforms.own_session(),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(given)
        self.pid = self._popen.pid
        try:
            lifeline.guard(self.pid)
        except BaseException:
            self.close()
            raise

    def ask(self, request: Mapping[str, Any], descriptors: Sequence[int] = (), *, timeout: float) -> dict[str, Any]:
        """Make a request and wait for its reply.

        :param timeout: seconds.
        :raises _Gone: there is none. Nobody may ask any more.
        """
        from hybridload.goplugin.prefork.messages import receive, send

        if not self._lock.acquire(timeout=timeout):
            self._kill()
            raise _Gone("did not answer in time")
        try:
            self._socket.settimeout(timeout)
            while self._to_reap:
                send(self._socket, {"reap": self._to_reap[0]})
                self._to_reap.popleft()
                self._owed += 1
            while self._owed:
                receive(self._socket)
                self._owed -= 1
            send(self._socket, request, descriptors)
            received = receive(self._socket)
        except BaseException as error:
            self._kill()
            if isinstance(error, OSError):
                raise _Gone(f"did not answer ({error})") from error
            raise
        finally:
            self._lock.release()
        if received is None:
            self._kill()
            raise _Gone("has ended")
        answer, unwanted = received
        for descriptor in unwanted:
            os.close(descriptor)
        return answer

    def reap(self, pid: int) -> int | None:
        """The exit status of a child that has ended.

        One that has been stopped, or is at something else, does not hold up the news of a crash: the status is read off
        the system then, and the child is reaped before the next request.

        :raises _Gone: it has ended as well, and the child is an orphan.
        """
        from hybridload.goplugin.prefork.messages import receive, send

        ends = time.monotonic() + _REAP_PATIENCE
        if not self._lock.acquire(timeout=_REAP_PATIENCE):
            self._to_reap.append(pid)
            return platforms.zombie_status(pid)
        try:
            if self._owed or self._to_reap:
                self._to_reap.append(pid)
                return platforms.zombie_status(pid)
            self._socket.settimeout(_REAP_TIMEOUT)
            send(self._socket, {"reap": pid})
            self._owed += 1
            if not _comes(self._socket.fileno(), max(0.0, ends - time.monotonic())):
                return platforms.zombie_status(pid)
            received = receive(self._socket)
            self._owed -= 1
        except OSError as error:
            received = None
            log.debug("the fork server did not answer: %s", error)
        finally:
            self._lock.release()
        if received is None:
            self._kill()
            platforms.wait_without_reaping(self._popen.pid)
            raise _Gone("has ended")
        status: int | None = received[0]["status"]
        return status

    def has_ended(self) -> bool:
        """Whether it has ended, or was closed."""
        return self._popen.returncode is not None or platforms.has_ended(self.pid)

    def close(self) -> None:
        """End it."""
        self._kill()  # whoever waits for a reply has none
        self._lifeline.release(self.pid)
        self._popen.wait()
        with self._lock:
            self._socket.close()

    def _kill(self) -> None:
        """Kill it, and leave it to be reaped by `close`: until then its id is nobody else's."""
        if self._popen.returncode is None:
            platforms.kill_group(self.pid)

    def let_go(self) -> None:
        """In a forked child: it is no child of this process."""
        self._popen.returncode = 0
        self._socket.close()


class _Forked:
    """A child of the fork server: see `Child`.

    As long as the fork server lives, it is nobody else's id until `reap`. When that has died, the system reaps; or the
    host has to, where it is who adopts orphans: process 1 of a container, or a subreaper.
    """

    def __init__(self, server: _Server, pid: int, stdout: int, stderr: int) -> None:
        self._server = server
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        watch = platforms.open_exit_watch(pid)
        if watch is None:
            if not server.has_ended():
                platforms.kill_group(pid)
                with suppress(_Gone):
                    server.reap(pid)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self._watch = watch

    def open_exit_watch(self) -> int:
        return os.dup(self._watch)

    def has_ended(self) -> bool:
        return self._ends(0)

    def kill_group(self) -> None:
        if not self._server.has_ended():
            platforms.kill_group(self.pid)
            return
        ours = not self.has_ended()
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._watch, signal.SIGKILL)
        # No new process gets the id of a group that has members.
        if ours or self._adopted(os.WNOHANG | os.WNOWAIT) is not None or not os.path.exists(f"/proc/{self.pid}"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int | None:
        self._ends(None)
        try:
            return self._server.reap(self.pid)
        except _Gone:
            return self._adopted(os.WNOHANG)

    def close(self) -> None:
        for descriptor in (self.stdout, self.stderr, self._watch):
            os.close(descriptor)

    def _adopted(self, how: int) -> int | None:
        """The exit status of one that has ended and was adopted by the host; `None` for any other."""
        try:
            found = os.waitid(os.P_PIDFD, self._watch, os.WEXITED | how)
        except ChildProcessError:
            return None
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def _ends(self, timeout: float | None) -> bool:
        return _comes(self._watch, timeout)


def _comes(descriptor: int, timeout: float | None) -> bool:
    """Whether something can be read within so many seconds."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        key: value for key, value in environment.items() if key.startswith(_READ_AT_START) or key in _READ_AT_START_TOO
    }


def _handed_on() -> list[str]:
    """What a process takes from the thread that starts it, and no request can change."""
    with open("/proc/thread-self/status", encoding="utf-8", errors="replace") as status:
        found = [line for line in status if line.startswith(_HANDED_ON)]
    with open("/proc/thread-self/limits", encoding="utf-8") as limits:
        found += limits
    root = os.stat("/")
    return [*found, f"{root.st_dev} {root.st_ino} {os.getpriority(os.PRIO_PROCESS, 0)}"]


def _is_inherited(descriptor: int) -> bool:
    """Whether a program that is started has that descriptor."""
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False
