"""The fork server's process: it imports what serves a plugin, and forks one for each request.

It ends with its host, which is the end of the one socket that it reads. What a forked process does first is to become
what it would be if it had been started by itself; then it goes on as such a one does (`launch`). It never comes back to
the loop: it leaves it, so that its stack and its `__main__` are clean when the plugin's own code is imported.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from hybridload.goplugin.handshake_output import buffer_stdout
from hybridload.goplugin.launch import main as launch
from hybridload.goplugin.launch_spec import extend_import_path, kinds_contract
from hybridload.goplugin.prefork.messages import receive, send

if TYPE_CHECKING:
    from collections.abc import Callable

    _Handler = Callable[[int, FrameType | None], Any] | int | None

# More than the fork server ever has at once. An old kernel is asked for each.
_DESCRIPTORS = 1 << 16


def main(own_path: Sequence[str], descriptor: int) -> None:
    """Serve a host until it is gone. In a forked process: serve the plugin, as `launch.main`.

    :param own_path: the interpreter's own import path.
    :param descriptor: of the socket that leads to the host.
    """
    gc.disable()  # until there is something to free: a collection would only unshare memory
    _preload()
    # A host that ignores its children's ends hands that on, and then nobody could have their status.
    inherited = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    gc.freeze()
    request = _serve(socket.socket(fileno=descriptor))
    if request is None:
        return
    _become(request, own_path, inherited)
    launch()


def _preload() -> None:
    """Import what serves a plugin over gRPC, down to what is imported when it is first needed."""
    import fcntl  # noqa: F401

    import hpack  # noqa: F401

    import hybridload.contract.implementation  # noqa: F401
    from hybridload.goplugin.grpc import direct_engine, serving  # noqa: F401

    kinds_contract().complete().wire()
    _forget_folders()


def _preload_tls() -> None:
    """Import what AutoMTLS takes besides; not every host asks for it."""
    from hybridload.goplugin.certificates import generate_certificate
    from hybridload.goplugin.streams import tls  # noqa: F401

    generate_certificate()
    _forget_folders()


def _forget_folders() -> None:
    """Have a forked process look into folders by itself: what has been installed or written since is to be found.

    Done before it is forked: what is given up after that is copied first.
    """
    sys.path_importer_cache.clear()


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Do what the host asks for until it is gone; in a forked process, what that one is to be."""
    with_tls = False
    while True:
        try:
            received = receive(connection)
        except OSError:
            received = None
        if received is None:
            return None
        message, descriptors = received
        if "reap" in message:
            answer: dict[str, Any] = {"status": _reap(message["reap"])}
        else:
            request: dict[str, Any] = message["fork"]
            if not with_tls and "PLUGIN_CLIENT_CERT" in request["environment"]:
                with_tls = True
                _preload_tls()
            try:
                pid = os.fork()
            except OSError as error:
                answer = {"error": error.errno}
            else:
                if pid == 0:
                    connection.detach()  # its descriptor is closed with all others
                    _take_descriptors(descriptors, request["has_input"])
                    return request
                answer = {"pid": pid}
        for descriptor in descriptors:
            os.close(descriptor)
        try:
            send(connection, answer)
        except OSError:
            return None


def _reap(pid: int) -> int | None:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return None


# In a forked process


def _take_descriptors(descriptors: Sequence[int], has_input: bool) -> None:
    """Put the given ones where they belong, and close all others."""
    *standard, folder = descriptors
    if not has_input:
        os.close(0)
        sys.stdin = sys.__stdin__ = None  # type: ignore[misc]
    # None of them is 0, 1 or 2: those are taken.
    for number, descriptor in enumerate(standard, 0 if has_input else 1):
        os.dup2(descriptor, number)
    os.fchdir(folder)
    os.closerange(3, _DESCRIPTORS)


def _become(request: Mapping[str, Any], own_path: Sequence[str], child_signal: _Handler) -> None:
    """Be what a process is that was started by itself, but for what it has imported."""
    os.setsid()
    signal.signal(signal.SIGCHLD, child_signal)
    for each in request["limits"]:
        _limit(*map(int, each.split(":")))
    environment: Mapping[str, str] = request["environment"]
    for key in [key for key in os.environ if key not in environment]:
        del os.environ[key]
    for key, value in environment.items():  # most of them are as they were
        if os.environ.get(key) != value:
            os.environ[key] = value
    time.tzset()  # the C library looks at TZ once
    sys.argv[:] = ["-c", *request["arguments"]]
    sys.path[:] = own_path
    extend_import_path(os.environ)
    program = vars(sys.modules["__main__"])
    for name in [name for name in program if not name.startswith("__")]:
        del program[name]
    _show(request["name"])
    buffer_stdout(os.environ)
    gc.enable()


def _limit(kind: int, soft: int, hard: int) -> None:
    most = resource.getrlimit(kind)[1]
    below = most if most != resource.RLIM_INFINITY else hard
    resource.setrlimit(kind, (min(soft, below), min(hard, below)))


def _show(name: str) -> None:
    """Have lists of processes show a name: the command line is the fork server's."""
    try:
        with open("/proc/self/comm", "wb", buffering=0) as comm:
            comm.write(name.encode()[:15])
    except OSError:
        return
