"""What may be given as a time, in every place that takes one, and contexts that are left elsewhere than they began."""

from __future__ import annotations

import contextvars
import math
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Protocol

import pytest

from hybridload import Handshake, Loader, deadline, time_remaining
from hybridload.config import load_settings
from hybridload.deadlines import YEAR
from hybridload.errors import CallTimeout, ConfigError
from hybridload.goplugin import Client
from tests.isolation.conftest import Employ


class Work(Protocol):
    def double(self, number: int) -> int:
        """Twice as much."""


PLUGINS = {"work": Work}
HANDSHAKE = Handshake("KEY", "value")
NO_TIMES = [math.nan, math.inf, 1e10, 1e300, 2**63, 10**400, YEAR + 1, True, "1", b"1", None, 1j, [1]]
PAST = [0, 0.0, -0.0, -1, -1e10, -math.inf, -(10**400), 1e-12]


def in_a_deadline(value: object) -> None:
    with deadline(value):  # type: ignore[arg-type]
        pass


def as_start_timeout(value: object) -> None:
    Client(["x"], plugins=PLUGINS, handshake=HANDSHAKE, start_timeout=value)  # type: ignore[arg-type]


def as_call_timeout(value: object) -> None:
    if value is None:
        raise ConfigError("`None` is no limit: give a number of seconds")
    Client(["x"], plugins=PLUGINS, handshake=HANDSHAKE, call_timeout=value)  # type: ignore[arg-type]


def to_ping(value: object) -> None:
    class Connection:
        def ping(self, timeout: float) -> None:
            """Answers at once."""

    client = Client(["x"], plugins=PLUGINS, handshake=HANDSHAKE)
    client._connection = Connection()
    client.ping(value)  # type: ignore[arg-type]


TAKERS: list[Callable[[object], None]] = [in_a_deadline, as_start_timeout, as_call_timeout, to_ping]


@pytest.mark.parametrize("value", NO_TIMES, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("take", TAKERS)
def test_what_is_no_time_is_refused_where_it_is_given(take: Callable[[object], None], value: object) -> None:
    with pytest.raises(ConfigError, match="give a number of seconds"):
        take(value)


@pytest.mark.parametrize("take", TAKERS)
@pytest.mark.parametrize("value", [1, 0.5, YEAR, 1e-9])
def test_what_is_a_time_is_taken(take: Callable[[object], None], value: float) -> None:
    take(value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e10", "31536001", "true", '"1"', "-1"])
@pytest.mark.parametrize("key", ["start_timeout", "call_timeout", "backoff", "health_interval", "health_timeout"])
def test_the_configuration_has_the_same_rule(tmp_path: Path, key: str, value: str) -> None:
    config = tmp_path / "plugins.toml"
    config.write_text(f"[defaults]\n{key} = {value}\n")
    with pytest.raises(ConfigError, match=rf"{key}: expected a number of seconds.*a year at most"):
        load_settings(config, environ={})
    config.write_text(f"[defaults]\n{key} = {YEAR}\n")
    load_settings(config, environ={})


ISOLATIONS = {
    "in-process, held to deadlines": ['isolation = "in-process"', "call_timeout = 5"],
    "in-process, counted": ['isolation = "in-process"', "max_concurrency = 2", "call_timeout = 5"],
    "subprocess": [],
    "grpcio": [],
    "multiplexed": ["multiplex = true"],
}


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_deadlines_are_the_same_in_every_isolation(
    employ: Employ, monkeypatch: pytest.MonkeyPatch, isolation: str
) -> None:
    if isolation == "grpcio":
        monkeypatch.setenv("HYBRIDLOAD_ENGINE", "grpcio")
    worker = employ(*ISOLATIONS[isolation]).worker
    for value in PAST:
        with deadline(value), pytest.raises(CallTimeout):
            worker.double(2)
    for value in NO_TIMES:
        with pytest.raises(ConfigError, match="give a number of seconds"), deadline(value):  # type: ignore[arg-type]
            worker.double(2)
    for value in (YEAR, 60, 60.0):
        with deadline(value):
            assert worker.double(2) == 4


def test_a_deadline_that_is_left_in_another_context_is_left_in_peace() -> None:
    def steps() -> Generator[None]:
        with deadline(60):
            yield

    generator = steps()
    contextvars.copy_context().run(next, generator)
    assert time_remaining() is None
    generator.close()  # as when it is collected
    with deadline(30):
        left = time_remaining()
        assert left is not None
        assert 0 < left <= 30
    assert time_remaining() is None


def test_a_loader_says_at_once_that_a_time_is_none(tmp_path: Path) -> None:
    config = tmp_path / "plugins.toml"
    config.write_text("[defaults]\nstart_timeout = nan\n")
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="start_timeout"):
        Loader(PLUGINS, handshake=HANDSHAKE, config=config)
    assert time.monotonic() - begun < 10
