"""A plugin that keeps its host busy with what is no answer: raw bytes, from the moment that the host asks for one.

    flooding_plugin.py PROTOCOL ROW MOMENT...

PROTOCOL is one of `PROTOCOLS`, ROW one of its floods, MOMENT what sets it off: ``start`` (the first health check, or
the first call of all), ``ping``, ``call`` (any method of the interface) or ``stop``. All else is answered as it should
be. With PLUGIN_CLIENT_CERT in the environment it speaks TLS, as AutoMTLS wants it.

What is sent is written by hand here, so that it may be anything. What is honest may be the library's own.
"""

from __future__ import annotations

import base64
import os
import struct
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Bytes = Callable[[Any, int, int], bytes]
"""Peer, stream and a number that counts up -> what is sent."""


def nothing(peer: Any, stream: int, number: int) -> bytes:
    return b""


@dataclass(frozen=True)
class Flood:
    """:param again: sent without end.
    :param first: sent once, before.
    :param pause: in seconds, after each; without one, hundreds go out at once.
    :param drip: the first is sent a byte at a time.
    :param size: bytes of payload in each, where a window is to be kept to.
    :param deaf: whether nothing is read any more meanwhile.
    :param to: a stream in place of the one that was asked on.
    :param long: whether it is tried only with ``-m long``, because others are much like it.
    """

    again: Bytes = nothing
    first: Bytes = nothing
    pause: float = 0.0
    drip: bool = False
    size: int = 0
    deaf: bool = False
    to: int | None = None
    long: bool = False

    def run(self, peer: Any, stream: int) -> None:
        stream = stream if self.to in (None, STDIO) else self.to
        first = self.first(peer, stream, 0)
        for piece in [first[at : at + 1] for at in range(len(first))] if self.drip else [first]:
            peer.send(piece)
            time.sleep(self.pause)
        number = 1
        while self.again is not nothing:
            many = 1 if self.pause else 500
            if self.size:
                peer.await_window(stream, self.size * many)
            peer.send(b"".join(self.again(peer, stream, number + each) for each in range(many)))
            number += many
            time.sleep(self.pause)
        threading.Event().wait()


# HTTP/2

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK = END_STREAM = 1
END_HEADERS = 4
ONE = struct.pack(">L", 1)


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">HBBBL", len(body) >> 8, len(body) & 255, kind, flags, stream) + body


def fields(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"".join(b"\0%c%b%c%b" % (len(name), name, len(value), value) for name, value in pairs)


def message(body: bytes, size: int | None = None) -> bytes:
    return struct.pack(">BL", 0, len(body) if size is None else size) + body


RESPONSE = fields((b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILERS = fields((b"grpc-status", b"0"))
UNIMPLEMENTED = RESPONSE + fields((b"grpc-status", b"12"))
ANSWER = b"\x0a\x02hi"
OUTPUT = b"\x08\x01\x12\x02hi"
ENDLESS = (1 << 31) - 1
STDIO = -1
"""Stands for the stream of the plugin's output."""


def response(peer: Any, stream: int, number: int) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, RESPONSE)


def endless(peer: Any, stream: int, number: int) -> bytes:
    return response(peer, stream, number) + frame(DATA, 0, stream, message(b"\x0a", ENDLESS))


def answered(peer: Any, stream: int, number: int) -> bytes:
    return response(peer, stream, number) + frame(DATA, 0, stream, message(ANSWER))


def answered_twice(peer: Any, stream: int, number: int) -> bytes:
    """Which nobody may answer a unary call: it is over then."""
    return answered(peer, stream, number) + frame(DATA, 0, stream, message(ANSWER))


def interim(peer: Any, stream: int, number: int) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, fields((b":status", b"103"), (b"x", b"%d" % number)))


HTTP2 = {
    "silence": Flood(),
    "silence, and nothing is read": Flood(deaf=True),
    "stream's window": Flood(lambda peer, stream, _: frame(WINDOW_UPDATE, 0, stream, ONE)),
    "connection's window": Flood(lambda peer, stream, _: frame(WINDOW_UPDATE, 0, 0, ONE), long=True),
    "connection's window, slowly": Flood(lambda peer, stream, _: frame(WINDOW_UPDATE, 0, 0, ONE), pause=0.001),
    "pings": Flood(lambda peer, stream, _: frame(PING, 0, 0, bytes(8))),
    "pings, and nothing is read": Flood(lambda peer, stream, _: frame(PING, 0, 0, bytes(8)), deaf=True, long=True),
    "answers to pings": Flood(lambda peer, stream, _: frame(PING, ACK, 0, bytes(8)), long=True),
    "settings": Flood(lambda peer, stream, _: frame(SETTINGS, 0, 0), long=True),
    "settings that change": Flood(lambda peer, stream, n: frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 65535 + n % 99))),
    "answers to settings": Flood(lambda peer, stream, _: frame(SETTINGS, ACK, 0), long=True),
    "priorities": Flood(lambda peer, stream, _: frame(PRIORITY, 0, stream, bytes(5)), long=True),
    "unknown frames": Flood(lambda peer, stream, _: frame(77, 0, 0, b"what?"), long=True),
    "farewells": Flood(lambda peer, stream, _: frame(GOAWAY, 0, 0, struct.pack(">LL", ENDLESS, 0)), long=True),
    "interim responses": Flood(interim),
    "interim responses, slowly": Flood(interim, pause=0.001, long=True),
    "empty data": Flood(lambda peer, stream, _: frame(DATA, 0, stream), first=response),
    "a message a byte at a time": Flood(lambda peer, stream, _: frame(DATA, 0, stream, b"x"), first=endless, size=1),
    "a message without end": Flood(
        lambda peer, stream, _: frame(DATA, 0, stream, bytes(9000)), first=endless, pause=0.0005, size=9000
    ),
    "messages without end": Flood(
        lambda peer, stream, _: frame(DATA, 0, stream, message(ANSWER)), first=response, size=5 + len(ANSWER)
    ),
    "output without end": Flood(
        lambda peer, stream, _: frame(DATA, 0, stream, message(OUTPUT)), size=5 + len(OUTPUT), to=STDIO
    ),
    "a header block without end": Flood(
        lambda peer, stream, _: frame(CONTINUATION, 0, stream), first=lambda *_: frame(HEADERS, 0, _[1], RESPONSE)
    ),
    "a header block a byte at a time": Flood(
        lambda peer, stream, _: frame(CONTINUATION, 0, stream, b"\0"),
        first=lambda *_: frame(HEADERS, 0, _[1], RESPONSE),
        pause=0.01,
        long=True,
    ),
    "an answer a byte at a time": Flood(first=answered, drip=True, pause=0.02),
    "no trailers": Flood(first=answered, long=True),
    "no trailers, but pings": Flood(
        lambda peer, stream, _: frame(PING, 0, 0, bytes(8)), first=answered, pause=0.001, long=True
    ),
    "resets of what is over": Flood(
        lambda peer, stream, _: frame(RST_STREAM, 0, stream, ONE),
        first=lambda *_: frame(DATA, END_STREAM, _[1]),
        long=True,
    ),
    "data for what is over": Flood(
        lambda peer, stream, _: frame(DATA, 0, stream, b"x"),
        first=answered_twice,
    ),
    "headers for what is over": Flood(
        response,
        first=answered_twice,
        long=True,
    ),
    "resets of what never was": Flood(lambda peer, stream, n: frame(RST_STREAM, 0, 2 * n, ONE), long=True),
    "noise": Flood(lambda peer, stream, _: b"\xa5", long=True),
}


class Http2:
    """One connection of gRPC's."""

    def __init__(self, stream: Any, flood: Flood, moments: set[str]) -> None:
        self.stream = stream
        self.flood = flood
        self.moments = moments
        self.send = stream.send
        self.windows: dict[int, int] = defaultdict(lambda: 1 << 20)  # the host's, as its settings say
        self.changed = threading.Condition()
        self.read = reader(stream)
        self.floods: tuple[Any, int] | None = None
        """Peer and stream to flood on, where it is another."""

    def await_window(self, stream: int, size: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.windows[stream] >= size)
            self.windows[stream] -= size

    def serve(self) -> None:
        self.read(24)
        self.send(frame(SETTINGS, 0, 0))
        while True:
            high, low, kind, flags, stream = struct.unpack(">HBBBL", self.read(9))
            body = self.read(high << 8 | low)
            if kind == SETTINGS and not flags & ACK:
                self.send(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self.send(frame(PING, ACK, 0, body))
            elif kind == WINDOW_UPDATE:
                with self.changed:
                    self.windows[stream] += struct.unpack(">L", body)[0]
                    self.changed.notify()
            elif kind == HEADERS:
                self.asked(stream, body)

    def asked(self, stream: int, block: bytes) -> None:
        if b"Health" in block:
            moment, answer = self.health(), b"\x08\x01"
        elif b"Shutdown" in block:
            moment, answer = "stop", b""
        elif b"Flooded" in block:
            moment, answer = "call", ANSWER
        elif b"StreamStdio" in block and self.flood.to == STDIO:
            self.send(response(self, stream, 0))
            Http2.stdio = self, stream
            return
        else:
            self.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, UNIMPLEMENTED))
            return
        if moment in self.moments:
            begin(self.flood, *(self.floods or (Http2.stdio if self.flood.to == STDIO else None) or (self, stream)))
            return
        self.send(
            frame(HEADERS, END_HEADERS, stream, RESPONSE)
            + frame(DATA, 0, stream, message(answer))
            + frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS)
        )

    checked = False
    stdio: tuple[Any, int] | None = None

    def health(self) -> str:
        moment = "ping" if Http2.checked else "start"
        Http2.checked = True
        return moment


# yamux, and net/rpc on it

Y_DATA, Y_WINDOW, Y_PING, Y_AWAY = range(4)
Y_SYN, Y_ACK, Y_FIN, Y_RST = 1, 2, 4, 8


def yframe(kind: int, flags: int, stream: int, length: int) -> bytes:
    return struct.pack(">BBHLL", 0, kind, flags, stream, length)


def ydata(stream: int, data: bytes) -> bytes:
    return yframe(Y_DATA, 0, stream, len(data)) + data


YAMUX = {
    "silence": Flood(),
    "silence, and nothing is read": Flood(deaf=True, long=True),
    "pings": Flood(lambda peer, stream, n: yframe(Y_PING, Y_SYN, 0, n)),
    "pings, slowly": Flood(lambda peer, stream, n: yframe(Y_PING, Y_SYN, 0, n), pause=0.001),
    "pings, and nothing is read": Flood(lambda peer, stream, n: yframe(Y_PING, Y_SYN, 0, n), deaf=True, long=True),
    "answers to pings": Flood(lambda peer, stream, n: yframe(Y_PING, Y_ACK, 0, n)),
    "window updates": Flood(lambda peer, stream, n: yframe(Y_WINDOW, 0, stream, 1)),
    "window updates by nothing": Flood(lambda peer, stream, n: yframe(Y_WINDOW, 0, stream, 0), long=True),
    "window updates of nothing": Flood(lambda peer, stream, n: yframe(Y_WINDOW, 0, 2 * n, 1), long=True),
    "acknowledgements": Flood(lambda peer, stream, n: yframe(Y_WINDOW, Y_ACK, stream, 0), long=True),
    "streams": Flood(lambda peer, stream, n: yframe(Y_WINDOW, Y_SYN, 2 * n, 0)),
    "streams opened and reset": Flood(
        lambda peer, stream, n: yframe(Y_WINDOW, Y_SYN, 2 * n, 0) + yframe(Y_WINDOW, Y_RST, 2 * n, 0)
    ),
    "streams opened and ended": Flood(
        lambda peer, stream, n: yframe(Y_WINDOW, Y_SYN, 2 * n, 0) + yframe(Y_WINDOW, Y_FIN, 2 * n, 0), long=True
    ),
    "resets of nothing": Flood(lambda peer, stream, n: yframe(Y_WINDOW, Y_RST, 2 * n, 0), long=True),
    "data for nobody": Flood(lambda peer, stream, n: ydata(999, b"nobody")),
    "empty data": Flood(lambda peer, stream, n: ydata(stream, b""), long=True),
    "farewells": Flood(lambda peer, stream, n: yframe(Y_AWAY, 0, 0, 0)),
    "a frame without end": Flood(
        lambda peer, stream, n: b"\0", first=lambda *_: yframe(Y_DATA, 0, _[1], 200_000), pause=0.001
    ),
    "pings a byte at a time": Flood(first=lambda *_: yframe(Y_PING, Y_SYN, 0, 0) * 1000, drip=True, pause=0.001),
    "noise": Flood(lambda peer, stream, n: b"\xa5", long=True),
}

NETRPC = {
    "answers to nobody": Flood(lambda peer, stream, n: peer.unasked(stream, n), size=100),
    "answers to nobody, slowly": Flood(lambda peer, stream, n: peer.unasked(stream, n), pause=0.001, size=100),
    "empty messages": Flood(lambda peer, stream, n: ydata(stream, bytes(100)), size=100),
    "types": Flood(lambda peer, stream, n: ydata(stream, slice_type(100 + n)), size=16, long=True),
    "a message without end": Flood(
        lambda peer, stream, n: ydata(stream, bytes(1000)),
        first=lambda *_: ydata(_[1], b"\xfc\x10\0\0\0"),
        pause=0.0005,
        size=1000,
    ),
    "a message a byte at a time": Flood(
        lambda peer, stream, n: ydata(stream, b"\0"), first=lambda *_: ydata(_[1], b"\xfd\1\0\0"), pause=0.001, size=1
    ),
    "an answer a byte at a time": Flood(
        first=lambda peer, stream, n: b"".join(ydata(stream, b"%c" % each) for each in peer.gob(stream, n)),
        drip=True,
        pause=0.005,
    ),
    "output": Flood(lambda peer, stream, n: ydata(stream, b"and so on.\n"), size=11, to=3, long=True),
    "output a byte at a time": Flood(lambda peer, stream, n: ydata(stream, b"x"), size=1, to=3),
}


def slice_type(number: int) -> bytes:
    """gob's definition of a slice of int."""
    low, high = number * 2 - 1, number * 2
    body = b"\xfe%c%c" % (low >> 8, low & 255) + b"\2\1\2\xfe%c%c" % (high >> 8, high & 255) + b"\0\1\4\0\0"
    return b"%c%b" % (len(body), body)


class NetRPC:
    """The one connection of net/rpc's."""

    def __init__(self, stream: Any, flood: Flood, moments: set[str]) -> None:
        from hybridload.goplugin.netrpc.gob import Bool, String
        from hybridload.goplugin.netrpc.rpc import RpcServer

        self.stream = stream
        self.flood = flood
        self.moments = moments
        self.send = stream.send
        self.sending = threading.Lock()
        self.windows: dict[int, int] = defaultdict(lambda: 256 * 1024)
        self.changed = threading.Condition()
        self.read = reader(stream)
        control = {"Control": {"Ping": Bool(), "Quit": Bool()}, "Dispenser": {"Dispense": String()}}
        self.control = RpcServer(control)
        self.others: dict[int, Any] = {}
        self.started = False

    def await_window(self, stream: int, size: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.windows[stream] >= size)
            self.windows[stream] -= size

    def serve(self) -> None:
        while True:
            _, kind, flags, stream, length = struct.unpack(">BBHLL", self.read(12))
            if flags & Y_SYN and kind != Y_PING:
                self.send(yframe(Y_WINDOW, Y_ACK, stream, 0))
            if kind == Y_DATA:
                self.take(stream, self.read(length))
            elif kind == Y_WINDOW:
                with self.changed:
                    self.windows[stream] += length
                    self.changed.notify()
            elif kind == Y_PING and flags & Y_SYN:
                self.send(yframe(Y_PING, Y_ACK, 0, length))

    def take(self, stream: int, data: bytes) -> None:
        from hybridload.goplugin.netrpc.rpc import RpcServer

        if stream == 1:
            server = self.control
        elif stream not in self.others:
            self.others[stream] = RpcServer({"Plugin": {"Greet": None, "AsyncGreet": None}})
            self.send(ydata(stream, data[:4]))  # the id that was dispensed
            server, data = self.others[stream], data[4:]
        else:
            server = self.others[stream]
        for call in server.receive(data):
            self.asked(stream, server, call)

    def asked(self, stream: int, server: Any, call: Any) -> None:
        from hybridload.goplugin.netrpc.gob import String, Uint
        from hybridload.goplugin.netrpc.rpc import EMPTY, Call

        moment = {"Ping": "ping", "Quit": "stop", "Greet": "call", "AsyncGreet": "call"}.get(call.method, "")
        if not self.started:
            self.started, moment = True, "start"
        if moment in self.moments:
            begin(self.flood, self, stream)
        elif not isinstance(call, Call):
            self.send(ydata(stream, server.error(call, call.text)))
        elif call.method == "Dispense":
            self.send(ydata(stream, server.reply(call, 7, Uint(32))))
        elif call.service == "Plugin":
            self.send(ydata(stream, server.reply(call, "hi", String())))
        else:
            self.send(ydata(stream, server.reply(call, None, EMPTY)))

    def gob(self, stream: int, number: int) -> bytes:
        """An answer that nobody asked for."""
        from hybridload.goplugin.netrpc.rpc import Refusal

        server = self.control if stream == 1 else self.others[stream]
        return server.error(Refusal(1_000_000 + number, "Plugin", "Greet", ""), "no")  # type: ignore[no-any-return]

    def unasked(self, stream: int, number: int) -> bytes:
        return ydata(stream, self.gob(stream, number))


class Multiplexed:
    """The one connection of multiplexed gRPC; yamux is flooded, and gRPC in it is as it should be."""

    def __init__(self, stream: Any, flood: Flood, moments: set[str]) -> None:
        from hybridload.goplugin.streams.mux import Mux

        self.flood = flood
        self.moments = moments
        self.send = stream.send
        self.mux = Mux(stream, client=False)

    def serve(self) -> None:
        while True:
            stream = self.mux.accept()
            peer = Http2(stream, self.flood, self.moments)
            peer.floods = self, stream.stream_id
            threading.Thread(target=quietly, args=(peer.serve,), daemon=True).start()


# TLS


def record(kind: int, body: bytes, size: int | None = None) -> bytes:
    return struct.pack(">BHH", kind, 0x303, len(body) if size is None else size) + body


HANDSHAKES = {
    "silence": Flood(),
    "noise": Flood(lambda peer, stream, n: b"\xa5"),
    "a record without end": Flood(
        lambda peer, stream, n: b"\2", first=lambda *_: record(22, b"\2", 16384), pause=0.001
    ),
    "a handshake a byte at a time": Flood(
        lambda peer, stream, n: record(22, b"\0"), first=lambda *_: record(22, b"\2")
    ),
    "empty records": Flood(lambda peer, stream, n: record(22, b"")),
    "warnings": Flood(lambda peer, stream, n: record(21, b"\1\x64")),
}


class Handshakes:
    """A connection that never comes to be."""

    def __init__(self, stream: Any, flood: Flood, moments: set[str]) -> None:
        self.flood = flood
        self.send = stream.send
        self.read = reader(stream)

    def serve(self) -> None:
        begin(self.flood, self, 0)
        while True:
            self.read(1)


PROTOCOLS: dict[str, tuple[str, type[Any], dict[str, Flood]]] = {
    "http2": ("grpc", Http2, HTTP2),
    "multiplexed": ("grpc", Multiplexed, YAMUX),
    "yamux": ("netrpc", NetRPC, YAMUX),
    "netrpc": ("netrpc", NetRPC, NETRPC),
    "tls": ("grpc", Handshakes, HANDSHAKES),
}


def reader(stream: Any) -> Callable[[int], bytes]:
    buffer = bytearray()

    def read(size: int) -> bytes:
        while len(buffer) < size:
            more = stream.receive()
            if not more:
                raise OSError("the host is gone")
            buffer.extend(more)
        data = bytes(buffer[:size])
        del buffer[:size]
        return data

    return read


def begin(flood: Flood, peer: Any, stream: int) -> None:
    if flood.deaf:
        flood.run(peer, stream)
    threading.Thread(target=quietly, args=(flood.run, peer, stream), daemon=True).start()


def quietly(action: Callable[..., None], *arguments: Any) -> None:
    try:
        action(*arguments)
    except OSError:
        pass  # the host has had enough


def main(protocol: str, row: str, *moments: str) -> None:
    from hybridload.goplugin.streams.sockets import listen_unix

    name, peer, rows = PROTOCOLS[protocol]
    listener: Any = listen_unix(os.environ["PLUGIN_UNIX_SOCKET_DIR"])
    certificate = ""
    if "PLUGIN_CLIENT_CERT" in os.environ:
        from hybridload.goplugin.certificates import generate_certificate
        from hybridload.goplugin.streams.tls import TLSListener, server_context

        own = generate_certificate("P-256")
        trusted = os.environ["PLUGIN_CLIENT_CERT"].encode()
        if protocol != "tls":
            listener = TLSListener(listener, server_context(own, trusted, ("h2",) if name == "grpc" else ()))
        certificate = base64.b64encode(own.der).decode().rstrip("=")
    print(f"1|1|unix|{listener.address}|{name}|{certificate}|true", flush=True)
    while True:
        accepted = peer(listener.accept(), rows[row], set(moments))
        threading.Thread(target=quietly, args=(accepted.serve,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
