"""The greeter as a program that any go-plugin host starts, whatever it is written in: ``hello-plugin``."""

from __future__ import annotations

from greeter_sdk import HANDSHAKE, PLUGINS

from hello_plugin import Hello
from hybridload import serve


def main() -> None:
    serve(PLUGINS, {"greeter": Hello()}, handshake=HANDSHAKE)


if __name__ == "__main__":
    main()
