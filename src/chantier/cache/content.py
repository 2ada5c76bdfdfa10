# SPDX-License-Identifier: Apache-2.0
"""What a part of a tree contains, as one digest: the slow key that lets COPY of an unchanged file hit the cache.

A file's digest covers its header (mode, owner, size, link target, device, extended attributes) and its bytes; never its
times. A directory has two: of its header, and of all that is in it (header, then every child's name and digest). Paths are
looked up inside the tree, links included.

Digests of an immutable result are kept with it (`content.results` by selector, `content.tree` by file) and in a small cache
in memory. A tree that changes between builds (a local source; it is marked with VOLATILE, and each build has a frozen view of
it) keeps its digests the same way, and whoever changes it says which paths (`forget` before, `renew` after).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.errors import CancelledError_, NotFoundError
from chantier.solver.keys import content_key_id
from chantier.spec.patterns import clean

from .content_node import pack, unpack, update
from .content_tree import EMPTY, ContentTree, Selector
from .listing import Listings, list_tree
from .types import never

if TYPE_CHECKING:
    from chantier.progress import Step

    from .ref import MutableRef, Ref

VOLATILE = "content.volatile"
"""Set (to anything) as meta of a mutable record that views are taken of: what of its kept digests holds, `forget` and `renew` say."""

_RESULTS = "content.results"
_TREE = "content.tree"
_MAX_RESULTS = 64
_BEFORE = " before"  # after a selector's key: its digest as older versions of BuildKit have it


def content_digest(
    ref: Ref | None,
    selectors: Sequence[Selector] = (),
    *,
    step: Step | None = None,
    sessions: Sequence[Any] = (),
    cancelled: Callable[[], bool] = never,
    listings: Listings | None = None,
) -> str:
    """The digest of what the selectors take of a result (all of it if there are none); None is the empty tree.

    Raises NotFoundError, as `"/nofile": not found`, for a path that is not there.
    """
    return content_digests(ref, selectors, step=step, sessions=sessions, cancelled=cancelled, listings=listings)[0]


def content_digests(
    ref: Ref | None,
    selectors: Sequence[Selector] = (),
    *,
    step: Step | None = None,
    sessions: Sequence[Any] = (),
    cancelled: Callable[[], bool] = never,
    listings: Listings | None = None,
) -> tuple[str, ...]:
    """The same, followed by what older versions of BuildKit call the same content where they call it otherwise.

    What it was computed of goes to `listings`, so that a later miss can be explained. Fetches the result if it is lazy. Raises NotFoundError, as `"/nofile": not found`, for a path that is not there.
    """
    selectors = selectors or (Selector(),)
    if ref is None:
        return (combine([_of_nothing(selector) for selector in selectors]),)
    kept = _load_results(ref)
    listed: dict[str, tuple[str, str]] = {}
    if any(selector.key not in kept for selector in selectors):
        noted = listed if listings is not None and not any(selector.key in kept for selector in selectors) else None
        kept |= _compute(ref, selectors, kept, step, sessions, cancelled, noted)
    digest = combine([kept[selector.key] for selector in selectors])
    if listings is not None and listed and not listings.has(key := content_key_id(digest)):
        listings.save(key, listed)
    before = combine([kept.get(selector.key + _BEFORE, kept[selector.key]) for selector in selectors])
    return (digest,) if before == digest else (digest, before)


def tree_digest(root: Path, selectors: Sequence[Selector] = (), *, cancelled: Callable[[], bool] = never) -> str:
    """The same for a plain directory; nothing is kept."""
    with ContentTree().reading(root, cancelled) as tree:
        return combine([tree.digest(selector) for selector in selectors or (Selector(),)])


def forget(mutable: MutableRef) -> bytes | None:
    """The tree is about to change: what is known of it, for `renew`. Nothing is kept until that is called."""
    known = mutable.get_meta(_TREE)
    mutable.set_meta(_TREE, None)
    return known


def renew(mutable: MutableRef, known: bytes | None, changed: Iterable[bytes], digests: Mapping[bytes, bytes]) -> None:
    """The tree has changed: of what was known (None: of an empty tree) all holds but for these paths, be they new, other or gone.

    `digests` are those of some files that are new or other (`file_digest.small_digest`).
    """
    top = unpack(known)
    update(top, changed, digests)
    mutable.set_meta(_TREE, pack(top))


def combine(digests: Sequence[str]) -> str:
    """The digests of all selectors as the content key of one input."""
    return "sha256:" + hashlib.sha256(b"\0".join(d.encode() for d in digests)).hexdigest()


def _of_nothing(selector: Selector) -> str:
    path = clean("/" + selector.path)
    if path != "/":
        raise NotFoundError(f"{path}: no such file or directory")
    return EMPTY


# -- what is kept of a result ------------------------------------------------------------------------------------------

_trees: OrderedDict[tuple[int, str], ContentTree] = OrderedDict()
_trees_lock = threading.Lock()
_busy: dict[tuple[int, str], tuple[threading.Lock, int]] = {}  # lock and who wants it


def _compute(
    ref: Ref,
    selectors: Sequence[Selector],
    kept: dict[str, str],
    step: Step | None,
    sessions: Sequence[Any],
    cancelled: Callable[[], bool],
    listed: dict[str, tuple[str, str]] | None,
) -> dict[str, str]:
    key = (id(ref.cache), ref.id)
    found: dict[str, str] = {}
    with _one_at_a_time(key, cancelled):
        tree = _tree_of(ref, key)
        with (
            ref.mounted(step=step, sessions=sessions, cancelled=cancelled) as root,
            tree.reading(root, cancelled),
        ):
            for selector in selectors:
                if selector.key not in kept:
                    found[selector.key] = tree.digest(selector)
                    if selector.filtered:
                        found[selector.key + _BEFORE] = tree.digest_before(selector)
            if listed is not None:
                listed.update(list_tree(tree, root, selectors) or {})
        _save_results(ref, found)
        if tree.changed:
            ref.set_tree_meta(_TREE, pack(tree.top))
            tree.changed = False
    return found


@contextmanager
def _one_at_a_time(key: tuple[int, str], cancelled: Callable[[], bool]) -> Iterator[None]:
    with _trees_lock:
        lock, users = _busy.get(key) or (threading.Lock(), 0)
        _busy[key] = (lock, users + 1)
    try:
        while not lock.acquire(timeout=0.1):
            if cancelled():
                raise CancelledError_
        try:
            yield
        finally:
            lock.release()
    finally:
        with _trees_lock:
            lock, users = _busy.pop(key)
            if users > 1:
                _busy[key] = (lock, users - 1)


def _tree_of(ref: Ref, key: tuple[int, str]) -> ContentTree:
    with _trees_lock:
        tree = _trees.get(key)
        if tree is not None:
            _trees.move_to_end(key)
            return tree
    tree = ContentTree(unpack(ref.get_tree_meta(_TREE)))
    with _trees_lock:
        _trees[key] = tree
        while len(_trees) > 20:
            _trees.popitem(last=False)
    return tree


def _load_results(ref: Ref) -> dict[str, str]:
    data = ref.get_meta(_RESULTS)
    if data is None:
        return {}
    try:
        kept = json.loads(data)
    except ValueError:  # written by something else: computed anew
        return {}
    return kept if isinstance(kept, dict) else {}


def _save_results(ref: Ref, found: dict[str, str]) -> None:
    kept = _load_results(ref) | found
    for key in list(kept)[: max(0, len(kept) - _MAX_RESULTS)]:
        del kept[key]
    ref.set_meta(_RESULTS, json.dumps(kept).encode())


__all__ = [
    "EMPTY",
    "VOLATILE",
    "ContentTree",
    "Selector",
    "combine",
    "content_digest",
    "content_digests",
    "forget",
    "renew",
    "tree_digest",
]
