"""Sources: where names come from, which place wins, and what happens to the ones that are broken."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stevedore.extension import ExtensionManager

from hybridload import External
from hybridload.config import load_settings
from hybridload.errors import ConfigError, PluginError, PluginNotFound
from hybridload.sources import Sources

GROUP = "hybridload.tests.greeters"

Install = Callable[..., Path]
Open = Callable[..., Sources]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs distributions into folders of their own, each further down the path than the one before."""
    before = set(sys.modules)
    installed: list[Path] = []

    def installer(name: str, entry_points: str = "", version: str = "1.0", **modules: str) -> Path:
        site = tmp_path / f"site-{len(installed)}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = "\n".join(line.strip() for line in entry_points.strip().splitlines())
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}\n")
        for module, source in modules.items():
            (site / f"{module}.py").write_text(textwrap.dedent(source))
        installed.append(site)
        monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
        importlib.invalidate_caches()
        return site

    yield installer
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def sources(tmp_path: Path) -> Open:
    """Sources with a configuration of the given text, and with the given environment."""

    def opener(text: str | None = None, group: str | None = GROUP, **environ: str) -> Sources:
        if text is None:
            return Sources(load_settings(None, environ=environ), group)
        path = tmp_path / "plugins.toml"
        path.write_text(textwrap.dedent(text))
        return Sources(load_settings(path, environ=environ), group)

    return opener


def program(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


HELLO = "class Hello:\n    def greet(self):\n        return 'hello'\n"


class TestEntryPoints:
    def test_are_listed_and_described_without_being_imported(self, install: Install, sources: Open) -> None:
        install(
            "tests-hello-plugin", "hello = tests_hello_plugin:Hello\nbroken = no_such_module", tests_hello_plugin=HELLO
        )
        found = sources()
        assert found.names() == ["broken", "hello"]
        hello = found.describe("hello")
        assert hello.origin == "entry point hello = tests_hello_plugin:Hello (tests-hello-plugin 1.0)"
        assert hello.chain == ("in-process",)
        assert found.resolve("broken").chain == ("in-process",)
        assert "tests_hello_plugin" not in sys.modules
        assert found.error("broken") is None

    def test_are_imported_one_at_a_time(self, install: Install, sources: Open) -> None:
        install("plugins", "one = mod_one:X\ntwo = mod_two:X", mod_one="X = 1", mod_two="X = 2")
        found = sources()
        assert found.load_object(found.resolve("one")) == 1
        assert "mod_two" not in sys.modules

    def test_are_not_looked_up_without_a_group(self, install: Install, sources: Open) -> None:
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello")
        assert sources(group=None).names() == []

    def test_are_looked_up_in_the_group_of_the_configuration(self, install: Install, sources: Open) -> None:
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello")
        assert sources(f'[host]\ngroup = "{GROUP}"', group=None).names() == ["hello"]
        assert sources('[host]\ngroup = "other"', group=GROUP).names() == ["hello"]

    @pytest.mark.parametrize("group", ["", " ", 5])
    def test_need_a_group_that_is_one(self, sources: Open, group: str) -> None:
        with pytest.raises(ConfigError, match="name of an entry-point group"):
            sources(group=group)

    def test_of_one_name_are_taken_from_the_first_on_the_path_and_all_shown(
        self, install: Install, sources: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        install("first", "hello = mod_first:X", mod_first="X = 'first'")
        install("second", "hello = mod_second:X", mod_second="X = 'second'")
        found = sources()
        conflict = (
            "entry point hello = mod_second:X (second 1.0) is not used, "
            "because entry point hello = mod_first:X (first 1.0) comes first"
        )
        with caplog.at_level(logging.WARNING):
            assert found.describe("hello").conflicts == (conflict,)
            assert not caplog.messages
            resolution = found.resolve("hello")
            found.resolve("hello")
        assert found.load_object(resolution) == "first"
        assert caplog.messages == [f"plugin hello: {conflict}"]
        assert found.names() == ["hello"]
        assert "mod_second" not in sys.modules

    def test_of_a_distribution_hidden_by_its_namesake_do_not_count(self, install: Install, sources: Open) -> None:
        install("My.Plugin", "hello = new:X", version="2.0")
        install("my-plugin", "hello = old:X\ngone = old:Y", version="1.0")
        found = sources()
        assert found.names() == ["hello"]
        assert found.describe("hello").shadowed == ()

    def test_with_names_that_cannot_be_shown_are_left_out(self, install: Install, sources: Open) -> None:
        install("odd", "a\x07b = mod:X\ngood = mod:X")
        found = sources()
        assert found.names() == ["good"]
        assert any("is not a name of a plugin" in problem for problem in found.problems())


class TestABrokenNeighbour:
    FAULTS = (
        ("no_such_module:X", "", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("broken:Missing", "", "AttributeError: module 'broken' has no attribute 'Missing'"),
        ("broken:X", "import no_such_dependency", "Install what provides no_such_dependency."),
        ("broken:X", "1 / 0", "ZeroDivisionError: division by zero"),
        ("broken:X", "def", "SyntaxError"),
        ("broken:X", "raise SystemExit(3)", "SystemExit: 3"),
    )

    @pytest.mark.parametrize(("target", "source", "said"), FAULTS)
    def test_stops_nobody_and_is_remembered(
        self, install: Install, sources: Open, target: str, source: str, said: str
    ) -> None:
        install("bad-plugin", f"bad = {target}", broken=source)
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello", tests_hello_plugin=HELLO)
        found = sources()
        bad = found.resolve("bad")
        with pytest.raises(PluginError) as caught:
            found.load_object(bad)
        message = str(caught.value)
        assert message.startswith(f"Plugin 'bad': entry point bad = {target} (bad-plugin 1.0) cannot be imported (")
        assert said in message
        assert caught.value.__cause__ is not None
        assert found.error("bad") is caught.value
        assert found.names() == ["bad", "hello"]
        assert isinstance(found.load_object(found.resolve("hello")), type)
        assert found.error("hello") is None

    def test_is_tried_anew_at_the_next_load(self, install: Install, sources: Open) -> None:
        site = install("bad-plugin", "bad = mended:X", mended="1 / 0")
        found = sources()
        bad = found.resolve("bad")
        with pytest.raises(PluginError):
            found.load_object(bad)
        (site / "mended.py").write_text("X = 'mended now'")
        importlib.invalidate_caches()
        assert found.load_object(bad) == "mended now"
        assert found.error("bad") is None

    def test_is_imported_once_however_many_ask_whether_it_serves(self, install: Install, sources: Open) -> None:
        counting = "import sys\nsys.hybridload_tests = getattr(sys, 'hybridload_tests', 0) + 1\n1 / 0"
        install("bad-plugin", "bad = counted:X", counted=counting)
        found = sources()
        bad = found.resolve("bad")
        try:
            assert bad.decide() == ("in-process",)
            assert bad.serves("in-process")
            with pytest.raises(PluginError):
                found.load_object(bad)
            assert sys.hybridload_tests == 1  # type: ignore[attr-defined]
        finally:
            del sys.hybridload_tests  # type: ignore[attr-defined]

    def test_counts_as_the_source_of_one_isolation_only(self, install: Install, sources: Open) -> None:
        install("bad-plugin", "bad = no_such_module:X")
        bad = sources().resolve("bad")
        chain = ("external", "in-process")
        assert [bad.serves(isolation, chain) for isolation in chain] == [False, True]  # type: ignore[arg-type]
        assert bad.serves("external", ("external",))
        with pytest.raises(PluginError, match="no_such_module"):
            _ = bad.external

    @pytest.mark.parametrize(
        "content",
        [b"\xff\xfe not utf-8", f"[{GROUP}]\nno equals sign\n".encode(), f"[{GROUP}]\nx = not an object!\n".encode()],
    )
    def test_with_broken_metadata_costs_only_itself(self, install: Install, sources: Open, content: bytes) -> None:
        bad = install("bad-plugin")
        next(bad.glob("*.dist-info/entry_points.txt")).write_bytes(content)
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello", tests_hello_plugin=HELLO)
        found = sources()
        assert "hello" in found.names()
        assert found.load_object(found.resolve("hello")).__name__ == "Hello"  # type: ignore[attr-defined]
        if "x" in found.names():  # An importlib-metadata that looks at values only when they are loaded.
            with pytest.raises(PluginError):
                found.load_object(found.resolve("x"))
        else:
            assert any("bad-plugin 1.0 has broken metadata" in problem for problem in found.problems())

    def test_without_its_metadata_file_still_works(self, install: Install, sources: Open) -> None:
        site = install("tests-hello-plugin", "hello = tests_hello_plugin:Hello", tests_hello_plugin=HELLO)
        next(site.glob("*.dist-info/METADATA")).unlink()
        found = sources()
        assert found.names() == ["hello"]
        assert "entry point hello = tests_hello_plugin:Hello (" in found.describe("hello").origin
        assert found.load_object(found.resolve("hello"))


class TestAnEntryPointThatNamesAProgram:
    SHIPPED = "from hybridload import External\ngopher = External(['/bin/gopher', 'x'], env={'A': '1', 'B': '2'})\n"

    def test_runs_external_without_a_setting(self, install: Install, sources: Open) -> None:
        install("gopher-plugin", "gopher = shipped:gopher", shipped=self.SHIPPED)
        gopher = sources().resolve("gopher")
        assert gopher.chain == ("in-process",)
        assert gopher.decide() == ("external",)
        assert gopher.chain == ("external",)
        assert gopher.serves("external")
        assert not gopher.serves("in-process")
        assert not gopher.serves("subprocess")
        assert gopher.external == External(["/bin/gopher", "x"], env={"A": "1", "B": "2"})

    def test_gets_what_the_configuration_sets(self, install: Install, sources: Open) -> None:
        install("gopher-plugin", "gopher = shipped:gopher", shipped=self.SHIPPED)
        text = f"[plugins.gopher]\nsha256 = '{'A' * 64}'\nenv = {{ B = '3' }}\ncwd = '/tmp'"
        gopher = sources(text).resolve("gopher")
        assert gopher.external == External(["/bin/gopher", "x"], "a" * 64, {"A": "1", "B": "3"}, "/tmp")

    def test_is_passed_over_by_the_isolations_of_a_chain_that_it_cannot_serve(
        self, install: Install, sources: Open
    ) -> None:
        install("gopher-plugin", "gopher = shipped:gopher", shipped=self.SHIPPED)
        gopher = sources(HYBRIDLOAD_ISOLATION="in-process,external").resolve("gopher")
        assert gopher.decide() == ("in-process", "external")
        assert [gopher.serves(isolation) for isolation in gopher.chain] == [False, True]

    def test_gives_way_to_a_command(self, install: Install, sources: Open, caplog: pytest.LogCaptureFixture) -> None:
        install("gopher-plugin", "gopher = shipped:gopher", shipped=self.SHIPPED)
        gopher = sources("[plugins.gopher]\ncommand = '/opt/gopher'").resolve("gopher")
        assert gopher.chain == ("external", "in-process")
        assert gopher.external == External("/opt/gopher")
        assert gopher.conflicts == ()
        with caplog.at_level(logging.WARNING):
            assert not gopher.serves("in-process")
        assert len(gopher.conflicts) == 1
        assert gopher.conflicts[0].startswith("entry point gopher = shipped:gopher (gopher-plugin 1.0) is not used, ")
        assert caplog.messages == [f"plugin gopher: {gopher.conflicts[0]}"]


class TestAPythonObject:
    def test_is_no_source_for_external(self, install: Install, sources: Open) -> None:
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello", tests_hello_plugin=HELLO)
        hello = sources().resolve("hello")
        assert hello.decide() == ("in-process",)
        assert hello.serves("in-process")
        assert hello.serves("subprocess")
        assert not hello.serves("external")
        assert hello.external is None

    def test_is_not_imported_for_a_subprocess(self, install: Install, sources: Open) -> None:
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello", tests_hello_plugin=HELLO)
        hello = sources(HYBRIDLOAD_ISOLATION_HELLO="subprocess").resolve("hello")
        assert hello.decide() == ("subprocess",)
        assert hello.serves("subprocess")
        assert "tests_hello_plugin" not in sys.modules

    def test_has_no_checksum(self, install: Install, sources: Open) -> None:
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello", tests_hello_plugin=HELLO)
        found = sources(f"[plugins.hello]\nsha256 = '{'0' * 64}'")
        with pytest.raises(ConfigError, match=r"plugins\.hello\.sha256: a checksum holds for a program"):
            found.load_object(found.resolve("hello"))

    def test_is_one_object_for_all_threads(self, install: Install, sources: Open) -> None:
        install("slow", "slow = slow_module:make", slow_module="import threading\ndef make(): pass\n")
        found = sources()
        slow, gate = found.resolve("slow"), threading.Barrier(8)
        loaded: list[object] = []

        def load() -> None:
            gate.wait()
            loaded.append(found.load_object(slow))

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(loaded) == 8
        assert len({id(each) for each in loaded}) == 1


class TestTheConfiguration:
    def test_gives_programs(self, sources: Open, tmp_path: Path) -> None:
        found = sources("[plugins.gopher]\ncommand = ['./gopher', '-v']\ncwd = '.'\nenv = { A = 'b' }")
        gopher = found.resolve("gopher")
        assert gopher.chain == ("external",)
        assert gopher.origin == f"{tmp_path}/plugins.toml: plugins.gopher.command = {tmp_path}/gopher -v"
        assert gopher.external == External([f"{tmp_path}/gopher", "-v"], env={"A": "b"}, cwd=tmp_path)
        assert not gopher.serves("in-process")
        assert not gopher.serves("subprocess")

    def test_with_both_a_command_and_an_entry_point_falls_back(self, install: Install, sources: Open) -> None:
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello", tests_hello_plugin=HELLO)
        hello = sources("[plugins.hello]\ncommand = './hello'").resolve("hello")
        assert hello.chain == ("external", "in-process")
        assert hello.conflicts == ()
        assert hello.serves("in-process")
        assert "; entry point hello = tests_hello_plugin:Hello (tests-hello-plugin 1.0)" in hello.origin

    def test_a_program_whose_entry_point_is_missing_says_so(
        self, install: Install, sources: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello")
        found = sources("[plugins.mine]\ncommand = './mine'\nentry_point = 'helo'")
        assert found.resolve("mine").chain == ("external",)
        assert found.resolve("mine").python is None
        (record,) = caplog.records
        assert "nothing to fall back to" in record.getMessage()
        assert "no installed package has an entry point 'helo'" in record.getMessage()
        assert "Did you mean 'hello'?" in record.getMessage()

    def test_may_give_an_entry_point_another_name(self, install: Install, sources: Open) -> None:
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello\nmine = other:X", tests_hello_plugin=HELLO)
        found = sources("[plugins.mine]\nentry_point = 'hello'")
        mine = found.resolve("mine")
        assert found.load_object(mine).__name__ == "Hello"  # type: ignore[attr-defined]
        assert [candidate.source for candidate in found.candidates("mine")] == ["config", "entry-point"]
        assert mine.conflicts[0].startswith("entry point mine = other:X (tests-hello-plugin 1.0) is not used, because ")
        assert found.names() == ["hello", "mine"]

    def test_may_point_to_a_module_and_attribute(self, install: Install, sources: Open) -> None:
        install("tests-hello-plugin", "", tests_hello_plugin=HELLO)
        found = sources("[plugins.mine]\nentry_point = 'tests_hello_plugin:Hello.greet'", group=None)
        assert found.load_object(found.resolve("mine")).__name__ == "greet"  # type: ignore[attr-defined]

    @pytest.mark.parametrize("target", ["no_such_module:X", "tests_hello_plugin:Missing", "no_such.module:X"])
    def test_may_not_point_to_nothing(self, install: Install, sources: Open, tmp_path: Path, target: str) -> None:
        install("tests-hello-plugin", "", tests_hello_plugin=HELLO)
        found = sources(f"[plugins.mine]\nentry_point = '{target}'")
        with pytest.raises(ConfigError) as caught:
            found.load_object(found.resolve("mine"))
        assert f"plugins.mine.entry_point = {target} points to what is not there" in str(caught.value)

    def test_may_point_to_a_module_that_fails(self, install: Install, sources: Open) -> None:
        install("tests-hello-plugin", "", failing="import no_such_dependency")
        found = sources("[plugins.mine]\nentry_point = 'failing:X'")
        with pytest.raises(PluginError, match=r"Install what provides no_such_dependency\.") as caught:
            found.load_object(found.resolve("mine"))
        assert not isinstance(caught.value, ConfigError)

    def test_may_name_an_entry_point_that_nobody_installed(self, install: Install, sources: Open) -> None:
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello")
        found = sources("[plugins.mine]\nentry_point = 'helo'")
        assert found.names() == ["hello", "mine"]
        assert found.describe("mine").origin == ""
        with pytest.raises(PluginNotFound) as caught:
            found.resolve("mine")
        message = str(caught.value)
        assert f"no installed package has an entry point 'helo' in group {GROUP}. Did you mean 'hello'?" in message

    def test_may_say_nothing_that_can_be_loaded(self, sources: Open, tmp_path: Path) -> None:
        with pytest.raises(PluginNotFound) as caught:
            sources("[plugins.mine]\nkind = 'x'", group=None).resolve("mine")
        assert f"{tmp_path}/plugins.toml: plugins.mine has nothing to load, and the table has no command" in str(
            caught.value
        )
        assert "no group is given" in str(caught.value)

    def test_may_disable_a_plugin(self, install: Install, sources: Open) -> None:
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello")
        found = sources("[plugins.hello]\nenabled = false")
        assert found.names() == ["hello"]
        assert not found.describe("hello").settings.enabled
        with pytest.raises(PluginNotFound, match=r"'hello' is disabled: .*plugins\.toml: plugins\.hello\.enabled"):
            found.resolve("hello")

    def test_may_leave_the_lookup_to_another_interpreter(self, sources: Open) -> None:
        found = sources("[plugins.hello]\npython = './venv/bin/python'")
        hello = found.resolve("hello")
        assert hello.chain == ("subprocess",)
        assert hello.serves("subprocess")
        assert not hello.serves("in-process")
        assert not hello.serves("external")
        assert hello.python is not None
        assert (hello.python.entry_point, hello.python.lookup) == (None, "hello")
        assert hello.external is None
        with pytest.raises(PluginNotFound, match="has no entry point in this interpreter"):
            found.load_object(hello)

    def test_of_an_interpreter_for_all_makes_no_names_up(self, sources: Open) -> None:
        found = sources("[defaults]\npython = './python'\n[plugins.gopher]\ncommand = './gopher'")
        assert found.resolve("gopher").chain == ("external",)
        with pytest.raises(PluginNotFound):
            found.resolve("hello")

    def test_is_overridden_by_the_environment(self, install: Install, sources: Open) -> None:
        install("tests-hello-plugin", "a-b = m:X\na.b = m:X\nc = m:X")
        found = sources(HYBRIDLOAD_ISOLATION_A_B="external", HYBRIDLOAD_ISOLATION_C="subprocess")
        assert found.resolve("c").chain == ("subprocess",)
        with pytest.raises(ConfigError, match=r"could mean plugin 'a-b' or plugin 'a\.b'"):
            found.resolve("a-b")
        sources().resolve("a-b")


class TestFolders:
    CONFIG = "[host]\npath = ['one', 'two']\npattern = 'greeter-*'\n"

    def test_give_programs_by_what_the_star_matched(self, sources: Open, tmp_path: Path) -> None:
        path = program(tmp_path / "one" / "greeter-go")
        program(tmp_path / "one" / "other")
        program(tmp_path / "one" / "greeter-")
        (tmp_path / "one" / "greeter-folder").mkdir()
        (tmp_path / "two").mkdir()
        found = sources(self.CONFIG)
        assert found.names() == ["go"]
        go = found.resolve("go")
        assert go.chain == ("external",)
        assert go.external == External(path)
        assert go.origin == f"{path} (folder {tmp_path}/one, greeter-*)"
        assert found.problems() == ()

    def test_follow_links(self, sources: Open, tmp_path: Path) -> None:
        (tmp_path / "two").mkdir()
        program(tmp_path / "elsewhere")
        (tmp_path / "two" / "greeter-link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "two" / "greeter-dangling").symlink_to(tmp_path / "nothing")
        assert sources(self.CONFIG).names() == ["link"]

    def test_may_have_a_pattern_with_an_end(self, sources: Open, tmp_path: Path) -> None:
        program(tmp_path / "one" / "terraform-provider-x.bin")
        program(tmp_path / "one" / "terraform-.bin")
        found = sources("[host]\npath = 'one'\npattern = 'terraform-*.bin'\n")
        assert found.names() == ["provider-x"]

    def test_without_a_pattern_give_every_program(self, sources: Open, tmp_path: Path) -> None:
        program(tmp_path / "one" / "gopher")
        assert sources("[host]\npath = 'one'\n").names() == ["gopher"]

    def test_of_one_name_are_taken_in_order(self, sources: Open, tmp_path: Path) -> None:
        first = program(tmp_path / "one" / "greeter-go")
        second = program(tmp_path / "two" / "greeter-go")
        go = sources(self.CONFIG).resolve("go")
        assert go.external == External(first)
        assert len(go.conflicts) == 1
        assert go.conflicts[0].startswith(f"{second} (folder {tmp_path}/two, greeter-*) is not used, because {first} ")

    def test_give_way_to_a_command(self, sources: Open, tmp_path: Path) -> None:
        program(tmp_path / "one" / "greeter-go")
        go = sources(self.CONFIG + "[plugins.go]\ncommand = '/opt/go'\n").resolve("go")
        assert go.external == External("/opt/go")
        assert len(go.shadowed) == 1

    def test_share_a_name_with_an_entry_point(self, install: Install, sources: Open, tmp_path: Path) -> None:
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello", tests_hello_plugin=HELLO)
        program(tmp_path / "one" / "greeter-hello")
        hello = sources(self.CONFIG).resolve("hello")
        assert hello.chain == ("external", "in-process")
        assert hello.conflicts == ()

    def test_that_are_missing_cost_nothing_but_a_note(self, sources: Open, tmp_path: Path) -> None:
        program(tmp_path / "one" / "greeter-go")
        found = sources(self.CONFIG)
        assert found.names() == ["go"]
        (problem,) = found.problems()
        assert problem.startswith(f"Folder {tmp_path}/two cannot be searched for plugins: No such file or directory.")

    def test_with_odd_file_names_cost_nothing_but_a_note(self, sources: Open, tmp_path: Path) -> None:
        (tmp_path / "two").mkdir()
        program(tmp_path / "one" / "greeter-a\nb")
        program(tmp_path / "one" / "greeter-\udcff")
        found = sources(self.CONFIG)
        assert found.names() == []
        assert len(found.problems()) == 2
        "".join(found.problems()).encode()

    def test_tell_why_a_file_is_not_taken(self, sources: Open, tmp_path: Path) -> None:
        path = program(tmp_path / "one" / "greeter-go", mode=0o644)
        with pytest.raises(PluginNotFound) as caught:
            sources(self.CONFIG).resolve("go")
        assert f"There is a file for it, but {path} is not executable; make it so: chmod +x {path}" in str(caught.value)


class TestANameThatIsUnknown:
    def test_gets_the_nearest_all_names_and_the_places_searched(
        self, install: Install, sources: Open, tmp_path: Path
    ) -> None:
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello")
        found = sources("[host]\npath = 'one'\npattern = 'g-*'\n[plugins.gopher]\ncommand = 'x'")
        with pytest.raises(PluginNotFound) as caught:
            found.resolve("gofer")
        assert caught.value.plugin == "gofer"
        message = str(caught.value)
        assert message.startswith(
            "There is no plugin 'gofer'. Did you mean 'gopher'? Known names: gopher, hello. "
            f"Searched: entry points of group {GROUP}; {tmp_path}/plugins.toml; folder {tmp_path}/one (g-*)."
        )
        assert "cannot be searched" in message

    def test_is_told_that_nothing_was_searched(self, sources: Open) -> None:
        with pytest.raises(PluginNotFound, match=r"No name is known\. Nothing was searched: give a group"):
            sources(group=None).describe("x")

    @pytest.mark.parametrize("name", ["", "\0", "a\nb", "\udcff"])
    def test_may_be_anything(self, sources: Open, name: str) -> None:
        with pytest.raises(PluginNotFound):
            sources().resolve(name)


class TestStevedore:
    def test_gets_extensions(self, install: Install, sources: Open) -> None:
        install("tests-hello-plugin", "hello = tests_hello_plugin:Hello", tests_hello_plugin=HELLO)
        found = sources("[plugins.gopher]\ncommand = '/bin/gopher'")
        hello, gopher = found.resolve("hello"), found.resolve("gopher")
        unloaded = found.extension(hello, None)
        loaded = found.load_object(hello)
        handle = object()
        manager = ExtensionManager.make_test_instance(
            [found.extension(hello, handle), found.extension(gopher, handle)], namespace=GROUP
        )
        assert manager.names() == ["hello", "gopher"]
        assert manager["hello"].plugin is loaded
        assert manager["hello"].obj is handle
        assert manager["hello"].entry_point_target == "tests_hello_plugin:Hello"
        assert manager["hello"].module_name == "tests_hello_plugin"
        program: object = manager["gopher"].plugin
        assert program == External("/bin/gopher")
        assert manager["gopher"].entry_point_target == "hybridload.external:External"
        assert unloaded.plugin is None


def test_nothing_heavy_is_imported_to_load_an_entry_point() -> None:
    code = (
        "import sys\n"
        "from hybridload.config import load_settings\n"
        "from hybridload.sources import Sources\n"
        "assert 'importlib_metadata' not in sys.modules\n"
        "found = Sources(load_settings(None, environ={}), 'console_scripts')\n"
        "found.load_object(found.resolve('pytest'))\n"
        "heavy = ('msgspec', 'grpc', 'google.protobuf', 'cryptography', 'typer', 'stevedore')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
