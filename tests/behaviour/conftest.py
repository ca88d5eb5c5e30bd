"""The rows of the behaviour suite: one plugin in every isolation, language, protocol and engine.

A behaviour is a test that takes `everything`, or `streaming` if it streams; it runs unchanged over all rows. Where a
row cannot be the same, the test asks ``row.differs("id")`` and pins down what happens there instead; the ids, the rows
they hold for and the reasons are in docs/differences.md and nowhere else. `test_differences.py` holds the two together.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import pytest

from ..conftest import KINDS, MARKER, Baseline, wait_until_nothing_is_left
from .table import Table

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).parent / "site"
PATIENCE = 30.0
ENGINES = ("direct", "grpcio")
NETRPC = "net/rpc"
CALL_TIMEOUT = "call_timeout"

sys.path.append(str(SITE))


@dataclass(frozen=True, slots=True)
class Row:
    """One way to run the plugin.

    :param where: what docs/differences.md calls it, whatever its protocol and its settings.
    :param how: net/rpc, or the engine that carries gRPC on both sides; in-process, a setting.
    """

    where: str
    isolation: str
    how: str | None = None

    def __str__(self) -> str:
        return self.where if self.how is None else f"{self.where}, {self.how}"

    @property
    def names(self) -> frozenset[str]:
        """What docs/differences.md may call it."""
        if self.netrpc:
            return frozenset({self.where, NETRPC, f"{self.where} over {NETRPC}"})
        if self.where == "in-process":
            return frozenset({self.where, f"{self.where} {'with' if self.limited else 'without'} {CALL_TIMEOUT}"})
        return frozenset({self.where})

    @property
    def protocol(self) -> str | None:
        """What it speaks, as its status has it."""
        if self.isolation == "in-process":
            return None
        return "netrpc" if self.netrpc else "grpc"

    @property
    def netrpc(self) -> bool:
        return self.how == NETRPC

    @property
    def limited(self) -> bool:
        """Whether its calls are held to deadlines though they are in-process."""
        return self.how == CALL_TIMEOUT

    @property
    def strict(self) -> bool:
        return self.where == "strict in-process"

    @property
    def go(self) -> bool:
        return self.where == "external Go"

    def differs(self, difference: str) -> bool:
        """Whether a documented difference holds for this row."""
        found = not self.names.isdisjoint(read_differences()[difference])
        if found:
            TABLE.met.add(difference)
        return found


ROWS = [
    Row("in-process", "in-process"),
    Row("in-process", "in-process", CALL_TIMEOUT),
    Row("strict in-process", "in-process"),
    *(
        Row(where, isolation, how)
        for where, isolation in (
            ("subprocess", "subprocess"),
            ("external Python", "external"),
            ("external Go", "external"),
        )
        for how in (*ENGINES, NETRPC)
    ),
]


TABLE = Table(ROWS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--behaviours", action="store_true", help="print the table of behaviours and rows")


def pytest_configure(config: pytest.Config) -> None:
    # Without a default it would be an error where this file is found too late for its option.
    if config.getoption("--behaviours", False):
        config.pluginmanager.register(TABLE, "behaviours")


@functools.cache
def read_differences() -> dict[str, list[str]]:
    """Difference -> the rows that it holds for, as docs/differences.md has them."""
    found = {}
    for line in (ROOT / "docs" / "differences.md").read_text().splitlines():
        if line.startswith("| `"):
            name, where = line.split("|")[1:3]
            found[name.strip(" `")] = [row.strip() for row in where.split(",")]
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Streams are no question where an interface that has them cannot be loaded, which test_streams.py pins.
    asked: list[pytest.Item] = []
    unasked: list[pytest.Item] = []
    for item in items:
        refused = _streams(item) and item.callspec.params["row"].differs("no-streams")
        (unasked if refused else asked).append(item)
    items[:] = asked
    config.hook.pytest_deselected(items=unasked)
    lives_on = pytest.mark.leaves(*KINDS, reason="a row's plugin lives through all its tests; its fixture checks it")
    for item in items:
        if isinstance(item, pytest.Function) and "plugin" in item.fixturenames and item.path.parent == SITE.parent:
            item.add_marker(lives_on)


def _streams(item: pytest.Item) -> TypeGuard[pytest.Function]:
    return isinstance(item, pytest.Function) and "streaming" in item.fixturenames and item.path.parent == SITE.parent


@pytest.fixture(scope="session", params=ROWS, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    chosen: Row = request.param
    return chosen


@pytest.fixture(scope="session")
def row_config(row: Row, go_build: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `plugins.toml` that has the plugin run as in the row."""
    command = [str(go_build("tests/go/behaviour"))] if row.go else [sys.executable, "-m", "behaviour_plugin"]
    protocol = row.protocol or "grpc"
    config = tmp_path_factory.mktemp("behaviour") / "plugins.toml"
    config.write_text(
        '[host]\nplugins = "behaviour_sdk:CALLS_ALONE"\n'
        "[plugins.everything]\n"
        'entry_point = "behaviour_plugin:Everything"\n'
        f"command = {command}\n"
        f'env = {{ PYTHONPATH = "{SITE}", BEHAVIOUR_PROTOCOL = "{protocol}" }}\n'
        f'isolation = "{row.isolation}"\n'
        f'protocols = ["{protocol}"]\n'
        'max_message = "3500kB"\n'
        "health_interval = 0\n"  # it lives on amid tests of others, and would do something meanwhile
        f"strict = {str(row.strict).lower()}\n" + (f"{CALL_TIMEOUT} = 600.0\n" if row.limited else "")
    )
    return config


_POLLER = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]")


@pytest.fixture(scope="session")
def plugin(row: Row, row_config: Path) -> Iterator[Plugin]:
    from behaviour_sdk import HANDSHAKE, PLUGINS

    from hybridload import Loader

    folder = Path(tempfile.mkdtemp(prefix="hl-", dir="/tmp"))
    before = Baseline.take(uuid.uuid4().hex, folder)
    with ExitStack() as stack:
        # Only while it starts: whatever tests come next, they are not of this row.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(MARKER, before.marker)
            patch.setenv("TMPDIR", str(folder))
            patch.setattr(tempfile, "tempdir", str(folder))
            if row.how in ENGINES:
                patch.setenv("HYBRIDLOAD_ENGINE", row.how)
            # What describes Go types has to be given by name, as the config does it.
            plugins = None if row.netrpc else PLUGINS
            loader = stack.enter_context(Loader(plugins, handshake=HANDSHAKE, config=row_config))
            everything = loader.load("everything")
        assert loader.status("everything").protocol == row.protocol
        yield Plugin(everything, folder)
    left = wait_until_nothing_is_left(before, KINDS)
    if "grpc" in sys.modules:  # its core has one poller for all channels, and those of another fixture may need it
        left = [each for each in left if not each.endswith(_POLLER)]
    shutil.rmtree(folder)
    assert not left, "the plugin left behind:\n  " + "\n  ".join(left)


@dataclass(frozen=True, slots=True)
class Plugin:
    everything: Any
    folder: Path


@pytest.fixture
def everything(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plugin of the row."""
    monkeypatch.setattr(tempfile, "tempdir", str(plugin.folder))
    return plugin.everything


@pytest.fixture
def streaming(everything: Any) -> Any:
    """The plugin of the row, for a behaviour that streams."""
    return everything


def ended_with_its_caller(everything: Any, row: Row, key: str) -> bool:
    """Whether `forever` has ended by now, because nobody waited for it; where it goes on, whether it did until now."""
    if row.differs("no-cancelling"):
        everything.release(key)
        return bool(everything.ended(f"{key} to its end"))
    return bool(everything.ended(key))


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses: the plugin lives through all of them."""
    return f"{request.node.nodeid} {os.urandom(4).hex()}"


class Heard(logging.Handler):
    """The log records that reached the host; `wait_for` waits for one."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._news = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._news:
            self.records.append(record)
            self._news.notify_all()

    def wait_for(self, message: str) -> logging.LogRecord:
        """The first record whose message contains this."""

        def find() -> logging.LogRecord | None:
            return next((record for record in self.records if message in record.getMessage()), None)

        with self._news:
            found = self._news.wait_for(find, PATIENCE)
        assert found, f"{message!r} is not among {[record.getMessage() for record in self.records]}"
        return found


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    root, handler = logging.getLogger(), Heard()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)
