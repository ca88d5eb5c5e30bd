"""The command line as a whole: its commands, and how each of them ends.

Output is for people unless `--json` is given; then each command prints JSON alone on standard output (one line per
item for a stream). Errors are one line on standard error; `--debug` adds the traceback and the whole message.
"""

from __future__ import annotations

import sys
import traceback

import typer

from hybridload.cli import interrupts
from hybridload.cli.calling import call_plugin
from hybridload.cli.listing import list_plugins
from hybridload.cli.output import ReaderGone, discarded_stdout, one_line
from hybridload.cli.probing import probe_plugin
from hybridload.cli.serving import serve_plugin
from hybridload.cli.session import CallFailed, Session
from hybridload.control_characters import escape_controls
from hybridload.errors import ConfigError, ContractError, PluginNotFound

FAILED, MISUSED, READER_GONE = 1, 2, 141

app = typer.Typer(
    help="Load, list, call, serve and probe plugins, whatever their isolation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("list")(list_plugins)
app.command("call")(call_plugin)
app.command("serve")(serve_plugin)
app.command("probe", context_settings={"allow_interspersed_args": False})(probe_plugin)


def run(arguments: list[str] | None = None) -> int:
    """Run one command line.

    :param arguments: without the program's name; those of the process by default.
    :returns: the exit code.
    """
    session = Session()
    try:
        result = app(args=arguments, prog_name="hybridload", standalone_mode=False, obj=session)
        return result if isinstance(result, int) else 0
    except typer.Exit as end:
        return end.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return interrupts.EXIT_CODE
    except (ReaderGone, BrokenPipeError):
        with discarded_stdout():
            return READER_GONE
    except Exception as error:
        return _report(error, session)


def _report(error: Exception, session: Session) -> int:
    code, shown = _judge(error)
    try:
        if session.debug:
            sys.stderr.write(escape_controls("".join(traceback.format_exception(error))))
        if shown:
            sys.stderr.write(f"hybridload: {escape_controls(shown) if session.debug else one_line(shown)}\n")
    except OSError:
        pass  # There is nobody to tell.
    return code


def _judge(error: Exception) -> tuple[int, str]:
    """The exit code for an error, and what to say."""
    if isinstance(error, CallFailed):
        assert error.__cause__ is not None
        return FAILED, _described(error.__cause__)
    # typer has click, or a copy of it, below it: what these raise about a command line is known by its shape.
    say = getattr(error, "format_message", None)
    if say is not None and hasattr(error, "exit_code"):
        context = getattr(error, "ctx", None)
        words = str(say())
        if not words:  # it was called without arguments, and has shown its help
            return int(error.exit_code), ""
        return int(error.exit_code), f"{words} Try {context.command_path if context else 'hybridload'} --help."
    if isinstance(error, ConfigError | PluginNotFound):
        return MISUSED, str(error)
    return MISUSED if isinstance(error, ContractError) else FAILED, _described(error)


def _described(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return f"{error.message}: {'; '.join(_described(each) for each in error.exceptions)}"
    words = str(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
