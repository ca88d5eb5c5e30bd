"""`hybridload serve`: an installed entry point as a go-plugin plugin."""

from __future__ import annotations

from typing import Annotated

import typer

from hybridload.cli.session import (
    ConfigOption,
    DebugOption,
    GroupOption,
    HandshakeOption,
    KindOption,
    PluginsOption,
    Session,
    given,
    read_settings,
)
from hybridload.cli.values import read_options
from hybridload.errors import ConfigError
from hybridload.limits import MAX_MESSAGE


def serve_plugin(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="GROUP:NAME", help="An entry point: its group and its name. The name alone where the group is set."
        ),
    ],
    config: ConfigOption = None,
    group: GroupOption = None,
    plugins: PluginsOption = None,
    handshake: HandshakeOption = None,
    kind: KindOption = None,
    options: Annotated[str | None, typer.Option("--options", help="Its options, as a JSON object.")] = None,
    outlive_host: Annotated[
        bool, typer.Option("--outlive-host", help="Stay when the host dies, to be reattached.")
    ] = False,
    protocol: Annotated[
        list[str] | None,
        typer.Option("--protocol", help="grpc or netrpc; may be repeated, the first that will do is taken."),
    ] = None,
    by_hand: Annotated[
        bool,
        typer.Option(
            "--by-hand", help="Without a host: serve until Ctrl-C and print what to set for one (for a debugger)."
        ),
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Serve an installed entry point to the go-plugin host that starts this command.

    Give this command line to a Go host as its plugin's command. With --by-hand it is started by a person, and a
    hybridload host takes it up that has HYBRIDLOAD_REATTACH set to what is printed.
    """
    session: Session = context.obj
    session.begin(debug, logs=False)
    from hybridload.goplugin.launch import serve_entry_point

    settings = read_settings(config)
    group, name = _entry_point(target, group or settings.host.group)
    found = settings.for_plugin(name)
    serve_entry_point(
        group,
        name,
        plugins=given(plugins, settings.host.plugins, "plugins"),
        handshake=given(handshake, settings.host.handshake, "handshake"),
        kind=kind or found.kind,
        options=dict(found.options) if options is None else read_options(options),
        outlive_host=outlive_host,
        by_hand=by_hand,
        max_message=found.max_message or MAX_MESSAGE,
        protocols=protocol or found.protocols or ("grpc", "netrpc"),
    )


def _entry_point(target: str, default_group: str | None) -> tuple[str, str]:
    group, _, name = target.rpartition(":")
    group = group or default_group or ""
    if not (group and name):
        raise ConfigError(f"{target!r} is no entry point: give GROUP:NAME, such as hybridload.greeters:hello.")
    return group, name
