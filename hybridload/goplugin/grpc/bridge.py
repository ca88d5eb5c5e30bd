"""A byte bridge: grpcio on streams that it cannot carry itself, such as Go's TLS (P-521) and yamux.

grpcio speaks plain HTTP/2 over a unix socket that only this process can use; the bridge moves the bytes to and from
the stream. The rules:

- A *crossing* is one connection: the stream that was accepted, the one that is opened for it, and a thread for each
  direction. What one side sends is held as at most one chunk, so back-pressure passes through.
- The end of one direction is passed on as that, and the crossing is over when both have ended. Whatever breaks ends
  both at once.
- HTTP/2 clients speak first. The second stream is opened when the first bytes have come, so that whoever is refused
  (TLS) or says nothing never reaches grpcio.
- The sockets between grpcio and the bridge have no name in the file system where the system allows that (see
  `platforms.NamelessSocket`), and the bridge takes connections from its own process alone.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from hybridload import platforms
from hybridload.goplugin.streams.base import Listener, Stream, StreamClosed
from hybridload.goplugin.streams.sockets import connect, listen_unix, private_folder
from hybridload.goplugin.threads import Thread

log = logging.getLogger(__name__)

_CHUNK = 65536
_CONNECT_TIMEOUT = 5.0
_JOIN_TIMEOUT = 2.0


class Bridge:
    """Crosses from each stream that a listener accepts to one of its own.

    :param listener: owned by the bridge.
    :param onward: opens the other half of a crossing.
    :param name: of its threads.
    :param on_idle: called each time the last crossing has ended, on a thread that `close` waits for.
    """

    def __init__(
        self,
        listener: Listener,
        onward: Callable[[], Stream],
        *,
        name: str,
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        self.failure: Exception | None = None
        """What ended the last crossing that did not end well."""
        self._listener = listener
        self._onward = onward
        self._name = name
        self._on_idle = on_idle
        self._lock = threading.Lock()
        self._crossings: set[_Crossing] = set()
        self._threads: set[threading.Thread] = set()
        self._closed = False
        # Blocks in the listener's `accept`, which `close` ends.
        self._accepting = Thread(target=self._accept, name=f"hybridload bridge {name}", daemon=True)
        try:
            self._accepting.start()
        except BaseException:  # there is no thread to be had
            listener.close()
            raise

    @property
    def connected(self) -> bool:
        """Whether anything crosses."""
        with self._lock:
            return any(crossing.open for crossing in self._crossings)

    def stop_accepting(self) -> None:
        """Accept no more; what crosses goes on. Safe to call twice."""
        self._listener.close()

    def close(self) -> None:
        """End all crossings and accept no more. Safe to call twice."""
        with self._lock:
            self._closed = True
            crossings = list(self._crossings)
        self.stop_accepting()
        for crossing in crossings:
            crossing.close()
        self._accepting.join()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            # A direction may be stuck in a yamux session whose peer reads nothing; keepalive ends that.
            if thread is not threading.current_thread():
                thread.join(_JOIN_TIMEOUT)

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()
            except StreamClosed:
                return
            except OSError as error:
                log.warning("%s: nothing more is accepted: %s", self._name, error)
                return
            crossing = _Crossing(self, near)
            with self._lock:
                refused = self._closed
                if not refused:
                    self._crossings.add(crossing)
            if refused:
                near.close()
                return
            self._start(crossing.there, f"hybridload bridge {self._name} there")

    def _start(self, direction: Callable[[], None], name: str) -> None:
        """Run a direction on a thread. It blocks in the crossing's streams, which `close` closes."""

        def run() -> None:
            try:
                direction()
            finally:
                with self._lock:
                    self._threads.discard(thread)

        thread = Thread(target=run, name=name, daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            with self._lock:
                self._threads.discard(thread)
            raise

    def _ended(self, crossing: _Crossing) -> None:
        with self._lock:
            self._crossings.discard(crossing)
            idle = crossing.opened and not any(each.open for each in self._crossings)
        if idle and self._on_idle is not None:
            self._on_idle()


class _Crossing:
    """Two streams, and what moves between them."""

    def __init__(self, bridge: Bridge, near: Stream) -> None:
        self._bridge = bridge
        self._near = near
        self._far: Stream | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._directions = 1
        self.opened = False
        """Whether the other half was ever open."""

    @property
    def open(self) -> bool:
        return self.opened and not self._closed

    def there(self) -> None:
        """Move what the accepted stream brings to the other one, which is opened for it."""
        self._pass(self._open_and_move)

    def _back(self, far: Stream) -> None:
        self._pass(lambda: _move(far, self._near))

    def close(self) -> None:
        """End both streams. Safe to call twice, from any thread."""
        with self._lock:
            self._closed = True
            streams = [stream for stream in (self._near, self._far) if stream is not None]
        for stream in streams:
            stream.close()

    def _open_and_move(self) -> None:
        first = self._near.receive(_CHUNK)
        if not first:
            return
        far = self._bridge._onward()
        with self._lock:
            closed = self._closed
            if not closed:
                self._far, self.opened = far, True
                self._directions = 2
        if closed:
            far.close()
            return
        self._bridge._start(lambda: self._back(far), f"{threading.current_thread().name.removesuffix('there')}back")
        far.send(first)
        _move(self._near, far)

    def _pass(self, move: Callable[[], None]) -> None:
        """One direction from beginning to end."""
        try:
            move()
        except Exception as error:  # whatever opens the other half may raise anything
            if not self._closed:
                self._bridge.failure = error
                log.debug("%s: a connection broke: %s", self._bridge._name, error)
            self.close()
        with self._lock:
            self._directions -= 1
            over = not self._directions
        if over:
            self.close()
            self._bridge._ended(self)


def _move(source: Stream, target: Stream) -> None:
    while chunk := source.receive(_CHUNK):
        target.send(chunk)
    target.close_write()


class ClientBridge:
    """Where grpcio connects when it calls: every connection goes on over a stream.

    :param open: opens such a stream.
    """

    def __init__(self, open: Callable[[], Stream], name: str) -> None:
        listener = listen_unix()
        self._socket = platforms.NamelessSocket(listener.address, listener.forget_name)
        self.address = self._socket.address
        """The path of a unix socket."""
        self._bridge = Bridge(_OwnProcess(listener), open, name=name)

    @property
    def failure(self) -> Exception | None:
        """What ended the last connection that did not end well."""
        return self._bridge.failure

    def close(self) -> None:
        """End all connections. Safe to call twice."""
        self._bridge.close()
        self._socket.close()


class ServerSocket:
    """Where grpcio listens when others accept for it: a unix socket that only the bridges of this process know.

    :param bind: has grpcio listen on a path.
    """

    def __init__(self, bind: Callable[[str], Any]) -> None:
        self._folder = private_folder()
        path = os.path.join(self._folder, "plugin")
        try:
            bind(path)
            self._socket = platforms.NamelessSocket(path, self._remove)
        except BaseException:
            self._remove()
            raise

    def _remove(self) -> None:
        try:
            os.unlink(os.path.join(self._folder, "plugin"))
        except FileNotFoundError:
            pass
        os.rmdir(self._folder)

    def connect(self) -> Stream:
        """Connect to grpcio's server."""
        return connect("unix", self._socket.address, _CONNECT_TIMEOUT)

    def close(self) -> None:
        """Let go of the socket. Safe to call twice."""
        self._socket.close()


class _OwnProcess:
    """A listener's connections from this process; those from any other are closed."""

    def __init__(self, below: Any) -> None:
        self._below = below
        self.network = below.network
        self.address = below.address

    def accept(self, timeout: float | None = None) -> Stream:
        while True:
            stream: Any = self._below.accept(timeout)
            if stream.peer_pid() in (None, os.getpid()):
                accepted: Stream = stream
                return accepted
            log.warning("process %d connected to a socket that is none of its business", stream.peer_pid())
            stream.close()

    def close(self) -> None:
        self._below.close()
