"""What a host tells its plugin through the environment, as a plugin reads it. Pure.

The variables are read once and then taken out of the plugin's environment: a host that this plugin may start or be in
turn would hand them on, and a stale certificate or multiplexing flag breaks the plugin that gets it. The cookie stays:
it is no secret, and by it code can tell that it runs in a plugin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping

from hybridload.frozen import frozen

PROTOCOL_VERSIONS = "PLUGIN_PROTOCOL_VERSIONS"
CLIENT_CERT = "PLUGIN_CLIENT_CERT"
MULTIPLEX = "PLUGIN_MULTIPLEX_GRPC"
SOCKET_DIR = "PLUGIN_UNIX_SOCKET_DIR"
SOCKET_GROUP = "PLUGIN_UNIX_SOCKET_GROUP"
MIN_PORT = "PLUGIN_MIN_PORT"
MAX_PORT = "PLUGIN_MAX_PORT"

_ALL = (PROTOCOL_VERSIONS, CLIENT_CERT, MULTIPLEX, SOCKET_DIR, SOCKET_GROUP, MIN_PORT, MAX_PORT)


@frozen
class HostEnvironment:
    """What the host asks for.

    :param versions: the versions of the application protocol that the host knows; empty when it does not say.
    :param unreadable_versions: what else was in that list.
    :param client_certificate: PEM, when the host asks for TLS.
    :param multiplex: whether the host wants brokered connections multiplexed; `None` when it does not ask, and then it
        must not be answered either.
    :param socket_folder: where the host wants the plugin's sockets.
    :param socket_group: name or number of a group that may use them.
    :param min_port: the least tcp port to use; with `max_port` 0 when the host does not say.
    :param max_port: the greatest.
    """

    versions: frozenset[int] = frozenset()
    unreadable_versions: tuple[str, ...] = ()
    client_certificate: str | None = None
    multiplex: bool | None = None
    socket_folder: str | None = None
    socket_group: str | None = None
    min_port: int = 0
    max_port: int = 0

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> HostEnvironment:
        """Read the protocol's variables. An empty one counts as none, as in go-plugin."""
        listed = [text.strip() for text in environ.get(PROTOCOL_VERSIONS, "").split(",") if text.strip()]
        readable = [text for text in listed if text.isascii() and text.isdecimal() and len(text) <= 9]
        multiplex = environ.get(MULTIPLEX, "")
        return cls(
            versions=frozenset(int(text) for text in readable),
            unreadable_versions=tuple(text for text in listed if text not in readable),
            client_certificate=environ.get(CLIENT_CERT) or None,
            multiplex=multiplex in _TRUE if multiplex else None,
            socket_folder=environ.get(SOCKET_DIR) or None,
            socket_group=environ.get(SOCKET_GROUP) or None,
            **_ports(environ),
        )

    def choose_version(self, served: Iterable[int]) -> int:
        """The highest version that both sides know; the lowest that is served when there is none in common.

        The host reports the latter: it knows both lists. A host that lists nothing gets the lowest as well.
        """
        known = sorted(served)
        common = [version for version in known if version in self.versions]
        return common[-1] if common else known[0]


def _ports(environ: Mapping[str, str]) -> dict[str, int]:
    texts = environ.get(MIN_PORT, ""), environ.get(MAX_PORT, "")
    if not all(text.isascii() and text.isdecimal() and len(text) <= 9 for text in texts):
        return {}
    least, greatest = map(int, texts)
    return {"min_port": least, "max_port": greatest} if 0 < least <= greatest < 65536 else {}


# What Go's strconv.ParseBool takes for true.
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})


def forget(environ: MutableMapping[str, str]) -> None:
    """Take the protocol's variables out of an environment."""
    for name in _ALL:
        environ.pop(name, None)
