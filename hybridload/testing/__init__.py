"""For the tests of those who write plugins and hosts.

A plugin's implementation can be tested as the object that it is. What that leaves out is how it travels: whether its
arguments, results and exceptions come through, and what its output does. `in_this_process` serves it as a plugin
without starting a process, so that a debugger and a coverage tool see both sides, and gives the client of it.
"""

from __future__ import annotations

from hybridload.testing.in_this_process import in_this_process

__all__ = ["in_this_process"]
