"""A host whose calls are interrupted at random moments: prints what became of them as JSON.

As ``interrupted_host.py SECONDS KIND CONFIG``, where `KIND` is what the handler raises: ``ctrl-c`` is
KeyboardInterrupt, ``soft`` an exception of the program's own, as a soft time limit does. As ``interrupted_host.py serve
PROTOCOL`` it is the plugin.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from types import FrameType
from typing import Protocol

from hybridload import Contract, Handshake, Loader, serve

HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")


class Echo(Protocol):
    def echo(self, text: str) -> str: ...

    def pid(self) -> int: ...


class Echoing:
    def echo(self, text: str) -> str:
        if text.startswith("slow"):
            time.sleep(0.02)
        return text

    def pid(self) -> int:
        return os.getpid()


PLUGINS = {"echo": Contract(Echo)}


class SoftLimit(Exception):
    pass


class Interrupts:
    """Raises once, at a moment of its own, while it is armed."""

    def __init__(self, raises: type[BaseException]) -> None:
        self.armed = False
        self.raises = raises
        signal.signal(signal.SIGALRM, self.arrive)

    def arrive(self, number: int, frame: FrameType | None) -> None:
        if self.armed:
            self.armed = False
            raise self.raises


def main(seconds: float, kind: str, config: str) -> None:
    interrupts = Interrupts(KeyboardInterrupt if kind == "ctrl-c" else SoftLimit)
    wrong: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    stopping = threading.Event()
    with Loader(PLUGINS, handshake=HANDSHAKE, config=config) as loader:
        plugin = loader.load("echo", Echo)
        pid = plugin.pid()

        def others(name: str) -> None:
            number = 0
            while not stopping.is_set():
                number += 1
                token = f"{name} {number}"
                try:
                    if plugin.echo(token) != token:
                        wrong["another's answer"] += 1
                except Exception as error:
                    wrong[f"{type(error).__name__}: {str(error)[:300]}"] += 1
                counts["of others"] += 1

        threads = [threading.Thread(target=others, args=(name,)) for name in ("slow", "quick")]
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            number = 0
            if counts["interrupted"] == 20:
                stopping.set()  # from here on the caller is alone
            try:
                try:
                    interrupts.armed = True
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.02))
                    while True:
                        number += 1
                        token = f"main {number}"
                        if plugin.echo(token) != token:
                            wrong["another's answer"] += 1
                finally:
                    interrupts.armed = False
            except interrupts.raises:
                counts["interrupted"] += 1
            if plugin.echo("next") != "next":
                wrong["another's answer"] += 1
        stopping.set()
        for thread in threads:
            thread.join()
        same = plugin.pid() == pid and loader.status("echo").restarts == 0
        in_flight = loader.status("echo").in_flight
        began = time.monotonic()
    closed_in = time.monotonic() - began
    report = {"same": same, "wrong": wrong, "counts": counts, "in_flight": in_flight, "closed_in": closed_in}
    print(json.dumps(report), flush=True)


if sys.argv[1] == "serve":
    serve(PLUGINS, {"echo": Echoing()}, handshake=HANDSHAKE, protocols=(sys.argv[2],))
else:
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3])
