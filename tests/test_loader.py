"""Names to objects: in-process plugins, the fallback chain, switching and closing.

What needs Go or a plugin process of our own is in tests/interop.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytest

from hybridload import Contract, Handshake, Loader
from hybridload.errors import (
    ConfigError,
    ContractError,
    NoUsableIsolation,
    PluginClosed,
    PluginError,
    PluginNotFound,
)


@runtime_checkable
class Greeter(Protocol):
    """Says something friendly."""

    def greet(self) -> str: ...


class Counter(Protocol):
    def count(self, by: int = 1) -> int: ...


GREETER = Contract(Greeter, service="proto.GreeterService")
HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")
GROUP = "test.greeters"

PLUGINS = """
import threading

closed = []

class Hello:
    def __init__(self, greeting="Hello"):
        self.greeting = greeting
    def greet(self):
        return self.greeting
    def close(self):
        closed.append(self.greeting)

class Wrong:
    def greet(self, name):
        return name

class Async:
    async def greet(self):
        return ""

class Failing:
    def __init__(self):
        raise RuntimeError("no database")

class FailsToClose(Hello):
    def close(self):
        raise RuntimeError("still busy")

class Both(Hello):
    def count(self, by=7):
        return by

instance = Hello("instance")

def factory(greeting="made"):
    return Hello(greeting)

class _Slow(Hello):
    pass

built = threading.Barrier(2)

def slow():
    built.wait(10)
    return Hello("slow")

number = 3
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a distribution with the module `fixture_plugins` and the given entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fixture_plugins", raising=False)
    (tmp_path / "fixture_plugins.py").write_text(PLUGINS)

    def write(**entry_points: str) -> None:
        info = tmp_path / "fixture_plugins-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fixture-plugins\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))

    return write


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "plugins.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def open_loader() -> Iterator[Callable[..., Loader]]:
    loaders: list[Loader] = []

    def make(plugins: Any = None, **options: Any) -> Loader:
        loaders.append(Loader(plugins or {"greeter": GREETER}, handshake=HANDSHAKE, group=GROUP, **options))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def test_a_name_gives_an_object_of_the_interface(install: Any, open_loader: Any) -> None:
    install(hello="fixture_plugins:Hello")
    loader = open_loader()
    greeter = loader.load("hello")
    assert greeter.greet() == "Hello"
    assert isinstance(greeter, Greeter)
    assert repr(greeter).startswith("<Greeter 'hello' (in-process, pid ")
    assert type(greeter).__doc__ == Greeter.__doc__


def test_in_process_the_slot_holds_the_bound_method_itself(install: Any, open_loader: Any) -> None:
    install(hello="fixture_plugins:Hello")
    greeter = open_loader().load("hello")
    import fixture_plugins  # type: ignore[import-not-found]

    assert greeter.greet.__func__ is fixture_plugins.Hello.greet
    assert type(greeter.greet.__self__) is fixture_plugins.Hello


def test_the_same_name_gives_the_same_object(install: Any, open_loader: Any) -> None:
    install(hello="fixture_plugins:Hello")
    loader = open_loader()
    assert loader.load("hello") is loader.load("hello")


def test_threads_that_load_one_name_at_once_share_one_object(install: Any, open_loader: Any) -> None:
    install(hello="fixture_plugins:Hello")
    loader, found = open_loader(), []
    threads = [threading.Thread(target=lambda: found.append(loader.load("hello"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in found}) == 1


def test_plugins_start_side_by_side(install: Any, open_loader: Any) -> None:
    """Each waits for the other in its constructor: one after the other they would never come up."""
    install(one="fixture_plugins:slow", two="fixture_plugins:slow")
    loader, found = open_loader(), []
    threads = [threading.Thread(target=lambda n=name: found.append(loader.load(n))) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2


@pytest.mark.parametrize(
    ("target", "says"), [("Hello", "Hello"), ("instance", "instance"), ("factory", "made")], ids=str
)
def test_an_entry_point_may_be_a_class_an_instance_or_a_factory(
    install: Any, open_loader: Any, target: str, says: str
) -> None:
    install(hello=f"fixture_plugins:{target}")
    assert open_loader().load("hello").greet() == says


def test_options_are_the_arguments_of_the_class(install: Any, open_loader: Any, config: Any) -> None:
    install(hello="fixture_plugins:Hello")
    path = config('[plugins.hello]\noptions = { greeting = "Moin" }\n')
    assert open_loader(config=path).load("hello").greet() == "Moin"


def test_options_for_an_instance_are_an_error(install: Any, open_loader: Any, config: Any) -> None:
    install(hello="fixture_plugins:instance")
    path = config('[plugins.hello]\noptions = { greeting = "Moin" }\n')
    with pytest.raises(ConfigError, match="options"):
        open_loader(config=path).load("hello")


def test_options_that_the_class_does_not_take_are_an_error(install: Any, open_loader: Any, config: Any) -> None:
    install(hello="fixture_plugins:Hello")
    path = config("[plugins.hello]\noptions = { greting = 'x' }\n")
    with pytest.raises(ConfigError, match=r"greting.*Give the options that it takes: \(greeting='Hello'\)"):
        open_loader(config=path).load("hello")


@pytest.mark.parametrize(("target", "says"), [("Wrong", "name"), ("Async", "async"), ("number", "lacks greet")])
def test_an_object_that_does_not_fit_the_interface_is_refused(
    install: Any, open_loader: Any, target: str, says: str
) -> None:
    install(hello=f"fixture_plugins:{target}")
    with pytest.raises(ContractError, match=says):
        open_loader().load("hello")


def test_a_plugin_that_cannot_be_built_is_named_with_its_own_error(install: Any, open_loader: Any) -> None:
    install(hello="fixture_plugins:Failing")
    loader = open_loader()
    with pytest.raises(NoUsableIsolation, match=r"in-process: PluginError.*RuntimeError: no database") as caught:
        loader.load("hello")
    assert isinstance(caught.value.attempts[0].error.__cause__, RuntimeError)
    assert loader.status("hello").state == "failed"
    assert "no database" in (loader.status("hello").last_error or "")


def test_a_broken_neighbour_stops_nobody(install: Any, open_loader: Any) -> None:
    install(good="fixture_plugins:Hello", broken="no_such_module:Thing")
    loader = open_loader()
    assert loader.names() == ["broken", "good"]
    with pytest.raises(PluginError, match="no_such_module"):
        loader.load("broken")
    assert loader.load("good").greet() == "Hello"
    assert "no_such_module" in (loader.status("broken").last_error or "")


def test_falls_back_when_the_binary_is_missing(
    install: Any, open_loader: Any, config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    install(hello="fixture_plugins:Hello")
    path = config('[plugins.hello]\ncommand = "./nowhere"\nisolation = ["external", "in-process"]\n')
    loader = open_loader(config=path)
    with caplog.at_level(logging.WARNING):
        assert loader.load("hello").greet() == "Hello"
    [warning] = [record.getMessage() for record in caplog.records]
    assert "running in-process, because external failed" in warning
    status = loader.status("hello")
    assert (status.isolation, status.degraded, [each.isolation for each in status.attempts]) == (
        "in-process",
        True,
        ["external"],
    )


def test_with_nothing_left_every_attempt_is_listed(install: Any, open_loader: Any, config: Any) -> None:
    install(hello="fixture_plugins:Failing")
    path = config('[plugins.hello]\ncommand = "./nowhere"\nisolation = ["external", "in-process"]\n')
    with pytest.raises(NoUsableIsolation) as caught:
        open_loader(config=path).load("hello")
    assert [(each.isolation, type(each.error)) for each in caught.value.attempts] == [
        ("external", PluginNotFound),
        ("in-process", PluginError),
    ]
    assert "external: PluginNotFound" in str(caught.value)
    assert "in-process: PluginError" in str(caught.value)


def test_an_isolation_without_a_source_is_skipped_silently(
    install: Any, open_loader: Any, caplog: pytest.LogCaptureFixture
) -> None:
    install(hello="fixture_plugins:Hello")
    loader = open_loader()
    loader.load("hello", isolation=["external", "in-process"])
    assert not caplog.records
    assert not loader.status("hello").degraded


def test_an_isolation_that_no_source_serves_is_an_error_that_says_so(install: Any, open_loader: Any) -> None:
    install(hello="fixture_plugins:Hello")
    with pytest.raises(NoUsableIsolation, match="no source for external"):
        open_loader().load("hello", isolation="external")


def test_an_unknown_name_lists_the_known_ones(install: Any, open_loader: Any) -> None:
    install(hello="fixture_plugins:Hello")
    with pytest.raises(PluginNotFound, match="Did you mean 'hello'"):
        open_loader().load("helo")


def test_the_interface_chooses_the_kind(install: Any, open_loader: Any) -> None:
    install(both="fixture_plugins:Both")
    loader = open_loader({"greeter": GREETER, "counter": Counter})
    assert loader.load("both", Greeter).greet() == "Hello"
    assert loader.load("both", Counter).count(3) == 3
    assert loader.status("both").kinds == ("greeter", "counter")


def test_several_kinds_and_no_choice_is_an_error(install: Any, open_loader: Any) -> None:
    install(both="fixture_plugins:Both")
    with pytest.raises(ConfigError, match="several kinds"):
        open_loader({"greeter": GREETER, "counter": Counter}).load("both")


def test_the_config_chooses_the_kind(install: Any, open_loader: Any, config: Any) -> None:
    install(both="fixture_plugins:Both")
    path = config('[plugins.both]\nkind = "counter"\n')
    loader = open_loader({"greeter": GREETER, "counter": Counter}, config=path)
    assert loader.load("both").count(2) == 2


def test_closing_closes_the_objects_once_and_ends_their_use(install: Any) -> None:
    install(hello="fixture_plugins:Hello")
    with Loader({"greeter": GREETER}, handshake=HANDSHAKE, group=GROUP) as loader:
        greeter = loader.load("hello")
        import fixture_plugins

        assert fixture_plugins.closed == []
    loader.close()
    assert fixture_plugins.closed == ["Hello"]
    with pytest.raises(PluginClosed, match="'hello'"):
        greeter.greet()
    with pytest.raises(PluginClosed):
        loader.load("hello")


def test_a_plugin_that_fails_to_close_keeps_no_other_from_closing(install: Any) -> None:
    install(one="fixture_plugins:FailsToClose", two="fixture_plugins:Hello")
    loader = Loader({"greeter": GREETER}, handshake=HANDSHAKE, group=GROUP)
    loader.load("one")
    loader.load("two")
    import fixture_plugins

    with pytest.raises(ExceptionGroup, match="plugins failed to close: 'one'") as caught:
        loader.close()
    assert [str(error) for error in caught.value.exceptions] == [
        "Plugin 'one': close() raised RuntimeError: still busy"
    ]
    assert fixture_plugins.closed == ["Hello"]


def test_switching_what_is_not_loaded_is_an_error(install: Any, open_loader: Any) -> None:
    install(hello="fixture_plugins:Hello")
    with pytest.raises(ConfigError, match="not loaded"):
        open_loader().switch("hello", "in-process")


def test_a_switch_that_fails_leaves_the_plugin_where_it_was(install: Any, open_loader: Any, config: Any) -> None:
    install(hello="fixture_plugins:Hello")
    path = config('[plugins.hello]\ncommand = "./nowhere"\nisolation = "in-process"\n')
    loader = open_loader(config=path)
    greeter = loader.load("hello")
    with pytest.raises(NoUsableIsolation):
        loader.switch("hello", "external")
    assert greeter.greet() == "Hello"
    assert loader.status("hello").isolation == "in-process"


def test_the_environment_overrides_the_config_and_the_argument_both(
    install: Any, open_loader: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(hello="fixture_plugins:Hello")
    path = config('[plugins.hello]\ncommand = "./nowhere"\nisolation = "in-process"\n')
    monkeypatch.setenv("HYBRIDLOAD_ISOLATION_HELLO", "external,in-process")
    loader = open_loader(config=path)
    assert loader.status("hello").chain == ("external", "in-process")
    loader.load("hello", isolation="in-process")
    assert not loader.status("hello").degraded


def test_an_unloaded_plugin_has_a_status(install: Any, open_loader: Any) -> None:
    install(hello="fixture_plugins:Hello")
    status = open_loader().status("hello")
    assert (status.state, status.isolation, status.chain, status.pid) == ("unloaded", None, ("in-process",), None)
    assert "fixture_plugins:Hello" in status.origin


def test_loaded_plugins_are_a_stevedore_extension_manager(install: Any, open_loader: Any) -> None:
    install(hello="fixture_plugins:Hello")
    loader = open_loader()
    greeter = loader.load("hello")
    manager = loader.extension_manager()
    assert manager.names() == ["hello"]
    assert manager["hello"].obj is greeter
    assert manager.map(lambda extension: extension.obj.greet()) == ["Hello"]


def test_a_loader_without_plugins_or_handshake_says_how_to_give_them(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"pass plugins= or set plugins = \"module:NAME\""):
        Loader()
    with pytest.raises(ConfigError, match="handshake"):
        Loader({"greeter": GREETER})
