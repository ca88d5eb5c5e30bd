"""plugins.toml, or the table `tool.hybridload` of a pyproject.toml, as typed settings.

- `chain`: isolations and fallback chains, wherever they are written.
- `settings`: the values that the rest of the library reads, and what overrides what.
- `schema`: what each key may hold, and what an error says that it expected.
- `reading`: from a file to settings.
"""

from hybridload.config.chain import ISOLATIONS, Chain, Isolation, isolation_chain
from hybridload.config.reading import load_settings
from hybridload.config.settings import HostSettings, PluginSettings, Settings

__all__ = [
    "ISOLATIONS",
    "Chain",
    "HostSettings",
    "Isolation",
    "PluginSettings",
    "Settings",
    "isolation_chain",
    "load_settings",
]
