# SPDX-License-Identifier: Apache-2.0
"""What changed between two stacks of directories, in the order and with the judgement of BuildKit's differs.

`changes` picks the way: where the upper stack is the lower one plus one layer, that layer says it all (`overlay_changes`);
otherwise both are walked side by side (`compare`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from chantier import kernel
from chantier.errors import UnsupportedError

from .view import Node, View, is_opaque

ADD = "add"
MODIFY = "modify"
DELETE = "delete"
UNMODIFIED = "unmodified"  # only for files with several links: one of the others may have changed

_CAPABILITY = "security.capability"
_BILLION = 1_000_000_000
_COMPARE_CHUNK = 1 << 17


class Change(NamedTuple):
    """`path` is relative; `source` is where the file lies (of a deleted one: where the old one lay)."""

    kind: str
    path: bytes
    info: os.stat_result
    source: bytes


class Changes(NamedTuple):
    """Changes in walking order, and the upper tree they were read from."""

    entries: Iterator[Change]
    upper: View


def changes(lower: Sequence[Path], upper: Sequence[Path], *, plain: bool = False) -> Changes:
    """What turns the stack `lower` into `upper` (both top first, either may be empty).

    `plain` stacks are single whole directories, as the native snapshotter has them.
    """
    lower, upper = tuple(lower), tuple(upper)
    if not plain and upper and upper[1:] == lower:
        return Changes(_overlay_or_compare(lower, upper), View(upper[:1]))
    view = View(upper, plain=plain)
    return Changes(compare(View(lower, plain=plain), view), view)


def _overlay_or_compare(lower: Sequence[Path], upper: Sequence[Path]) -> Iterator[Change]:
    # A redirected directory is found before anything of it was told, but not before all that sorts before it.
    if has_redirects(upper[0]):
        return compare(View(lower), View(upper))
    return overlay_changes(upper[0], View(lower))


def has_redirects(upper: Path) -> bool:
    """Whether somebody else's overlay left renamed directories in this layer, which only the kernel can follow."""
    todo = [os.fsencode(upper)]
    while todo:
        here = todo.pop()
        try:
            is_opaque(here)
        except UnsupportedError:
            return True
        with os.scandir(here) as entries:
            todo.extend(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    return False


def overlay_changes(upper: Path, base: View) -> Iterator[Change]:
    """The changes that a layer directory holds relative to the view below it."""
    layer = View((upper,))
    top = layer.root()
    if top is None:
        return
    todo: list[tuple[bytes, bytes, Node | None]] = _listed(b"", top.path, base.root())
    while todo:
        path, source, below = todo.pop()
        info = os.lstat(source)
        name = path.rpartition(b"/")[2]
        old = base.child(below, name) if below is not None and below.is_dir else None
        if kernel.is_whiteout(info):
            if old is not None:
                yield Change(DELETE, path, info, source)
            continue
        if old is None:
            yield Change(ADD, path, info, source)
        elif not same(old.path, old.info, source, info):
            yield Change(MODIFY, path, info, source)
        if not stat.S_ISDIR(info.st_mode):
            continue
        if old is not None and old.is_dir and is_opaque(source):
            yield from _compare_dirs(base, old, layer, Node(source, info, (source,)), path)
        else:
            todo.extend(_listed(path, source, old))


def _listed(path: bytes, source: bytes, below: Node | None) -> list[tuple[bytes, bytes, Node | None]]:
    names = sorted(os.listdir(source), reverse=True)
    if not path:
        return [(name, source + b"/" + name, below) for name in names]
    return [(path + b"/" + name, source + b"/" + name, below) for name in names]


def compare(lower: View, upper: View) -> Iterator[Change]:
    """Walk both trees side by side, names sorted, directories before what is in them."""
    old, new = lower.root(), upper.root()
    yield from _compare_dirs(lower, old, upper, new, b"")


def _compare_dirs(lower: View, old: Node | None, upper: View, new: Node | None, path: bytes) -> Iterator[Change]:
    before = dict(lower.children(old)) if old is not None and old.is_dir else {}
    after = dict(upper.children(new)) if new is not None and new.is_dir else {}
    for name in sorted(before.keys() | after.keys()):
        here = path + b"/" + name if path else name
        was, now = before.get(name), after.get(name)
        if now is None:
            if was is not None:
                yield Change(DELETE, here, was.info, was.path)
            continue
        if was is None:
            yield Change(ADD, here, now.info, now.path)
        elif not same(was.path, was.info, now.path, now.info):
            yield Change(MODIFY, here, now.info, now.path)
        elif now.info.st_nlink > 1 and not now.is_dir:
            yield Change(UNMODIFIED, here, now.info, now.path)
        if now.is_dir and not (was is not None and was.directories == now.directories):
            yield from _compare_dirs(lower, was, upper, now, here)


def same(old_path: bytes, old: os.stat_result, new_path: bytes, new: os.stat_result) -> bool:
    """Whether nothing worth telling changed. A time without nanoseconds may be a cut one: then contents decide."""
    if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino):
        return True
    if (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) != (new.st_mode, new.st_uid, new.st_gid, new.st_rdev):
        return False
    if kernel.get_xattr(old_path, _CAPABILITY) != kernel.get_xattr(new_path, _CAPABILITY):
        return False
    if stat.S_ISDIR(new.st_mode):
        return True
    if old.st_size != new.st_size:
        return False
    if old.st_mtime_ns % _BILLION or new.st_mtime_ns % _BILLION:
        return old.st_mtime_ns == new.st_mtime_ns
    if old.st_mtime_ns != new.st_mtime_ns:
        return False
    if stat.S_ISLNK(new.st_mode):
        return os.readlink(old_path) == os.readlink(new_path)
    return not stat.S_ISREG(new.st_mode) or not new.st_size or _same_content(old_path, new_path)


def _same_content(old: bytes, new: bytes) -> bool:
    with open(old, "rb", buffering=0) as first, open(new, "rb", buffering=0) as second:
        while True:
            one, two = first.read(_COMPARE_CHUNK), second.read(_COMPARE_CHUNK)
            if one != two:
                return False
            if not one:
                return True
