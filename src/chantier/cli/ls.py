# SPDX-License-Identifier: Apache-2.0
"""`chantier ls`: builders, their nodes, and what these say of themselves."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .args import Parser
from .builders import add_timeout, run_async, seconds
from .rows import table, template

if TYPE_CHECKING:
    from chantier.client.worker import Worker
    from chantier.driver.builder import Builder
    from chantier.driver.group import Group, Node
    from chantier.driver.node import Facts

_EXAMPLE = """chantier ls
chantier ls --format '{{.Name}}: {{.Status}}'
chantier ls --format json"""
_NEVER = "0001-01-01T00:00:00Z"


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier ls", "List builders.", _EXAMPLE)
    parser.add_argument("--format", default="table", help="table, json, or a template")
    parser.add_argument("--no-trunc", action="store_true", help="show all platforms")
    add_timeout(parser)
    given = parser.parse(args)
    entries = run_async(_entries(seconds(given.timeout)))
    if given.format == "json":
        sys.stdout.write(template("json", [entry.json() for entry in entries]))
        return 0
    rows = [row for entry in entries for row in entry.rows(full=given.no_trunc, marks=given.format == "table")]
    if given.format != "table":
        form = given.format.removeprefix("table ")
        sys.stdout.write(template(form, rows))
        return 0
    columns = ("Name", "DriverEndpoint", "Status", "Buildkit", "Platforms")
    header = ("NAME/NODE", "DRIVER/ENDPOINT", "STATUS", "BUILDKIT", "PLATFORMS")
    sys.stdout.write(table(header, [[str(row[c]) for c in columns] for row in rows]))
    sys.stdout.flush()
    errors = [line for entry in entries for line in entry.errors()]
    if errors:
        sys.stderr.write("\n" + "".join(line + "\n" for line in errors))
    return 0


class Entry:
    """One builder as it is listed. `problem` is why it could not be opened at all."""

    def __init__(self, group: Group, facts: Sequence[Facts], *, current: bool, activity: str, problem: str = "") -> None:
        self.group = group
        self.facts = facts
        self.current = current
        self.activity = activity
        self.problem = problem

    def rows(self, *, full: bool, marks: bool) -> list[dict[str, Any]]:
        failed = bool(self.problem)
        first = {
            "Name": self.group.name + ("*" if self.current and marks else ""),
            "DriverEndpoint": self.group.driver,
            "LastActivity": self.activity,
            "Status": "error" if failed else "",
            "Buildkit": "",
            "Platforms": "",
            "Error": self.problem,
        }
        rows = [first]
        for node, fact in zip(self.group.nodes, self.facts, strict=False):
            mark = " \\_ " if marks else ""
            rows.append(
                {
                    "Name": mark + node.name,
                    "DriverEndpoint": mark + node.endpoint,
                    "LastActivity": self.activity,
                    "Status": "error" if fact.error else fact.status,
                    "Buildkit": fact.version,
                    "Platforms": _platforms(node, fact, full=full),
                    "Error": fact.error,
                }
            )
        return rows

    def errors(self) -> list[str]:
        if self.problem:
            return [f"Cannot load builder {self.group.name}: {self.problem}"]
        pairs = zip(self.group.nodes, self.facts, strict=False)
        return [f"Failed to get status for {self.group.name} ({node.name}): {fact.error}" for node, fact in pairs if fact.error]

    def json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "Current": self.current,
            "Driver": self.group.driver,
            "Dynamic": self.group.dynamic,
            "LastActivity": self.activity or _NEVER,
            "Name": self.group.name,
            "Nodes": [_node_json(n, f) for n, f in zip(self.group.nodes, self.facts, strict=False)],
        }
        if self.problem:
            out["Err"] = self.problem
        return out


def _node_json(node: Node, fact: Facts) -> dict[str, Any]:
    from .platforms import named

    out: dict[str, Any] = {"Name": node.name, "Endpoint": node.endpoint}
    if node.flags:
        out["Flags"] = list(node.flags)
    if node.driver_opts:
        out["DriverOpts"] = dict(node.driver_opts)
    if node.files:
        import base64

        out["Files"] = {k: base64.b64encode(v).decode() for k, v in node.files.items()}
    if fact.status:
        out["Status"] = "error" if fact.error else fact.status
    if fact.version:
        out["Version"] = fact.version
    if fact.error:
        out["Err"] = fact.error
    workers: Sequence[Worker] = fact.workers  # type: ignore[assignment]
    if workers:
        out["IDs"] = sorted(w.id for w in workers)
    platforms = [p.rstrip("*") for p in named(node.platforms or (), [p for w in workers for p in w.platforms])]
    if platforms:
        out["Platforms"] = platforms
    if workers:
        out["GCPolicy"] = [_rule(r) for r in workers[0].gc]
        out["Labels"] = dict(workers[0].labels)
    return out


def _rule(rule: Any) -> Mapping[str, Any]:
    return {
        "all": rule.all,
        "filter": list(rule.filters),
        "keepDuration": rule.keep_duration,
        "reservedSpace": rule.reserved_space,
        "maxUsedSpace": rule.max_used_space,
        "minFreeSpace": rule.min_free_space,
    }


def _platforms(node: Node, fact: Facts, *, full: bool) -> str:
    from .platforms import folded, named

    workers: Sequence[Worker] = fact.workers  # type: ignore[assignment]
    able = [p for w in workers for p in w.platforms]
    return ", ".join(named(node.platforms or (), able)) if full else folded(node.platforms or (), able)


async def _entries(timeout_s: float) -> list[Entry]:
    from chantier.driver.context import Contexts
    from chantier.driver.select import EMBEDDED, implicit_group
    from chantier.driver.store import Store

    store, contexts = Store.open(os.environ), Contexts(os.environ)
    chosen = os.environ.get("BUILDX_BUILDER", "")
    if not chosen:
        current = store.current(contexts.key())
        chosen = current.name if current is not None else EMBEDDED
    groups = sorted(store.groups(), key=lambda g: g.name)
    names = {g.name.lower() for g in groups}
    implicit = [implicit_group(name) for name in contexts.names() if name.lower() not in names]
    entries = await asyncio.gather(
        *(_entry(g, store, chosen, timeout_s, implicit=False) for g in groups),
        *(_entry(g, store, chosen, timeout_s, implicit=True) for g in implicit),
    )
    ordered = [e for e in entries if not e.problem] + [e for e in entries if e.problem]
    return [_embedded(current=chosen == EMBEDDED), *ordered]


async def _entry(group: Group, store: Any, chosen: str, timeout_s: float, *, implicit: bool) -> Entry:
    from chantier.driver.builder import Builder
    from chantier.errors import ChantierError

    current = group.name.lower() == chosen.lower()
    at = store.last_activity(group.name)
    activity = at.strftime("%Y-%m-%dT%H:%M:%SZ") if at is not None else ""
    try:
        builder = Builder(group, env=os.environ, implicit=implicit)
    except ChantierError as err:
        return Entry(group, (), current=current, activity=activity, problem=str(err))
    return Entry(group, await facts_of(builder, timeout_s), current=current, activity=activity)


async def facts_of(builder: Builder, timeout_s: float) -> list[Facts]:
    """All nodes, asked at once."""
    try:
        return list(await asyncio.gather(*(builder.facts(d, timeout_s=timeout_s) for d in builder.drivers)))
    finally:
        await builder.aclose()


def _embedded(*, current: bool) -> Entry:
    """The engine of this process: it is there whenever it is wanted, and not opened for a list."""
    from chantier import __version__
    from chantier.client.worker import Worker
    from chantier.driver.group import Group, Node
    from chantier.driver.node import RUNNING, Facts
    from chantier.driver.select import EMBEDDED
    from chantier.spec import host_platform

    node = Node(name="embedded0", endpoint="embedded")
    worker = Worker(id="embedded", platforms=(host_platform(),))
    fact = Facts(status=RUNNING, version=f"v{__version__}", workers=(worker,))
    return Entry(Group(name=EMBEDDED, driver=EMBEDDED, nodes=(node,)), [fact], current=current, activity="")
