"""A host application: it keeps a value in a store, and asks for one that is not there.

``python host.py NAME``, where NAME is a store of `plugins.toml`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from kv_sdk import HANDSHAKE, PLUGINS, Store

from hybridload import Loader
from hybridload.errors import RemoteError

CONFIG = Path(__file__).with_name("plugins.toml")


def main(name: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    with Loader(PLUGINS, handshake=HANDSHAKE, config=CONFIG) as loader:
        store = loader.load(name, Store)
        store.put("pi", b"3.14159")
        print(f"{name} ({loader.status(name).isolation}): pi is {store.get('pi')!r}")
        try:
            store.get("tau")
        except KeyError as error:  # a store written in Python
            print(f"tau: KeyError: {error}")
        except RemoteError as error:  # one in another language has no exceptions of Python's
            print(f"tau: {error.code}: {error}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "memory")
