"""A host application: it greets with every plugin that its `plugins.toml` and the installed packages offer."""

from __future__ import annotations

import logging
from pathlib import Path

from greeter_sdk import HANDSHAKE, PLUGINS, Greeter

from hybridload import Loader

CONFIG = Path(__file__).with_name("plugins.toml")


def main() -> None:
    # What plugins log arrives in the host's logging, from wherever they run.
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    with Loader(PLUGINS, handshake=HANDSHAKE, config=CONFIG) as loader:
        for name in loader.names():
            greeter = loader.load(name, Greeter)
            print(f"{name} ({loader.status(name).isolation}): {greeter.greet()}")


if __name__ == "__main__":
    main()
