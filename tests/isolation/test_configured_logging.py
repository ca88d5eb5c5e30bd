"""A Python plugin that configures `logging` itself: its records reach the host all the same, once, as records."""

from __future__ import annotations

import logging

import pytest

from .conftest import Open, Write, wait_until

SDK = """
import io, logging, logging.config, sys
from typing import Protocol
from hybridload import Handshake

class Logs(Protocol):
    def configure(self, how: str) -> None: ...
    def log(self, words: str) -> None: ...

PLUGINS = {"logs": Logs}
HANDSHAKE = Handshake("ISOLATION_TEST", "on")

CONSOLE = {"class": "logging.StreamHandler"}
NAMED = {"handlers": ["console"], "propagate": False, "level": "INFO"}
FILE = '''
[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=
[logger_root]
level=INFO
handlers=console
[handler_console]
class=StreamHandler
args=(sys.stderr,)
'''

def dictionary(**parts):
    return {"version": 1, "disable_existing_loggers": False, "handlers": {"console": CONSOLE}, **parts}

def remove_all():
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    root.setLevel(logging.INFO)

def add_and_remove():
    handler = logging.StreamHandler()
    for logger in (logging.getLogger(), logging.getLogger("my")):
        logger.addHandler(handler)
        logger.removeHandler(handler)

HOW = {
    "dictConfig": lambda: logging.config.dictConfig(dictionary(root={"handlers": ["console"], "level": "INFO"})),
    "dictConfig without handlers": lambda: logging.config.dictConfig(dictionary(root={"level": "INFO"})),
    "dictConfig of a logger": lambda: logging.config.dictConfig(dictionary(loggers={"my": NAMED})),
    "fileConfig": lambda: logging.config.fileConfig(io.StringIO(FILE), disable_existing_loggers=False),
    "basicConfig": lambda: logging.basicConfig(level=logging.INFO, force=True),
    "removeHandler": remove_all,
    "a handler for a moment": add_and_remove,
}

class Plugin:
    def __init__(self, how: str = "") -> None:
        if how:
            HOW[how]()
    def configure(self, how):
        HOW[how]()
    def log(self, words):
        logging.getLogger("my").error("%s", words, extra={"number": 3})
"""
CONFIG = """
[host]
plugins = "logs_sdk:PLUGINS"
handshake = "logs_sdk:HANDSHAKE"
[plugins.early]
entry_point = "logs_sdk:Plugin"
isolation = "subprocess"
options = {{ how = "{}" }}
[plugins.late]
entry_point = "logs_sdk:Plugin"
isolation = "subprocess"
"""
HOW = (
    "dictConfig",
    "dictConfig without handlers",
    "dictConfig of a logger",
    "fileConfig",
    "basicConfig",
    "removeHandler",
    "a handler for a moment",
)


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("how", HOW)
def test_its_records_are_records(
    how: str, when: str, write_module: Write, open_loader: Open, caplog: pytest.LogCaptureFixture
) -> None:
    write_module("logs_sdk", SDK)
    plugin = open_loader(config=CONFIG.format(how)).load(when)
    with caplog.at_level(logging.DEBUG):
        if when == "late":
            plugin.configure(how)
        plugin.log("it broke")
        plugin.log("the end")
        wait_until(lambda: any("the end" in record.getMessage() for record in caplog.records))
    said = [record for record in caplog.records if "it broke" in record.getMessage()]
    assert [(record.name, record.levelno, record.getMessage()) for record in said] == [
        ("my", logging.ERROR, "it broke")
    ]
    assert said[0].number == 3  # type: ignore[attr-defined]


NAMING = """
import os
from typing import Protocol
from hybridload import Handshake

class Names(Protocol):
    def name(self) -> str: ...

PLUGINS = {"names": Names}
HANDSHAKE = Handshake("ISOLATION_TEST", "on")

class Plugin:
    def name(self):
        life = os.urandom(4).hex()
        for number in range(300):
            os.write(2, b'{"@message":"m","@level":"info","@module":"m%s.n%d"}\\n' % (life.encode(), number))
        os.write(2, b'{"@message":"all named %s","@level":"info"}\\n' % life.encode())
        return life
"""


@pytest.mark.parametrize("protocol", ["grpc", "netrpc"])
def test_a_plugin_names_only_so_many_loggers_in_all_its_lives(
    protocol: str, write_module: Write, open_loader: Open, caplog: pytest.LogCaptureFixture
) -> None:
    write_module("names_sdk", NAMING)
    loader = open_loader(
        config=f"""
        [host]
        plugins = "names_sdk:PLUGINS"
        handshake = "names_sdk:HANDSHAKE"
        [plugins.names-over-{protocol}]
        entry_point = "names_sdk:Plugin"
        isolation = "subprocess"
        protocols = ["{protocol}"]
        """
    )
    plugin = loader.load(f"names-over-{protocol}")
    before = len(logging.root.manager.loggerDict)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            last = f"all named {plugin.name()}"
            wait_until(lambda last=last: last in caplog.messages)  # type: ignore[misc]
            loader.reload(f"names-over-{protocol}")
    assert 200 < len(logging.root.manager.loggerDict) - before < 500
    assert caplog.messages.count("m") == 900  # what has no logger of its own is logged by the plugin's
