"""Plugins in any isolation as hook implementations of a real pluggy.PluginManager."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pluggy
import pytest

from hybridload import Loader
from hybridload.errors import ConfigError, ContractError, PluginClosed, PluginCrashed
from hybridload.pluggy import register
from tests.isolation.conftest import wait_until

hookspec = pluggy.HookspecMarker("shop")
hookimpl = pluggy.HookimplMarker("shop")

SDK = """
import asyncio, os, signal, time, uuid
from typing import Protocol
import pluggy
from hybridload import Handshake

hookimpl = pluggy.HookimplMarker("shop")

class Hooks(Protocol):
    def price(self, item: str, discount: float = 0.5) -> float | None: ...
    def pid(self) -> int: ...
    def announce(self, what: str) -> list[str]: ...
    def crash(self, times: int) -> int: ...
    def hold(self, folder: str) -> int: ...
    async def slow(self, number: int) -> int: ...
    async def slow_crash(self) -> int: ...
    @hookimpl(specname="named")
    def my_named(self) -> str: ...
    def no_hook(self) -> str: ...

class Shop:
    def __init__(self, factor=1.0):
        self.factor, self.heard = factor, []
    def price(self, item, discount=0.5):
        return None if item == "nothing" else len(item) * discount * self.factor
    def pid(self):
        return os.getpid()
    def announce(self, what):
        self.heard.append(what)
        return self.heard
    def crash(self, times):
        if os.environ.get("SHOP_CHILD"):
            os.kill(os.getpid(), signal.SIGKILL)
        return times
    def hold(self, folder):
        open(f"{folder}/{uuid.uuid4().hex}.held", "w").close()
        while not os.path.exists(f"{folder}/go"):
            time.sleep(0.002)
        return os.getpid()
    async def slow(self, number):
        await asyncio.sleep(0)
        return 2 * number
    async def slow_crash(self):
        return self.crash(1)
    def my_named(self):
        return "named"
    def no_hook(self):
        return "none"

PLUGINS = {"hooks": Hooks}
HANDSHAKE = Handshake("PLUGGY_TEST", "on")
"""

CONFIG = """
[host]
plugins = "shop_sdk:PLUGINS"
handshake = "shop_sdk:HANDSHAKE"
[defaults]
env = { SHOP_CHILD = "1" }
backoff = 0.01
[plugins.one]
entry_point = "shop_sdk:Shop"
[plugins.two]
entry_point = "shop_sdk:Shop"
options = { factor = 10.0 }
"""
PLACES = ["in-process", "subprocess"]


class Spec:
    @hookspec
    def price(self, item: str) -> Any: ...
    @hookspec
    def pid(self) -> Any: ...
    @hookspec(historic=True)
    def announce(self, what: str) -> Any: ...
    @hookspec
    def crash(self, times: int) -> Any: ...
    @hookspec
    def hold(self, folder: str) -> Any: ...
    @hookspec
    def slow(self, number: int) -> Any: ...
    @hookspec
    def slow_crash(self) -> Any: ...
    @hookspec
    def named(self) -> Any: ...


class FirstSpec:
    @hookspec(firstresult=True)
    def price(self, item: str) -> Any: ...
    @hookspec(firstresult=True)
    def crash(self, times: int) -> Any: ...


@pytest.fixture
def open_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Loader]]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shop_sdk", raising=False)
    (tmp_path / "shop_sdk.py").write_text(textwrap.dedent(SDK))
    (tmp_path / "plugins.toml").write_text(CONFIG)
    loaders: list[Loader] = []

    def begin(isolation: str | list[str], *names: str) -> Loader:
        loaders.append(Loader(config=tmp_path / "plugins.toml"))
        for name in names:
            loaders[-1].load(name, isolation=isolation)
        return loaders[-1]

    yield begin
    for loader in loaders:
        loader.close()


def new_manager(spec: type = Spec) -> pluggy.PluginManager:
    manager = pluggy.PluginManager("shop")
    manager.add_hookspecs(spec)
    return manager


Open = Callable[..., Loader]


@pytest.mark.parametrize("place", PLACES)
def test_all_that_is_loaded_is_called_the_last_one_first(open_shop: Open, place: str) -> None:
    manager = new_manager()
    assert list(register(open_shop(place, "one", "two"), manager)) == ["one", "two"]
    # The specification has no discount: the interface's default holds.
    assert manager.hook.price(item="tea") == [15.0, 1.5]
    assert manager.hook.named() == ["named", "named"]
    assert not hasattr(manager.hook, "no_hook")
    assert (manager.hook.pid()[0] == os.getpid()) == (place == "in-process")


def test_plugins_that_are_named_are_loaded(open_shop: Open) -> None:
    loader, manager = open_shop("in-process"), new_manager()
    register(loader, manager, ["two"])
    assert manager.hook.price(item="tea") == [15.0]
    assert loader.status("one").state == "unloaded"


@pytest.mark.parametrize("place", PLACES)
def test_a_switch_a_reload_and_a_restart_reach_pluggy(open_shop: Open, place: str) -> None:
    loader, manager = open_shop(place, "one"), new_manager()
    register(loader, manager)
    (before,) = manager.hook.pid()
    other = PLACES[1 - PLACES.index(place)]
    loader.switch("one", other)
    assert manager.hook.pid() == [loader.status("one").pid] != [before]
    loader.switch("one", "subprocess")
    (pid,) = manager.hook.pid()
    loader.reload("one")
    (reloaded,) = manager.hook.pid()
    assert reloaded != pid
    os.kill(reloaded, signal.SIGKILL)
    try:
        found = manager.hook.pid()
    except PluginCrashed:
        found = manager.hook.pid()
    assert found not in ([pid], [reloaded], [os.getpid()])


@pytest.mark.parametrize("place", PLACES)
def test_tryfirst_and_trylast_order_the_calls(open_shop: Open, place: str) -> None:
    class Local:
        @hookimpl
        def price(self, item: str) -> float:
            return 0.0

    loader = open_shop(place, "one", "two")
    manager = new_manager()
    register(loader, manager, ["one"], tryfirst=True)
    register(loader, manager, ["two"], trylast=True)
    manager.register(Local())
    assert manager.hook.price(item="tea") == [1.5, 0.0, 15.0]


@pytest.mark.parametrize("place", PLACES)
def test_firstresult_ends_with_the_first_that_is_not_none(open_shop: Open, place: str) -> None:
    class Local:
        @hookimpl(trylast=True)
        def price(self, item: str) -> float:
            return -1.0

    manager = new_manager(FirstSpec)
    register(open_shop(place, "one", "two"), manager)
    manager.register(Local())
    assert manager.hook.price(item="tea") == 15.0
    assert manager.hook.price(item="nothing") == -1.0


@pytest.mark.parametrize("place", PLACES)
def test_wrappers_of_others_run_around(open_shop: Open, place: str) -> None:
    seen: list[str] = []

    class New:
        @hookimpl(wrapper=True)
        def price(self, item: str) -> Any:
            seen.append(f"before {item}")
            return [2 * each for each in (yield)]

    class Old:
        @hookimpl(hookwrapper=True)
        def price(self, item: str) -> Any:
            outcome = yield
            seen.append(f"got {outcome.get_result()}")

    manager = new_manager()
    manager.register(Old())
    register(open_shop(place, "one"), manager)
    manager.register(New())
    assert manager.hook.price(item="tea") == [3.0]
    assert seen == ["before tea", "got [1.5]"]


@pytest.mark.parametrize("place", PLACES)
def test_a_historic_hook_reaches_who_comes_later(open_shop: Open, place: str) -> None:
    results: list[Any] = []
    manager = new_manager()
    manager.hook.announce.call_historic(results.append, {"what": "early"})
    register(open_shop(place, "one"), manager)
    assert results == [["early"]]
    manager.hook.announce.call_historic(results.append, {"what": "late"})
    assert results[1:] == [["early", "late"]]


@pytest.mark.parametrize("place", PLACES)
def test_unregistered_is_called_no_more_and_may_come_back(open_shop: Open, place: str) -> None:
    loader, manager = open_shop(place, "one", "two"), new_manager()
    plugins = register(loader, manager)
    assert manager.unregister(name="two") is plugins["two"]
    assert manager.hook.price(item="tea") == [1.5]
    register(loader, manager, ["two"])
    assert manager.hook.price(item="tea") == [15.0, 1.5]


def test_async_methods_give_what_is_to_be_awaited(open_shop: Open) -> None:
    manager = new_manager()
    register(open_shop("subprocess", "one"), manager, on_crash="skip")

    async def ask() -> list[Any]:
        return [await each for each in (*manager.hook.slow(number=4), *manager.hook.slow_crash())]

    assert asyncio.run(ask()) == [8, None]


def test_a_crash_is_raised(open_shop: Open) -> None:
    manager = new_manager()
    register(open_shop("subprocess", "one"), manager)
    with pytest.raises(PluginCrashed):
        manager.hook.crash(times=1)


def test_a_crash_is_skipped(open_shop: Open, caplog: pytest.LogCaptureFixture) -> None:
    class Local:
        @hookimpl(trylast=True)
        def crash(self, times: int) -> int:
            return -times

    manager = new_manager(FirstSpec)
    register(open_shop("subprocess", "one"), manager, on_crash="skip")
    manager.register(Local())
    with caplog.at_level(logging.WARNING, "hybridload.pluggy"):
        assert manager.hook.crash(times=3) == -3
    assert "the hook crash goes on without it" in caplog.text
    assert manager.hook.price(item="tea") == 1.5


def test_a_crash_falls_back_to_the_next_isolation(open_shop: Open) -> None:
    loader, manager = open_shop(["subprocess", "in-process"], "one"), new_manager()
    register(loader, manager, on_crash="fallback")
    assert manager.hook.crash(times=3) == [3]
    assert loader.status("one").isolation == "in-process"
    assert manager.hook.pid() == [os.getpid()]


def test_crashes_on_many_threads_fall_back_together(open_shop: Open) -> None:
    loader, manager = open_shop(["subprocess", "in-process"], "one"), new_manager()
    register(loader, manager, on_crash="fallback")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda times: manager.hook.crash(times=times), range(40), timeout=60))
    assert results == [[times] for times in range(40)]
    assert loader.status("one").isolation == "in-process"


PROGRAM = """
from hybridload import serve
from shop_sdk import HANDSHAKE, PLUGINS, Shop
serve(PLUGINS, {"hooks": Shop()}, handshake=HANDSHAKE)
"""


@pytest.mark.parametrize("falls_by_itself", [False, True])
def test_calls_in_flight_at_one_crash_fall_back_once(
    open_shop: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, falls_by_itself: bool
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "program.py").write_text(PROGRAM)
    command = f"command = {[sys.executable, str(tmp_path / 'program.py')]}\n"
    restarts = "max_restarts = 0\n" if falls_by_itself else ""
    config = CONFIG.replace("[plugins.one]\n", f"[plugins.one]\n{command}{restarts}")
    (tmp_path / "plugins.toml").write_text(config)
    loader, manager = open_shop(["external", "subprocess", "in-process"], "one"), new_manager()
    register(loader, manager, on_crash="fallback")
    before = loader.status("one").pid
    assert before is not None
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(manager.hook.hold, folder=str(tmp_path)) for _ in range(4)]
        wait_until(lambda: len(list(tmp_path.glob("*.held"))) == 4)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: len(list(tmp_path.glob("*.held"))) >= 8)  # again, where they are by now
        (tmp_path / "go").touch()
        after = {pid for call in calls for pid in call.result(60)}
    assert not {before, os.getpid()} & after
    assert loader.status("one").isolation == "subprocess"


def test_an_async_crash_falls_back_as_well(open_shop: Open) -> None:
    loader, manager = open_shop(["subprocess", "in-process"], "one"), new_manager()
    register(loader, manager, on_crash="fallback")

    async def ask() -> list[Any]:
        return [await each for each in manager.hook.slow_crash()]

    assert asyncio.run(ask()) == [1]


def test_a_crash_with_nothing_to_fall_back_to_is_raised(open_shop: Open) -> None:
    manager = new_manager()
    register(open_shop("subprocess", "one"), manager, on_crash="fallback")
    with pytest.raises(PluginCrashed):
        manager.hook.crash(times=1)


@pytest.mark.parametrize("policy", ["raise", "skip", "fallback"])
def test_a_closed_loader_is_no_crash(open_shop: Open, policy: Any) -> None:
    loader, manager = open_shop("subprocess", "one"), new_manager()
    register(loader, manager, on_crash=policy)
    loader.close()
    with pytest.raises(PluginClosed):
        manager.hook.pid()


def test_what_cannot_be_registered_is_refused_and_nothing_stays(open_shop: Open) -> None:
    loader, manager = open_shop("in-process", "one", "two"), new_manager()
    with pytest.raises(ConfigError, match="on_crash is 'ignore'"):
        register(loader, manager, on_crash="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'one' has no method that is a hook of 'shop'.*specifications"):
        register(loader, pluggy.PluginManager("shop"), ["one"])
    assert register(loader, pluggy.PluginManager("shop")) == {}
    register(loader, manager, ["two"])
    with pytest.raises(ValueError, match="two"):
        register(loader, manager)
    assert not manager.has_plugin("one")
    assert manager.hook.price(item="tea") == [15.0]


def test_a_specification_that_disagrees_is_pluggys_error(open_shop: Open) -> None:
    class Other:
        @hookspec
        def price(self) -> Any: ...

    with pytest.raises(pluggy.PluginValidationError, match="item"):
        register(open_shop("in-process", "one"), new_manager(Other), ["one"])


def test_a_wrapper_cannot_be_a_plugin(open_shop: Open, tmp_path: Path) -> None:
    marked = SDK.replace('specname="named"', 'specname="named", wrapper=True')
    (tmp_path / "shop_sdk.py").write_text(marked)
    with pytest.raises(ContractError, match=r"my_named\(\) at .*hook wrapper"):
        register(open_shop("in-process", "one"), new_manager())
