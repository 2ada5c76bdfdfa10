# SPDX-License-Identifier: Apache-2.0
"""What the active vertices are doing and what each waits for: the answer to "why does nothing happen"."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from chantier.values import dataclass

from .flight import Flight
from .vertex import ActiveVertex

_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class VertexStatus:
    """`state` is idle, busy (with something of its own), waiting (for other vertices), done or failed."""

    digest: str
    name: str
    jobs: tuple[str, ...]
    state: str
    doing: tuple[str, ...] = ()  # one line for each thing under way
    waits_for: tuple[str, ...] = ()  # digests of vertices
    since_s: float = 0.0  # how long the oldest of these is under way

    def __str__(self) -> str:
        lines = [f"{self.name} ({self.digest[:19]}) {self.state} for {self.since_s:.1f}s in {', '.join(self.jobs) or 'no job'}"]
        return "\n".join([*lines, *(f"    {line}" for line in self.doing)])


def vertex_status(vertex: ActiveVertex) -> VertexStatus:
    doing: list[str] = []
    waits_for: dict[str, None] = {}
    since = now = time.monotonic()
    busy = failed = False
    for flight in vertex.flights():
        failed |= flight.error is not None
        if not flight.tasks:
            continue
        since = min(since, flight.since)
        others = _others(flight)
        if others:
            waits_for.update(dict.fromkeys(other.owner.digest for other in others if other.owner is not vertex))
            if any(other.owner is not vertex for other in others):
                doing.append(f"{flight.what} waits for {_list(others, vertex)}")
        else:
            busy = True
            phase = vertex.phase if flight.what == "run" and vertex.phase else flight.what
            doing.append(f"{phase} since {now - flight.since:.1f}s")
    state = "busy" if busy else "waiting" if waits_for else "failed" if failed else _rest(vertex)
    return VertexStatus(
        digest=vertex.digest,
        name=vertex.name,
        jobs=tuple(job.id for job in vertex.jobs),
        state=state,
        doing=tuple(doing),
        waits_for=tuple(waits_for),
        since_s=now - since,
    )


def render(statuses: Iterable[VertexStatus]) -> str:
    """Text for a log: what is busy first, then what waits; the others as a count."""
    statuses = list(statuses)
    shown = [status for state in ("busy", "waiting", "failed") for status in statuses if status.state == state]
    lines = [str(status) for status in shown]
    if rest := len(statuses) - len(shown):
        lines.append(f"{rest} more vertices are done or not asked for yet")
    return "\n".join(lines)


def _others(flight: Flight) -> list[Flight]:
    return list(flight.waiting.pending) if flight.waiting is not None else []


def _list(others: list[Flight], vertex: ActiveVertex) -> str:
    return ", ".join(_named(others, vertex))


def _named(others: list[Flight], vertex: ActiveVertex) -> Iterator[str]:
    for other in others[:_SHOWN]:
        where = "itself" if other.owner is vertex else other.owner.name
        yield f"{other.what} of {where}"
    if len(others) > _SHOWN:
        yield f"{len(others) - _SHOWN} more"


def _rest(vertex: ActiveVertex) -> str:
    return "done" if any(edge.has_result for edge in vertex.edges.values()) else "idle"


__all__ = ["VertexStatus", "render", "vertex_status"]
