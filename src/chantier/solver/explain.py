# SPDX-License-Identifier: Apache-2.0
"""Why a vertex was cached or had to run, and which earlier key comes nearest to the one that was not found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chantier.values import dataclass

from .keys import KeyInfo, is_volatile

if TYPE_CHECKING:
    from .edge import ActiveEdge
    from .probe import Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One decision. `outcome`: hit, merged, skipped (a child was cached), miss, ignored; and "" while there is none."""

    vertex: str
    name: str
    outcome: str
    reason: str
    changed: tuple[int, ...] = ()  # inputs that differ from the nearest earlier key
    nearest: KeyInfo | None = None
    detail: bytes = b""  # of the present cache map, to compare with `nearest.detail`
    contents: tuple[tuple[int, str], ...] = ()  # content keys of inputs, by index
    inputs: tuple[tuple[int, str, bytes], ...] = ()  # index, name and detail of the inputs that changed
    differences: tuple[str, ...] = ()  # what differs, in words, by whoever knows what details mean


def explain_miss(edge: ActiveEdge) -> Explanation:
    """Why this edge must run. Asks the key store a few bounded questions."""
    vertex = edge.vertex
    outcome = "miss"
    changed: tuple[int, ...] = ()
    nearest: KeyInfo | None = None
    if vertex.ignoring:
        outcome, reason = "ignored", "ignore_cache"
    elif edge.gone is not None:
        reason = f"the result {edge.gone.result} of the key is gone"
        nearest = vertex.store.info(edge.gone.key)
    elif not edge.probes:
        reason, nearest = _source(edge)
    else:
        reason, changed, nearest = _inputs(edge, edge.probes)
    return Explanation(
        vertex=vertex.digest,
        name=vertex.name,
        outcome=outcome,
        reason=reason,
        changed=changed,
        nearest=nearest,
        detail=vertex.maps[0].detail,
        contents=tuple((probe.index, probe.content) for probe in edge.probes if probe.content),
        inputs=tuple(
            (index, edge.probes[index].edge.vertex.name, maps[0].detail)
            for index in changed
            if (maps := edge.probes[index].edge.vertex.maps)
        ),
    )


def _source(edge: ActiveEdge) -> tuple[str, KeyInfo | None]:
    if all(is_volatile(key) for key in edge.roots):
        return "the source has no lasting key", None
    return "no record for key (new source key)", None


def _inputs(edge: ActiveEdge, probes: Sequence[Probe]) -> tuple[str, tuple[int, ...], KeyInfo | None]:
    store = edge.vertex.store
    if edge.matched:
        key = min(edge.matched)
        return f"no record for key {key} (its result was never kept)", (), store.info(key)
    votes: dict[str, int] = {}
    for probe in probes:
        for key in probe.candidates:
            votes[key] = votes.get(key, 0) + 1
    if votes:
        best = min(votes, key=lambda key: (-votes[key], key))
        changed = tuple(probe.index for probe in probes if best not in probe.candidates)
        return _changed(probes, changed), changed, store.info(best)
    same = store.find(edge.op_key)
    if same:
        nearest = next((info for info in same if info.vertex == edge.vertex.vertex.digest), same[0])
        changed = tuple(probe.index for probe in probes)
        return _changed(probes, changed), changed, nearest
    other = _other_op(edge, probes)
    if other is not None:
        return f"no record for key (op digest changed; the nearest is that of {other.name})", (), other
    return "no record for key (nothing like it was run before)", (), None


def _changed(probes: Sequence[Probe], changed: Sequence[int]) -> str:
    def one(index: int) -> str:
        probe = probes[index]
        what = f"content of input {index}" if probe.dep.content is not None else f"input {index}"
        return f"{what} ({probe.edge.vertex.name})"

    if len(changed) > 4:
        return ", ".join(one(index) for index in changed[:3]) + f" and {len(changed) - 3} more inputs changed"
    return " and ".join(one(index) for index in changed) + " changed"


def _other_op(edge: ActiveEdge, probes: Sequence[Probe]) -> KeyInfo | None:
    """The newest key of another operation over the same inputs, one of the same name before others."""
    store = edge.vertex.store
    common: set[str] | None = None
    for probe in probes[:4]:
        leads = {
            child
            for parent in list(probe.parents())[:4]
            for link, child in store.links(parent)
            if link.input == probe.index and link.op not in edge.op_keys
        }
        common = leads if common is None else common & leads
        if not common:
            return None
    infos = [info for key in sorted(common or ())[:64] if (info := store.info(key)) is not None]
    return max(infos, key=lambda info: (info.name == edge.vertex.name, info.created_at), default=None)


__all__ = ["Explanation", "explain_miss"]
