"""Programs that are no good as plugins: each ends in the error that says so, in time, and nothing is left of it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridload.errors import (
    ChecksumMismatch,
    CookieMismatch,
    ExitedBeforeHandshake,
    HandshakeError,
    PermissionDenied,
    PluginClosed,
    PluginCrashed,
    PluginError,
    PluginNotFound,
    StartTimeout,
    UnrecognizedOutput,
    VersionMismatch,
)
from hybridload.goplugin import Client

NewClient = Callable[..., Client]

MARGIN = 5.0
"""Seconds that killing and cleaning up may take after the start timeout, on a machine that is busy."""
TEN_MEGABYTES = str(10 * 1024 * 1024)


@pytest.fixture
def start_bad(new_client: NewClient) -> Callable[..., Any]:
    """Starts a bad plugin; gives the error that it ends in, which must be in time and must have the words."""

    def start(
        *command: str | Path, error: type[PluginError], says: str = "", timeout: float = 10, **options: Any
    ) -> Any:
        client = new_client(*command, start_timeout=timeout, **options)
        began = time.monotonic()
        with pytest.raises(error) as caught:
            client.start()
        took = time.monotonic() - began
        assert took < timeout + MARGIN
        assert type(caught.value) is error
        assert says in str(caught.value)
        assert repr(client.name) in str(caught.value)
        assert caught.value.plugin == client.name
        assert client.pid is None or client.exited
        with pytest.raises(PluginClosed):
            client.start()
        return caught.value

    return start


@pytest.fixture
def bad(start_bad: Callable[..., Any], go_build: Callable[[str], Path]) -> Callable[..., Any]:
    """The same for a mode of `tests/go/badplugins`."""
    program = go_build("tests/go/badplugins")
    return lambda mode, *arguments, **options: start_bad(program, mode, *arguments, **options)


@pytest.fixture
def script(start_bad: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a shell script."""
    return lambda text, **options: start_bad("/bin/sh", "-c", text, **options)


@pytest.fixture
def engine() -> str:
    """What happens before a connection is the same for every engine; tests of connecting name theirs."""
    return "direct"


# Before the line


def test_a_plugin_that_refuses_the_cookie_is_quoted(bad: Callable[..., Any]) -> None:
    error = bad("cookie", error=CookieMismatch, says="BASIC_PLUGIN=hello")
    assert "This binary is a plugin" in str(error)
    assert "This binary is a plugin" in "\n".join(error.stderr)
    assert error.returncode == 1


@pytest.mark.parametrize("code", [0, 1, 3])
def test_an_end_before_the_line_has_its_status_and_its_last_words(bad: Callable[..., Any], code: int) -> None:
    error = bad("exit", str(code), error=ExitedBeforeHandshake, says=f"exit status {code}")
    assert error.returncode == code
    assert error.stderr == ("cannot find my settings", "giving up")
    assert "cannot find my settings\n  giving up" in str(error)


def test_an_end_by_signal_before_the_line_names_the_signal(script: Callable[..., Any]) -> None:
    error = script("kill -SEGV $$", error=ExitedBeforeHandshake, says="SIGSEGV")
    assert error.returncode == -11
    assert "wrote nothing on standard error" in str(error)


def test_a_grandchild_that_holds_the_pipes_does_not_hide_the_end(bad: Callable[..., Any]) -> None:
    error = bad("grandchild", error=ExitedBeforeHandshake, says="my child outlives me")
    assert error.returncode == 1


def test_silence_ends_with_the_start_timeout(bad: Callable[..., Any]) -> None:
    bad("silent", error=StartTimeout, says="no handshake line within 0.5 s", timeout=0.5)


def test_what_there_was_of_a_line_is_shown(bad: Callable[..., Any]) -> None:
    bad("part", "1|1|un", error=StartTimeout, says="b'1|1|un'", timeout=0.5)


def test_a_flood_on_standard_error_does_not_pass_for_a_start(bad: Callable[..., Any]) -> None:
    error = bad("flood-stderr", TEN_MEGABYTES, error=StartTimeout, timeout=1)
    assert error.stderr[-1].startswith("xxx")


def test_closing_standard_output_and_staying_is_noticed(bad: Callable[..., Any]) -> None:
    bad("close-stdout", error=ExitedBeforeHandshake, says="closed its standard output", timeout=5)


def test_closing_standard_output_is_noticed_before_a_short_start_timeout(bad: Callable[..., Any]) -> None:
    began = time.monotonic()
    bad("close-stdout", error=ExitedBeforeHandshake, says="closed its standard output", timeout=0.5)
    assert time.monotonic() - began < 0.5 + MARGIN


# The line


@pytest.mark.parametrize(
    ("mode", "error", "says"),
    [
        (["binary"], UnrecognizedOutput, "not UTF-8"),
        (["flood-lines", TEN_MEGABYTES], UnrecognizedOutput, "xxx"),
        (["flood", TEN_MEGABYTES], UnrecognizedOutput, "xxx"),
        (["core-version"], VersionMismatch, "version 99 of go-plugin's core protocol"),
        (["app-version"], VersionMismatch, "version 99 of its application protocol, and this host knows 1"),
        (["protocol"], UnrecognizedOutput, "carrier-pigeon"),
        (["network"], UnrecognizedOutput, "token-ring"),
        (["part-exit", "usage: tool FILE"], UnrecognizedOutput, "usage: tool FILE"),
        (["part-exit", "1|1"], UnrecognizedOutput, "1|1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_is_no_line_of_ours_is_named_at_once(
    bad: Callable[..., Any], mode: list[str], error: type[PluginError], says: str
) -> None:
    began = time.monotonic()
    bad(*mode, error=error, says=says, timeout=30)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        ("", UnrecognizedOutput, "first line"),
        (" ", UnrecognizedOutput, "first line"),
        ("hello, world", UnrecognizedOutput, "hello, world"),
        ("|||", UnrecognizedOutput, "core protocol version"),
        ("1|1|unix", UnrecognizedOutput, "1|1|unix"),
        ("one|1|unix|/s|grpc", UnrecognizedOutput, "core protocol version"),
        ("0|1|unix|/s|grpc", VersionMismatch, "version 0 of go-plugin's core protocol"),
        ("1|one|unix|/s|grpc", UnrecognizedOutput, "application protocol version"),
        ("1|-1|unix|/s|grpc", UnrecognizedOutput, "application protocol version"),
        ("1|2|unix|/s|grpc", VersionMismatch, "serves version 2"),
        ("1|1|UNIX|/s|grpc", UnrecognizedOutput, "neither unix nor tcp"),
        ("1|1|unix||grpc", UnrecognizedOutput, "no address"),
        ("1|1|tcp|localhost|grpc", UnrecognizedOutput, "does not end in a port"),
        ("1|1|unix|/s", VersionMismatch, "speaks netrpc"),
        ("1|1|unix|/s|netrpc|", VersionMismatch, "speaks netrpc"),
        ("1|1|unix|/s|", UnrecognizedOutput, "neither grpc nor netrpc"),
        ("1|1|unix|/s|GRPC", UnrecognizedOutput, "neither grpc nor netrpc"),
        ("1|1|unix|/s|grpc|" + "!" * 60, UnrecognizedOutput, "not base64"),
        ("1|1|unix|/s|grpc|" + "A" * 100_000, UnrecognizedOutput, "longer than 65536 bytes"),
        ('{"jsonrpc": "2.0"}', UnrecognizedOutput, "jsonrpc"),
    ],
)
def test_each_malformed_line_is_refused_for_what_is_wrong_with_it(
    new_client: NewClient, go_build: Callable[[str], Path], line: str, error: type[PluginError], says: str
) -> None:
    client = new_client(go_build("tests/go/badplugins"), "line", line, start_timeout=30, allowed_protocols=("grpc",))
    with pytest.raises(error) as caught:
        client.start()
    assert type(caught.value) is error
    assert says in str(caught.value)
    assert client.exited


def test_a_refusal_has_what_the_plugin_says_right_after_its_line(script: Callable[..., Any]) -> None:
    """What a program that is no plugin has to say mostly comes on the other pipe, and a moment later."""
    error = script("echo usage; echo 'no such option' >&2; exit 2", error=UnrecognizedOutput, says="no such option")
    assert (error.returncode, error.stderr) == (2, ("no such option",))


def test_a_refusal_of_a_plugin_that_stays_has_its_last_words_too(script: Callable[..., Any]) -> None:
    error = script("echo 'reading settings' >&2; echo '1|7|tcp|127.0.0.1:1|grpc'; exec sleep 60", error=VersionMismatch)
    assert error.stderr == ("reading settings",)
    assert error.returncode is None


# Connecting

OVER_NETRPC: dict[str, Any] = {"auto_mtls": False, "allowed_protocols": ("netrpc",)}


@pytest.fixture(params=["direct", "grpcio"])
def on_engine(request: pytest.FixtureRequest, new_client: NewClient) -> dict[str, Any]:
    return {"engine": request.param, "auto_mtls": False}


@pytest.mark.parametrize(
    ("mode", "error", "says", "timeout"),
    [
        ("nobody-tcp", HandshakeError, "127.0.0.1:1", 10),
        ("nobody-unix", HandshakeError, "socket", 10),
        ("mute", StartTimeout, "start timeout", 0.7),
        ("hang-up", HandshakeError, "no gRPC server answers there", 5),
        ("babble", HandshakeError, "no gRPC server answers there", 5),
    ],
)
def test_an_address_where_no_grpc_answers_is_named(
    new_client: NewClient,
    go_build: Callable[[str], Path],
    on_engine: dict[str, Any],
    mode: str,
    error: type[PluginError],
    says: str,
    timeout: float,
) -> None:
    client = new_client(go_build("tests/go/badplugins"), mode, start_timeout=timeout, **on_engine)
    began = time.monotonic()
    with pytest.raises(error, match="no gRPC server answers there") as caught:
        client.start()
    assert time.monotonic() - began < timeout + MARGIN
    assert says in str(caught.value)
    assert "on standard error" in str(caught.value)
    assert client.exited


@pytest.mark.parametrize("code", [0, 3])
def test_an_end_right_after_the_line_is_a_crash(
    new_client: NewClient, go_build: Callable[[str], Path], on_engine: dict[str, Any], code: int
) -> None:
    client = new_client(go_build("tests/go/badplugins"), "line-exit", str(code), **on_engine)
    with pytest.raises(PluginCrashed, match=f"ended with exit status {code} right after its handshake line") as caught:
        client.start()
    assert caught.value.returncode == code


@pytest.mark.parametrize("address", ["tcp|127.0.0.1:1", "unix|/no/such/socket"])
def test_an_address_where_no_netrpc_answers_is_named(script: Callable[..., Any], address: str) -> None:
    says = "no go-plugin server answers net/rpc there"
    script(f"echo '1|1|{address}|netrpc'; exec sleep 60", error=HandshakeError, says=says, **OVER_NETRPC)


@pytest.mark.parametrize("code", [0, 3])
def test_over_netrpc_an_end_right_after_the_line_is_a_crash_too(script: Callable[..., Any], code: int) -> None:
    says = f"ended with exit status {code} right after its handshake line"
    script(f"echo '1|1|unix|/no/such/socket|netrpc'; exit {code}", error=PluginCrashed, says=says, **OVER_NETRPC)


def test_a_unix_socket_whose_path_is_too_long_for_any_system_is_named(script: Callable[..., Any]) -> None:
    line = f"1|1|unix|/{'x' * 200}|grpc"
    script(f"echo '{line}'; exec sleep 60", error=HandshakeError, says="at most 107 bytes", auto_mtls=False)


def test_a_plugin_that_cannot_do_tls_is_told_from_one_that_can(script: Callable[..., Any]) -> None:
    script("echo '1|1|unix|/s|grpc'; exec sleep 60", error=HandshakeError, says="set auto_mtls = false for it")
    line = f"1|1|unix|/s|grpc|{'A' * 60}"
    script(f"echo '{line}'; exec sleep 60", error=HandshakeError, says="wants TLS", auto_mtls=False)


def test_a_plugin_that_cannot_share_one_socket_is_named(script: Callable[..., Any]) -> None:
    options = {"auto_mtls": False, "multiplex": True}
    for line in ("1|1|unix|/s|grpc", "1|1|unix|/s|grpc||false"):
        script(f"echo '{line}'; exec sleep 60", error=HandshakeError, says="set multiplex = false for it", **options)


# Files that are no programs


def test_a_missing_file_is_not_found(start_bad: Callable[..., Any], tmp_path: Path) -> None:
    start_bad(tmp_path / "missing", error=PluginNotFound, says=str(tmp_path / "missing"))


def test_a_name_that_is_not_on_the_path_is_not_found(start_bad: Callable[..., Any]) -> None:
    start_bad("no-such-plugin-anywhere", error=PluginNotFound, says="PATH")


def test_a_directory_is_not_a_program(start_bad: Callable[..., Any], tmp_path: Path) -> None:
    start_bad(tmp_path, error=PermissionDenied, says="directory")


def test_a_file_without_permission_is_named(start_bad: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "plugin").write_text("#!/bin/sh\n")
    start_bad(tmp_path / "plugin", error=PermissionDenied, says="chmod +x")


def test_a_text_file_is_not_a_program(start_bad: Callable[..., Any], tmp_path: Path) -> None:
    executable(tmp_path / "notes.txt", b"to do: everything\n")
    start_bad(tmp_path / "notes.txt", error=PermissionDenied, says="not a program")


def test_a_program_for_another_system_is_named(start_bad: Callable[..., Any], tmp_path: Path) -> None:
    executable(tmp_path / "plugin", b"\x7fELF\x02\x01\x01" + bytes(200))
    start_bad(tmp_path / "plugin", error=PermissionDenied, says="another system")


def test_an_empty_file_is_not_a_program(start_bad: Callable[..., Any], tmp_path: Path) -> None:
    executable(tmp_path / "plugin", b"")
    start_bad(tmp_path / "plugin", error=PermissionDenied, says="not a program")


def test_a_script_whose_interpreter_is_missing_is_not_found(start_bad: Callable[..., Any], tmp_path: Path) -> None:
    executable(tmp_path / "plugin", b"#!/no/such/interpreter\n")
    start_bad(tmp_path / "plugin", error=PluginNotFound, says="interpreter")


def test_a_named_pipe_is_not_a_program(start_bad: Callable[..., Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "plugin", 0o755)
    start_bad(tmp_path / "plugin", error=PermissionDenied, says="regular file")


def executable(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)


# Checksums


def test_the_right_checksum_runs(new_client: NewClient, go_build: Callable[[str], Path]) -> None:
    digest = hashlib.sha256(go_build("tests/go/greeter").read_bytes()).hexdigest()
    client = new_client(sha256=digest.upper())
    assert client.dispense("greeter").greet() == "Hello from Go!"


def test_a_wrong_checksum_does_not_run(new_client: NewClient, go_build: Callable[[str], Path]) -> None:
    client = new_client(sha256="0" * 64)
    with pytest.raises(ChecksumMismatch) as caught:
        client.start()
    digest = hashlib.sha256(go_build("tests/go/greeter").read_bytes()).hexdigest()
    assert (caught.value.expected, caught.value.actual) == ("0" * 64, digest)
    assert client.pid is None
