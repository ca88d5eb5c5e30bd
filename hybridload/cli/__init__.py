"""The command line: `hybridload list`, `call`, `serve`.

Exit codes: 0 done; 1 the plugin or the call failed; 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; the console script's entry point."""
    try:
        from hybridload.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        sys.stderr.write(
            f"The command line needs {error.name}, which is not installed: pip install 'hybridload[cli]'\n"
        )
        sys.exit(2)
    sys.exit(run())
