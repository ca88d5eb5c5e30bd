"""Streams over unix and TCP sockets, and where they are accepted.

Sockets stay in blocking mode: a `send` and a `receive` without a time-out, or with one of 0, are one system call each.
Another time-out costs one more, but for one that is asked for twice in a row: from then on the system keeps it, and it
costs nothing. `close` first shuts the connection down, which wakes whoever is blocked in it; the descriptor itself is
closed by the last one to leave, so that no thread ever reads from a number that the system has given to another file.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence

from hybridload import platforms
from hybridload.frozen import frozen
from hybridload.goplugin.streams.base import Buffer, Listener, StreamClosed, StreamError, StreamReset
from hybridload.interrupts import held

log = logging.getLogger(__name__)

# Numbers: to combine enumerations takes as long as to send.
_NO_SIGNAL = int(getattr(socket, "MSG_NOSIGNAL", 0))
_DONT_WAIT = int(getattr(socket, "MSG_DONTWAIT", 0))
_AT_ONCE = _NO_SIGNAL | _DONT_WAIT
_GATHER_BY_COPY = 8192  # bytes; below this, joining costs less than what `sendmsg` does per buffer
_MAX_BUFFERS = 512  # buffers in one `sendmsg`; POSIX promises 16, every system that we know takes 1024
_FOREVER_MS = 2**31 - 1
# What sockaddr_un has room for on every system that we know (104 bytes on macOS, 108 on Linux, with the final NUL).
_LONGEST_PATH = 103
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What `accept` fails with while this process, or the system, has no room for another connection."""
_SHORTAGE_PAUSE = 0.005  # seconds; doubled from try to try, as Go's servers do
_LONGEST_SHORTAGE_PAUSE = 1.0
_CAN_POLL = hasattr(select, "poll")
_TIMEVAL = struct.Struct("ll")
_CAN_KEEP_TIME = sys.platform == "linux" and sys.maxsize > 2**32  # where `SO_RCVTIMEO` takes such a timeval
_SHORTEST, _LONGEST = 0.001, 60.0  # seconds that are left to the system
_CAN_GATHER = hasattr(socket.socket, "sendmsg")


class SocketStream:
    """A connected stream socket.

    :param connected: owned by the stream from now on; put into blocking mode.
    :param peer: the other end's name in messages.
    """

    __slots__ = (
        "_arrival",
        "_closed",
        "_last_timeout",
        "_leaving",
        "_patience",
        "_receiving",
        "_sending",
        "_socket",
        "peer",
    )

    def __init__(self, connected: socket.socket, peer: str) -> None:
        connected.settimeout(None)
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.peer = peer
        self._socket = connected
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._leaving = threading.RLock()
        self._arrival: _Readiness | None = None
        self._last_timeout: float | None = None
        self._patience: float | None = None  # the time-out that the system applies to receiving by itself
        self._closed = False

    def __repr__(self) -> str:
        return f"<SocketStream {'closed ' if self._closed else ''}{self.peer}>"

    def fileno(self) -> int:
        """The socket's descriptor; -1 when it is closed."""
        return self._socket.fileno()

    def peer_pid(self) -> int | None:
        """The process at the other end of a unix socket; `None` where the system does not tell."""
        try:
            return platforms.peer_pid(self._socket)
        except OSError as error:
            raise self._failed(error) from error

    def send(self, data: Buffer) -> None:
        try:
            with self._sending:
                self._send_rest(data)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            if self._closed:
                self._let_go()

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        if sum(map(len, buffers)) <= _GATHER_BY_COPY or not _CAN_GATHER:
            self.send(b"".join(buffers))
            return
        try:
            with self._sending:
                for start in range(0, len(buffers), _MAX_BUFFERS):
                    self._gather(buffers[start : start + _MAX_BUFFERS])
        except OSError as error:
            raise self._failed(error) from error
        finally:
            if self._closed:
                self._let_go()

    def _gather(self, buffers: Sequence[Buffer]) -> None:
        try:
            sent = self._socket.sendmsg(buffers, (), _AT_ONCE if held.here else _NO_SIGNAL)
        except BlockingIOError:
            sent = 0
        for buffer in buffers:  # a signal may have cut the call short
            if sent < len(buffer):
                self._send_rest(memoryview(buffer)[sent:])
            sent = max(0, sent - len(buffer))

    def _send_rest(self, data: Buffer) -> None:
        if not (_DONT_WAIT and held.here):
            self._socket.sendall(data, _NO_SIGNAL)
            return
        # Where signals are held back, the call that waits must not be one that they cannot interrupt.
        rest, sent = data, 0
        while sent < len(rest):
            rest = memoryview(rest)[sent:] if sent else rest
            try:
                sent = self._socket.send(rest, _AT_ONCE)
            except BlockingIOError:
                sent = 0
                self._await_room()

    def _await_room(self) -> None:
        try:
            held.pause(_Readiness(self._socket, writing=True).wait, None)
        except BaseException:
            held.harmless = False  # some of it may have been sent
            raise

    def receive(self, max_bytes: int = 65536, timeout: float | None = None) -> bytes:
        try:
            with self._receiving:
                flags = 0 if timeout == self._patience else self._await_arrival(timeout)
                data = self._socket.recv(max_bytes, flags)
                if data or not self._closed:
                    return data
        except TimeoutError:
            raise
        except BlockingIOError:  # nothing is there, or the system's own time-out
            raise self._nothing_came(timeout) from None
        except OSError as error:
            raise self._failed(error) from error
        finally:
            if self._closed:
                self._let_go()
        raise self._closed_here()

    def receive_into(self, buffer: memoryview, timeout: float | None = None) -> int:
        try:
            with self._receiving:
                flags = 0 if timeout == self._patience else self._await_arrival(timeout)
                count = self._socket.recv_into(buffer, 0, flags)
                if count or not self._closed:
                    return count
        except TimeoutError:
            raise
        except BlockingIOError:  # nothing is there, or the system's own time-out
            raise self._nothing_came(timeout) from None
        except OSError as error:
            raise self._failed(error) from error
        finally:
            if self._closed:
                self._let_go()
        raise self._closed_here()

    def close_write(self) -> None:
        try:
            with self._sending:
                self._socket.shutdown(socket.SHUT_WR)
        except OSError:  # the other end is gone already
            pass

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._let_go()

    def readable(self) -> bool:
        return self._closed or self._ready(writing=False)

    def looker(self) -> Callable[[], bool]:
        if not _CAN_POLL:
            return self.readable
        try:
            look = _Readiness(self._socket).look
        except (OSError, ValueError):
            return self.readable
        # A closed socket's number may be another file's by now: `receive` says what it is.
        return lambda: self._closed or look()

    def writable(self) -> bool:
        return not self._closed and not self._sending.locked() and self._ready(writing=True)

    def _ready(self, *, writing: bool) -> bool:
        try:
            return _Readiness(self._socket, writing=writing).wait(0)
        except (OSError, ValueError):  # closed meanwhile: the call that was asked about raises at once
            return True

    def _await_arrival(self, timeout: float | None) -> int:
        """Returns the flags to receive with."""
        if self._closed:
            raise self._closed_here()
        if timeout == 0 and _DONT_WAIT:
            return _DONT_WAIT
        if (
            timeout is not None
            and timeout == self._last_timeout
            and _SHORTEST <= timeout <= _LONGEST
            and _CAN_KEEP_TIME
        ):
            self._socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(*divmod(int(timeout * 1e6), 10**6))
            )
            self._patience = timeout
            return 0
        self._last_timeout = timeout
        if self._arrival is None:
            self._arrival = _Readiness(self._socket)
        wait = self._arrival.wait
        if not (held.pause(wait, timeout) if held.here and timeout is None else wait(timeout)):
            raise self._nothing_came(timeout)
        return 0

    def _nothing_came(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"nothing came from {self.peer} within {timeout or 0:g} s")

    def _let_go(self) -> None:
        """Close the descriptor if nobody is inside a call on it; otherwise whoever is does this on the way out."""
        with self._leaving:
            if not self._sending.acquire(blocking=False):
                return
            try:
                if self._receiving.acquire(blocking=False):
                    with contextlib.suppress(OSError):  # somebody else has closed the descriptor
                        self._socket.close()
                    self._receiving.release()
            finally:
                self._sending.release()

    def _closed_here(self) -> StreamClosed:
        return StreamClosed(f"the connection to {self.peer} was closed on this side")

    def _failed(self, error: OSError) -> StreamError:
        if isinstance(error, StreamError):
            return error
        if self._closed or error.errno == errno.EBADF:
            return self._closed_here()
        if error.errno in (errno.EPIPE, errno.ESHUTDOWN):
            return StreamClosed(f"nobody receives at {self.peer} any more, or its sending half was closed here")
        return StreamReset(f"the connection to {self.peer} broke off: {error.strerror or error}")


class _Readiness:
    """Waiting until a socket, or one of several, can be read or written. Not for use by two threads at once."""

    __slots__ = ("_poll", "_sockets", "_writing")

    def __init__(self, *sockets: socket.socket, writing: bool = False) -> None:
        self._sockets = sockets
        self._writing = writing
        if _CAN_POLL:
            self._poll = select.poll()
            for each in sockets:
                self._poll.register(each, select.POLLOUT if writing else select.POLLIN)

    def look(self) -> bool:
        """As `wait` with a time-out of 0, where the system can poll."""
        return bool(self._poll.poll(0))

    def wait(self, timeout: float | None) -> bool:
        """:param timeout: in seconds; rounded up to milliseconds. `None` waits for ever."""
        if not _CAN_POLL:
            reading, writing = ((), self._sockets) if self._writing else (self._sockets, ())
            return any(select.select(reading, writing, (), timeout))
        if timeout is None:
            return bool(self._poll.poll())
        return bool(self._poll.poll(min(math.ceil(max(timeout, 0) * 1000), _FOREVER_MS)))


class SocketListener:
    """A listening socket.

    `close` wakes a blocked `accept`.

    :param listening: bound and listening; owned by the listener from now on.
    :param cleanup: what is removed with it, e.g. the socket file and its folder.
    """

    def __init__(
        self, listening: socket.socket, network: str, address: str, cleanup: Callable[[], None] = lambda: None
    ) -> None:
        self._socket = listening
        self._socket.setblocking(False)
        self._network = network
        self._address = address
        self._cleanup = cleanup
        self._wake, self._woken = socket.socketpair()
        self._accepting = threading.Lock()
        self._closing = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"<SocketListener {'closed ' if self._closed else ''}{self._network}:{self._address}>"

    @property
    def network(self) -> str:
        return self._network

    @property
    def address(self) -> str:
        return self._address

    def accept(self, timeout: float | None = None) -> SocketStream:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            with self._accepting:
                return self._accept(deadline)
        finally:
            if self._closed:
                self._let_go()

    def _accept(self, deadline: float | None) -> SocketStream:
        pause = _SHORTAGE_PAUSE
        while not self._closed:
            arrival = _Readiness(self._socket, self._woken)
            if not arrival.wait(None if deadline is None else deadline - time.monotonic()):
                raise TimeoutError(f"nobody connected to {self._network}:{self._address} in time")
            with contextlib.suppress(BlockingIOError, ConnectionAbortedError):  # the peer gave up meanwhile
                try:
                    connected, address = self._socket.accept()
                except OSError as error:
                    if error.errno not in _SHORTAGES:
                        raise
                    # Whoever connected waits in the listener's queue: it goes on when descriptors are free again.
                    log.warning("%s:%s: cannot accept, trying again: %s", self._network, self._address, error)
                    _Readiness(self._woken).wait(_remaining(pause, deadline))
                    pause = min(2 * pause, _LONGEST_SHORTAGE_PAUSE)
                    continue
                if self._closed:  # just now: whoever connected is not served any more
                    connected.close()
                    break
                return SocketStream(connected, _peer_name(self._network, address or self._address))
        raise StreamClosed(f"the listener on {self._network}:{self._address} was closed")

    def forget_name(self) -> None:
        """Remove the socket file now, for whoever has another way to it. Safe to call twice."""
        with self._closing:
            cleanup, self._cleanup = self._cleanup, lambda: None
            cleanup()

    def close(self) -> None:
        self.forget_name()
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._wake.close()
        self._let_go()

    def _let_go(self) -> None:
        if self._accepting.acquire(blocking=False):
            try:
                self._socket.close()
                self._woken.close()
            finally:
                self._accepting.release()


def _remaining(pause: float, deadline: float | None) -> float:
    return pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic()))


@frozen
class UnixAccess:
    """Who may connect to a unix socket.

    :param mode: permission bits of the socket file.
    :param group: a name or a number; the socket file is given to that group. `None` leaves the process's own.
    """

    mode: int = 0o600
    group: str | None = None

    @classmethod
    def for_group(cls, group: str) -> UnixAccess:
        """What go-plugin does for ``PLUGIN_UNIX_SOCKET_GROUP``: the group may connect, nobody else."""
        return cls(mode=0o660, group=group)


_OWN = UnixAccess()
_NO_GROUP = 2**32 - 1
"""What chown(2) takes for no change."""


def group_id(group: object) -> int:
    """The number of a group.

    :param group: its name or number.
    :raises LookupError: there is no such group, nor could there be.
    """
    if not isinstance(group, str):
        raise LookupError(f"{group!r} is no group: give its name, or its number as text")
    if group.isascii() and group.isdecimal():
        if len(group) > 10 or int(group) >= _NO_GROUP:
            raise LookupError(f"there can be no group {group[:20]}")
        return int(group)
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError) as error:  # the latter for a NUL, or what the system's encoding has no form for
        raise LookupError(f"there is no group {group!r}") from error


def private_folder(parent: str | None = None, announce: Callable[[str], object] | None = None) -> str:
    """Make a folder that only this user may enter, ``hybridload-…``, with a path that leaves room for a socket's name.

    :param parent: where; the temporary folder by default, or ``/tmp`` when the path of that is too long.
    :param announce: told its path before it is made, so that at no moment there is one that nobody would remove.
    :raises OSError: it cannot be made.
    """
    # As tempfile.mkdtemp makes them; to import that takes a plugin longer than all it does with it.
    name = f"hybridload-{os.urandom(6).hex()}"
    folder = os.path.join(os.path.abspath(parent or platforms.temporary_folder()), name)
    if parent is None and len(os.fsencode(folder)) + len("/plugin") + 12 > _LONGEST_PATH and os.path.isdir("/tmp"):
        folder = os.path.join("/tmp", name)
    if announce is not None:
        announce(folder)
    os.mkdir(folder, 0o700)
    return folder


def listen_unix(folder: str | os.PathLike[str] | None = None, access: UnixAccess = _OWN) -> SocketListener:
    """Listen on a new unix socket with a name that cannot be guessed.

    :param folder: where the socket file goes; it must exist. `None` makes a folder that only this user may enter and
        removes it with the listener.
    :raises StreamError: the folder cannot be used, its path is too long for a socket, or the group does not exist.
    """
    private = None if folder is not None else private_folder()
    path = os.path.join(private or os.fspath(folder or ""), f"plugin{os.urandom(6).hex()}")

    def cleanup() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        if private is not None:
            with contextlib.suppress(OSError):
                os.rmdir(private)

    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(path)
        if access.group is not None:
            os.chown(path, -1, group_id(access.group))
        os.chmod(path, access.mode)  # nobody can connect before `listen`, so there is no moment of wider access
        listening.listen(socket.SOMAXCONN)
        return SocketListener(listening, "unix", path, cleanup)
    except (OSError, LookupError) as error:
        listening.close()
        cleanup()
        raise StreamError(f"cannot listen on a unix socket at {path}: {error}") from error


def listen_tcp(host: str = "127.0.0.1", min_port: int = 0, max_port: int = 0) -> SocketListener:
    """Listen on the first free TCP port of a range.

    :param min_port: the lowest port to try; 0 (with `max_port` 0) leaves the choice to the system.
    :param max_port: the highest port to try.
    :raises StreamError: no port of the range is free, or the host's address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(min_port, max(min_port, max_port) + 1):
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.bind((host, port))
            listening.listen(socket.SOMAXCONN)
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE:
                continue
            raise StreamError(f"cannot listen on {host}:{port}: {error}") from error
        bound_port = listening.getsockname()[1]
        return SocketListener(listening, "tcp", f"[{host}]:{bound_port}" if ":" in host else f"{host}:{bound_port}")
    raise StreamError(f"no TCP port from {min_port} to {max_port} is free on {host}: widen min_port and max_port")


def connect(network: str, address: str, timeout: float | None = None) -> SocketStream:
    """Connect to a listening socket.

    :param network: ``"unix"`` or ``"tcp"``.
    :param address: a path, or ``host:port``.
    :param timeout: in seconds; `None` leaves it to the system.
    :raises TimeoutError: the connection was not established in time.
    :raises StreamError: nobody listens there, or it cannot be reached.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    target, family = _target(network, address)
    try:
        connecting = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise StreamError(f"cannot connect to {network}:{address}: {error.strerror or error}") from error
    try:
        _connect(connecting, target, deadline)
        return SocketStream(connecting, f"{network}:{address}")
    except TimeoutError as error:
        connecting.close()
        raise TimeoutError(f"no connection to {network}:{address} within {timeout:g} s") from error
    except (OSError, ValueError, OverflowError) as error:  # the latter two for what no address can hold
        connecting.close()
        why = getattr(error, "strerror", None) or error
        raise StreamError(f"cannot connect to {network}:{address}: {why}") from error
    except BaseException:
        connecting.close()
        raise


def _connect(connecting: socket.socket, target: str | tuple[str, int], deadline: float | None) -> None:
    pause = 0.001
    while True:
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise TimeoutError
        connecting.settimeout(remaining)
        try:
            return connecting.connect(target)
        except BlockingIOError:  # a unix listener's queue is full, and there is nothing to wait on but time
            time.sleep(pause if remaining is None else min(pause, remaining))
            pause = min(pause * 2, 0.05)


def _target(network: str, address: str) -> tuple[str | tuple[str, int], socket.AddressFamily]:
    if network == "unix":
        return address, socket.AF_UNIX
    host, _, port = address.rpartition(":")
    if network != "tcp" or not port.isdecimal():
        raise StreamError(f"{network!r} {address!r} is no address: expected unix and a path, or tcp and host:port")
    host = host.removeprefix("[").removesuffix("]")
    return (host, int(port)), socket.AF_INET6 if ":" in host else socket.AF_INET


def _peer_name(network: str, address: object) -> str:
    if isinstance(address, tuple):
        return f"{network}:{address[0]}:{address[1]}"
    return f"{network}:{address}"


def socket_pair() -> tuple[SocketStream, SocketStream]:
    """Two streams that are connected to each other, within this process."""
    left, right = socket.socketpair()
    return SocketStream(left, "this process"), SocketStream(right, "this process")


def _conforms(listener: SocketListener) -> Listener:
    return listener  # checked by the type checker: accept's narrower result still fits the seam
