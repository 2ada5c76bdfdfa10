# SPDX-License-Identifier: Apache-2.0
"""`chantier inspect`: one builder in full."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .args import Parser
from .builders import add_builder, add_timeout, run_async, seconds
from .rows import aligned

if TYPE_CHECKING:
    from chantier.client.worker import Worker
    from chantier.driver.node import Driver, Facts

_EXAMPLE = """chantier inspect
chantier inspect --bootstrap box
chantier inspect --format json box"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier inspect", "Show a builder: its nodes, options, versions, platforms, rules and files.", _EXAMPLE)
    parser.add_argument("name", nargs="?", default=None, help="the builder (default: the one in use)")
    parser.add_argument("--bootstrap", action="store_true", help="start it first")
    parser.add_argument("--format", default="pretty", help="pretty or json")
    add_builder(parser)
    add_timeout(parser)
    given = parser.parse(args)
    timeout_s = seconds(given.timeout)
    from chantier.driver.select import find_builder

    found = find_builder(given.name or given.builder, env=os.environ, check=False)
    if found is None:
        return run_async(_embedded(given.format, debug))
    if given.bootstrap:
        from .create import boot

        boot(found)
        found = find_builder(given.name or given.builder, env=os.environ, check=False)
        assert found is not None
    from chantier.driver.store import Store

    from .ls import Entry, facts_of

    facts = run_async(facts_of(found, timeout_s))
    at = Store.open(os.environ).last_activity(found.group.name)
    if given.format == "json":
        from .rows import template

        activity = at.strftime("%Y-%m-%dT%H:%M:%SZ") if at is not None else ""
        sys.stdout.write(template("json", [Entry(found.group, facts, current=False, activity=activity).json()]))
        return 0
    head = [f"Name:\t{found.group.name}", f"Driver:\t{found.group.driver}"]
    if at is not None:
        head.append(f"Last Activity:\t{at:%Y-%m-%d %H:%M:%S} +0000 UTC")
    lines = [*head, "", "Nodes:"]
    for index, (driver, fact) in enumerate(zip(found.drivers, facts, strict=True)):
        if index:
            lines.append("")
        lines += _node(driver, fact)
        if debug and not fact.error:
            lines += run_async(_features(driver))
        lines += _worker(fact, debug=debug) + _files(driver)
    sys.stdout.write(aligned(lines))
    return 0


def _node(driver: Driver, fact: Facts) -> list[str]:
    node = driver.node
    lines = [f"Name:\t{node.name}", f"Endpoint:\t{node.endpoint}"]
    if node.driver_opts:
        lines.append("Driver Options:\t" + " ".join(f'{k}="{v}"' for k, v in node.driver_opts.items()))
    if fact.error:
        return [*lines, f"Error:\t{fact.error}"]
    lines.append(f"Status:\t{fact.status}")
    if node.flags:
        lines.append("BuildKit daemon flags:\t" + " ".join(node.flags))
    if fact.version:
        lines.append(f"BuildKit version:\t{fact.version}")
    from .platforms import named

    workers: Sequence[Worker] = fact.workers  # type: ignore[assignment]
    platforms = named(node.platforms or (), [p for w in workers for p in w.platforms])
    if platforms:
        lines.append("Platforms:\t" + ", ".join(platforms))
    return lines


async def _features(driver: Driver) -> list[str]:
    features = await driver.features()
    await driver.close()
    return ["Features:", *(f" {name}:\t{str(on).lower()}" for name, on in sorted(features.items()))]


def _worker(fact: Facts, *, debug: bool) -> list[str]:
    from chantier.display.human import bytes_size, go_duration

    workers: Sequence[Worker] = fact.workers  # type: ignore[assignment]
    if not workers:
        return []
    first = workers[0]
    lines: list[str] = []
    if first.labels:
        lines += ["Labels:", *(f" {key}:\t{first.labels[key]}" for key in sorted(first.labels))]
    if workers[-1].devices:
        lines.append("Devices:")
        for device in workers[-1].devices:
            lines.append(f" Name:\t{device.name}")
            lines.append(
                " On-Demand:\ttrue" if device.on_demand else f" Automatically allowed:\t{str(device.auto_allow).lower()}"
            )
    for number, rule in enumerate(first.gc):
        lines.append(f"GC Policy rule#{number}:")
        lines.append(f" All:\t{str(rule.all).lower()}")
        if rule.filters:
            lines.append(f" Filters:\t{' '.join(rule.filters)}")
        if rule.keep_duration:
            lines.append(f" Keep Duration:\t{go_duration(rule.keep_duration)}")
        spaces = (
            ("Reserved Space", rule.reserved_space),
            ("Max Used Space", rule.max_used_space),
            ("Min Free Space", rule.min_free_space),
        )
        lines += [f" {name}:\t{bytes_size(size)}" for name, size in spaces if size]
    return lines


def _files(driver: Driver) -> list[str]:
    lines: list[str] = []
    for name, data in sorted((driver.node.files or {}).items()):
        lines.append(f"File#{name}:")
        if name.endswith((".key", "key.pem")) or b"PRIVATE KEY" in data:
            lines.append(" > (a private key)")
            continue
        lines += [f" > {line}" for line in data.decode(errors="replace").splitlines()]
    return lines


async def _embedded(form: str, debug: bool) -> int:
    from chantier.driver.embedded import Embedded
    from chantier.driver.group import Group, Node
    from chantier.driver.node import RUNNING, Driver, Facts

    driver = Embedded(env=os.environ)
    try:
        client = await driver.client()
        fact = Facts(status=RUNNING, version=(await client.version()).version, workers=await client.workers())
    finally:
        await driver.aclose()
    node = Node(name="embedded0", endpoint="embedded")
    if form == "json":
        from .ls import Entry
        from .rows import template

        group = Group(name="embedded", driver="embedded", nodes=(node,))
        sys.stdout.write(template("json", [Entry(group, [fact], current=False, activity="").json()]))
        return 0
    shown: Any = Driver("embedded", node)
    lines = ["Name:\tembedded", "Driver:\tembedded", f"Root:\t{driver.root}", "", "Nodes:"]
    sys.stdout.write(aligned([*lines, *_node(shown, fact), *_worker(fact, debug=debug)]))
    return 0
