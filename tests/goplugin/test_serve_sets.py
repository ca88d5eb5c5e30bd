"""Plugin set and implementations, brought together before anything is served."""

from __future__ import annotations

from typing import Any, Protocol

import pytest

from hybridload.contract import Contract
from hybridload.errors import ConfigError, ContractError
from hybridload.goplugin.serve import Served, check_cookie, read_served
from hybridload.handshake import Handshake

HANDSHAKE = Handshake("SERVE_SETS_COOKIE", "hello", 4)


class Greeter(Protocol):
    def greet(self) -> str: ...


class Hello:
    def greet(self) -> str:
        return "hello"


class Written:
    def grpc_client(self, broker: Any, channel: Any) -> Any: ...

    def grpc_server(self, broker: Any, server: Any) -> None: ...


HELLO, WRITTEN = Hello(), Written()
CONTRACT = Contract(Greeter)


def test_an_unversioned_set_has_the_version_of_the_handshake() -> None:
    served = read_served({"greeter": CONTRACT}, {"greeter": HELLO}, handshake=HANDSHAKE)
    assert served == {4: {"greeter": Served(CONTRACT, HELLO)}}


def test_implementations_nest_by_version_as_the_set_does() -> None:
    other = Hello()
    served = read_served(
        {1: {"greeter": CONTRACT}, 2: {"greeter": Greeter, "written": WRITTEN}},
        {1: {"greeter": HELLO}, 2: {"greeter": other}},
        handshake=HANDSHAKE,
    )
    assert served[1] == {"greeter": Served(CONTRACT, HELLO)}
    assert served[2]["greeter"].implementation is other
    assert served[2]["written"] == Served(WRITTEN)


def test_hand_written_plugins_need_no_implementations() -> None:
    assert read_served({6: {"provider": WRITTEN}}, None, handshake=HANDSHAKE) == {6: {"provider": Served(WRITTEN)}}


@pytest.mark.parametrize(
    ("plugins", "implementations", "reason"),
    [
        ({"greeter": CONTRACT}, None, "implementations lacks 'greeter'"),
        ({"greeter": CONTRACT}, {}, "implementations lacks 'greeter'"),
        ({"greeter": CONTRACT}, {"greeter": HELLO, "greter": HELLO}, "has 'greter', which is no kind"),
        ({"greeter": CONTRACT}, {1: {"greeter": HELLO}}, "has 1, which is no kind"),
        ({"greeter": CONTRACT}, [HELLO], "give a mapping"),
        ({"greeter": CONTRACT}, {"greeter": Hello}, "has the class Hello for 'greeter': give an instance"),
        ({1: {"greeter": CONTRACT}}, {"greeter": HELLO}, "nest implementations by version"),
        ({1: {"greeter": CONTRACT}}, {2: {"greeter": HELLO}}, "has 2, which is no version"),
        ({1: {"greeter": CONTRACT}}, {1: HELLO}, "give a mapping of kind to object"),
        (
            {1: {"greeter": CONTRACT}, 2: {"greeter": CONTRACT}},
            {1: {"greeter": HELLO}},
            "implementations of version 2 lacks 'greeter'",
        ),
        ({"written": WRITTEN}, {"written": HELLO}, "a hand-written plugin: that carries its own"),
        ({}, {}, "The plugin set is"),
    ],
)
def test_what_does_not_match_is_a_config_error(plugins: Any, implementations: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_served(plugins, implementations, handshake=HANDSHAKE)
    assert reason in str(caught.value)


def test_an_object_that_does_not_implement_the_interface_is_a_contract_error() -> None:
    with pytest.raises(ContractError, match=r"implementation of 'greeter' of version 2: .*(?s:.)*greet\(\) is missing"):
        read_served({2: {"greeter": CONTRACT}}, {2: {"greeter": object()}}, handshake=HANDSHAKE)


def test_the_cookie_is_checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("SERVE_SETS_COOKIE", raising=False)
    with pytest.raises(SystemExit) as caught:
        check_cookie(HANDSHAKE)
    assert caught.value.code == 1
    assert "SERVE_SETS_COOKIE, is not set" in capsys.readouterr().err
    monkeypatch.setenv("SERVE_SETS_COOKIE", "other")
    with pytest.raises(SystemExit):
        check_cookie(HANDSHAKE)
    assert "has another value" in capsys.readouterr().err
    monkeypatch.setenv("SERVE_SETS_COOKIE", "hello")
    check_cookie(HANDSHAKE)
    not_a_handshake: Any = ("SERVE_SETS_COOKIE", "hello")
    with pytest.raises(ConfigError, match="give a Handshake"):
        check_cookie(not_a_handshake)
