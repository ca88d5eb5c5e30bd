"""Names and where they come from: entry points, the configuration, folders.

- `candidate`: one place that a name can come from.
- `installed`: the entry points of installed distributions.
- `folders`: programs in folders.
- `catalogue`: all of them together, which one serves what, and what became of it.
"""

from hybridload.sources.candidate import Candidate
from hybridload.sources.catalogue import Resolution, Sources

__all__ = ["Candidate", "Resolution", "Sources"]
