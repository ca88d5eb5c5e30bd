"""`hybridload probe`: programs that it has never seen, in Go and in Python, good and bad."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
PYTHON_PLUGIN = [sys.executable, str(ROOT / "tests" / "goplugin" / "torture_plugin.py")]
COOKIE = ("--cookie", "BASIC_PLUGIN=hello")

Run = Callable[..., Any]
Build = Callable[[str], Path]


@pytest.fixture
def probe(hybridload: Run) -> Run:
    def run(*arguments: Any, **options: Any) -> Any:
        return hybridload("probe", *arguments, **options)

    return run


def services(report: dict[str, Any], *, own: bool = True) -> dict[str, list[dict[str, str]]]:
    return {each["name"]: each["methods"] for each in report["services"] if each["protocol"] is not own}


def test_tells_all_about_a_go_plugin(probe: Run, go_build: Build) -> None:
    report = probe(*COOKIE, "--json", "--", go_build("tests/go/greeter")).json
    assert report["line"].startswith("1|1|unix|")
    assert report["core_version"] == 1
    assert report["app_version"] == 1
    assert report["network"] == "unix"
    assert report["address"] == report["line"].split("|")[3]
    assert report["protocol"] == "grpc"
    assert report["tls"] == "auto-mtls"
    assert report["certificate"].startswith("ECDSA secp521r1, CN=localhost,O=HashiCorp")
    assert report["multiplex"] is True
    assert report["health"] == "SERVING"
    assert [report[what] for what in ("broker", "stdio", "controller")] == [True, True, True]
    assert report["reflection"] == ["v1", "v1alpha"]
    found = services(report)
    assert sorted(found) == ["kv.KeyValue", "proto.GreeterService", "torture.Torture"]
    assert found["proto.GreeterService"] == [
        {
            "name": "Greet",
            "path": "/proto.GreeterService/Greet",
            "kind": "unary",
            "request": "proto.Empty",
            "response": "proto.GreetResponse",
        }
    ]
    kinds = {method["name"]: method["kind"] for method in found["torture.Torture"]}
    assert kinds["Count"] == "server stream"
    assert kinds["Collect"] == "client stream"
    assert kinds["Chat"] == "bidirectional stream"
    assert report["messages"]["kv.PutRequest"] == {"key": "string", "value": "bytes"}
    assert report["messages"]["torture.ProcessInfo"]["environment"] == "map<string, string>"
    assert report["messages"]["torture.ProcessInfo"]["arguments"] == "repeated string"


def test_tells_the_same_of_a_python_plugin(probe: Run) -> None:
    outcome = probe(*COOKIE, "--json", "--", *PYTHON_PLUGIN)
    report = outcome.json
    assert (report["tls"], report["multiplex"], report["health"]) == ("auto-mtls", True, "SERVING")
    assert [report[what] for what in ("broker", "stdio", "controller")] == [True, True, True]
    assert report["reflection"] == ["v1", "v1alpha"]
    assert sorted(services(report)) == ["proto.GreeterService", "proto.PythonService", "torture.Torture"]
    assert report["messages"]["torture.SleepRequest"] == {"seconds": "double"}


def test_words_for_people(probe: Run, go_build: Build) -> None:
    outcome = probe(*COOKIE, "--", go_build("tests/go/greeter"))
    assert outcome.code == 0
    rows = dict(re.split(r" {2,}", line, maxsplit=1) for line in outcome.out.split("\n\n")[0].splitlines())
    assert rows["app version"] == "1"
    assert rows["TLS"] == "yes: AutoMTLS, each side checks the other's certificate"
    assert rows["multiplexing"] == "yes"
    assert rows["controller"] == "yes"
    assert re.fullmatch(r"1\|1\|unix\|\S+\|grpc\|\S{16}\.\.\.\S{8}\|true", rows["line"])
    assert "service torture.Torture\n" in outcome.out
    assert "  Chat(stream torture.Data) returns (stream torture.Data)\n" in outcome.out
    assert "message kv.PutRequest { string key; bytes value }\n" in outcome.out
    # What the plugin has to say is on standard error.
    assert "plugin address" in outcome.err


def test_a_plugin_that_has_next_to_nothing(probe: Run, go_build: Build) -> None:
    """No TLS, no reflection, no broker, stdio or controller; and it needs no cookie."""
    report = probe("--json", "--", go_build("tests/go/bareplugin"), "-network", "tcp").json
    assert report["network"] == "tcp"
    assert report["tls"] == "refused"
    assert "sent no certificate" in report["tls_refusal"]
    assert report["multiplex"] is None
    assert report["health"] == "SERVING"
    assert [report[what] for what in ("broker", "stdio", "controller")] == [False, False, False]
    assert report["reflection"] == []
    assert report["services"] == []


def test_a_proto_file_stands_in_for_reflection(probe: Run, go_build: Build) -> None:
    proto = ROOT / "proto" / "greeter.proto"
    report = probe("--json", "--proto", proto, "--", go_build("tests/go/bareplugin"), "-health=false").json
    assert report["health"] == "none"
    assert list(services(report)) == ["proto.GreeterService"]
    call = ("--call", "proto.GreeterService/Greet", "--json")
    assert probe(*call, "--proto", proto, "--", go_build("tests/go/bareplugin")).json == {
        "message": "Hello from a bare server!"
    }
    outcome = probe(*call, "--", go_build("tests/go/bareplugin"))
    assert outcome.code == 1
    assert "has no server reflection" in outcome.err
    assert "--proto FILE" in outcome.err


@pytest.mark.parametrize("tls", [True, False])
def test_what_can_be_known_of_a_netrpc_plugin(probe: Run, go_build: Build, tls: bool) -> None:
    flags = (*COOKIE, *(() if tls else ("--no-mtls",)), "--kind", "greeter", "--kind", "nothing")
    report = probe(*flags, "--json", "--", go_build("tests/go/netrpc")).json
    assert report["protocol"] == "netrpc"
    assert report["tls"] == ("auto-mtls" if tls else "off")
    assert report["health"] == "answers"
    assert report["kinds"] == {"greeter": True, "nothing": False}
    assert report["services"] == []
    outcome = probe(*COOKIE, "--", go_build("tests/go/netrpc"))
    assert outcome.code == 0
    assert "net/rpc has nothing that lists them" in outcome.out
    outcome = probe(*COOKIE, "--call", "proto.GreeterService/Greet", "--", go_build("tests/go/netrpc"))
    assert outcome.code == 1
    assert "speaks net/rpc" in outcome.err.splitlines()[-1]


def test_without_tls(probe: Run, go_build: Build) -> None:
    report = probe(*COOKIE, "--no-mtls", "--json", "--", go_build("tests/go/greeter")).json
    assert report["tls"] == "off"
    assert report["certificate"] is None


def test_the_highest_version_is_chosen_or_the_one_that_was_asked_for(probe: Run, go_build: Build) -> None:
    versions = {"TORTURE_VERSIONS": "2,5,9"}
    plugin = go_build("tests/go/greeter")
    assert probe(*COOKIE, "--json", "--", plugin, env=versions).json["app_version"] == 9
    assert probe(*COOKIE, "--json", "--app-version", "5", "--", plugin, env=versions).json["app_version"] == 5
    # One that it does not have: it says which one it serves then.
    assert probe(*COOKIE, "--json", "--app-version", "7", "--", plugin, env=versions).json["app_version"] == 2


@pytest.mark.parametrize("language", ["go", "python"])
def test_the_cookie_is_asked_for_when_it_is_missing(probe: Run, go_build: Build, language: str) -> None:
    command = [go_build("tests/go/greeter")] if language == "go" else PYTHON_PLUGIN
    outcome = probe("--", *command)
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith("hybridload: CookieMismatch: ")
    assert "--cookie KEY=VALUE" in last
    assert outcome.out == ""
    outcome = probe("--cookie", "BASIC_PLUGIN=goodbye", "--", *command)
    assert outcome.code == 1
    assert "BASIC_PLUGIN=goodbye" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize("language", ["go", "python"])
def test_calls(probe: Run, go_build: Build, language: str) -> None:
    command = ["--", *([go_build("tests/go/greeter")] if language == "go" else PYTHON_PLUGIN)]
    greeting = probe(*COOKIE, "--call", "proto.GreeterService/Greet", *command)
    assert greeting.code == 0
    assert next(iter(json.loads(greeting.out).values())).startswith("Hello")
    count = probe(*COOKIE, "--json", "--call", "/torture.Torture/Count", "--data", '{"count": 3}', *command)
    key = "number" if language == "go" else "result"
    assert [json.loads(line)[key] for line in count.out.splitlines()] == ["0", "1", "2"]
    # Bytes are base64, and a list is a stream of requests.
    chat = probe(
        *COOKIE, "--json", "--call", "torture.Torture.Chat", "--data", "-", *command, stdin='[{"data": "YQ=="}, {}]'
    )
    key = "data" if language == "go" else "result"
    assert [json.loads(line)[key] for line in chat.out.splitlines()] == ["YQ==", ""]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--call", "proto.Nobody/Greet"), 2, "has no service 'proto.Nobody'; it has kv.KeyValue, proto.Greeter"),
        (("--call", "proto.GreeterService/Hi"), 2, "proto.GreeterService has no method 'Hi'; it has Greet."),
        (("--call", "Greet"), 2, "give package.Service/Method"),
        (("--call", "kv.KeyValue/Get", "--data", '{"kee": 1}'), 2, "no field named"),
        (("--call", "kv.KeyValue/Get", "--data", "[1]"), 2, "The data do not fit kv.GetRequest"),
        (("--call", "kv.KeyValue/Get", "--data", "{"), 2, "--data is no JSON"),
        (("--call", "kv.KeyValue/Get", "--data", '{"key": "a"}'), 1, 'NOT_FOUND: no value under "a"'),
        (("--call", "torture.Torture/Exit", "--data", '{"code": 3}'), 1, "exit status 3"),
        (("--call", "torture.Torture/Hang", "--timeout", "1"), 1, "CallTimeout"),
    ],
)
def test_a_call_that_fails(probe: Run, go_build: Build, arguments: tuple[str, ...], code: int, words: str) -> None:
    outcome = probe(*COOKIE, *arguments, "--", go_build("tests/go/greeter"))
    assert outcome.code == code
    assert words in [line for line in outcome.err.splitlines() if line.startswith("hybridload: ")][-1]
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("badplugins", "exit", "3"), 1, "ended with exit status 3 before it printed a handshake line"),
        (("badplugins", "silent"), 1, "StartTimeout"),
        (("badplugins", "line", "hello"), 1, "The first line on standard output is b'hello\\n'"),
        (("badplugins", "core-version"), 1, "speaks version 99 of go-plugin's core protocol"),
        (("badplugins", "nobody-unix"), 1, "says that it listens on unix"),
        (("badplugins", "babble"), 1, "no gRPC server answers there"),
        (("badplugins", "line-exit", "1"), 1, "ended with exit status 1 right after its handshake line"),
    ],
)
def test_a_program_that_is_no_good_ends_in_one_line(
    probe: Run, go_build: Build, command: tuple[str, ...], code: int, words: str
) -> None:
    program, *arguments = command
    outcome = probe("--timeout", "3", "--", go_build(f"tests/go/{program}"), *arguments)
    assert outcome.code == code
    errors = [line for line in outcome.err.splitlines() if line.startswith("hybridload: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert outcome.out == ""


def test_a_program_that_is_not_there(probe: Run) -> None:
    outcome = probe("--", "./no/such/program")
    assert outcome.code == 2
    assert "there is no program" in outcome.error
    assert probe().code == 2
    assert probe("--cookie", "nonsense", "--", "true").code == 2


@pytest.mark.parametrize("seconds", ["nan", "0", "-1", "inf", "1e11"])
def test_a_timeout_that_is_none_is_named_as_it_was_given(probe: Run, seconds: str) -> None:
    outcome = probe("--timeout", seconds, "--", "no-such-program")
    assert outcome.code == 2
    assert f"--timeout is {float(seconds)}: give a number of seconds greater than 0" in outcome.err


@pytest.mark.parametrize(("path", "words"), [("/dev/null", "is no regular file"), ("/no/such", "does not exist")])
def test_what_is_no_proto_file_is_refused(probe: Run, go_build: Build, path: str, words: str) -> None:
    outcome = probe("--proto", path, "--", go_build("tests/go/bareplugin"))
    assert outcome.code == 2
    assert f"{path} {words}: give the path of a .proto file" in outcome.err
