"""A Python object in its own process is what it is in-process: under every kind, in every version that it has."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from hybridload import Contract, Loader
from hybridload.errors import ConfigError, ContractError, ExitedBeforeHandshake, NoUsableIsolation, PluginError

Open = Callable[..., Loader]

SDK = """
from typing import Protocol
from hybridload import Contract, Handshake

class Greeter(Protocol):
    def greet(self) -> str: ...

class Counter(Protocol):
    def count(self, by: int = 1) -> int: ...

class Waver(Protocol):
    def wave(self, hands: int) -> str: ...

class NewGreeter(Protocol):
    def greet(self) -> str: ...
    def leave(self) -> str: ...

class HandWritten:
    def grpc_client(self, broker, channel): ...
    def grpc_server(self, broker, server): ...

PLUGINS = {"greeter": Contract(Greeter), "counter": Contract(Counter), "waver": Waver, "own": HandWritten()}
VERSIONS = {1: {"greeter": Greeter, "counter": Counter}, 2: {"greeter": NewGreeter, "waver": Waver}}
HANDSHAKE = Handshake("ISOLATION_TEST", "on")
"""

PLUGIN = """
import os

class Both:
    def __init__(self, start=0):
        self.total = start
    def greet(self):
        return f"{self.total} from {os.getpid()}"
    def count(self, by=1):
        self.total += by
        return self.total
    def wave(self):
        return "no hands"

class Old:
    def greet(self):
        return "old"
    def count(self, by=1):
        return by

import sys
module = sys.modules[__name__]
nothing = 3
def greet():
    return "a module"
def fails():
    raise OSError("no database")
if "pytest" in sys.modules:
    here_alone = Old

class New(Old):
    def leave(self):
        return "left"
    def wave(self, hands):
        return "o/" * hands
"""

BY_NAME = '[host]\nplugins = "kinds_sdk:{}"\nhandshake = "kinds_sdk:HANDSHAKE"\n'


@pytest.fixture
def sdk(write_module: Any, install: Any) -> Any:
    write_module("kinds_sdk", SDK)
    write_module("kinds_plugin", PLUGIN)
    install(both="kinds_plugin:Both", old="kinds_plugin:Old", new="kinds_plugin:New")
    return importlib.import_module("kinds_sdk")


@pytest.fixture(params=["object", "name"])
def opened(request: pytest.FixtureRequest, sdk: Any, open_loader: Open) -> Callable[..., Loader]:
    """Loaders that have a plugin set as an object, or by its name."""

    def begin(plugins: str, settings: str = "") -> Loader:
        if request.param == "name":
            return open_loader(config=BY_NAME.format(plugins) + settings)
        return open_loader(getattr(sdk, plugins), config=settings)

    return begin


@pytest.mark.parametrize("isolation", ["in-process", "subprocess"])
def test_one_object_serves_every_kind_that_it_implements(opened: Any, sdk: Any, isolation: str) -> None:
    loader = opened("PLUGINS", "[plugins.both.options]\nstart = 5")
    greeter = loader.load("both", sdk.Greeter, isolation=isolation)
    counter = loader.load("both", sdk.Counter)
    assert (counter.count(2), counter.count()) == (7, 8)
    pid = loader.status("both").pid
    assert greeter.greet() == f"8 from {pid}"
    assert (pid == os.getpid()) == (isolation == "in-process")
    assert loader.status("both").kinds == ("greeter", "counter")


@pytest.mark.parametrize("isolation", ["in-process", "subprocess"])
def test_a_kind_that_the_object_does_not_implement_is_refused_when_it_is_loaded(
    opened: Any, sdk: Any, isolation: str
) -> None:
    loader = opened("PLUGINS")
    greeter = loader.load("both", sdk.Greeter, isolation=isolation)
    for _ in range(2):
        with pytest.raises(ContractError) as caught:
            loader.load("both", sdk.Waver)
        assert str(caught.value) == (
            "Plugin 'both': Both is no Waver:\n"
            "  wave() cannot take the arguments of wave(hands: int) -> str: too many positional arguments"
        )
    assert greeter.greet().startswith("0 from ")


def test_a_switch_takes_all_kinds_along(opened: Any, sdk: Any) -> None:
    loader = opened("PLUGINS")
    greeter, counter = loader.load("both", sdk.Greeter), loader.load("both", sdk.Counter)
    counter.count(3)
    for isolation in ("subprocess", "in-process", "subprocess"):
        loader.switch("both", isolation)
        pid = loader.status("both").pid
        assert counter.count(4) == 4  # another object: state is not carried across
        assert greeter.greet() == f"4 from {pid}"


def test_the_newest_version_that_both_sides_know_is_served(opened: Any, sdk: Any) -> None:
    loader = opened("VERSIONS")
    new = loader.load("new", sdk.NewGreeter, isolation="subprocess")
    assert (new.leave(), loader.status("new").version) == ("left", 2)
    assert loader.load("new", sdk.Waver).wave(2) == "o/o/"
    with pytest.raises(ConfigError, match="no kind 'counter'"):
        loader.load("new", sdk.Counter)


def test_an_object_of_an_older_version_is_served_in_that_one(opened: Any, sdk: Any) -> None:
    loader = opened("VERSIONS")
    old = loader.load("old", sdk.NewGreeter, isolation="subprocess")
    assert (old.greet(), loader.status("old").version) == ("old", 1)
    with pytest.raises(ContractError, match=r"runs version 1 .* no leave\(\)"):
        old.leave()
    assert loader.load("old", sdk.Counter).count(9) == 9


def test_an_object_that_implements_no_version_is_refused_with_what_is_missing(opened: Any, sdk: Any) -> None:
    loader = opened("PLUGINS", '[plugins.both]\nkind = "waver"\nisolation = ["subprocess", "in-process"]')
    with pytest.raises(ContractError, match=r"(?s)^Plugin 'both': Both is no Waver:.*wave\(\) cannot take the arg"):
        loader.load("both")


@pytest.mark.parametrize("isolation", ["in-process", "subprocess"])
@pytest.mark.parametrize(
    ("entry_point", "options", "kind", "words"),
    [
        (
            "kinds_plugin:Both",
            "{ strt = 1 }",
            ConfigError,
            r"^Plugin 'p': the class kinds_plugin\.Both cannot be called with the options \{'strt': 1\}.* \(start=0\)",
        ),
        ("kinds_plugin:module", "{ start = 1 }", ConfigError, r"^Plugin 'p' is the module kinds_plugin, .*no effect"),
        ("kinds_plugin:nothing", "{}", ContractError, r"^Plugin 'p' is an object of builtins\.int: it lacks greet"),
        ("kinds_plugin:fails", "{}", PluginError, r"^Plugin 'p': the function .*fails raised OSError: no database$"),
    ],
)
def test_what_cannot_be_built_is_the_same_error_in_both(
    opened: Any, isolation: str, entry_point: str, options: str, kind: type[PluginError], words: str
) -> None:
    settings = f'[plugins.p]\nentry_point = "{entry_point}"\noptions = {options}\nkind = "greeter"\n'
    loader = opened("PLUGINS", settings + f'isolation = "{isolation}"')
    with pytest.raises(PluginError) as caught:
        loader.load("p")
    error = caught.value
    if isinstance(error, NoUsableIsolation):  # the two others are no reason to try another isolation
        assert kind is PluginError
        error = error.attempts[0].error  # type: ignore[assignment]
    assert type(error) is kind
    assert re.search(words, str(error)), str(error)
    if isolation == "subprocess":
        assert isinstance(error.__cause__, ExitedBeforeHandshake)
        assert "Traceback" in str(error.__cause__)


def test_what_only_the_other_interpreter_lacks_is_a_reason_to_fall_back(opened: Any, tmp_path: Any) -> None:
    settings = '[plugins.p]\nentry_point = "kinds_plugin:here_alone"\nkind = "greeter"\n'
    loader = opened("PLUGINS", settings + 'isolation = ["subprocess", "in-process"]')
    assert loader.load("p").greet() == "old"
    attempt = loader.status("p").attempts[0]
    assert attempt.isolation == "subprocess"
    assert "kinds_plugin has no here_alone" in str(attempt.error)


def test_an_interpreter_that_is_missing_is_named_with_its_key(opened: Any, tmp_path: Any) -> None:
    loader = opened(
        "PLUGINS", '[plugins.both]\nkind = "greeter"\npython = "./venv/bin/python"\nisolation = "subprocess"'
    )
    with pytest.raises(NoUsableIsolation, match=f"{tmp_path}/venv/bin/python .*the interpreter that `python` sets"):
        loader.load("both")


class Here(Protocol):
    def greet(self) -> str: ...


def test_what_the_process_cannot_import_is_refused_when_it_is_asked_for(sdk: Any, open_loader: Open) -> None:
    class Local(Protocol):
        def count(self, by: int = 1) -> int: ...

    loader = open_loader({"greeter": sdk.Greeter, "local": Contract(Local), "waver": sdk.Waver})
    assert loader.load("both", sdk.Greeter, isolation="subprocess").greet()
    with pytest.raises(ConfigError, match=r"'both'.*Local is defined inside a function.*move it to a module"):
        loader.load("both", Local)
    with pytest.raises(ConfigError, match=r"Local is defined inside a function"):
        loader.load("new", Local, isolation="subprocess")


def test_a_hand_written_kind_cannot_be_served_from_an_entry_point(opened: Any) -> None:
    loader = opened("PLUGINS", '[plugins.both]\nkind = "own"\nisolation = "subprocess"')
    with pytest.raises(ConfigError, match="'own' is a hand-written plugin; only a contract can be served"):
        loader.load("both")


def test_records_logged_at_the_start_are_those_of_the_plugins_own_loggers(
    write_module: Any, install: Any, sdk: Any, open_loader: Open, caplog: pytest.LogCaptureFixture
) -> None:
    write_module(
        "early_plugin",
        """
        import logging
        log = logging.getLogger("early_plugin.start")
        log.warning("imported")
        class Early:
            def __init__(self):
                log.error("constructed")
            def greet(self):
                return ""
        """,
    )
    install(early="early_plugin:Early")
    caplog.set_level("DEBUG")
    for isolation in ("in-process", "subprocess"):
        caplog.clear()
        with open_loader({"greeter": sdk.Greeter}) as loader:
            loader.load("early", isolation=isolation)
        records = [(each.levelname, each.getMessage()) for each in caplog.records if each.name == "early_plugin.start"]
        assert records == [("WARNING", "imported"), ("ERROR", "constructed")], isolation
