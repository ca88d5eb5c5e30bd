"""`hybridload list`: what comes from where, what wins, and what is wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Install = Callable[..., None]


def row(outcome: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {each["name"]: each for each in outcome.json["plugins"]}[name]
    return found


def test_every_plugin_is_a_row_with_isolation_and_origin(hybridload: Run) -> None:
    outcome = hybridload("list")
    assert (outcome.code, outcome.err) == (0, "")
    header, line = outcome.out.splitlines()
    assert header.split() == ["NAME", "ISOLATION", "FROM", "NOTES"]
    assert line.split()[:2] == ["corner", "in-process"]
    assert "entry point corner = shop_plugin:Corner (shop-plugin 1.0)" in line


def test_json_is_all_there_is_on_standard_output(hybridload: Run) -> None:
    outcome = hybridload("list", "--json")
    assert outcome.json == {
        "plugins": [
            {
                "name": "corner",
                "isolation": ["in-process"],
                "isolation_from": None,
                "sources": ["entry point corner = shop_plugin:Corner (shop-plugin 1.0)"],
                "enabled": True,
                "conflicts": [],
                "notes": [],
                "checks": [],
            }
        ],
        "problems": [],
    }


def test_nothing_is_imported_without_check(hybridload: Run, install: Install, shop: Path) -> None:
    (shop / "loud.py").write_text("raise SystemExit('imported')")
    install(loud="loud:Shop")
    assert hybridload("list").code == 0


def test_two_sources_of_one_name_show_which_comes_first(hybridload: Run, install: Install, shop: Path) -> None:
    install("another", corner="elsewhere:Corner")
    program = shop / "programs" / "shop-corner"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with (shop / "plugins.toml").open("a") as file:
        file.write('path = ["programs"]\npattern = "shop-*"\n')
    found = row(hybridload("list", "--json"), "corner")
    assert found["isolation"] == ["external", "in-process"]
    assert str(program) in found["sources"][0]
    assert "entry point corner" in found["sources"][1]
    assert len(found["conflicts"]) == 1
    assert "is not used, because" in found["conflicts"][0]
    lines = hybridload("list").out.splitlines()
    assert "is not used, because" in lines[1]
    assert len(lines) == 3


def test_disabled_and_dangling_plugins_are_shown_as_such(hybridload: Run, shop: Path) -> None:
    with (shop / "plugins.toml").open("a") as file:
        file.write("[plugins.corner]\nenabled = false\n[plugins.ghost]\nkind = 'shop'\n")
    outcome = hybridload("list", "--json")
    assert row(outcome, "corner")["notes"] == ["disabled"]
    assert not row(outcome, "corner")["enabled"]
    assert "nothing to load" in row(outcome, "ghost")["notes"][0]
    call = hybridload("call", "corner", "clear")
    assert call.code == 2
    assert "disabled" in call.error


def test_an_isolation_that_the_environment_sets_is_shown(hybridload: Run) -> None:
    found = row(hybridload("list", "--json", env={"HYBRIDLOAD_ISOLATION_CORNER": "subprocess"}), "corner")
    assert found["isolation"] == ["subprocess"]
    assert found["notes"] == ["isolation by environment variable HYBRIDLOAD_ISOLATION_CORNER"]


def test_broken_metadata_of_a_neighbour_is_a_problem_and_no_more(hybridload: Run, shop: Path) -> None:
    broken = shop / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_bytes(b"[test.shops]\n\xff\xfe = nothing\n")
    outcome = hybridload("list", "--json")
    assert outcome.code == 0
    assert [each["name"] for each in outcome.json["plugins"]] == ["corner"]
    assert len(outcome.json["problems"]) == 1
    people = hybridload("list")
    assert "corner" in people.out
    assert "broken" in people.error


def test_check_loads_each_and_shows_what_is_wrong(hybridload: Run, install: Install, shop: Path) -> None:
    (shop / "bad_module.py").write_text("import absent_dependency\n")
    install(corner="shop_plugin:Corner", broken="bad_module:Shop", wrong="shop_plugin:Wrong")
    with (shop / "plugins.toml").open("a") as file:
        file.write('[plugins.corner]\nisolation = ["subprocess", "in-process"]\n')
    outcome = hybridload("list", "--check", "--json")
    assert outcome.code == 1
    corner = row(outcome, "corner")["checks"]
    assert [(each["isolation"], each["error"], each["protocol"]) for each in corner] == [
        ("subprocess", None, "grpc"),
        ("in-process", None, None),
    ]
    assert "absent_dependency" in row(outcome, "broken")["checks"][0]["error"]
    assert "add() is missing" in row(outcome, "wrong")["checks"][0]["error"]
    people = hybridload("list", "--check")
    assert people.code == 1
    assert "in-process: FAILED: " in people.out
    assert "subprocess: ok (grpc, version 1)" in people.out


def test_check_without_a_plugin_set_imports(hybridload: Run, install: Install, shop: Path) -> None:
    (shop / "plugins.toml").unlink()
    (shop / "bad_module.py").write_text("raise ValueError('two\\nlines')\n")
    install(corner="shop_plugin:Corner", broken="bad_module:Shop")
    outcome = hybridload("list", "--group", "test.shops", "--check", "--json")
    assert outcome.code == 1
    assert row(outcome, "corner")["checks"][0]["isolation"] == "import"
    assert "ValueError: two" in row(outcome, "broken")["checks"][0]["error"]


def test_check_goes_on_after_a_plugin_that_exits(hybridload: Run, install: Install, shop: Path) -> None:
    (shop / "leaving.py").write_text("def shop():\n    raise SystemExit('\\x1b[2Jgone')\n")
    install(a="leaving:shop", corner="shop_plugin:Corner")
    outcome = hybridload("list", "--check", "--json")
    assert outcome.code == 1
    assert "It raised SystemExit: \x1b[2Jgone" in row(outcome, "a")["checks"][0]["error"]
    assert row(outcome, "corner")["checks"][0]["error"] is None
    people = hybridload("list", "--check")
    assert "corner" in people.out
    assert "\x1b" not in people.out + people.err


def test_no_plugins_says_where_they_could_come_from(hybridload: Run, shop: Path) -> None:
    (shop / "plugins.toml").unlink()
    outcome = hybridload("list")
    assert outcome.code == 0
    assert outcome.out.startswith("No plugins. Give --group")
    assert hybridload("list", "--json").json == {"plugins": [], "problems": []}


def test_broken_toml_is_one_line_and_exit_code_2(hybridload: Run, shop: Path) -> None:
    (shop / "plugins.toml").write_text("[host\n")
    outcome = hybridload("list", "--json")
    assert (outcome.code, outcome.out) == (2, "")
    assert "not valid TOML" in outcome.error


def test_a_typing_error_in_the_config_is_answered_with_the_right_word(hybridload: Run, shop: Path) -> None:
    with (shop / "plugins.toml").open("a") as file:
        file.write("[plugins.corner]\nisolatoin = 'external'\n")
    assert "isolation" in hybridload("list").error


def test_a_reader_that_leaves_gets_no_traceback(
    shop: Path, install: Install, environment: dict[str, str], hybridload: Run
) -> None:
    install(**{f"corner{number}": "shop_plugin:Corner" for number in range(3000)})
    for arguments in (["list"], ["list", "--json"], ["--help"]):
        reader, writer = os.pipe()
        os.close(reader)  # it has left already: one that reads a little may leave after a short output is written
        with open(writer, "wb") as gone:
            done = subprocess.run(
                [sys.executable, "-m", "hybridload", *arguments],
                cwd=shop,
                env=environment,
                stdout=gone,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert done.stderr == ""
        assert done.returncode == (1 if arguments == ["--help"] else 141)  # rich has its own mind


def test_without_arguments_help_is_shown(hybridload: Run) -> None:
    outcome = hybridload()
    assert outcome.code == 2
    assert "Commands" in outcome.out + outcome.err


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_how_to_install_it(
    shop: Path, environment: dict[str, str], missing: str, install: Install
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.modules[{missing!r}] = None; from hybridload.cli import main; main()",
            "list",
        ],
        cwd=shop,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"hybridload: the command line needs {missing}, which is not installed: pip install 'hybridload[cli]'\n"
    )


def test_the_console_script_is_the_module(shop: Path, environment: dict[str, str], install: Install) -> None:
    script = Path(sys.executable).with_name("hybridload")
    if not os.access(script, os.X_OK):
        pytest.skip("hybridload is not installed with its script")
    done = subprocess.run([script, "list", "--json"], cwd=shop, env=environment, capture_output=True, text=True)
    assert [each["name"] for each in json.loads(done.stdout)["plugins"]] == ["corner"]


REMOVED = """
import os, sys
os.rmdir(os.getcwd())
from hybridload.cli import main
main()
"""


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("list", "--group", "test.shops"), 0, "corner"),
        (("list", "--group", "test.shops", "--json"), 0, '"corner"'),
        (("list", "--check", "--config", "{shop}/plugins.toml"), 0, "in-process: ok"),
        (("list", "--config", "plugins.toml"), 2, "relative to the current folder, which has been removed"),
        (("call", "corner", "say", '"hi"', "--config", "{shop}/plugins.toml"), 0, "hi"),
        (("call", "corner", "say", '"hi"', "--config", "{shop}/plugins.toml", "-i", "subprocess"), 0, "hi"),
        (("probe", "--", "nosuch"), 2, "no program 'nosuch' on PATH"),
        (("probe", "--", "./nosuch"), 2, "relative to the current folder, which has been removed"),
    ],
)
def test_a_working_directory_that_was_removed_is_only_missed_where_it_is_needed(
    shop: Path, install: Install, environment: dict[str, str], command: tuple[str, ...], code: int, words: str
) -> None:
    here = shop / "here"
    here.mkdir()
    arguments = [each.format(shop=shop) for each in command]
    done = subprocess.run(
        [sys.executable, "-c", REMOVED, *arguments],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
