# SPDX-License-Identifier: Apache-2.0
"""Making a damaged cache agree with itself again: what is damaged goes, with all that is made of it, and nothing else.

Each round repairs what `check` found and looks again; two or three are enough, since what goes can only take its children
along. Content that is gone cannot be brought back: the next build makes it anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from chantier.snapshot import Snapshotter
from chantier.store import Root

from .cache import Cache
from .check import Problem, check

_ROUNDS = 5


def repair(root: Root, snapshots: Snapshotter, *, deep: bool = False) -> tuple[list[Problem], list[Problem]]:
    """What was wrong, and what still is: nothing, unless a live process holds it. Also does what opening a cache does."""
    found = check(root, snapshots, deep=deep)
    cache = Cache(root, root.db, root.blobs, snapshots)
    left = check(root, snapshots, deep=deep) if found else []
    for _ in range(_ROUNDS):
        if not left:
            break
        _round(cache, left)
        before, left = left, check(root, snapshots, deep=deep)
        if left == before:
            break
    return found, left


def _round(cache: Cache, problems: Sequence[Problem]) -> None:
    cache.root.reap()
    for problem in problems:
        if problem.kind == "blob":
            _blob(cache, problem)
        elif problem.kind == "record":
            _record(cache, problem.key)
    cache.blobs.reindex()
    cache.blobs.recover(alone=not cache.root.alive(), keep_partial_s=0)
    clean = getattr(cache.snapshots, "recover", None)
    if clean is not None:
        clean()
    cache.sweep()


def _blob(cache: Cache, problem: Problem) -> None:
    if "is not kept for record" in problem.text:
        cache.blobs.keep(problem.key, f"record:{problem.text.split()[5].rstrip(',')}")
    else:
        cache.blobs.delete(problem.key)  # reindexing brings back what only lacked its row


def _record(cache: Cache, id: str) -> None:
    """Forget a tree that is lost; remove a record that nothing can be made of, and what is made of it."""
    if not cache.exists(id) and cache.records.find(id) is None:
        cache.records.delete(id)  # rows of a record that does not exist
        return
    if cache.forget_tree(id):
        return
    doomed = [id]
    for one in doomed:
        doomed += [child for child in cache.records.children(one) if child not in doomed]
    for one in reversed(doomed):
        cache.drop(one)


__all__ = ["repair"]
