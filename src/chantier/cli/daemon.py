# SPDX-License-Identifier: Apache-2.0
"""`chantier daemon status`: what runs in a chantierd, what waits, and for what."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from chantier.errors import UsageError

from .args import Parser
from .builders import add_timeout, run_async, seconds
from .du import over_nodes

_EXAMPLE = """chantier daemon status
chantier daemon status unix:///run/buildkit/buildkitd.sock --format json"""
_DEFAULT = "unix:///run/buildkit/buildkitd.sock"
_SHORT = 19  # of a digest


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier daemon", "Show what a daemon does, and what waits for what.", _EXAMPLE)
    parser.add_argument("what", choices=("status",))
    parser.add_argument(
        "daemon", nargs="?", default=os.environ.get("BUILDKIT_HOST") or _DEFAULT, help="a daemon's address, or a builder's name"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    add_timeout(parser)
    given = parser.parse(args)
    limit = seconds(given.timeout)
    found = run_async(over_nodes(given.daemon, lambda client: _ask(client, limit), limit))
    if given.format == "json":
        sys.stdout.write(json.dumps(found if len(found) > 1 else found[0], indent=2, sort_keys=True) + "\n")
    else:
        sys.stdout.write("\n".join(text(one) for one in found))
    return 0


async def _ask(client: Any, limit: float) -> dict[str, Any]:
    if not hasattr(client, "daemon_status"):
        raise UsageError("this builder has no daemon: it builds in the process that asks", hint="name a daemon's address")
    found: dict[str, Any] = await client.daemon_status(timeout_s=limit)
    return found


def text(status: dict[str, Any]) -> str:
    """One daemon's status for people."""
    lines = [
        f"chantierd {status['version']}  pid {status['pid']}  {status['state']}  up {_time(status['uptime_s'])}",
        f"root       {status['root']}",
        f"listens    {', '.join(status['addresses'])}",
        f"clients    {status['connections']} connections, {len(status['sessions'])} sessions",
    ]
    steps = status.get("steps")
    if steps:
        limit = f" of {steps['limit']}" if steps["limit"] else ""
        lines.append(f"steps      {steps['running']}{limit} running, {steps['waiting']} waiting for a place")
    lines += _registries(status.get("registries") or {})
    if status.get("needs_restart"):
        lines.append(f"restart    needed for {', '.join(status['needs_restart'])}")
    lines.append(f"builds     {len(status['builds'])}")
    for build in status["builds"]:
        done = build["steps"]
        quiet = f", quiet for {_time(build['quiet_s'])}" if build["quiet_s"] > 5 else ""
        lines.append(
            f"  {build['ref']}  {_time(build['since_s'])}, {done['completed']}/{done['total']} steps{quiet}  {build['client']}"
        )
        lines += [f"    {step['name']}  {_time(step['since_s'])}" for step in build["running"]]
    names = {vertex["digest"]: vertex["name"] for vertex in status.get("vertices", ())}
    waiting = [vertex for vertex in status.get("vertices", ()) if vertex["waits_for"] or vertex["doing"]]
    if waiting:
        lines.append("vertices")
    for vertex in waiting:
        lines.append(f"  {vertex['name']}  {vertex['state']} for {_time(vertex['since_s'])}")
        lines += [f"    {doing}" for doing in vertex["doing"]]
        others = [names.get(digest, digest[:_SHORT]) for digest in vertex["waits_for"]]
        if others and not vertex["doing"]:
            lines.append(f"    waits for {', '.join(others)}")
    return "\n".join(lines) + "\n"


def _registries(found: dict[str, Any]) -> list[str]:
    """Requests under way, and hosts that are passed over."""
    lines = []
    for one in found.get("traffic", ()):
        limits = one["limits"]
        doing = f"{one['pulls']} pulls, {one['pushes']} pushes of {limits['blobs']}, {one['metadata']} of {limits['metadata']} metadata"
        lines.append(f"registry   {one['registry']}: {doing}, {one['waiting']} waiting")
    for one in found.get("hosts", ()):
        if one["breaker"] != "closed":
            lines.append(
                f"host       {one['host']}: breaker {one['breaker']} for {_time(one['open_for_s'])} more: {one['error']}"
            )
    return lines


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


__all__ = ["run", "text"]
