"""What a plugin writes never gets a terminal to do something: errors, log records and the command line escape it."""

from __future__ import annotations

import json
import logging
import os
import pickle
import pty
import subprocess
import sys
import traceback
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridload import Loader
from hybridload.control_characters import escape_controls
from hybridload.errors import PluginError, RemoteError

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj.exe\rhybridload: all is well\x7f"
SHOWN = r"\u001b]0;owned\u0007\u001b[2J\u009b31m\u202egpj.exe\u000dhybridload: all is well\u007f"

SDK = f"""
import logging, os, sys
from typing import Protocol
from hybridload import Handshake

EVIL = {EVIL!r}

class Evil(Protocol):
    def text(self) -> str: ...
    def data(self) -> bytes: ...
    def lines(self) -> list[str]: ...
    def value(self) -> None: ...
    def foreign(self) -> None: ...
    def log(self) -> None: ...
    def prints(self) -> None: ...
    def writes(self) -> None: ...
    def dies(self) -> None: ...

PLUGINS = {{"evil": Evil}}
HANDSHAKE = Handshake("EVIL", "yes")
class Terminal:
    def text(self):
        return EVIL
    def data(self):
        return EVIL.encode()
    def lines(self):
        return [EVIL]
    def value(self):
        raise ValueError(EVIL)
    def foreign(self):
        error = type("Foreign", (Exception,), {{"__module__": "elsewhere"}})(EVIL)
        error.add_note(EVIL)
        raise error
    def log(self):
        logging.getLogger("evil").error("logged %s", EVIL, extra={{"field": EVIL}})
        logging.getLogger("evil" + EVIL).error("named")
    def prints(self):
        print("printed", EVIL)
    def writes(self):
        os.write(2, b"[ERROR] written " + EVIL.encode() + b"\\n")
    def dies(self):
        os.write(2, b"last words " + EVIL.encode() + b"\\n")
        os._exit(3)

def refuses():
    raise RuntimeError(EVIL)
"""
CONFIG = """
[host]
plugins = "evil_sdk:PLUGINS"
handshake = "evil_sdk:HANDSHAKE"
[defaults]
isolation = "subprocess"
protocols = ["{}"]
[plugins.evil]
entry_point = "evil_sdk:Terminal"
[plugins.refuses]
entry_point = "evil_sdk:refuses"
[plugins.line]
command = ["sh", "-c", "printf '1|1|\\\\033[2J\\\\n'"]
isolation = "external"
"""


def is_harmless(text: str) -> bool:
    # Cc: control; Zl, Zp: separators; Cs: surrogates. Of Cf those that change direction.
    return not any(
        unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") or unicodedata.bidirectional(c) in BIDI
        for c in text
        if c not in "\t\n"
    )


BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@given(st.text(st.characters(codec=None)))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    escaped = escape_controls(text)
    assert is_harmless(escaped.replace("\r\n", "\n"))
    assert escape_controls(escaped) == escaped


@settings(max_examples=50)
@given(st.recursive(st.text(max_size=9), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_is_still_the_same_json(value: object) -> None:
    written = json.dumps(value, ensure_ascii=False)
    assert json.loads(escape_controls(written)) == json.loads(written)


@pytest.mark.parametrize("text", ["Grüße, 世界 👩‍🚀\n\tindented\r\n", "", "\\x1b"])
def test_what_people_write_stays(text: str) -> None:
    assert escape_controls(text) == text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "evil_sdk.py").write_text(SDK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evil_sdk", raising=False)
    return tmp_path


@pytest.fixture(params=["grpc", "netrpc"])
def loader(request: pytest.FixtureRequest, folder: Path) -> Iterator[Loader]:
    path = folder / "plugins.toml"
    path.write_text(CONFIG.format(request.param))
    with Loader(config=path) as opened:
        yield opened


def test_errors_and_log_records_are_harmless(loader: Loader, caplog: pytest.LogCaptureFixture) -> None:
    evil = loader.load("evil")
    with caplog.at_level(logging.INFO):
        evil.log()
        evil.prints()
        evil.writes()
        errors: list[Exception] = []
        for action in (
            evil.foreign,
            evil.dies,
            lambda: loader.load("refuses"),
            lambda: loader.load("line"),
        ):
            with pytest.raises(PluginError) as caught:
                action()
            errors.append(caught.value)
    foreign, crashed, *_ = errors
    assert isinstance(foreign, RemoteError)
    assert SHOWN in str(foreign)
    assert SHOWN in foreign.remote_traceback
    assert SHOWN in str(crashed)
    assert SHOWN in str(errors[2])
    for error in errors:
        shown = "".join(traceback.format_exception(error))
        # What Python quotes of the cause chain is its own.
        assert is_harmless(str(error)), error
        assert is_harmless(shown) or error.__cause__ is not None, shown
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    said = {record.getMessage(): record for record in caplog.records}
    assert said[f"logged {SHOWN}"].field == EVIL  # type: ignore[attr-defined]  # for programs, as it is
    assert f"printed {SHOWN}" in said
    assert f"[ERROR] written {SHOWN}" in said
    assert "named" in said
    assert all(is_harmless(record.getMessage() + record.name) for record in caplog.records)


def test_what_programs_compare_is_as_it_was(loader: Loader) -> None:
    evil = loader.load("evil")
    assert (evil.text(), evil.data(), evil.lines()) == (EVIL, EVIL.encode(), [EVIL])
    with pytest.raises(ValueError, match="owned") as caught:
        evil.value()
    assert caught.value.args == (EVIL,)


@pytest.mark.parametrize(
    "command",
    [
        "call evil text",
        "call evil text --json",
        "call evil data",
        "call evil lines",
        "call evil value --debug",
        "call evil foreign",
        "call evil writes --debug",
        "call evil dies --debug",
        "call evil value -i in-process --debug",
        "call evil log -i in-process",
        "list --check",
        "probe -- sh -c {evil}",
    ],
)
def test_the_command_line_shows_it_harmless(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "plugins.toml").write_text(CONFIG.format("grpc"))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    evil = f"printf '%s\\n' '{EVIL}' >&2; printf '%s\\n' '{EVIL}'"
    arguments = [each.format(evil=evil) for each in command.split()]
    shown = on_a_terminal([sys.executable, "-m", "hybridload", *arguments], folder)
    plain = "".join(part for part in shown.replace("\r\n", "\n").split("\x1b[1m"))  # rich's bold head of a table
    assert "owned" in plain
    assert is_harmless(plain.replace("\x1b[0m", "")), ascii(plain)


@pytest.mark.parametrize("method", ["text", "data"])
def test_a_program_that_reads_a_result_gets_it_as_it_is(
    method: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "plugins.toml").write_text(CONFIG.format("grpc"))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    command = [sys.executable, "-m", "hybridload", "call", "evil", method]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True, timeout=60)
    assert done.stdout == EVIL.encode() + b"\n"


def on_a_terminal(command: list[str], folder: Path) -> str:
    """What a command writes to the terminal that it runs on."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:  # how Linux says that nobody has the other end any more
        pass
    finally:
        os.close(ours)
        process.wait(60)
    return said.decode()
