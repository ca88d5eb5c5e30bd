"""TLS over any stream.

An `ssl.SSLObject` over memory buffers does the cryptography; this file moves its bytes. The rules:

- The `SSLObject` is only touched with `_state` held, and never while waiting for the peer: that lock is held for
  microseconds, so that one thread can send while another receives.
- Records leave in the order in which they were made: whoever makes them holds `_sending` from making to sending.
- A receiver never waits for a sender. What it owes the peer (the answer to a key update, an alert) is sent by the
  sender on its way out when one is busy.
- Nobody sends or receives before the handshake is over; it has both directions to itself. It runs in whichever thread
  first sends or receives, or calls `handshake`: a listener's accepting thread is never held up by a peer that connects
  and says nothing.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from hybridload.goplugin.certificates import Certificate
from hybridload.goplugin.streams.base import (
    Buffer,
    Listener,
    Stream,
    StreamClosed,
    StreamError,
    StreamReset,
    TLSRefused,
    again,
)

_CHUNK = 65536  # bytes; plain text that is turned into records before they are sent, and cipher text per receive
_HANDSHAKE_TIMEOUT = 10.0
_LOOKS = 16  # at what came, for plain text, before it is said that there is none


def client_context(own: Certificate, trusted: bytes, alpn: Sequence[str] = ("h2",)) -> ssl.SSLContext:
    """How a host meets a plugin under AutoMTLS: TLS 1.2 or newer, its own certificate shown, the plugin's demanded.

    :param own: shown to the server.
    :param trusted: the only certificate (DER or PEM) that the server may show.
    :param alpn: ``("h2",)`` for gRPC, empty for net/rpc.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _mutual(context, own, trusted, alpn)
    return context


def server_context(own: Certificate, trusted: bytes, alpn: Sequence[str] = ("h2",)) -> ssl.SSLContext:
    """How a plugin meets its host under AutoMTLS. Parameters as those of `client_context`, roles swapped."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _mutual(context, own, trusted, alpn)
    context.num_tickets = 0  # nobody resumes; saves a record per connection
    return context


def _mutual(context: ssl.SSLContext, own: Certificate, trusted: bytes, alpn: Sequence[str]) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.verify_mode = ssl.CERT_REQUIRED
    # The trusted certificate is a leaf that is its own CA.
    context.load_verify_locations(cadata=trusted.decode("ascii") if b"-----BEGIN" in trusted else trusted)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    with _as_file(own.pem + own.key_pem) as path:
        context.load_cert_chain(path)


@contextlib.contextmanager
def _as_file(secret: bytes) -> Iterator[str]:
    """A path that reads as `secret` and leaves nothing behind: memory where the system can, else a private file."""
    try:
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        path = f"/proc/self/fd/{descriptor}"
    except (AttributeError, OSError):
        descriptor, path = -1, ""
    try:
        if os.path.exists(path):
            os.write(descriptor, secret)
            yield path
            return
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    descriptor, path = tempfile.mkstemp(prefix="hybridload-")  # no memory file, or no /proc
    try:
        try:
            os.write(descriptor, secret)
        finally:
            os.close(descriptor)
        yield path
    finally:
        os.unlink(path)


class TLSStream:
    """One end of a TLS connection over `below`, which it owns.

    :param below: any stream.
    :param context: says what is shown, trusted and spoken.
    :param server_name: what a client expects the server's certificate to be for; `None` makes this end the server.
    :param handshake_timeout: in seconds, for a handshake that nobody asked for before the first send or receive.
    """

    def __init__(
        self,
        below: Stream,
        context: ssl.SSLContext,
        server_name: str | None = None,
        handshake_timeout: float = _HANDSHAKE_TIMEOUT,
    ) -> None:
        self.peer = f"tls to {below.peer}"
        self._below = below
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )
        self._handshake_timeout = handshake_timeout
        self._shaking = threading.Lock()
        self._state = threading.Lock()
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._shaken = False
        self._shake_by: float | None = None
        self._heard = False  # whether the peer sent anything after the handshake
        self._closed = False
        self._write_closed = False
        self._ended = False  # the peer said that it is done
        self._failure: StreamError | None = None
        self._plain = b""  # received while nobody asked for it
        self._drained = False  # whether there is neither that nor anything in the records at hand

    def __repr__(self) -> str:
        return f"<TLSStream {'closed ' if self._closed else ''}{self.peer}>"

    @property
    def version(self) -> str | None:
        """``"TLSv1.3"`` or ``"TLSv1.2"``; `None` before the handshake."""
        return self._tls.version()

    @property
    def alpn(self) -> str | None:
        """The protocol that was agreed on, e.g. ``"h2"``; `None` before the handshake or without one."""
        return self._tls.selected_alpn_protocol()

    def handshake(self, timeout: float | None = None) -> None:
        """Come to terms with the peer; at once when that was done already. Safe from several threads.

        The handshake has a time of its own, from when somebody began it: that of the stream, or of the most patient of
        those who wait. Whoever waits no longer leaves it as far as it is, for others to go on.

        :param timeout: in seconds, for this thread; `None` waits for the stream's own time.
        :raises TimeoutError: it is not done by then, and may still be.
        :raises TLSRefused: either side refused the other, or it took too long. The stream is closed.
        :raises StreamClosed: the stream was closed on this side.
        :raises StreamReset: the peer went away.
        """
        if self._shaken:
            return
        now = time.monotonic()
        self._shake_by = max(self._shake_by or now + self._handshake_timeout, now + (timeout or 0))
        deadline = self._shake_by if timeout is None else now + timeout
        if not self._shaking.acquire(timeout=max(0.0, deadline - now)):  # another thread is at it
            if timeout is not None:
                raise self._not_yet()
            self.handshake()
            return
        try:
            if self._failure is not None or self._closed:
                raise self._over()
            if not self._shaken:
                self._shake(deadline)
                self._shaken = True
        except TimeoutError as error:
            if timeout is not None and time.monotonic() < self._shake_by:
                raise
            spent = self._shake_by - now if timeout is None else max(timeout, self._handshake_timeout)
            late = f"the TLS handshake with {self._below.peer} was not done within {spent:g} s"
            raise self._fail(TLSRefused(late)) from error
        except StreamError as error:
            raise self._fail(error) from error.__cause__
        except BaseException:  # Ctrl-C: some bytes may be lost
            self._fail(StreamReset(f"the TLS handshake with {self._below.peer} was broken off on this side"))
            raise
        finally:
            self._shaking.release()

    def _not_yet(self) -> TimeoutError:
        return TimeoutError(f"the TLS handshake with {self._below.peer} is not done yet")

    def _shake(self, deadline: float) -> None:
        while True:
            try:
                with self._state:
                    self._tls.do_handshake()
                return self._flush()
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLEOFError as error:
                message = f"{self._below.peer} went away during the TLS handshake: does it speak TLS?"
                raise StreamReset(message) from error
            except ssl.SSLError as error:
                with contextlib.suppress(StreamError):
                    self._flush()  # the alert that tells the peer
                raise TLSRefused(f"TLS with {self._below.peer} failed: {_reason(error)}") from error
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._not_yet()
            self._feed(left)

    def _feed(self, timeout: float | None) -> None:
        """Wait for cipher text. Called with `_receiving` held or in the handshake, and without `_state`."""
        try:
            data = self._below.receive(_CHUNK, timeout)
        except StreamError as error:
            raise self._fail(error) from error.__cause__
        with self._state:
            self._drained = False
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    def _flush(self) -> None:
        """Send the records that were made. Called with `_sending` held or in the handshake, and without `_state`."""
        with self._state:
            records = self._outgoing.read()
        if records:
            self._below.send(records)

    def _flush_unless_busy(self) -> None:
        """For receivers: send what the reading of records gave rise to, unless a sender is at it and will do it."""
        while self._outgoing.pending and self._sending.acquire(blocking=False):
            try:
                if not self._below.writable():
                    return  # the next sender takes it along
                self._flush()
            finally:
                self._sending.release()

    def send(self, data: Buffer) -> None:
        if 0 < len(data) <= _CHUNK:
            self._send((data,))
        else:
            self.send_all((data,))

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        self._send(_pieces(buffers))

    def _send(self, pieces: Iterable[Buffer]) -> None:
        if not self._shaken:
            self.handshake()
        try:
            with self._sending:
                for piece in pieces:
                    self._below.send(self._encrypted(piece))
        except StreamClosed as error:
            self.readable()  # looks at what came; the peer may have said why before it hung up
            raise (error if self._failure is None else again(self._failure)) from error.__cause__
        if self._outgoing.pending:
            self._flush_unless_busy()

    def _encrypted(self, piece: Buffer) -> bytes:
        """The records of a piece, behind those that were made before."""
        with self._state:
            if self._closed:
                raise self._closed_here()
            if self._write_closed:
                raise StreamClosed(f"the sending half of the connection to {self._below.peer} was closed")
            try:
                written = self._tls.write(piece)
                while written < len(piece):  # one record takes 16 KiB
                    written += self._tls.write(memoryview(piece)[written:])
            except ssl.SSLError as error:
                raise StreamReset(f"TLS with {self._below.peer} broke: {_reason(error)}") from error
            return self._outgoing.read()

    def receive(self, max_bytes: int = 65536, timeout: float | None = None) -> bytes:
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._shaken:
            self.handshake(timeout)
        with self._receiving:
            # What is at hand was mostly taken by the last one to receive.
            plain = None if self._drained and self._failure is None else self._decrypt(max_bytes)
            while plain is None:
                self._feed(timeout)
                plain = self._decrypt(max_bytes)
                if plain is None and deadline is not None:
                    timeout = deadline - time.monotonic()
                    if timeout <= 0:  # what came was no plain text, and more may follow without end
                        raise TimeoutError(f"nothing came from {self.peer} in time")
            return plain

    def receive_into(self, buffer: memoryview, timeout: float | None = None) -> int:
        plain = self.receive(len(buffer), timeout)
        buffer[: len(plain)] = plain
        return len(plain)

    def _decrypt(self, max_bytes: int) -> bytes | None:
        """What the records at hand say, ``b""`` at the end of the stream, `None` when more cipher text is needed.

        Called with `_receiving` held.
        """
        if self._failure is not None or self._closed:
            raise self._over()
        try:
            with self._state:
                if self._plain:
                    plain, self._plain = self._plain[:max_bytes], self._plain[max_bytes:]
                    return plain
                if self._ended:
                    return b""
                if not self._incoming.pending and not self._incoming.eof and not self._tls.pending():
                    return None  # told apart here because an exception costs more
                return self._read_records(max_bytes)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as error:
            raise self._fail(self._broken(error)) from error
        finally:
            if self._outgoing.pending:
                self._flush_unless_busy()

    def _read_records(self, max_bytes: int) -> bytes:
        """All that is at hand, since many senders make a record of a header and another of its body.

        Called with `_state` held.
        """
        plain = self._read_record(max_bytes)
        while self._incoming.pending and not self._ended and len(plain) < max_bytes:
            try:
                plain += self._read_record(max_bytes - len(plain))
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError as error:  # for the next receiver; what came before is good
                self._fail(self._broken(error))
                break
        self._drained = len(plain) < max_bytes and not self._ended and not self._incoming.pending
        return plain

    def _read_record(self, max_bytes: int) -> bytes:
        """Called with `_state` held."""
        try:
            plain = self._tls.read(max_bytes)
        except ssl.SSLZeroReturnError:  # the peer's farewell, after ours; before ours it reads as b""
            plain = b""
        self._heard = True
        self._ended = not plain
        return plain

    def _broken(self, error: ssl.SSLError) -> StreamError:
        if isinstance(error, ssl.SSLEOFError):
            return StreamReset(f"the connection to {self._below.peer} ended without a TLS farewell")
        if not self._heard and "ALERT" in (error.reason or ""):
            return TLSRefused(f"{self._below.peer} refused our side of TLS: {_reason(error)}")
        return StreamReset(f"TLS with {self._below.peer} broke: {_reason(error)}")

    def close_write(self) -> None:
        if not self._shaken:
            self.handshake()
        with self._sending:
            with self._state:
                if self._closed or self._write_closed:
                    return
                self._write_closed = True
                self._say_farewell()
            with contextlib.suppress(StreamError):  # the other end is gone already
                self._flush()

    def _say_farewell(self) -> None:
        """Queue the close notification. Called with `_sending` and `_state` held."""
        # OpenSSL's shutdown reads on and drops what it reads: take the plain text out of its reach before.
        self._drained = False
        try:
            while not self._ended:
                self._plain += self._read_record(_CHUNK)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._failure = self._broken(error)
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()

    def close(self) -> None:
        if self._sending.acquire(blocking=False):
            try:
                self._part()
            finally:
                self._sending.release()
        self._closed = True
        self._below.close()

    def _part(self) -> None:
        """Tell the peer, if that can be done without waiting for it. Called with `_sending` held."""
        with self._state:
            if self._closed or not self._shaken:
                return
            self._closed = True
            if not self._write_closed:
                self._say_farewell()
        with contextlib.suppress(StreamError):
            if self._below.writable():
                self._flush()

    def readable(self) -> bool:
        if not self._shaken:
            return self._below.readable()
        if not self._receiving.acquire(blocking=False):
            return False  # somebody waits for it already
        try:
            for _ in range(_LOOKS):
                if (plain := self._decrypt(_CHUNK)) is not None:
                    break
                if not self._below.readable():
                    return False
                self._feed(timeout=0)
            else:
                return False
            with self._state:
                self._plain = plain + self._plain
                self._drained = False
            return True
        except TimeoutError:
            return False
        except StreamError:  # kept in `_failure` for the receiver
            return True
        finally:
            self._receiving.release()

    def looker(self) -> Callable[[], bool]:
        look = self._below.looker()
        return lambda: not self._drained or look()

    def writable(self) -> bool:
        return self._shaken and not self._closed and not self._sending.locked() and self._below.writable()

    def _fail(self, error: StreamError) -> StreamError:
        """Nothing works on this connection any more; whoever asks next gets an error like this one."""
        if self._closed:
            return self._closed_here()
        self._failure = again(error)
        self._below.close()
        return error

    def _over(self) -> StreamError:
        """Why nothing works."""
        return self._closed_here() if self._failure is None else again(self._failure)

    def _closed_here(self) -> StreamClosed:
        return StreamClosed(f"the TLS connection to {self._below.peer} was closed on this side")


class TLSListener:
    """Accepts TLS connections on `below`, which it owns.

    :param context: says what is shown, trusted and spoken.
    """

    def __init__(self, below: Listener, context: ssl.SSLContext, handshake_timeout: float = _HANDSHAKE_TIMEOUT) -> None:
        self._below = below
        self._context = context
        self._handshake_timeout = handshake_timeout

    @property
    def network(self) -> str:
        return self._below.network

    @property
    def address(self) -> str:
        return self._below.address

    def accept(self, timeout: float | None = None) -> TLSStream:
        """The next connection. Its handshake is still to come: `handshake`, or the first send or receive, does it."""
        return TLSStream(self._below.accept(timeout), self._context, handshake_timeout=self._handshake_timeout)

    def close(self) -> None:
        self._below.close()


def _pieces(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """The same bytes in pieces of `_CHUNK`, the last one shorter, however small or large the buffers are."""
    gathered: list[Buffer] = []
    room = _CHUNK
    for buffer in buffers:
        while len(buffer) > room:
            buffer = memoryview(buffer)
            gathered.append(buffer[:room])
            yield _joined(gathered)
            buffer, gathered, room = buffer[room:], [], _CHUNK
        gathered.append(buffer)
        room -= len(buffer)
    if room < _CHUNK:
        yield _joined(gathered)


def _joined(buffers: list[Buffer]) -> Buffer:
    return buffers[0] if len(buffers) == 1 else b"".join(buffers)


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was not accepted: {error.verify_message}"
    return (error.reason or str(error)).replace("_", " ").lower()
