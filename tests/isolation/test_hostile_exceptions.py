"""A plugin whose exceptions are made up: the host that catches, shows and logs them goes on, over either protocol."""

from __future__ import annotations

import logging
import traceback

import pytest

from hybridload.errors import RemoteError

from .conftest import Open, Write

SDK = """
from typing import Protocol
from hybridload import Handshake
import hybridload.contract.exceptions as exceptions

class Liar(Protocol):
    def lie(self, how: str) -> str: ...

PLUGINS = {"liar": Liar}
HANDSHAKE = Handshake("ISOLATION_TEST", "on")
LIES = {
    "unicode": ("UnicodeDecodeError", ("u", b"x", -(2**62), 1 - 2**62, "r"), {}),
    "syntax": ("SyntaxError", ("m", ("f", 1, 1, "text", 1, 3_000_000_000)), {}),
    "note": ("ValueError", ("m",), {"add_note": "x"}),
}

def told(how):
    name, arguments, attributes = LIES[how]
    exceptions._arguments = lambda error: arguments
    exceptions._attributes = lambda error: attributes.items()
    return type(name, (Exception,), {"__module__": "builtins"})("m")

class Teller:
    def lie(self, how: str) -> str:
        if how:
            raise told(how)
        return "still here"
"""
CONFIG = """
[host]
plugins = "liar_sdk:PLUGINS"
handshake = "liar_sdk:HANDSHAKE"
[plugins.teller]
entry_point = "liar_sdk:Teller"
isolation = "subprocess"
protocols = ["{}"]
"""


@pytest.mark.parametrize("protocol", ["grpc", "netrpc"])
def test_the_host_goes_on(
    protocol: str, write_module: Write, open_loader: Open, caplog: pytest.LogCaptureFixture
) -> None:
    write_module("liar_sdk", SDK)
    teller = open_loader(config=CONFIG.format(protocol)).load("teller")
    for how, expected in (("unicode", RemoteError), ("syntax", RemoteError), ("note", ValueError)):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            teller.lie(how)
        error = caught.value
        assert type(error) is expected
        error.add_note("caught by the host")
        assert "m" in str(error)
        assert "caught by the host" in "".join(traceback.format_exception(error))
        logging.getLogger("host").error("it failed", exc_info=error)
    assert teller.lie("") == "still here"
