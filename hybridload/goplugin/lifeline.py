"""Nothing outlives the host, however it ends.

A plugin written in Go does not notice that its host was killed (go-plugin's issue 114), and a parent-death signal is
bound to the *thread* that started the child, not to the process. So one small watcher process per owner reads a pipe
whose other end only the host holds: the names of the process groups to guard go in, and when the pipe ends because the
host did, the watcher kills every group that is still guarded.

The watcher is a shell, which is there on every POSIX system, starts in a millisecond and holds next to no memory;
without one it is a bare Python. It has a session of its own, so no terminal signal reaches it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from hybridload import platforms

# `+ N` guards process group N, `- N` lets go of it; the end of the pipe kills what is left.
_SHELL = """
groups=
while read -r change group; do
  case $change in
    +) groups="$groups $group" ;;
    -) left=
       for one in $groups; do [ "$one" = "$group" ] || left="$left $one"; done
       groups=$left ;;
  esac
done
for one in $groups; do kill -9 "-$one" || kill -9 "$one"; done
"""
_PYTHON = """
import os, signal, sys
groups = []
for line in sys.stdin:
    change, group = line.split()
    (groups.append if change == "+" else groups.remove)(int(group))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


class Lifeline:
    """Kills the guarded process groups when this process ends without having let go of them.

    Safe from any thread. Starts its watcher at the first `guard`. A watcher that cannot be started, or that somebody
    killed, is replaced at the next `guard`; what it guarded is handed to the new one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watcher: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()

    def guard(self, group: int) -> None:
        """Guard a process group until `release`.

        :raises OSError: when no watcher can be started.
        """
        with self._lock:
            self._groups.add(group)
            if self._watcher is None or not self._tell(f"+ {group}\n"):
                self._replace()

    def release(self, group: int) -> None:
        """Let go of a group. Call it before its leader is reaped: afterwards the id may be somebody else's."""
        with self._lock:
            self._groups.discard(group)
            if self._watcher is not None:
                self._tell(f"- {group}\n")

    def close(self) -> None:
        """Let go of everything and end the watcher."""
        with self._lock:
            self._groups.clear()
            self._end()

    def _replace(self) -> None:
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
        for group in self._groups:
            self._tell(f"+ {group}\n")

    def _tell(self, line: str) -> bool:
        if self._watcher is None or self._watcher.stdin is None:
            return False
        try:
            self._watcher.stdin.write(line.encode())
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
