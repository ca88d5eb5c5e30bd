"""The handshake config that a host and its plugins share: the magic cookie and the protocol version."""

from __future__ import annotations

from hybridload.errors import ConfigError
from hybridload.frozen import frozen


@frozen
class Handshake:
    """What a host and a plugin must agree on before anything else (go-plugin's `HandshakeConfig`).

    The cookie is no secret. It tells a plugin that it was started by its host and not by a person at a shell, and a
    host that it did not start some other program.

    :param cookie_key: name of the environment variable that carries the cookie.
    :param cookie_value: its value; host and plugin must have the same one.
    :param protocol_version: version of the plugin set when the set is not versioned by itself; 0 or greater.
    :raises ConfigError: for a key that no environment variable can have, an empty value, or a negative version.
    """

    cookie_key: str
    cookie_value: str
    protocol_version: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.cookie_key, str) or not self.cookie_key or set(self.cookie_key) & {"=", "\0"}:
            raise ConfigError(f"Handshake cookie_key {self.cookie_key!r}: give the name of an environment variable.")
        if not isinstance(self.cookie_value, str) or not self.cookie_value or "\0" in self.cookie_value:
            raise ConfigError(f"Handshake cookie_value {self.cookie_value!r}: give a text that is not empty.")
        if type(self.protocol_version) is not int or self.protocol_version < 0:
            raise ConfigError(
                f"Handshake protocol_version {self.protocol_version!r}: give a whole number, 0 or greater."
            )
