"""A shop: an SDK with every kind of value, and plugins that have it, installed into a folder of each test."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SDK = """
import dataclasses, datetime, enum
from collections.abc import AsyncIterator, Iterator
from typing import Protocol
from hybridload import Contract, Handshake

class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"

class Level(enum.IntEnum):
    LOW = 0
    HIGH = 1

class Odd(enum.Enum):
    THIS = "this"
    THAT = 2
    OTHER = ()

@dataclasses.dataclass
class Item:
    name: str
    price: float
    color: Color = Color.RED
    added: datetime.datetime | None = None
    tags: list[str] = dataclasses.field(default_factory=list)

class Listener(Protocol):
    def told(self, words: str) -> None: ...

class Shop(Protocol):
    def add(self, item: Item, count: int = 1) -> Item: ...
    def photo(self, data: bytes) -> bytes: ...
    def clear(self) -> None: ...
    def find(self, names: set[str], limits: dict[int, float], flags: dict[bool, str]) -> list[Item]: ...
    def level(self, level: Level) -> Level: ...
    def odd(self, odd: Odd) -> Odd: ...
    def lasting(self, time: datetime.timedelta) -> datetime.timedelta: ...
    def maybe(self, text: str | None = None) -> str | None: ...
    def count(self, to: int) -> Iterator[int]: ...
    def total(self, numbers: Iterator[int]) -> int: ...
    def echo(self, words: Iterator[str]) -> Iterator[str]: ...
    def say(self, text: str) -> str: ...
    def fail(self, kind: str) -> None: ...
    def listen(self, listener: Listener) -> None: ...
    def die(self) -> None: ...

class AsyncShop(Protocol):
    async def add(self, a: int, b: int) -> int: ...
    def count(self, to: int) -> AsyncIterator[int]: ...
    async def total(self, numbers: AsyncIterator[int]) -> int: ...
    def echo(self, words: AsyncIterator[str]) -> AsyncIterator[str]: ...
    async def fail(self) -> None: ...

HANDSHAKE = Handshake("SHOP_PLUGIN", "open")
PLUGINS = {"shop": Contract(Shop)}
ASYNC = {"shop": Contract(AsyncShop)}
BOTH = {"shop": Contract(Shop), "async": Contract(AsyncShop)}
"""

PLUGIN = """
import os, signal, sys, time

class Corner:
    def __init__(self, motto="none"):
        self.motto = motto
        print("the shop opens")
    def add(self, item, count=1):
        item.tags = [*item.tags, str(count)]
        return item
    def photo(self, data):
        return data[::-1]
    def clear(self):
        pass
    def find(self, names, limits, flags):
        from shop_sdk import Item
        return [Item(name, limits[len(name)], tags=[flags[True]]) for name in sorted(names)]
    def level(self, level):
        return level
    def odd(self, odd):
        return odd
    def lasting(self, time):
        return time * 2
    def maybe(self, text=None):
        return text
    def count(self, to):
        yield from range(to)
    def total(self, numbers):
        return sum(numbers)
    def echo(self, words):
        for word in words:
            yield word.upper()
    def say(self, text):
        print("printed by the plugin")
        os.write(1, b"written to descriptor 1\\n")
        return text
    def fail(self, kind):
        if kind == "sleep":
            sys.stderr.write("sleeping\\n")
            sys.stderr.flush()
            time.sleep(60)
        raise {"key": KeyError("tau"), "lines": ValueError("one\\ntwo:\\n  three"), "pipe": BrokenPipeError(32, "gone"),
               "own": type("Peculiar", (Exception,), {})("strange")}[kind]
    def listen(self, listener):
        pass
    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

class Async:
    async def add(self, a, b):
        return a + b
    async def count(self, to):
        for number in range(to):
            yield number
    async def total(self, numbers):
        return sum([number async for number in numbers])
    async def echo(self, words):
        async for word in words:
            yield word.upper()
    async def fail(self):
        raise LookupError("nowhere")

class Wrong:
    pass

def refuses(**options):
    raise RuntimeError("closed today")
"""

CONFIG = """
[host]
plugins = "shop_sdk:PLUGINS"
handshake = "shop_sdk:HANDSHAKE"
group = "test.shops"
"""

ENTRY_POINTS = {"corner": "shop_plugin:Corner"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("hybridload: ")
        return lines[0].removeprefix("hybridload: ")


Run = Callable[..., Outcome]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The working directory of the command line: an SDK, a plugin and a plugins.toml."""
    (tmp_path / "shop_sdk.py").write_text(SDK)
    (tmp_path / "shop_plugin.py").write_text(PLUGIN)
    (tmp_path / "plugins.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def install(shop: Path) -> Callable[..., None]:
    """Installs a distribution with these entry points of the group ``test.shops``."""

    def write(name: str = "shop-plugin", folder: Path = shop, **entry_points: str) -> None:
        info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{entry} = {value}" for entry, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[test.shops]", *lines, ""]))

    write(**ENTRY_POINTS)
    return write


@pytest.fixture
def environment(shop: Path) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HYBRIDLOAD_ISOLATION")}
    path = os.pathsep.join(each for each in (str(shop), os.environ.get("PYTHONPATH")) if each)
    return {**clean, "PYTHONPATH": path}


@pytest.fixture
def hybridload(shop: Path, install: Callable[..., None], environment: dict[str, str]) -> Run:
    """Runs a command line in the shop's folder."""

    def run(*arguments: str | Path, env: Mapping[str, str] | None = None, stdin: str = "") -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "hybridload", *map(str, arguments)],
            cwd=shop,
            env={**environment, **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def hybridload_here(
    shop: Path,
    install: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """The same without a process for the command line itself, for what there are many cases of."""
    from hybridload.cli.app import run

    monkeypatch.chdir(shop)
    monkeypatch.syspath_prepend(str(shop))
    for module in ("shop_sdk", "shop_plugin"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    def here(*arguments: str, stdin: str = "") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = run(list(arguments))
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return here


@pytest.fixture
def start(shop: Path, install: Callable[..., None], environment: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Starts a command line and leaves it running, with pipes of bytes."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str | Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "hybridload", *map(str, arguments)],
            cwd=shop,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
