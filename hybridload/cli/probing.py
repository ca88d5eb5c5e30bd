"""`hybridload probe`: what a go-plugin binary speaks that nobody here has ever seen."""

from __future__ import annotations

import dataclasses
import json as _json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybridload.cli.output import Results, one_line
from hybridload.cli.session import CallFailed, DebugOption, JsonOption, Session
from hybridload.cli.values import given_text, read_json
from hybridload.deadlines import check_seconds
from hybridload.errors import ConfigError, CookieMismatch, PluginError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybridload.goplugin.probe import Probe, ProbeReport, ServiceReport


def probe_plugin(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="The plugin's program and its arguments.")],
    cookie: Annotated[
        str | None, typer.Option("--cookie", metavar="KEY=VALUE", help="The magic cookie that its host would set.")
    ] = None,
    app_version: Annotated[
        int | None, typer.Option("--app-version", min=0, help="Offer this version alone, not 0 to 99.")
    ] = None,
    no_mtls: Annotated[bool, typer.Option("--no-mtls", help="Do not ask for TLS.")] = False,
    call: Annotated[
        str | None, typer.Option("--call", metavar="pkg.Service/Method", help="Call a method instead of reporting.")
    ] = None,
    data: Annotated[
        str, typer.Option("--data", metavar="JSON", help="Its request; a list for a stream; - reads standard input.")
    ] = "{}",
    proto: Annotated[
        Path | None, typer.Option("--proto", help="A .proto file, where there is no server reflection.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Over net/rpc: see whether it dispenses this. May be repeated.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds for the start, and as many for all answers, or for the call.")
    ] = 30.0,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Start any go-plugin binary, tell what it speaks, and end it. With --call, call it instead, as grpcurl does.

    What the plugin writes on standard error, and what it prints, goes to standard error. Responses are JSON, one a line
    with --json.
    """
    session: Session = context.obj
    session.begin(debug)
    from hybridload.goplugin.probe import Probe

    name = Path(command[0]).name
    logger = logging.getLogger(f"hybridload.plugin.{name}")
    logger.setLevel(logging.DEBUG)
    request = None if call is None else _read_data(data)
    check_seconds("--timeout", timeout)
    probe = Probe(
        command,
        cookie=None if cookie is None else _read_cookie(cookie),
        app_version=app_version,
        auto_mtls=not no_mtls,
        proto=proto,
        kinds=kind or (),
        start_timeout=timeout,
        logger=logger,
    )
    with Results() as results:
        try:
            probe.start()
        except CookieMismatch as error:
            raise _ask_for_cookie(error, cookie) from error
        try:
            if call is None:
                _print_report(results, probe.report(timeout), json)
            else:
                _print_responses(results, probe, call, request, timeout, json)
        finally:
            probe.close()


def _print_responses(results: Results, probe: Probe, method: str, data: Any, timeout: float, json: bool) -> None:
    responses = probe.call(method, data, timeout)
    while True:
        try:
            response = next(responses, None)
        except ConfigError:
            raise
        except PluginError as error:
            raise CallFailed from error
        if response is None:
            return
        results.line(_json.dumps(response, ensure_ascii=False, indent=None if json else 2))


def _print_report(results: Results, report: ProbeReport, json: bool) -> None:
    if json:
        results.line(_json.dumps(dataclasses.asdict(report), ensure_ascii=False))
        return
    rows = list(_rows(report))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        results.line(f"{name:{width}}  {one_line(value)}".rstrip())
    for line in _service_lines(report):
        results.line(line.replace("\n", " "))


def _rows(report: ProbeReport) -> Iterator[tuple[str, str]]:
    yield "command", " ".join(report.command)
    yield "line", _shortened(report.line)
    yield "core protocol", str(report.core_version)
    yield "app version", str(report.app_version)
    yield "protocol", report.protocol
    yield "address", f"{report.network} {report.address}"
    yield "TLS", _tls(report)
    if report.certificate is not None:
        yield "certificate", report.certificate
    if report.protocol != "grpc":
        yield "health", report.health or "unknown"
        yield "services", "unknown: net/rpc has nothing that lists them; ask for a kind with --kind NAME"
        for kind, offered in (report.kinds or {}).items():
            yield f"kind {kind}", "yes" if offered else "no"
        return
    yield "multiplexing", {True: "yes", False: "no", None: "not known to it"}[report.multiplex]
    yield "health", report.health or "unknown"
    for what in ("broker", "stdio", "controller"):
        yield what, {True: "yes", False: "no", None: "unknown"}[getattr(report, what)]
    yield "reflection", ", ".join(report.reflection) or "no (give its .proto file with --proto)"


def _tls(report: ProbeReport) -> str:
    if report.tls == "refused":
        reason = f" ({report.tls_refusal})" if report.tls_refusal else ""
        return f"no: AutoMTLS was asked for in vain{reason}"
    return {"auto-mtls": "yes: AutoMTLS, each side checks the other's certificate", "off": "not asked for"}[report.tls]


def _service_lines(report: ProbeReport) -> Iterator[str]:
    for service in report.services:
        if not service.protocol:
            yield ""
            yield from _service(service)
    protocols = [service.name for service in report.services if service.protocol]
    if protocols:
        yield ""
        yield f"besides: {', '.join(protocols)}"
    if report.messages:
        yield ""
    for name, fields in (report.messages or {}).items():
        inside = "; ".join(f"{type_} {field}" for field, type_ in fields.items())
        yield f"message {name} {{ {inside} }}" if inside else f"message {name} {{}}"


def _service(service: ServiceReport) -> Iterator[str]:
    reason = "not described" if service.problem is None else service.problem
    yield f"service {service.name}" + ("" if service.described else f" ({reason})")
    for method in service.methods:
        request = "stream " * (method.kind in ("client stream", "bidirectional stream")) + method.request
        response = "stream " * (method.kind in ("server stream", "bidirectional stream")) + method.response
        yield f"  {method.name}({request}) returns ({response})"


def _shortened(line: str) -> str:
    """The handshake line without the middle of its certificate."""
    fields = line.split("|")
    if len(fields) > 5 and len(fields[5]) > 40:
        fields[5] = f"{fields[5][:16]}...{fields[5][-8:]}"
    return "|".join(fields)


def _read_cookie(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ConfigError(f"--cookie {text!r}: give KEY=VALUE.")
    return key, value


def _read_data(text: str) -> Any:
    return read_json(given_text(text), "--data is no JSON", "give a message, or a list of them")


def _ask_for_cookie(error: CookieMismatch, given: str | None) -> PluginError:
    advice = (
        "Pass it with --cookie KEY=VALUE; a host's source has it as MagicCookieKey and MagicCookieValue."
        if given is None
        else "Pass another one with --cookie KEY=VALUE."
    )
    return CookieMismatch(f"{error}\n{advice}", plugin=error.plugin, returncode=error.returncode, stderr=error.stderr)
