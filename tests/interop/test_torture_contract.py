"""One interface drives the Go torture plugin: every method of torture.proto, matched by the .proto file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridload.errors import RemoteError
from hybridload.goplugin import Client


def test_every_call_of_the_torture_plugin(go_build: Callable[[str], Path], go_plugins: Any) -> None:
    client = Client([go_build("tests/go/greeter")], plugins=go_plugins.plugins, handshake=go_plugins.handshake)
    client.start()
    try:
        torture = client.dispense("torture")
        assert torture.echo(b"\x00\xff") == b"\x00\xff"
        assert torture.write(go_plugins.os_stdout, size=100, line_length=10) == 100
        torture.log(go_plugins.hclog, lines=3, level="warn")
        torture.sleep(0.01)
        with pytest.raises(RemoteError, match="out of tea") as caught:
            torture.fail(5, "out of tea", b"details")
        assert caught.value.code == "NOT_FOUND"
        assert [item.number for item in torture.count(3, size=2)] == [0, 1, 2]
        items = list(torture.count(5, size=7))
        assert torture.collect(iter(items)).bytes == 35
        assert list(torture.chat(iter([b"a", b"b"]))) == [b"a", b"b"]
        process = torture.process()
        assert process.environment["BASIC_PLUGIN"] == "hello"
        assert len(torture.offer(2)) == 2
    finally:
        client.kill()
