"""Nothing outlives the host, however it ends.

A plugin written in Go does not notice that its host was killed (go-plugin's issue 114), and a parent-death signal is
bound to the *thread* that started the child, not to the process. So one small watcher process, a loader's own or that
of all clients without one, reads a pipe whose other end only the host holds: the names of the process groups to guard
go in, and of the folders that go with them. When the pipe ends because the host did, the watcher kills every group that
is still guarded, and whatever those processes have started in a session of its own, and then removes the folders.

The watcher is a shell, which is there on every POSIX system, starts in a millisecond and holds next to no memory;
without one it is a bare Python. It has a session of its own, so no terminal signal reaches it. A forked child of the
host lets go of its copy of the pipe: what the host started is not the child's.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from hybridload.forks import after_fork
from hybridload.interrupts import held

if TYPE_CHECKING:
    import subprocess

_PATIENCE = 10.0
"""Seconds that the watcher may take to end what is left."""

# `+ N` guards process group N, `- N` lets go of it; `f K PATH` guards a folder under the number K, `r K` lets go of it;
# `m K VARIABLE` and `u K` do so with the processes that have a variable in their environment. The end of the pipe, or
# `end`, kills and removes what is left.
_SHELL = r"""
groups= folders= marks=
without() { left=; for one in $2; do [ "$one" = "$1" ] || left="$left $one"; done; }
while read -r change which path; do
  case $change in
    +) groups="$groups $which" ;;
    -) without "$which" "$groups"; groups=$left ;;
    f) folders="$folders $which"; eval "folder_$which=\$path" ;;
    r) without "$which" "$folders"; folders=$left; unset "folder_$which" ;;
    m) marks="$marks $which"; eval "mark_$which=\$path" ;;
    u) without "$which" "$marks"; marks=$left; unset "mark_$which" ;;
    end) break ;;
  esac
done
for one in $groups; do kill -9 "-$one" || kill -9 "$one"; done
for one in $marks; do
  eval "mark=\$mark_$one"
  for again in 1 2 3 4 5 6 7 8 9; do
    found=
    for file in $(grep -lsF "$mark" /proc/[0-9]*/environ); do
      file=${file%/environ}; kill -9 "${file#/proc/}" && found=1
    done
    [ "$found" ] || break
  done
done
for one in $folders; do eval "rm -rf \"\$folder_$one\""; done
"""
_PYTHON = r"""
import glob, os, shutil, signal, sys
groups, folders, marks = set(), {}, {}
for line in sys.stdin:
    change, which, *path = line.rstrip("\n").split(" ", 2)
    if change == "+":
        groups.add(int(which))
    elif change == "-":
        groups.discard(int(which))
    elif change == "f":
        folders[which] = path[0]
    elif change == "r":
        folders.pop(which, None)
    elif change == "m":
        marks[which] = path[0].encode()
    elif change == "u":
        marks.pop(which, None)
    else:
        break
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
for mark in marks.values():
    for name in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(name, "rb") as file:
                if mark in file.read():
                    os.kill(int(name.split("/")[2]), signal.SIGKILL)
        except OSError:
            pass
for folder in folders.values():
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.unlink(folder)
    except OSError:
        pass
"""


class Lifeline:
    """Kills the guarded process groups when this process ends without having let go of them.

    Safe from any thread, signal handler and finalizer. A watcher that cannot be started, or that somebody killed, is
    replaced at the next `guard`; what it guarded is handed to the new one.

    What is to be done goes through a queue, which is worked off with the lock held. Who lets go of something waits for
    nobody: it is done by whoever has the lock. Nor does a handler or finalizer that interrupts such work on the same
    thread: what it asks for is done when it has returned.
    """

    def __init__(self) -> None:
        self._watcher: subprocess.Popen[bytes] | None = None
        # What is guarded, as it will be once the queue is worked off.
        self._groups: set[int] = set()
        self._folders: dict[int, str] = {}
        self._marks: dict[int, str] = {}
        self._numbers = itertools.count()
        self._begin_anew()
        after_fork(self, Lifeline._let_go_in_child)

    def _begin_anew(self) -> None:
        self._asked: deque[Callable[[], None]] = deque()
        self._lock = threading.RLock()
        self._busy = False

    def open(self) -> None:
        """Start the watcher. Done before a process starts, it leaves no time in which nobody guards it.

        :raises OSError: when no watcher can be started.
        """
        self._do(self._have_one)

    def guard(self, group: int) -> None:
        """Guard a process group until `release`.

        :raises OSError: when no watcher can be started.
        """
        self._groups.add(group)
        self._do(partial(self._tell_or_replace, f"+ {group}\n"))

    def release(self, group: int) -> None:
        """Let go of a group. Call it before its leader is reaped: afterwards the id may be somebody else's."""
        self._groups.discard(group)
        self._do(partial(self._tell, f"- {group}\n"), wait=False)

    def guard_folder(self, path: str) -> int:
        """Have a folder, made already or not, or a file removed when the host ends, until `release_folder`.

        :returns: what `release_folder` wants.
        :raises OSError: when no watcher can be started.
        """
        number = next(self._numbers)
        # The watcher reads lines. Nobody's temporary folder has a line feed in its name.
        if "\n" not in path:
            self._folders[number] = path
            self._do(partial(self._tell_or_replace, f"f {number} {path}\n"))
        return number

    def release_folder(self, number: int) -> None:
        """Let go of a folder."""
        if self._folders.pop(number, None) is not None:
            self._do(partial(self._tell, f"r {number}\n"), wait=False)

    def guard_mark(self, variable: str) -> int:
        """Have every process killed that has a variable in its environment when the host ends, until `release_mark`.

        :param variable: ``NAME=value``, of nobody else.
        :returns: what `release_mark` wants.
        :raises OSError: when no watcher can be started.
        """
        number = next(self._numbers)
        self._marks[number] = variable
        self._do(partial(self._tell_or_replace, f"m {number} {variable}\n"))
        return number

    def release_mark(self, number: int) -> None:
        """Let go of those."""
        if self._marks.pop(number, None) is not None:
            self._do(partial(self._tell, f"u {number}\n"), wait=False)

    def close(self) -> None:
        """End the watcher. What nobody has let go of is ended as it would be with the host. Safe to call twice."""
        self._do(self._finish)

    # -- working off what was asked for

    def _do(self, work: Callable[[], object], *, wait: bool = True) -> None:
        """Do `work` after what was asked for before it.

        :param wait: until it is done, unless this very thread is at it; otherwise whoever is does it.
        :raises OSError: it could not be done.
        """
        failures: list[OSError] = []
        self._asked.append(partial(_try, work, failures))
        if wait:
            self._work_off(blocking=True)
        # Looked at again after the lock was let go: whoever found it held has left something behind.
        while self._asked and self._work_off(blocking=False):
            pass
        if wait and failures:
            raise failures[0]

    def _work_off(self, *, blocking: bool) -> bool:
        with held:  # an interrupt must not lose what another thread has asked for
            if not self._lock.acquire(blocking=blocking):
                return False
            try:
                if self._busy:
                    return False
                self._busy = True
                try:
                    while self._asked:
                        self._asked.popleft()()
                finally:
                    self._busy = False
            finally:
                self._lock.release()
        return True

    def _have_one(self) -> None:
        if self._watcher is None or self._watcher.poll() is not None:
            self._replace()

    def _finish(self) -> None:
        watcher = self._watcher
        if (self._groups or self._folders or self._marks) and watcher is not None and self._tell("end\n"):
            import subprocess

            with suppress(subprocess.TimeoutExpired):  # somebody has stopped it
                watcher.wait(_PATIENCE)
        self._groups.clear()
        self._folders.clear()
        self._marks.clear()
        self._end()

    def _replace(self) -> None:
        import subprocess

        from hybridload import platforms

        self._end()
        shell = "/bin/sh"
        command = [shell, "-c", _SHELL] if os.path.exists(shell) else [sys.executable, "-I", "-S", "-c", _PYTHON]
        self._watcher = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/" if os.path.isdir("/") else None,
            bufsize=0,
            env={"PATH": os.defpath},
            **platforms.own_session(),
        )
        for group in self._groups.copy():
            self._tell(f"+ {group}\n")
        for number, path in self._folders.copy().items():
            self._tell(f"f {number} {path}\n")
        for number, variable in self._marks.copy().items():
            self._tell(f"m {number} {variable}\n")

    def _tell_or_replace(self, line: str) -> None:
        if not self._tell(line):
            self._replace()

    def _tell(self, line: str) -> bool:
        if self._watcher is None or self._watcher.stdin is None:
            return False
        try:
            self._watcher.stdin.write(os.fsencode(line))
        except OSError:
            return False
        return True

    def _end(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            # Killed before the pipe closes: at the pipe's end it would kill what it guards.
            watcher.kill()
            watcher.wait()
            if watcher.stdin is not None:
                watcher.stdin.close()

    def _let_go_in_child(self) -> None:
        """In a forked child: drop the copy of the pipe, which would keep the watcher waiting after the host's end."""
        self._begin_anew()
        watcher, self._watcher = self._watcher, None
        self._groups, self._folders, self._marks = set(), {}, {}
        if watcher is not None:
            watcher.returncode = 0  # not a child of this process: nothing to wait for
            if watcher.stdin is not None:
                watcher.stdin.close()


def _try(work: Callable[[], object], failures: list[OSError]) -> None:
    try:
        work()
    except OSError as error:
        failures.append(error)


class SharedLifeline:
    """One lifeline for all who have none of their own: there is a watcher for as long as somebody uses it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may come through here amid anything
        self._lifeline: Lifeline | None = None
        self._users = 0
        after_fork(self, SharedLifeline._forget_in_child)

    def join(self) -> Lifeline:
        """The lifeline, until `leave`."""
        made = Lifeline() if self._lifeline is None else None
        with self._lock:
            lifeline = self._lifeline = self._lifeline or made or Lifeline()
            self._users += 1
            return lifeline

    def leave(self, lifeline: Lifeline) -> None:
        """Give back what `join` returned, having let go of everything that it guarded; the last one ends it."""
        with self._lock:
            if lifeline is not self._lifeline:
                return  # a forked child's copy of its parent's, which it has let go of
            self._users -= 1
            if self._users:
                return
            self._lifeline = None
        lifeline.close()

    def _forget_in_child(self) -> None:
        self._lock = threading.RLock()
        self._lifeline = None
        self._users = 0


SHARED_LIFELINE = SharedLifeline()

# What it reads from is a copy of the plugin's pipes on its own 1 and 2, because a shell can redirect no higher number.
# `cat` fails where it shares the host's pipes, which do not block, and succeeds at their end.
_KEEPER = r"""
read -r _
until cat <&1 >/dev/null 2>/dev/null; do sleep 0.2; done &
until cat <&2 >/dev/null 2>/dev/null; do sleep 0.2; done
wait
"""


def start_keeper(stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    """Start what drains a plugin's output once the host has died: the plugin would block on a full pipe, and die of
    SIGPIPE on one that nobody can read any more (go-plugin's issue 114).

    :param stdout: the reading end of the plugin's standard output.
    :param stderr: the same of its standard error.
    """
    import subprocess

    from hybridload import platforms

    ours: list[int] = []
    try:
        for pipe in (stdout, stderr):
            ours.append(platforms.reopened_pipe(pipe))
        return subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER],
            stdin=subprocess.PIPE,
            stdout=ours[0],
            stderr=ours[1],
            cwd="/",
            bufsize=0,
            env={"PATH": os.defpath},
            **platforms.own_session(),
        )
    finally:
        for descriptor in ours:
            os.close(descriptor)


def end_keeper(keeper: subprocess.Popen[bytes]) -> None:
    """End it, when the plugin has ended before the host."""
    keeper.kill()
    keeper.wait()
    if keeper.stdin is not None:
        keeper.stdin.close()
