"""`hybridload call`, as programs see it: exit code, standard output, standard error."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

Run = Callable[..., Any]
Install = Callable[..., None]
Start = Callable[..., "subprocess.Popen[bytes]"]


def wait_for(pipe: IO[bytes], words: bytes) -> None:
    """Read until the words come, or for half a minute."""
    said, deadline = b"", time.monotonic() + 30
    while words not in said and time.monotonic() < deadline:
        if select.select([pipe], [], [], 1)[0]:
            said += os.read(pipe.fileno(), 65536)
    assert words in said, said


ISOLATIONS = ("in-process", "subprocess")

ITEM = {"name": "pen", "price": 2, "color": "blue", "added": "2026-01-31T12:00:00Z"}


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    ("method", "arguments", "expected"),
    [
        ("add", [ITEM, 3], [{**ITEM, "price": 2.0, "tags": ["3"]}]),
        (
            "add",
            {"item": {"name": "pen", "price": 1.5}},
            [{"name": "pen", "price": 1.5, "color": "red", "added": None, "tags": ["1"]}],
        ),
        ("photo", ["AQID"], ["AwIB"]),
        ("clear", None, [None]),
        (
            "find",
            [["b", "aa"], {"1": 1, "2": 2.5}, {"true": "yes"}],
            [
                [
                    {"name": n, "price": p, "color": "red", "added": None, "tags": ["yes"]}
                    for n, p in (("aa", 2.5), ("b", 1.0))
                ]
            ],
        ),
        ("level", [1], [1]),
        ("odd", ["THAT"], [2]),
        ("odd", [2], [2]),
        ("add", [{**ITEM, "price": "NaN"}], [{**ITEM, "price": "NaN", "tags": ["1"]}]),
        ("add", [{**ITEM, "price": "-Infinity"}], [{**ITEM, "price": "-Infinity", "tags": ["1"]}]),
        ("lasting", [1.5], ["PT3S"]),
        ("lasting", ["PT1M"], ["PT120S"]),
        ("maybe", None, [None]),
        ("maybe", "just text", ["just text"]),
        ("count", [3], [0, 1, 2]),
        ("count", 0, []),
        ("total", [[1, 2, 3]], [6]),
        ("echo", {"words": ["a", "b"]}, ["A", "B"]),
    ],
)
def test_values_of_every_kind_go_in_and_come_out_as_json(
    hybridload_here: Run, isolation: str, method: str, arguments: Any, expected: list[Any]
) -> None:
    given = [] if arguments is None else [json.dumps(arguments)]
    outcome = hybridload_here("call", "corner", method, *given, "--isolation", isolation, "--json")
    assert outcome.code == 0, outcome.err
    assert [json.loads(line) for line in outcome.out.splitlines()] == expected


@pytest.mark.parametrize(
    ("isolation", "method", "arguments", "expected"),
    [
        ("in-process", "add", [1, 2], [3]),
        ("subprocess", "add", [1, 2], [3]),
        ("in-process", "count", [3], [0, 1, 2]),
        ("subprocess", "count", [3], [0, 1, 2]),
        ("in-process", "total", [[1, 2, 3]], [6]),
        ("subprocess", "total", [[1, 2, 3]], [6]),
        ("in-process", "echo", [["a", "b"]], ["A", "B"]),
        ("subprocess", "echo", [["a", "b"]], ["A", "B"]),
    ],
)
def test_async_methods_are_called_as_any_other(
    hybridload_here: Run, install: Install, isolation: str, method: str, arguments: Any, expected: list[Any]
) -> None:
    install(later="shop_plugin:Async")
    outcome = hybridload_here(
        "call", "later", method, json.dumps(arguments), "--json", "-i", isolation, "--plugins", "shop_sdk:ASYNC"
    )
    assert outcome.code == 0, outcome.err
    assert [json.loads(line) for line in outcome.out.splitlines()] == expected


def test_an_async_method_that_fails_is_a_failed_call(hybridload: Run, install: Install) -> None:
    install(later="shop_plugin:Async")
    outcome = hybridload("call", "later", "fail", "--plugins", "shop_sdk:ASYNC")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.splitlines()[-1] == "hybridload: LookupError: nowhere"


def test_people_get_text_and_bytes_as_they_are_and_nothing_for_no_result(hybridload: Run) -> None:
    assert hybridload("call", "corner", "say", '"Grüße"').out == "Grüße\n"
    assert hybridload("call", "corner", "photo", '["AGEA"]').out == "\0a\0\n"
    assert hybridload("call", "corner", "clear").out == ""
    assert hybridload("call", "corner", "maybe").out == "null\n"
    assert hybridload("call", "corner", "count", "3").out == "0\n1\n2\n"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_what_a_plugin_prints_goes_to_standard_error(hybridload: Run, isolation: str) -> None:
    outcome = hybridload("call", "corner", "say", '"result"', "-i", isolation)
    assert outcome.out == "result\n"
    assert "printed by the plugin" in outcome.err
    assert "written to descriptor 1" in outcome.err
    # Before it serves, a plugin's standard output is its log, of which what has no level is for --debug.
    assert ("the shop opens" in outcome.err) == (isolation == "in-process")


def test_arguments_are_read_from_standard_input(hybridload: Run) -> None:
    assert hybridload("call", "corner", "maybe", "-", stdin='["from a pipe"]').out == "from a pipe\n"


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("add", "{oops", "are not JSON"),
        ("add", "[" * 100_000, "are not JSON"),
        ("find", '[["a"], {"1": NaN}, {}]', 'are not JSON (JSON has no NaN; write "NaN")'),
        ("find", '[["a"], {"1": -Infinity}, {}]', 'are not JSON (JSON has no -Infinity; write "-Infinity")'),
        ("find", '[["a"], {"1": 1%s}, {}]' % ("0" * 400), "limits.1 is to be a number that a float can hold"),
        ("lasting", '["NaN"]', "time is to be seconds, or an ISO 8601 duration"),
        ("add", "[]", "missing a required argument: 'item'"),
        ("add", '[{"name": "pen", "price": 1}, 2, 3]', "too many positional arguments"),
        ("add", '{"article": 1}', "missing a required argument: 'item'"),
        ("add", '{"item": {"name": "a", "price": 1}, "x": 1}', "unexpected keyword argument 'x'"),
        ("add", "[5]", "item is to be an object, not 5"),
        ("add", '[{"name": "pen"}]', "item lacks price of Item"),
        ("add", '[{"name": "pen", "cost": 2}]', "item has no field 'cost'; Item has name, price, color, added, tags"),
        ("add", '[{"name": "pen", "price": "dear"}]', "item.price is to be a number, not 'dear'"),
        ("add", '[{"name": "pen", "price": 1, "tags": ["a", 2]}]', "item.tags[1] is to be text, not 2"),
        ("add", '[{"name": "pen", "price": 1, "color": "pink"}]', 'item.color is to be one of "red", "blue"'),
        ("add", '[{"name": "pen", "price": 1, "added": "today"}]', "item.added is to be an ISO 8601 time"),
        ("add", '[{"name": "pen", "price": 1, "added": "2026-01-31T12:00"}]', "item.added needs a time zone"),
        ("add", '[{"name": "pen", "price": 1}, true]', "count is to be a whole number, not True"),
        ("photo", '["no base64!"]', "data is bytes, so to be base64 text"),
        ("find", '[["a"], {"one": 1}, {}]', "limits has the key 'one', which is to be a whole number"),
        ("find", '[["a"], {}, {"maybe": "x"}]', "flags has the key 'maybe', which is to be true or false"),
        ("lasting", '["long"]', "time is to be seconds, or an ISO 8601 duration"),
        ("total", "[5]", "numbers is a stream: give the list of its items, not 5"),
        ("total", '[["a"]]', "numbers[0] is to be a whole number"),
        ("listen", "[{}]", "listener is a Listener, an object that the plugin calls back"),
        ("leave", "[]", "Shop has no method 'leave'; it has add, photo"),
        ("__init__", "[]", "Shop has no method '__init__'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_one_line(
    hybridload_here: Run, method: str, arguments: str, words: str
) -> None:
    outcome = hybridload_here("call", "corner", method, "-", "--json", "-i", "in-process", stdin=arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err.splitlines()[-1]
    assert outcome.err.splitlines()[-1].startswith("hybridload: Plugin 'corner': ") or "not JSON" in words


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("key", "KeyError: 'tau'"),
        ("lines", "ValueError: one | two: three"),
        ("pipe", "BrokenPipeError: [Errno 32] gone"),
        ("own", "strange"),
    ],
)
def test_a_call_that_raises_is_one_line_and_exit_code_1(hybridload: Run, isolation: str, kind: str, words: str) -> None:
    outcome = hybridload("call", "corner", "fail", json.dumps(kind), "-i", isolation, "--json")
    assert (outcome.code, outcome.out) == (1, "")
    error = outcome.err.splitlines()[-1]
    assert error.startswith("hybridload: ")
    assert words in error
    assert "Traceback" not in outcome.err


def test_debug_shows_the_traceback_and_the_whole_message(hybridload: Run) -> None:
    outcome = hybridload("call", "corner", "fail", '"lines"', "--debug")
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "in fail" in outcome.err
    assert "one\ntwo:\n  three" in outcome.err


def test_a_plugin_that_dies_in_a_call_is_one_error(hybridload: Run) -> None:
    outcome = hybridload("call", "corner", "die", "-i", "subprocess")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("hybridload: PluginCrashed: Plugin 'corner' ended by signal 9")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "add"], "There is no plugin 'nowhere'"),
        (["corner", "say", "1", "-i", "orbit"], "'orbit' is not an isolation"),
        (["corner", "say", "-c", "absent.toml"], "There is no configuration file"),
        (["corner", "say", "--plugins", "shop_sdk"], "--plugins is 'shop_sdk': give \"module:NAME\""),
        (["corner", "say", "--plugins", "absent_sdk:PLUGINS"], "importing absent_sdk failed"),
        (["corner", "say", "--handshake", "shop_sdk:PLUGINS"], "give a Handshake"),
        (["corner", "say", "--plugins", "shop_sdk:BOTH"], "several kinds (async, shop)"),
        (["corner", "say", "--kind", "market"], "--kind market: the plugin set has no contract of that kind"),
        (["corner"], "Missing argument 'method'. Try hybridload call --help."),
        (["corner", "say", "--nonsense"], "No such option"),
        (["wrong", "clear"], "ContractError"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    hybridload: Run, install: Install, arguments: list[str], words: str
) -> None:
    install(corner="shop_plugin:Corner", wrong="shop_plugin:Wrong")
    outcome = hybridload("call", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.error


def test_a_kind_is_chosen_by_its_name(hybridload: Run) -> None:
    outcome = hybridload("call", "corner", "maybe", '"x"', "--kind", "shop", "--plugins", "shop_sdk:BOTH")
    assert (outcome.code, outcome.out) == (0, "x\n")


def test_a_plugin_that_cannot_be_built_is_exit_code_1(hybridload: Run, install: Install) -> None:
    install(refusing="shop_plugin:refuses")
    outcome = hybridload("call", "refusing", "clear")
    assert (outcome.code, outcome.out) == (1, "")
    assert "closed today" in outcome.error


def test_broken_toml_is_named_with_its_line(hybridload: Run, shop: Path) -> None:
    (shop / "plugins.toml").write_text("[host]\nplugins = \n")
    outcome = hybridload("call", "corner", "clear")
    assert outcome.code == 2
    assert "plugins.toml is not valid TOML" in outcome.error
    assert "line 2" in outcome.error


def test_the_config_may_be_a_table_of_pyproject(hybridload: Run, shop: Path) -> None:
    text = (shop / "plugins.toml").read_text().replace("[host]", "[tool.hybridload.host]")
    (shop / "plugins.toml").unlink()
    (shop / "pyproject.toml").write_text(text)
    assert hybridload("call", "corner", "maybe", '"x"').out == "x\n"


def test_a_reader_that_leaves_ends_a_stream_without_a_word(shop: Path, start: Start) -> None:
    process = start("call", "corner", "count", "100000000", "-i", "subprocess")
    assert process.stdout is not None
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_an_interrupt_ends_a_call_and_its_plugin_without_a_traceback(start: Start, isolation: str) -> None:
    process = start("call", "corner", "fail", '"sleep"', "-i", isolation, "--json")
    assert process.stderr is not None
    wait_for(process.stderr, b"sleeping")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert b"Traceback" not in process.stderr.read()
