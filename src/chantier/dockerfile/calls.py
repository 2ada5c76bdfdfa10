# SPDX-License-Identifier: Apache-2.0
"""Questions about a Dockerfile instead of a build: outline, targets, lint, describe, convertllb (protocol.md 3.4).

Each answer is metadata: `result.json` for programs, `result.txt` for people, `version`; lint has `result.statuscode` too.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from chantier.errors import ChantierError, Source, SourceRange, UnsupportedError
from chantier.llb import SourceMap, raw_ops
from chantier.pb import ops_pb2 as pb
from chantier.spec import digest_of, dumps_indent

from .bridge import FrontendResult
from .convert import Converted
from .graph import Node
from .lint import Linter, LintWarning
from .parser import parse
from .scope import Ranges

OUTLINE = "frontend.outline"
TARGETS = "frontend.targets"
LINT = "frontend.lint"
CONVERT_LLB = "frontend.convertllb"
DESCRIBE = "frontend.subrequests.describe"

Convert = Callable[[Linter | None, bool], Awaitable[Converted]]
"""(linter, all_stages) -> the conversion for the first platform."""


async def answer(
    request: str, source: SourceMap, target: str, convert: Convert, make_linter: Callable[[], Linter]
) -> FrontendResult:
    """Raises UnsupportedError for a question nobody knows."""
    if request == DESCRIBE:
        return describe()
    if request == OUTLINE:
        return outline(await convert(None, False), source.data)
    if request == TARGETS:
        return targets(source.data, source.filename)
    if request == LINT:
        return await lint(source, target, convert, make_linter)
    if request == CONVERT_LLB:
        return convert_llb((await convert(None, False)).definition)
    raise UnsupportedError(f"unsupported request {request}")


def _result(version: str, value: Any, text: str | None = None, **more: bytes) -> FrontendResult:
    metadata = {"result.json": dumps_indent(value), "version": version.encode(), **more}
    if text is not None:
        metadata["result.txt"] = text.encode("utf-8", "surrogateescape")
    return FrontendResult(metadata=metadata)


# describe


def _named(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "description": ""} for name in names]


def _request(name: str, description: str, opts: Any) -> dict[str, Any]:
    return {
        "name": name,
        "version": "1.0.0",
        "type": "rpc",
        "description": description,
        "opts": opts,
        "inputs": None,
        "metadata": _named("result.json", "result.txt"),
        "refs": None,
    }


def describe() -> FrontendResult:
    target = [{"name": "target", "description": "Target build stage"}]
    requests = [
        _request(OUTLINE, "List all parameters current build target supports", target),
        _request(TARGETS, "List all targets current build supports", []),
        _request(DESCRIBE, "List available subrequest types", None),
    ]
    rows = [(r["name"].removeprefix("frontend."), r["version"], r["description"]) for r in requests]
    return _result("1.0.0", requests, columns([("NAME", "VERSION", "DESCRIPTION"), *rows], 1))


# targets


def targets(data: bytes, filename: str = "Dockerfile") -> FrontendResult:
    stages = parse(data, filename).stages
    listed = []
    rows = [("TARGET", "DESCRIPTION")]
    for number, stage in enumerate(stages):
        default = number == len(stages) - 1
        listed.append(
            _present(
                name=stage.stage_name,
                default=default,
                description=stage.doc,
                base=stage.base_name,
                platform=stage.platform,
                location=location(stage.ranges),
            )
        )
        name = f"{stage.stage_name} (default)" if default and stage.stage_name else "(default)" if default else stage.stage_name
        rows.append((name, stage.doc))
    return _result("1.0.0", {"targets": listed, "sources": [_base64(data)]}, columns(rows, 1))


# outline


def outline(made: Converted, data: bytes) -> FrontendResult:
    stage = made.target.stage
    assert stage is not None
    nodes = _below(made.target)
    args, secrets, ssh = _outline_args(nodes), _wanted(nodes, "secrets"), _wanted(nodes, "ssh")
    value = _present(
        name=stage.stage_name,
        description=stage.doc,
        args=args,
        secrets=secrets,
        ssh=ssh,
        sources=[_base64(data)],
    )
    return _result("1.0.0", value, _outline_text(value))


def _below(node: Node, seen: dict[Node, None] | None = None) -> list[Node]:
    """The node, its base and what that needs, then what it copies from: the order in which a name is looked for."""
    seen = {} if seen is None else seen
    if node not in seen:
        seen[node] = None
        if node.base is not None:
            _below(node.base, seen)
        for dep in node.deps:
            _below(dep, seen)
    return list(seen)


def _outline_args(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for node in nodes:
        for key in node.outline.used_with_deps():
            info = node.outline.all_args.get(key)
            if info is not None and key not in found:
                found[key] = {
                    "name": info.pair.key,
                    **_present(description=info.pair.doc, value=info.value, location=location(info.ranges)),
                }
    return _by_line(found.values())


def _wanted(nodes: Sequence[Node], kind: str) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for node in nodes:
        for key, wanted in getattr(node.outline, kind).items():
            found.setdefault(key, {"name": key, **_present(required=wanted.required, location=location(wanted.ranges))})
    return _by_line(found.values())


def _by_line(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    def line(item: dict[str, Any]) -> int:
        return int(item["location"]["ranges"][0]["start"]["line"]) if "location" in item else 0

    return sorted(items, key=line)


def _outline_text(value: Mapping[str, Any]) -> str:
    out = ""
    if "name" in value or "description" in value:
        rows = [("TARGET:", value.get("name") or "(default)")]
        if "description" in value:
            rows.append(("DESCRIPTION:", value["description"]))
        out += columns(rows, 1) + "\n"
    if "args" in value:
        rows3 = [(a["name"], a.get("value", ""), a.get("description", "")) for a in value["args"]]
        out += columns([("BUILD ARG", "VALUE", "DESCRIPTION"), *rows3], 3) + "\n"
    for key, title in (("secrets", "SECRET"), ("ssh", "SSH")):
        if key in value:
            rows = [(s["name"], "true" if s.get("required") else "") for s in value[key]]
            out += columns([(title, "REQUIRED"), *rows], 3) + "\n"
    return out


# lint


async def lint(source: SourceMap, target: str, convert: Convert, make_linter: Callable[[], Linter]) -> FrontendResult:
    """The findings of the build checks; without a target, of every stage. An error of the build is part of the answer."""
    error: dict[str, Any] | None = None
    linter = Linter()
    try:
        linter = make_linter()
        await convert(linter, not target)
    except ChantierError as err:
        ranges = _merged([r for place in err.sources for r in place.ranges])
        error = {"message": err.brief, "location": location(ranges) or {}}
    value: dict[str, Any] = {
        "warnings": [_warning(w) for w in linter.warnings] or None,
        "sources": [_source_info(source)],
    }
    if error is not None:
        value["buildError"] = error
    status = b"1" if linter.warnings or error is not None else b"0"
    return _result("1.0.0", value, _lint_text(linter.warnings, source), **{"result.statuscode": status})


def _warning(warning: LintWarning) -> dict[str, Any]:
    rule = warning.rule
    return {
        "ruleName": rule.name,
        **_present(description=rule.description, url=rule.url, detail=warning.detail),
        "location": location(warning.ranges) or {},
    }


def _lint_text(warnings: Sequence[LintWarning], source: SourceMap) -> str:
    out = ""
    for warning in sorted(warnings, key=lambda w: w.ranges[0].start if w.ranges else 0):
        rule = warning.rule
        out += f"\nWARNING: {rule.name}" + (f" - {rule.url}" if rule.url else "") + f"\n{warning.detail}\n"
        out += excerpt(Source(source.filename, source.data, warning.ranges))
    return out


def excerpt(source: Source) -> str:
    """The lines a finding is about, with a few around them; "" where there are none."""
    lines = source.data.decode("utf-8", "replace").split("\n")
    if not source.ranges:
        return ""
    first = start = min(r.start for r in source.ranges)
    end = max(r.end for r in source.ranges)
    if not 1 <= start <= len(lines):
        return ""
    end = min(end, len(lines))
    added, wanted = 0, 4 if start == end else 2
    while added < wanted:
        if start > 1:
            start -= 1
            added += 1
        if end < len(lines):
            end += 1
            added += 1
        added += 1
    rule = "-" * 20 + "\n"
    marked = {n for r in source.ranges for n in range(r.start, r.end + 1)}
    shown = "".join(f" {n:3} | {'>>>' if n in marked else '   '} {lines[n - 1]}\n" for n in range(start, end + 1))
    return f"{source.filename}:{first}\n{rule}{shown}{rule}"


def _merged(ranges: Sequence[SourceRange]) -> Ranges:
    """Ranges that touch a common line become one."""
    out: list[SourceRange] = []
    for r in sorted(ranges, key=lambda r: r.start):
        if out and r.start <= out[-1].end:
            last = out[-1]
            out[-1] = SourceRange(last.start, max(last.end, r.end), last.start_column, last.end_column)
        else:
            out.append(r)
    return tuple(out)


# convertllb


def convert_llb(definition: pb.Definition) -> FrontendResult:
    from google.protobuf import json_format

    ops = {}
    for raw in raw_ops(definition):
        op = pb.Op()
        op.ParseFromString(raw)
        ops[digest_of(raw)] = json_format.MessageToDict(op)
    value = {
        "def": dict(sorted(ops.items())),
        "metadata": {digest: _metadata(definition.metadata[digest]) for digest in sorted(definition.metadata)},
        "source": json_format.MessageToDict(definition.Source),
    }
    return _result("0.1.0", value)


# The JSON of messages as Go's encoding/json gives it: its own field names, empty ones left out.


def location(ranges: Iterable[SourceRange]) -> dict[str, Any]:
    listed = [{"start": _position(r.start, r.start_column), "end": _position(r.end, r.end_column)} for r in ranges]
    return {"ranges": listed} if listed else {}


def _position(line: int, column: int) -> dict[str, int]:
    return _present(line=line, character=column)


def _metadata(made: pb.OpMetadata) -> dict[str, Any]:
    group, limits = made.progress_group, made.linux_resources
    return _present(
        ignore_cache=made.ignore_cache,
        description=dict(sorted(made.description.items())),
        export_cache=_present(Value=made.export_cache.Value) if made.HasField("export_cache") else None,
        caps=dict(sorted(made.caps.items())),
        progress_group=_present(id=group.id, name=group.name, weak=group.weak) if made.HasField("progress_group") else None,
        linux_resources={field.name: value for field, value in limits.ListFields()},
    )


def _definition(definition: pb.Definition) -> dict[str, Any]:
    return _present(
        **{
            "def": [_base64(raw) for raw in raw_ops(definition)],
            "metadata": {digest: _metadata(definition.metadata[digest]) for digest in sorted(definition.metadata)},
            "Source": {} if definition.HasField("Source") else None,
        }
    )


def _source_info(source: SourceMap) -> dict[str, Any]:
    return _present(
        filename=source.filename,
        data=_base64(source.data),
        definition=_definition(source.definition) if source.definition is not None else None,
        language=source.language,
    )


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _present(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}


def columns(rows: Sequence[Sequence[str]], padding: int) -> str:
    """Cells under each other, as Go's tabwriter sets them: the last of a row is not filled up."""
    widths = [max(len(row[i]) for row in rows) + padding for i in range(len(rows[0]) - 1)]
    return "".join("".join(cell.ljust(w) for cell, w in zip(row, widths, strict=False)) + row[-1] + "\n" for row in rows)


__all__ = [
    "CONVERT_LLB",
    "DESCRIBE",
    "LINT",
    "OUTLINE",
    "TARGETS",
    "answer",
    "columns",
    "convert_llb",
    "describe",
    "excerpt",
    "lint",
    "location",
    "outline",
    "targets",
]
