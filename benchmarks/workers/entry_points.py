"""Load one of many installed entry points, in a fresh interpreter: seconds from the import of the library on.

entry_points.py hybridload|stevedore|pluggy GROUP NAME
"""

from __future__ import annotations

import sys
import time


def by_hybridload(group: str, name: str) -> object:
    from benchmarks.workers.plugin import HANDSHAKE, PLUGINS
    from hybridload import Loader

    with Loader(PLUGINS, handshake=HANDSHAKE, group=group) as loader:
        return loader.load(name, PLUGINS["greeter"].interface)  # type: ignore[union-attr]


def by_stevedore(group: str, name: str) -> object:
    from stevedore.driver import DriverManager

    return DriverManager(group, name, invoke_on_load=True).driver


def by_pluggy(group: str, name: str) -> object:
    import pluggy

    manager = pluggy.PluginManager("benchmark")
    if manager.load_setuptools_entrypoints(group, name) != 1:
        raise AssertionError("not found")
    return manager.get_plugin(name)


if __name__ == "__main__":
    library, group, name = sys.argv[1:]
    load = {"hybridload": by_hybridload, "stevedore": by_stevedore, "pluggy": by_pluggy}[library]
    began = time.perf_counter()
    found = load(group, name)
    took = time.perf_counter() - began
    assert found is not None
    print(took)
