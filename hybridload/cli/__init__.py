"""The command line: `hybridload list`, `call`, `serve`, `probe`.

Exit codes: 0 done; 1 the plugin or the call failed; 2 the command line or the configuration is wrong; and as for other
programs 130 after Ctrl-C, 141 when the reader of the output went away.
"""

from __future__ import annotations

import sys

from hybridload.cli.interrupts import EXIT_CODE, Interrupts


def main() -> None:
    """Run the command line; the console script's entry point."""
    interrupts = Interrupts()
    try:
        interrupts.take_up()
        code = _run()
        interrupts.done()
    except BaseException as error:
        # An import may have turned the interrupt into an error of its own.
        if not interrupts.came and not isinstance(error, KeyboardInterrupt):
            raise
        code = EXIT_CODE
    sys.exit(EXIT_CODE if interrupts.came else code)


def _run() -> int:
    try:
        from hybridload.cli.app import run
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich", "click"):
            raise
        sys.stderr.write(
            f"hybridload: the command line needs {missing}, which is not installed: pip install 'hybridload[cli]'\n"
        )
        return 2
    return run()
