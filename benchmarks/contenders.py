"""Who is compared, and what is measured of each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.programs import Missing, go_program, peer_python


@dataclass(frozen=True, slots=True)
class Contender:
    """One worker.

    :param key: short, for the goals and the JSON.
    :param name: for the table.
    :param command: how its worker is started.
    :param missing: why it cannot take part; empty when it can.
    """

    key: str
    name: str
    command: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """One thing that is measured of every contender which can do it.

    :param request: what the worker is told.
    :param figure: which of its answers counts.
    :param turns: how often, in a whole run and in a quick one.
    :param rate: whether more is better.
    """

    key: str
    title: str
    request: dict[str, Any]
    figure: str
    turns: tuple[int, int]
    rate: bool = False

    def shown(self, value: float) -> str:
        """The value with its unit."""
        if self.rate:
            return f"{value / 1000:.1f}k/s"
        return f"{value * 1e6:.0f} µs" if value < 0.002 else f"{value * 1e3:.1f} ms"


def _call(method: str, size: int, calls: int, threads: int) -> dict[str, Any]:
    return {"do": "call", "method": method, "size": size, "calls": calls, "threads": threads}


METRICS = (
    Metric("greet", "greet", _call("greet", 0, 250, 1), "p50", (21, 7)),
    Metric("threads4", "4 threads", _call("greet", 0, 800, 4), "rate", (11, 5), rate=True),
    Metric("threads16", "16 threads", _call("greet", 0, 800, 16), "rate", (7, 3), rate=True),
    Metric("echo64", "64 B", _call("echo", 64, 200, 1), "p50", (9, 3)),
    Metric("echo4k", "4 KiB", _call("echo", 4096, 200, 1), "p50", (9, 3)),
    Metric("echo1m", "1 MiB", _call("echo", 1 << 20, 10, 1), "p50", (13, 5)),
    Metric("stream", "10k items", {"do": "stream", "count": 10_000}, "rate", (5, 2), rate=True),
    Metric("start", "start", {"do": "start"}, "seconds", (9, 4)),
)


def contenders(peers: bool = True) -> Iterator[Contender]:
    """All of them, in the order of the table. What cannot be had is in it too, with the reason."""
    python = sys.executable
    host = (python, "-m", "benchmarks.workers.host")
    own = (python, "-m", "benchmarks.workers.plugin")
    direct, grpcio = {"HYBRIDLOAD_ENGINE": "direct"}, {"HYBRIDLOAD_ENGINE": "grpcio"}
    yield Contender("floor", "raw socket echo, Python and Python", (python, "-m", "benchmarks.workers.echo"))
    yield Contender("in-process", "in-process", (*host, "in-process"))
    yield Contender("subprocess", "subprocess", (*host, "subprocess"), direct)
    yield Contender("subprocess-prefork", "subprocess, preforked", (*host, "subprocess", "--prefork"), direct)
    yield Contender("subprocess-mtls", "subprocess, AutoMTLS", (*host, "subprocess", "--mtls"), direct)
    yield Contender("subprocess-grpcio", "subprocess, engine grpcio", (*host, "subprocess"), grpcio)
    yield from _with_go(
        lambda go: (
            Contender("py-go", "Python host, Go plugin", (*host, "external", go["greeter"]), direct),
            Contender(
                "py-go-mtls", "Python host, Go plugin, AutoMTLS", (*host, "external-mtls", go["greeter"]), direct
            ),
            Contender(
                "py-go-grpcio", "Python host, Go plugin, engine grpcio", (*host, "external", go["greeter"]), grpcio
            ),
            Contender(
                "py-go-grpcio-mtls",
                "Python host, Go plugin, engine grpcio, AutoMTLS",
                (*host, "external-mtls", go["greeter"]),
                grpcio,
            ),
            Contender("py-go-netrpc", "Python host, Go plugin, net/rpc", (*host, "external-netrpc", go["netrpc"])),
            Contender("go-go", "Go host, Go plugin", (go["benchhost"], go["greeter"])),
            Contender("go-go-mtls", "Go host, Go plugin, AutoMTLS", (go["benchhost"], "-mtls", go["greeter"])),
            Contender(
                "go-go-netrpc", "Go host, Go plugin, net/rpc", (go["benchhost"], "-protocol", "netrpc", go["netrpc"])
            ),
            Contender("go-py", "Go host, Python plugin", (go["benchhost"], *own), direct),
            Contender("go-py-mtls", "Go host, Python plugin, AutoMTLS", (go["benchhost"], "-mtls", *own), direct),
            Contender("go-py-grpcio", "Go host, Python plugin, engine grpcio", (go["benchhost"], *own), grpcio),
            Contender(
                "go-py-grpcio-mtls",
                "Go host, Python plugin, engine grpcio, AutoMTLS",
                (go["benchhost"], "-mtls", *own),
                grpcio,
            ),
        )
    )
    yield Contender("grpcio", "grpcio alone, Python and Python", (python, "-m", "benchmarks.workers.bare_grpcio"))
    if peers:
        yield from _peer("python-plugin", "benchmarks.workers.peer_python_plugin")
        yield from _peer("pyvider-rpcplugin", "benchmarks.workers.peer_pyvider")


def _with_go(made: Callable[[dict[str, str]], tuple[Contender, ...]]) -> Iterator[Contender]:
    names = ("benchhost", "greeter", "netrpc")
    try:
        yield from made({name: go_program(name) for name in names})
    except Missing as reason:
        for contender in made(dict.fromkeys(names, "")):
            yield Contender(contender.key, contender.name, missing=str(reason))


def _peer(package: str, module: str) -> Iterator[Contender]:
    try:
        command = (peer_python(package), "-m", module)
    except Missing as reason:
        yield Contender(package, f"{package}, its own plugin", missing=str(reason))
        return
    yield Contender(package, f"{package}, its own plugin", command)
    yield Contender(f"{package}-mtls", f"{package}, its own plugin, AutoMTLS", (*command, "--mtls"))
    try:
        yield Contender(f"{package}-go", f"{package}, Go plugin", (*command, go_program("greeter")))
    except Missing as reason:
        yield Contender(f"{package}-go", f"{package}, Go plugin", missing=str(reason))
