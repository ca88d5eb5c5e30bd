"""Control characters of a text that a plugin wrote, escaped before a person's terminal sees them.

A terminal obeys what it is sent: colours are the least of it; others clear the screen, write the title or the
clipboard, or make a line look like another one. So whoever shows a plugin's text to people passes it through
`escape_controls`: every error of hybridload does (`PluginError`), the message of every log record that is made of a
plugin's output, and the command line. What programs compare is left as it is: results, the arguments of an exception
that is raised again as itself, the fields of a log record, and raw output for a file that the host gave.
"""

from __future__ import annotations

import re

# C0 but for tab, line feed and a carriage return before one; delete and C1; line separators; marks, embeddings,
# overrides and isolates of direction; surrogates, which most streams refuse.
_CONTROLS = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)


def escape_controls(text: str) -> str:
    r"""The text with its control characters written out, as ``\u001b``.

    Tabs and line ends stay. JSON stays the same JSON, as such characters only stand in its strings, where that is how
    they may be written.
    """
    return _CONTROLS.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
