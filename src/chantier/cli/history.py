# SPDX-License-Identifier: Apache-2.0
"""`chantier history`: the builds of this root, their logs, and why their steps ran."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from chantier.driver.embedded import Embedded
from chantier.driver.select import EMBEDDED, find_builder
from chantier.errors import NotFoundError, UsageError
from chantier.values import asdict

from .args import Parser
from .builders import add_builder

if TYPE_CHECKING:
    from collections.abc import Callable

_EXAMPLE = """chantier history ls --filter status=error
chantier history inspect
chantier history inspect attachment --type provenance
chantier history logs ^1 --progress=plain
chantier history trace --format otlp > trace.json
chantier history export -o build.tar.gz"""
_SERVED = "chantier.registry.blobs"


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier history", "Records and logs of builds: of a builder, or of a root on this machine.", _EXAMPLE)
    add = parser.add_argument
    add("what", choices=tuple(_COMMANDS))
    add("ref", nargs="*", help="builds: a reference, its beginning, or ^N for the N-th before the newest (default: the newest);"
        " `inspect attachment [REF [DIGEST]]` writes what is kept with one")  # fmt: skip
    add_builder(parser)
    add("--all", action="store_true", help="all of them (rm, export)")
    add("--config", default=None, metavar="FILE", help="the config file to use instead of the one found")
    add("--file", "-f", default="-", metavar="FILE", help="what to import")
    add("--filter", action="append", default=[], metavar="KEY=VALUE", help="ls: status, ref, name")
    add("--format", default="", metavar="FORMAT", help="table, json, or a template (ls); pretty or json (inspect);"
        " tree, json or otlp (trace)")  # fmt: skip
    add("--no-trunc", action="store_true", help="ls: names as they are")
    add("--output", "-o", default="-", metavar="FILE", help="where to export to")
    add("--platform", default="", metavar="PLATFORM", help="inspect attachment: of which result")
    add("--progress", default="plain", metavar="MODE", help="logs: plain or rawjson")
    add("--quiet", "-q", action="store_true", help="ls: references alone")
    add("--root", default=None, metavar="DIR", help="where the engine keeps its state")
    add("--type", default="", metavar="TYPE", help="inspect attachment: index, manifest, image, provenance, sbom, or a media or"
        " predicate type")  # fmt: skip
    given = parser.parse(args)
    if given.root is None and given.config is None and (builder := find_builder(given.builder)) is not None:
        from chantier.driver.history import RemoteHistory

        return _COMMANDS[given.what](RemoteHistory(builder), given)
    if given.builder not in (None, EMBEDDED):
        raise UsageError("--root and --config are for the embedded engine", hint="add --builder embedded")
    with Embedded(root=given.root, config=given.config) as driver:
        return _COMMANDS[given.what](driver.history(), given)


def _ls(history: Any, given: Any) -> int:
    from .rows import table, template

    records = [record for record in history.records() if _matches(record, given.filter)]
    if given.quiet:
        sys.stdout.write("".join(record.ref + "\n" for record in records))
        return 0
    rows = [_row(record) for record in records]
    if given.format not in ("", "table"):
        sys.stdout.write(template(given.format, rows))
        return 0
    cells = [(r["Ref"], _short(r["Name"], full=given.no_trunc), r["Status"], r["CreatedAt"], r["Duration"]) for r in rows]
    sys.stdout.write(table(("BUILD ID", "NAME", "STATUS", "CREATED AT", "DURATION"), cells))
    return 0


def _attachment(history: Any, given: Any) -> int:
    """The bytes of one attachment on standard output: the first that is all that was asked for."""
    ref, digest = [*given.ref[1:], "", ""][:2]
    if len(given.ref) > 3:
        raise UsageError("history inspect attachment takes one build and one digest")
    if not (digest or given.type or given.platform):
        raise UsageError(
            "at least one of --type, --platform or DIGEST must be specified",
            hint="chantier history inspect names the attachments of a build",
        )
    record = history.get(ref)
    for one in record.shown_attachments():
        if (
            digest in ("", one.digest)
            and (not given.type or one.is_a(given.type))
            and (not given.platform or given.platform == one.platform)
        ):
            sys.stdout.flush()
            sys.stdout.buffer.write(history.blob(record.ref, one.digest))
            sys.stdout.buffer.flush()
            return 0
    raise NotFoundError(
        f"no matching attachment found for ref {ref or record.ref!r}", hint=f"chantier history inspect {record.ref} names them"
    )


def _inspect(history: Any, given: Any) -> int:
    if given.ref[:1] == ["attachment"]:
        return _attachment(history, given)
    for ref in given.ref or [""]:
        record = history.get(ref)
        if given.format == "json":
            sys.stdout.write(json.dumps(asdict(record), indent=2, default=str) + "\n")
        else:
            sys.stdout.write(_pretty(record))
    return 0


def _logs(history: Any, given: Any) -> int:
    from chantier.display.show import open_display

    for ref in given.ref or [""]:
        record = history.get(ref)
        shown = open_display(given.progress, sys.stdout, explain=True)
        try:
            for event in history.events(record.ref):
                shown.emit(event)
        finally:
            shown.close()
        if record.error:
            sys.stderr.write(f"ERROR: {record.error}\n")
    return 0


def _trace(history: Any, given: Any) -> int:
    """When what happened. As a tree, as it is kept, or for a collector or a viewer of traces."""
    from chantier.display.trace import otlp, read_spans, tree
    from chantier.record import TRACE_TYPE

    if len(given.ref) > 1:
        raise UsageError("history trace takes one build")
    if given.format not in ("", "tree", "json", "otlp"):
        raise UsageError(f"unknown format {given.format!r} of a trace", hint="one of tree, json and otlp")
    record = history.trace(*given.ref)
    kept = record.attached(TRACE_TYPE)
    if kept is None:
        raise NotFoundError(f"no trace is kept of build {record.ref}", hint="its builder does not record traces")
    data = history.blob(record.ref, kept.digest)
    if given.format == "json":
        sys.stdout.write(data.decode("utf-8", "replace"))
    elif given.format == "otlp":
        sys.stdout.write(json.dumps(otlp(read_spans(data))) + "\n")
    else:
        sys.stdout.writelines(tree(read_spans(data)))
    return 0


def _open(history: Any, given: Any) -> int:
    """A page of the record, in whatever shows pages here; its path is printed."""
    import html
    import tempfile
    import webbrowser

    record = history.get(*given.ref[:1])
    with tempfile.NamedTemporaryFile("w", suffix=".html", prefix="chantier-", delete=False) as file:
        text = html.escape(_pretty(record))
        file.write(f"<!doctype html><meta charset=utf-8><title>{html.escape(record.name)}</title><pre>{text}</pre>\n")
    sys.stdout.write(file.name + "\n")
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin":
        webbrowser.open(f"file://{file.name}")
    return 0


def _rm(history: Any, given: Any) -> int:
    if bool(given.ref) == given.all:
        raise UsageError("history rm requires references or --all", hint="chantier history rm REF…")
    for ref in given.ref or [record.ref for record in history.records() if record.status != "running"]:
        history.remove(ref)
    return 0


def _export(history: Any, given: Any) -> int:
    refs = [record.ref for record in history.records() if record.status != "running"] if given.all else given.ref or [""]
    if given.output == "-":
        if sys.stdout.isatty():
            raise UsageError("cowardly refusing to save to a terminal", hint="give a file with -o, or redirect")
        history.export(refs, sys.stdout.buffer)
        return 0
    part = f"{given.output}.part"
    try:
        with open(part, "wb") as file:
            history.export(refs, file)
        os.replace(part, given.output)
    except BaseException:
        if os.path.exists(part):
            os.unlink(part)
        raise
    return 0


def _import(history: Any, given: Any) -> int:
    if given.file == "-":
        taken = history.import_(sys.stdin.buffer)
    else:
        try:
            with open(given.file, "rb") as file:
                taken = history.import_(file)
        except FileNotFoundError as err:
            raise UsageError(f"failed to open {given.file}: no such file or directory") from err
    sys.stdout.write("".join(ref + "\n" for ref in taken))
    return 0


_COMMANDS: Mapping[str, Callable[[Any, Any], int]] = {
    "export": _export,
    "import": _import,
    "inspect": _inspect,
    "logs": _logs,
    "ls": _ls,
    "open": _open,
    "rm": _rm,
    "trace": _trace,
}


def _matches(record: Any, filters: Sequence[str]) -> bool:
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals or key not in ("status", "ref", "name"):
            raise UsageError(f"invalid filter {text!r}", hint="filters are status=, ref= and name=")
        if value not in (getattr(record, key), "") and not (key != "status" and value in getattr(record, key)):
            return False
    return True


def _row(record: Any) -> dict[str, Any]:
    return {
        "Ref": record.ref,
        "Name": record.name,
        "Status": record.status.capitalize(),
        "CreatedAt": f"{_age(record.started)} ago",
        "Duration": _duration(record.duration_ns),
        "Steps": record.total,
        "CachedSteps": record.cached,
        "Warnings": record.warnings,
        "Error": record.error,
    }


def _pretty(record: Any) -> str:
    lines = [
        f"Name:       {record.name}",
        f"Build ref:  {record.ref}",
        f"Status:     {record.status}",
        f"Started:    {datetime.fromtimestamp(record.started / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC",
        f"Duration:   {_duration(record.duration_ns)}",
        f"Steps:      {record.total} ({record.cached} cached, {record.done} completed, {record.warnings} warnings)",
    ]
    if record.error:
        lines.append(f"Error:      {record.error}")
    for title, values in (("Options", record.attrs), ("Answer", {k: v for k, v in record.response.items() if k != _SERVED})):
        if values:
            lines += ["", f"{title}:", *(f"  {key}: {values[key]}" for key in sorted(values))]
    for title, some in (("Outputs", record.exporters), ("Cache from", record.cache_imports), ("Cache to", record.cache_exports)):
        if some:
            lines += ["", f"{title}:", *(f"  {kind} {_attrs(attrs)}".rstrip() for kind, attrs in some)]
    ran = [step for step in record.steps if step.outcome in ("miss", "ignored")]
    if ran:
        lines += ["", "Steps that ran, and why:"]
        for step in ran:
            lines += [f"  {step.name}", f"    {step.reason}"]
    hosts = _hosts(record.response.get(_SERVED, ""))
    if hosts:
        lines += [
            "",
            "Fetched from:",
            *(f"  {host}: {count} blobs, {size} bytes" for host, (count, size) in sorted(hosts.items())),
        ]
    attachments = record.shown_attachments()
    if attachments:
        lines += ["", "Attachments:", *(f"  {one.digest} {one.platform or '-'} {one.type}" for one in attachments)]
    made_of = (record.provenance.get("buildDefinition") or {}).get("resolvedDependencies") or []
    if made_of:
        lines += ["", "Materials:"]
        lines += [f"  {one['uri']} " + " ".join(f"{k}:{v}" for k, v in one.get("digest", {}).items()) for one in made_of]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _attrs(attrs: Mapping[str, str]) -> str:
    return ",".join(f"{key}={attrs[key]}" for key in sorted(attrs))


def _hosts(text: str) -> dict[str, tuple[int, int]]:
    try:
        found = json.loads(base64.b64decode(text)) if text else {}
    except ValueError:
        return {}
    hosts: dict[str, tuple[int, int]] = {}
    for one in found.values():
        count, size = hosts.get(one["host"], (0, 0))
        hosts[one["host"]] = (count + 1, size + one.get("bytes", 0))
    return hosts


def _age(started: int) -> str:
    from chantier.display.human import human_duration

    return human_duration(max(0.0, time.time() - started / 1e9))


def _duration(ns: int) -> str:
    seconds = ns / 1e9
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest}s"


def _short(name: str, *, full: bool) -> str:
    return name if full or len(name) <= 40 else "…" + name[-39:]
