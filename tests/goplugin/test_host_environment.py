"""What a host says through the environment."""

from __future__ import annotations

import pytest

from hybridload.goplugin.host_environment import HostEnvironment, forget


def test_nothing_is_asked_for_when_nothing_is_set() -> None:
    assert HostEnvironment.read({}) == HostEnvironment()
    empty = dict.fromkeys(["PLUGIN_PROTOCOL_VERSIONS", "PLUGIN_CLIENT_CERT", "PLUGIN_UNIX_SOCKET_DIR"], "")
    assert HostEnvironment.read(empty) == HostEnvironment()


@pytest.mark.parametrize(
    ("listed", "versions", "unreadable"),
    [
        ("1", {1}, ()),
        ("3,1,2", {1, 2, 3}, ()),
        (" 1 , 02,", {1, 2}, ()),
        ("0", {0}, ()),
        ("one,-1,1.5,²", set(), ("one", "-1", "1.5", "²")),
        ("9999999999,4", {4}, ("9999999999",)),
    ],
)
def test_versions_are_read_and_what_is_none_is_told_apart(
    listed: str, versions: set[int], unreadable: tuple[str, ...]
) -> None:
    read = HostEnvironment.read({"PLUGIN_PROTOCOL_VERSIONS": listed})
    assert (read.versions, read.unreadable_versions) == (versions, unreadable)


@pytest.mark.parametrize(
    ("listed", "served", "chosen"),
    [("1,2", [1, 2], 2), ("1", [2, 1], 1), ("5", [2, 3], 2), ("", [4, 3], 3), ("3,2", [9, 3, 2, 1], 3)],
)
def test_the_version_is_the_highest_in_common_or_else_the_lowest(listed: str, served: list[int], chosen: int) -> None:
    assert HostEnvironment.read({"PLUGIN_PROTOCOL_VERSIONS": listed}).choose_version(served) == chosen


@pytest.mark.parametrize(("value", "asked"), [("true", True), ("1", True), ("false", False), ("maybe", False)])
def test_multiplexing_is_answered_when_it_is_asked_for(value: str, asked: bool) -> None:
    assert HostEnvironment.read({"PLUGIN_MULTIPLEX_GRPC": value}).multiplex is asked


@pytest.mark.parametrize(
    ("least", "greatest", "ports"),
    [
        ("5000", "5010", (5000, 5010)),
        ("05000", "5010", (5000, 5010)),
        ("5000", "", (0, 0)),
        ("5010", "5000", (0, 0)),
        ("0", "5", (0, 0)),
        ("1", "65536", (0, 0)),
        ("000001" + "9" * 5000, "000002" + "9" * 5000, (0, 0)),
        ("\u0661", "\u0662", (0, 0)),
        ("-1", "5", (0, 0)),
    ],
)
def test_a_range_of_ports_that_is_none_counts_as_not_given(least: str, greatest: str, ports: tuple[int, int]) -> None:
    read = HostEnvironment.read({"PLUGIN_MIN_PORT": least, "PLUGIN_MAX_PORT": greatest})
    assert (read.min_port, read.max_port) == ports


def test_the_variables_of_the_protocol_are_forgotten_and_nothing_else() -> None:
    environ = {
        "PLUGIN_MIN_PORT": "1",
        "PLUGIN_MAX_PORT": "2",
        "PLUGIN_CLIENT_CERT": "x",
        "PLUGIN_MINE": "y",
        "COOKIE": "z",
    }
    forget(environ)
    assert environ == {"PLUGIN_MINE": "y", "COOKIE": "z"}
