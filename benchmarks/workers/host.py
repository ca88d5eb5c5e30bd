"""A hybridload host with a plugin in some isolation.

    host.py in-process
    host.py subprocess [--mtls] [--prefork]
    host.py external | external-mtls | external-netrpc COMMAND...

What carries gRPC is the environment's business (`HYBRIDLOAD_ENGINE`).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks.workers.plugin import HANDSHAKE, PLUGINS, Work
from benchmarks.workers.worker import measure, obey
from hybridload import Loader
from hybridload.goplugin import Client

NAMES = (
    ("greeter", "greeter", "GreeterImpl"),
    ("bench", "bench", "BenchImpl"),
    ("another", "greeter", "GreeterImpl"),
    ("work", "greeter", "Work"),
)


class Host:
    """A host with one plugin that runs, and the means to start another."""

    def __init__(self) -> None:
        self.greeter: Any = None
        self.bench: Any = None

    def call(self, method: str, size: int, calls: int, threads: int) -> dict[str, float]:
        if method == "greet":
            return measure(self.greeter.greet, calls, threads)
        return measure(partial(self.bench.echo, b"x" * size), calls, threads)

    def stream(self, count: int) -> dict[str, float]:
        began = time.perf_counter()
        got = deque(enumerate(self.bench.count(count), 1), maxlen=1)
        if got[0][0] != count:
            raise AssertionError(f"{got[0][0]} of {count} items came")
        return {"rate": count / (time.perf_counter() - began)}


class External(Host):
    """A go-plugin program."""

    def __init__(self, command: list[str], how: str, stack: ExitStack) -> None:
        super().__init__()
        self._command = command
        self._mtls = how == "external-mtls"
        self._protocol = "netrpc" if how == "external-netrpc" else "grpc"
        self._client = stack.enter_context(self._new())
        self.greeter = self._client.dispense("greeter")
        if self._protocol == "grpc":
            self.bench = self._client.dispense("bench")

    def _new(self) -> Client:
        return Client(
            self._command,
            plugins=PLUGINS,
            handshake=HANDSHAKE,
            auto_mtls=self._mtls,
            allowed_protocols=(self._protocol,),
        )

    def start(self) -> dict[str, float]:
        began = time.perf_counter()
        with self._new() as client:
            client.dispense("greeter").greet()
            took = time.perf_counter() - began
        return {"seconds": took}

    def pid(self) -> dict[str, Any]:
        return {"pid": self._client.pid}


class Loaded(Host):
    """A Python object that a loader loads."""

    def __init__(self, isolation: str, settings: list[str], stack: ExitStack) -> None:
        super().__init__()
        self._config = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hl-"))) / "plugins.toml"
        self._prefork = "prefork = true" in settings
        lines = ["[defaults]", f'isolation = "{isolation}"', *settings]
        for name, kind, found in NAMES:
            lines += [f"[plugins.{name}]", f'kind = "{kind}"', f'entry_point = "benchmarks.workers.plugin:{found}"']
        self._config.write_text("\n".join(lines))
        self._loader = stack.enter_context(self._new())
        self.greeter = self._loader.load("greeter")
        self.bench = self._loader.load("bench")

    def _new(self) -> Loader:
        return Loader(PLUGINS, handshake=HANDSHAKE, config=self._config)

    def start(self) -> dict[str, float]:
        began = time.perf_counter()
        with self._new() as loader:
            if self._prefork:  # what is measured is the start of a plugin, and not that of the fork server
                loader.load("greeter")
                began = time.perf_counter()
            loader.load("another").greet()
            took = time.perf_counter() - began
        return {"seconds": took}

    def pid(self) -> dict[str, Any]:
        return {"pid": self._loader.status("greeter").pid}


class InProcess(Loaded):
    """As it is loaded, beside the bare object."""

    def tight(self, calls: int) -> dict[str, float]:
        """Seconds for one call of a method that takes a microsecond: through the handle, and of the object itself."""
        handle = self._loader.load("work")
        bare = Work()
        figures: dict[str, list[float]] = {"handle": [], "bare": []}
        for _ in range(5):
            for name, work in (("handle", handle), ("bare", bare)):
                began = time.perf_counter()
                for _ in repeat(None, calls):
                    work.greet()
                figures[name].append((time.perf_counter() - began) / calls)
        return {name: statistics.median(times) for name, times in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    external = ["external", "external-mtls", "external-netrpc"]
    parser.add_argument("isolation", choices=["in-process", "subprocess", *external])
    parser.add_argument("--mtls", action="store_true")
    parser.add_argument("--prefork", action="store_true")
    parser.add_argument("command", nargs="*")
    given = parser.parse_args()
    settings = {"auto_mtls": given.mtls, "prefork": given.prefork}
    with ExitStack() as stack:
        if given.isolation in external:
            host: Host = External(given.command, given.isolation, stack)
        elif given.isolation == "subprocess":
            host = Loaded("subprocess", [f"{key} = {str(value).lower()}" for key, value in settings.items()], stack)
        else:
            host = InProcess("in-process", [], stack)
        obey(host)


if __name__ == "__main__":
    main()
