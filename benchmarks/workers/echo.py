"""The floor: two Python processes that send bytes to each other over a unix socket, and nothing else.

A message has a length of four bytes before it. No plugin can be faster; every thread has a connection of its own.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from benchmarks.workers.worker import measure, obey

LENGTH = struct.Struct(">L")
ITEM = b"0123456789"  # about what a small message of a stream is


def receive(connection: socket.socket) -> bytes:
    """One message; empty at the end."""
    data = connection.recv(65536)
    if not data:
        return b""
    (size,) = LENGTH.unpack_from(data)
    if size + 4 == len(data):
        return data[4:]
    buffer = bytearray(size)
    view = memoryview(buffer)
    view[: len(data) - 4] = data[4:]
    got = len(data) - 4
    while got < size:
        got += connection.recv_into(view[got:])
    return bytes(buffer)


def send(connection: socket.socket, message: bytes) -> None:
    if len(message) < 16384:
        connection.sendall(LENGTH.pack(len(message)) + message)
        return
    sent = connection.sendmsg([LENGTH.pack(len(message)), message])
    connection.sendall(memoryview(message)[sent - 4 :])


def serve(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    while True:
        connection = listener.accept()[0]
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    while message := receive(connection):
        if message[:1] == b"#":
            for _ in range(int(message[1:])):
                send(connection, ITEM)
        else:
            send(connection, message)


class Echo:
    """The side that asks."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._local = threading.local()

    def _connection(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._path)
        self._local.connection = connection
        return connection

    def _exchange(self, message: bytes) -> bytes:
        connection = getattr(self._local, "connection", None) or self._connection()
        send(connection, message)
        return receive(connection)

    def call(self, method: str, size: int, calls: int, threads: int) -> dict[str, float]:
        return measure(partial(self._exchange, b"x" * (size or 64)), calls, threads)

    def stream(self, count: int) -> dict[str, float]:
        connection = self._connection()
        began = time.perf_counter()
        send(connection, b"#%d" % count)
        left = count * (4 + len(ITEM))
        pending = b""
        while left:
            data = connection.recv(65536)
            left -= len(data)
            pending += data
            position = 0
            while position + 4 <= len(pending):
                end = position + 4 + LENGTH.unpack_from(pending, position)[0]
                if end > len(pending):
                    break
                pending[position + 4 : end]  # the message, as somebody would take it out
                position = end
            pending = pending[position:]
        connection.close()
        return {"rate": count / (time.perf_counter() - began)}

    def start(self) -> dict[str, float]:
        """What starting a Python that does nothing takes, to its end."""
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        return {"seconds": time.perf_counter() - began}

    def pid(self) -> dict[str, int]:
        return {"pid": SERVER.pid}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="hl-") as folder:
        address = str(Path(folder) / "echo")
        SERVER = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.workers.echo", address], stdout=subprocess.PIPE, env=os.environ
        )
        try:
            assert SERVER.stdout is not None
            SERVER.stdout.readline()
            obey(Echo(address))
        finally:
            SERVER.kill()
            SERVER.wait()
