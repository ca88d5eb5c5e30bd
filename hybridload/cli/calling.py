"""`hybridload call`: one method of one plugin, from a shell."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any

import typer

from hybridload.cli.output import ReaderGone, Results
from hybridload.cli.session import (
    CallFailed,
    ConfigOption,
    DebugOption,
    GroupOption,
    HandshakeOption,
    JsonOption,
    KindOption,
    PluginsOption,
    Session,
    interface_of,
    open_loader,
    read_settings,
)
from hybridload.cli.values import find_method, given_text, read_arguments, to_json
from hybridload.config import isolation_chain
from hybridload.contract import Method

IsolationOption = Annotated[
    str | None,
    typer.Option(
        "--isolation", "-i", help="in-process, subprocess, external, or several with commas: a fallback chain."
    ),
]


def call_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The plugin.")],
    method: Annotated[str, typer.Argument(help="The method of its interface.")],
    arguments: Annotated[
        str | None,
        typer.Argument(
            metavar="[JSON-ARGS]", help="A JSON list of arguments, or an object of named ones; - reads standard input."
        ),
    ] = None,
    config: ConfigOption = None,
    group: GroupOption = None,
    plugins: PluginsOption = None,
    handshake: HandshakeOption = None,
    kind: KindOption = None,
    isolation: IsolationOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Load a plugin, call one of its methods, print what it returns, end it.

    Standard output has the result alone: what the plugin prints goes to standard error. In arguments and with --json,
    bytes are base64, times ISO 8601, enum members their values, a stream of arguments is a list, a stream of results
    one line for each.
    """
    session: Session = context.obj
    session.begin(debug)
    # Where the plugin runs elsewhere, what it prints arrives as log records of these; in-process it is just printed.
    for channel in ("stdout", "stderr"):
        logging.getLogger(f"hybridload.plugin.{name}.{channel}").setLevel(logging.INFO)
    chain = (
        None if isolation is None else isolation_chain([each.strip() for each in isolation.split(",")], "--isolation")
    )
    text = None if arguments is None else given_text(arguments)
    with Results() as results, open_loader(config, group, plugins, handshake) as loader:
        handle = loader.load(name, interface_of(kind, plugins, handshake, read_settings(config)), isolation=chain)
        found = find_method(handle, method, plugin=name)
        args, kwargs = read_arguments(found, text, plugin=name)
        printer = _Printer(results, found, json)
        try:
            printer.print(getattr(handle, method)(*args, **kwargs))
        except ReaderGone:
            raise
        except Exception as error:
            raise CallFailed from error


class _Printer:
    """Prints what a method returned, by what its interface says of it."""

    def __init__(self, results: Results, method: Method, json: bool) -> None:
        self._results = results
        self._method = method
        self._json = json

    def print(self, result: Any) -> None:
        if hasattr(result, "__await__") or isinstance(result, AsyncIterator):
            import asyncio

            asyncio.run(self._print_async(result))
        elif self._method.kind.streams_result:
            self._items(result)
        else:
            self._value(result)

    def _items(self, items: Iterable[Any]) -> None:
        try:
            for item in items:
                self._value(item)
        finally:
            # Ends the call, if it was not at its end: the plugin would be waited for otherwise.
            getattr(items, "close", lambda: None)()

    async def _print_async(self, result: Any) -> None:
        value = await result if hasattr(result, "__await__") else result
        if not self._method.kind.streams_result:
            self._value(value)
        elif not isinstance(value, AsyncIterator):
            self._items(value)
        else:
            try:
                async for item in value:
                    self._value(item)
            finally:
                if hasattr(value, "aclose"):
                    await value.aclose()

    def _value(self, value: Any) -> None:
        if self._json:
            self._results.line(to_json(value))
        elif isinstance(value, str | bytes):
            self._results.value(value)
        elif value is not None or self._method.result is not None:
            self._results.line(to_json(value))
