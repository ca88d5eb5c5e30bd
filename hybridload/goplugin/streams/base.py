"""What every byte stream offers, whatever carries it: a socket, TLS over a stream, one yamux stream among many.

The rules that all of them keep:

- **Full duplex.** One thread may send while another receives. `send` and `send_all` are atomic, each call as a whole:
  several threads may send, and the bytes of one call are never split by another's. Receiving is for one thread at a
  time; a second one waits for its turn.
- **Nothing waits for ever on a closed stream.** `close` may be called from any thread and more than once. It wakes
  whoever is blocked in `send` or `receive` here (they raise `StreamClosed`), and the peer (it reads the end of the
  stream, or `StreamReset`).
- **Back-pressure.** `send` blocks while the peer does not read. No implementation queues more than a window's worth of
  bytes on either side.
- **One owner.** A stream that carries another belongs to the upper one, which closes it.

Errors are `OSError` and `PluginError` at once, so that code that knows sockets needs no new `except` clause; a time-out
is the builtin `TimeoutError`. Whoever knows which plugin the stream belongs to turns them into the plugin's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from hybridload.errors import PluginError

Buffer: TypeAlias = "bytes | bytearray | memoryview"
"""What can be sent. (`collections.abc.Buffer` is younger than the oldest Python that is supported.)"""


ROOM = 32768
"""Bytes that a stream which says that it is writable takes without blocking."""


class StreamError(PluginError, ConnectionError):
    """A byte stream cannot do what it was asked for. The base of every error of a stream but `TimeoutError`."""

    deadline: float | None = None
    """By when whoever met it was to have an answer, on the clock of `time.monotonic`."""


class StreamClosed(StreamError):
    """The stream was closed on this side, or its sending half was, or nobody is left at the other end to send to."""


class StreamReset(StreamError):
    """The other end vanished or gave the stream up before it said that it was done: what was received is not all."""


class TLSRefused(StreamError):
    """The two ends of a TLS connection did not come to terms: certificate, name, version or time.

    With TLS 1.3 a client learns only when it first receives that the server refused its certificate.
    """


def again(error: StreamError) -> StreamError:
    """A new exception of the same kind, for the next who asks for something that cannot be had any more.

    What a stream keeps is never the exception that was raised, nor raised itself: its traceback would grow, and hold on
    to all that whoever met it had in hand.
    """
    return type(error)(*error.args)


class Stream(Protocol):
    """A full duplex byte stream.

    `peer` names the other end in messages, e.g. ``"unix:/tmp/plugin1/socket"`` or ``"tls to tcp:127.0.0.1:10001"``.
    """

    @property
    def peer(self) -> str: ...

    def send(self, data: Buffer) -> None:
        """Send all of `data`. It is not looked at again after the return.

        :raises StreamClosed: the stream is closed, here or over there. How much was sent is unknown.
        :raises StreamReset: the other end gave the stream up.
        """

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        """Send the buffers one behind the other as if they were one, uncopied where that is possible.

        :raises StreamClosed, StreamReset: as `send`.
        """

    def receive(self, max_bytes: int = 65536, timeout: float | None = None) -> bytes:
        """The next bytes, at least one and at most `max_bytes`; ``b""`` at the end of the stream.

        :param timeout: in seconds; 0 does not wait, `None` waits for ever.
        :raises TimeoutError: nothing came in time. The stream is as it was.
        :raises StreamClosed: the stream was closed on this side.
        :raises StreamReset: the other end vanished.
        """

    def receive_into(self, buffer: memoryview, timeout: float | None = None) -> int:
        """As `receive`, into a buffer of at least one byte. Returns the number of bytes; 0 at the end of the stream."""

    def close_write(self) -> None:
        """Say that nothing more will be sent; receiving goes on. The peer reads the end of the stream."""

    def close(self) -> None:
        """End both directions at once and let go of what is below. Never blocks on the peer."""

    def readable(self) -> bool:
        """Whether `receive` would return or raise at once: bytes, the end of the stream or an error are waiting.

        Never blocks. On an idle connection, where nothing is expected, this is how to notice that it is dead.
        """

    def looker(self) -> Callable[[], bool]:
        """A `readable` that costs next to nothing, for one thread that asks it again and again (see `spinning`).

        It may say yes where `receive` has to wait after all, e.g. for the rest of a TLS record.
        """

    def writable(self) -> bool:
        """Whether a `send` of up to `ROOM` would not block just now. False on a closed stream.

        For those who must never wait for the peer, e.g. a reading thread that owes an answer to a ping.
        """


class Listener(Protocol):
    """Where streams are accepted. `network` is ``"unix"`` or ``"tcp"``; `address` a path or ``host:port``."""

    @property
    def network(self) -> str: ...

    @property
    def address(self) -> str: ...

    def accept(self, timeout: float | None = None) -> Stream:
        """The next stream that a peer opened.

        :param timeout: in seconds; `None` waits for ever.
        :raises TimeoutError: nobody came in time.
        :raises StreamClosed: the listener was closed, maybe while waiting here.
        """

    def close(self) -> None:
        """Accept nothing more and remove the socket file, if any. Accepted streams live on. Safe to call twice."""
