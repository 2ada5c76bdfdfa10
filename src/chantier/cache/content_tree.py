# SPDX-License-Identifier: Apache-2.0
"""The digests of a whole tree, computed as they are asked for, and how they are kept.

"CI1\\0" and, compressed, an immutable tree's entries in order, with the digests that are known
"CV2\\0" and, compressed, a changing tree's files: inode, size, time, digest, path
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from chantier.errors import CancelledError_, ChantierError, NotFoundError
from chantier.kernel import is_whiteout, open_in_root
from chantier.spec.glob import base_name, compile_glob, split_wildcards
from chantier.spec.patterns import Parents, Patterns, clean
from chantier.values import dataclass

from .file_digest import digest_file, header, text, xattrs, xattrs_at
from .types import never

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no bytes

_MAX_LINKS = 255
_MOST_NAMES = 2000  # that a missing one is compared with
_MAX_KEPT = 200_000  # entries of a tree that are kept
_LARGE = 1 << 20  # files from here on are read by threads of their own
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STAT = struct.Struct("<QQq32s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which part of a tree counts."""

    path: str = "/"
    wildcard: bool = False
    follow_links: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    required: tuple[str, ...] = ()  # paths of the tree that must exist

    @property
    def filtered(self) -> bool:
        return self.wildcard or bool(self.include) or bool(self.exclude)

    @property
    def key(self) -> str:
        return json.dumps(
            [self.path, self.wildcard, self.follow_links, self.include, self.exclude, self.required], separators=(",", ":")
        )


FILE, DIR, LINK = 0, 1, 2
Known = dict[bytes, tuple[int, int, int, bytes]]
"""path -> inode, size, mtime, digest. Whoever changes the tree takes out what changed (`content.renew`): the time of a file's
last change says nothing, since every further name it gets in a layer changes it."""


class _Node:
    """One entry. `digest` is that of the file or the directory's header, `total` that of a directory with all in it."""

    __slots__ = ("children", "digest", "kind", "link", "name", "parent", "total")

    def __init__(self, name: bytes, parent: _Node | None, kind: int, link: bytes = b"", digest: bytes = b"") -> None:
        self.name = name
        self.parent = parent
        self.kind = kind
        self.link = link
        self.digest = digest
        self.total = b""
        self.children: dict[bytes, _Node] | None = None  # in byte order

    @property
    def path(self) -> bytes:
        names = []
        node: _Node | None = self
        while node is not None and node.parent is not None:
            names.append(node.name)
            node = node.parent
        return b"/".join(reversed(names))


class ContentTree:
    """Digests of one tree, computed as they are asked for. Use it inside `reading`, from one thread at a time."""

    def __init__(self, *, known: Known | None = None) -> None:
        self.top = _Node(b"", None, DIR)
        self.known: Known | None = known  # None: not a tree that changes
        self.fresh: Known = {}
        self.changed = False  # there is something to keep that was not known
        self._root = -1
        self._cancelled: Callable[[], bool] = never
        self._pool: _Pool | None = None

    @contextmanager
    def reading(self, root: Path, cancelled: Callable[[], bool] = never) -> Iterator[ContentTree]:
        """In this context `digest` looks at the files below `root`."""
        self._cancelled = cancelled
        self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield self
        except RecursionError as err:
            raise ChantierError("the directory tree is too deep") from err
        except OSError as err:
            raise ChantierError(f"failed to read /{os.fsdecode(err.filename or b'')}: {(err.strerror or '').lower()}") from err
        finally:
            os.close(self._root)
            self._root = -1

    def digest(self, selector: Selector) -> str:
        """Raises NotFoundError for a path that is not there, ChantierError for a bad pattern or a loop of links."""
        path = clean("/" + selector.path)
        for required in selector.required:
            self.find(clean("/" + required), follow=False)
        if not selector.filtered:
            return text(self.total(self.find(path, follow=selector.follow_links)))
        rows, base = self._rows(path, selector)
        if not rows:
            return EMPTY
        if len(rows) == 1 and base_name(os.fsdecode(rows[0][0])) == base_name(path):
            return text(rows[0][1])
        digest = hashlib.sha256()
        for where, value in rows:
            digest.update(where.removeprefix(base).replace(b"/", b"\0") or b"\0")
            digest.update(text(value).encode())
        return "sha256:" + digest.hexdigest()

    def entries(self, selectors: Sequence[Selector]) -> Iterator[tuple[bytes, bytes]]:
        """Path and digest of each file, link and directory header that the selectors take, once `digest` was asked for them."""
        for selector in selectors:
            path = clean("/" + selector.path)
            if selector.filtered:
                yield from ((where.lstrip(b"/"), value) for where, value in self._rows(path, selector)[0])
                continue
            todo = [self.find(path, follow=selector.follow_links)]
            while todo:
                node = todo.pop()
                yield node.path, node.digest
                todo += (node.children or {}).values()

    def digest_before(self, selector: Selector) -> str:
        """What BuildKit before v0.26 makes of a filtered selector: names without their directories, parted by NUL."""
        path = clean("/" + selector.path)
        rows = self._rows(path, selector)[0] if selector.filtered else []
        if not rows or (len(rows) == 1 and base_name(os.fsdecode(rows[0][0])) == base_name(path)):
            return self.digest(selector)
        parts = (os.fsencode(base_name(os.fsdecode(where))) + text(value).encode() for where, value in rows)
        return "sha256:" + hashlib.sha256(b"\0".join(parts)).hexdigest()

    # -- paths

    def find(self, path: str, *, follow: bool) -> _Node:
        """The entry at a path; links on the way are followed inside the tree, the last one if `follow`."""
        todo = [part for part in reversed(os.fsencode(path).split(b"/")) if part]
        here = self.top
        links = 0
        while todo:
            name = todo.pop()
            if name == b"..":
                here = here.parent or here
                continue
            node = self.children(here).get(name) if here.kind == DIR else None
            if node is None:
                raise NotFoundError(f"{json.dumps(path, ensure_ascii=False)}: not found", hint=self._near(here, name))
            if node.kind != LINK or not (todo or follow):
                here = node
                continue
            links += 1
            if links > _MAX_LINKS:
                raise ChantierError("too many links")
            if node.link.startswith(b"/"):
                here = self.top
            todo += [part for part in reversed(node.link.split(b"/")) if part not in (b"", b".")]
        return here

    def _near(self, here: _Node, name: bytes) -> str | None:
        """What may have been meant by a name that a directory has not."""
        names = [os.fsdecode(other) for other in islice(self.children(here), _MOST_NAMES)] if here.kind == DIR else []
        near = get_close_matches(os.fsdecode(name), names, n=1)
        return (
            f"did you mean {json.dumps(os.path.join('/', os.fsdecode(here.path), near[0]), ensure_ascii=False)}?"
            if near
            else None
        )

    def _rows(self, path: str, selector: Selector) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """The files and directory headers a filtered selector takes, in byte order, and the path they are named below."""
        prefix, pattern = split_wildcards(path) if selector.wildcard else (path, "")
        try:
            base = self.find(prefix, follow=True)
        except NotFoundError:
            if selector.wildcard:  # whether a wildcard may match nothing is for the copy to say
                return [], b""
            raise
        named = os.fsencode(prefix).rstrip(b"/")
        walk = _Walk(self, selector)
        if not pattern:
            with _Open(self, base.parent or base) as above:
                walk.take(base, named, "", (), (), above, header=path != "/")
        else:
            self._match(base, named, pattern.split("/"), walk)
        return walk.rows, named

    def _match(self, node: _Node, named: bytes, parts: list[str], walk: _Walk) -> None:
        if node.kind != DIR:
            return
        with _Open(self, node) as here:
            expression = compile_glob(parts[0])
            for name, child in self.children(node, here).items():
                if expression.match(os.fsdecode(name)) is None:
                    continue
                if len(parts) > 1:
                    self._match(child, named + b"/" + name, parts[1:], walk)
                elif child.kind == LINK and walk.selector.follow_links:
                    # A link that a wildcard names is followed when it is copied; one further down is copied as a link.
                    path = named + b"/" + name
                    walk.rows.append((path, self.total(self.find(os.fsdecode(path), follow=True))))
                else:
                    walk.take(child, named + b"/" + name, "", (), (), here)

    # -- reading

    def open(self, node: _Node) -> int:
        return open_in_root(self._root, node.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def children(self, node: _Node, here: _Open | None = None) -> dict[bytes, _Node]:
        if node.children is None:
            if here is not None:
                self._list(node, here.fd)
            else:
                with _Open(self, node) as opened:
                    self._list(node, opened.fd)
        assert node.children is not None
        return node.children

    def _list(self, node: _Node, fd: int) -> None:
        children = {}
        with os.scandir(fd) as entries:
            for entry in entries:
                name, kind, link = os.fsencode(entry.name), FILE, b""
                if entry.is_symlink():
                    kind, link = LINK, os.readlink(name, dir_fd=fd)
                elif entry.is_dir(follow_symlinks=False):
                    kind = DIR
                elif not entry.is_file(follow_symlinks=False) and is_whiteout(entry.stat(follow_symlinks=False)):
                    continue  # of a result whose only layer is looked at without overlayfs
                children[name] = _Node(name, node, kind, link)
        node.children = dict(sorted(children.items()))

    def total(self, node: _Node) -> bytes:
        """The digest of an entry with all that is in it."""
        if node.kind != DIR:
            if not node.digest:
                with _Open(self, node.parent or node) as here:
                    self.fill(node, here.fd)
            return node.digest
        if not node.total:
            with _Open(self, node) as here, _Pool() as pool:
                self._pool = pool
                try:
                    self._fill_all(node, here)
                finally:
                    self._pool = None
            self._sum(node)
        return node.total

    def _fill_all(self, node: _Node, here: _Open) -> None:
        """Read everything below a directory that has not been read."""
        if self._cancelled():
            raise CancelledError_
        if not node.digest:
            self.fill(node, here.fd)
        if node.children is None:
            self._list(node, here.fd)
        assert node.children is not None
        for child in node.children.values():
            if child.kind == DIR:
                if not child.total:
                    with _Open(self, child, here) as below:
                        self._fill_all(child, below)
            elif not child.digest:
                self.fill(child, here.fd)

    def _sum(self, node: _Node) -> bytes:
        if not node.total:
            digest = hashlib.sha256(b"\0" + text(node.digest).encode())
            for name, child in (node.children or {}).items():
                digest.update(b"\0" + name + text(self._sum(child) if child.kind == DIR else child.digest).encode())
            node.total = digest.digest()
        return node.total

    def fill(self, node: _Node, fd: int) -> None:
        """Compute the digest of a file, a link or a directory's header; `fd` is its directory, or the directory itself."""
        if node.digest:
            return
        if node.kind == DIR:
            node.digest = header(os.fstat(fd), "5", 0, b"", xattrs(fd)).digest()
        elif node.kind == LINK:
            info = os.lstat(node.name, dir_fd=fd)
            node.digest = header(info, "2", 0, node.link, xattrs_at(fd, node.name), mode=0o777).digest()
        else:
            info = os.lstat(node.name, dir_fd=fd)
            if stat.S_ISREG(info.st_mode):
                self._fill_regular(node, fd, info)
            else:
                kind = {stat.S_IFCHR: "3", stat.S_IFBLK: "4", stat.S_IFIFO: "6"}.get(stat.S_IFMT(info.st_mode), "0")
                node.digest = header(info, kind, 0, b"", xattrs_at(fd, node.name)).digest()
        self.changed = self.changed or self.known is None

    def _fill_regular(self, node: _Node, fd: int, info: os.stat_result) -> None:
        if self.known is None:
            self._read(node, fd, info)
            return
        path = node.path
        facts = (info.st_ino, info.st_size, info.st_mtime_ns)
        kept = self.known.get(path)
        if kept is not None and kept[:3] == facts:
            node.digest = kept[3]
            return
        self.changed = True
        self.known.pop(path, None)
        self._read(node, fd, info, self._keep(path, facts))

    def _keep(self, path: bytes, facts: tuple[int, int, int]) -> Callable[[bytes], None]:
        def keep(digest: bytes) -> None:
            self.fresh[path] = (*facts, digest)

        return keep

    def _read(self, node: _Node, fd: int, info: os.stat_result, then: Callable[[bytes], None] | None = None) -> None:
        if self._cancelled():
            raise CancelledError_
        file = os.open(node.name, _READ, dir_fd=fd)
        if self._pool is not None and info.st_size >= _LARGE:
            self._pool.submit(node, file, info, self._cancelled, then)
            return
        node.digest = digest_file(file, info, self._cancelled)
        if then is not None:
            then(node.digest)

    # -- keeping

    def pack_checked(self) -> bytes:
        """What is known of a tree that changes, for `unpack_checked`."""
        return pack_known({path: facts for path, facts in (self.known or {}).items() if not self._gone(path)} | self.fresh)

    def _gone(self, path: bytes) -> bool:
        """Whether a known file is seen not to be there; what was not looked at is taken to be."""
        here = self.top
        for name in path.split(b"/"):
            if here.children is None:
                return here.kind != DIR
            found = here.children.get(name)
            if found is None:
                return True
            here = found
        return here.kind != FILE

    def pack(self) -> bytes | None:
        """All that is known of an immutable tree, for `unpack`; None if that is too much to keep."""
        out = bytearray()
        if _pack(self.top, out, [_MAX_KEPT]):
            return b"CI1\0" + zlib.compress(out, 1)
        return None

    @classmethod
    def unpack(cls, data: bytes | None) -> ContentTree:
        """An empty tree if there is no data, or none this version understands."""
        tree = cls()
        if data is not None and data.startswith(b"CI1\0"):
            with suppress(zlib.error, ValueError, IndexError):
                tree.top = _unpack(memoryview(zlib.decompress(data[4:])))
        return tree


def pack_known(known: Known) -> bytes:
    rows = [_STAT.pack(*facts) + path + b"\0" for path, facts in sorted(known.items())[:_MAX_KEPT]]
    return b"CV2\0" + zlib.compress(b"".join(rows), 1)


def unpack_checked(data: bytes | None) -> Known:
    known: Known = {}
    if data is None or not data.startswith(b"CV2\0"):
        return known
    with suppress(zlib.error, ValueError, struct.error):
        raw = zlib.decompress(data[4:])
        at = 0
        while at < len(raw):
            facts = _STAT.unpack_from(raw, at)
            end = raw.index(b"\0", at + _STAT.size)
            known[raw[at + _STAT.size : end]] = facts
            at = end + 1
    return known


_HAS_DIGEST, _HAS_TOTAL, _LISTED = 4, 8, 16


def _pack(node: _Node, out: bytearray, left: list[int]) -> bool:
    left[0] -= 1
    if left[0] < 0:
        return False
    listed = node.children is not None
    out.append(node.kind | (_HAS_DIGEST if node.digest else 0) | (_HAS_TOTAL if node.total else 0) | (_LISTED if listed else 0))
    out += node.name + b"\0"
    if node.kind == LINK:
        out += node.link + b"\0"
    out += node.digest + node.total
    if node.children is not None:
        out += len(node.children).to_bytes(4, "little")
        return all(_pack(child, out, left) for child in node.children.values())
    return True


def _unpack(view: memoryview) -> _Node:
    data = bytes(view)
    at = 0

    def text() -> bytes:
        nonlocal at
        end = data.index(b"\0", at)
        found = data[at:end]
        at = end + 1
        return found

    def node(parent: _Node | None) -> _Node:
        nonlocal at
        flags = data[at]
        at += 1
        made = _Node(text(), parent, flags & 3)
        if made.kind == LINK:
            made.link = text()
        if flags & _HAS_DIGEST:
            made.digest = data[at : at + 32]
            at += 32
        if flags & _HAS_TOTAL:
            made.total = data[at : at + 32]
            at += 32
        if flags & _LISTED:
            count = int.from_bytes(data[at : at + 4], "little")
            at += 4
            made.children = {}
            for _ in range(count):
                child = node(made)
                made.children[child.name] = child
        return made

    return node(None)


class _Open:
    """A directory of the tree, opened when it is first needed."""

    def __init__(self, tree: ContentTree, node: _Node, above: _Open | None = None) -> None:
        self._tree = tree
        self._node = node
        self._above = above
        self._fd = -1

    @property
    def fd(self) -> int:
        if self._fd < 0:
            if self._above is not None:
                self._fd = os.open(self._node.name, _DIR, dir_fd=self._above.fd)
            else:
                self._fd = self._tree.open(self._node)
        return self._fd

    def __enter__(self) -> _Open:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Walk:
    """Collects what a filtered selector takes below one or more places. Directories count by their headers only, which
    are taken when they are included themselves or something below them is.
    """

    def __init__(self, tree: ContentTree, selector: Selector) -> None:
        self.tree = tree
        self.selector = selector
        self.include = Patterns(selector.include) if selector.include else None
        self.exclude = Patterns(selector.exclude) if selector.exclude else None
        self.rows: list[tuple[bytes, bytes]] = []
        self.headers: list[tuple[bytes, _Node, _Open]] = []  # of directories above that are not taken yet

    def take(
        self,
        node: _Node,
        named: bytes,
        rel: str,
        included: Parents,
        excluded: Parents,
        where: _Open,
        *,
        header: bool = True,
    ) -> None:
        keep = descend = True
        if not rel:  # what the path names is copied whatever the patterns say
            keep = node.kind != DIR or not self.include
        else:
            if self.include:
                keep, included = self.include.matches_in_walk(rel, included)
                descend = keep or self.include.may_match_below(rel)
            if self.exclude:
                out, excluded = self.exclude.matches_in_walk(rel, excluded)
                if out:
                    keep = False
                    descend = descend and self.exclude.may_return_below(rel)
        if node.kind != DIR:
            if keep:
                self.flush()
                self.tree.fill(node, where.fd)
                self.rows.append((named, node.digest))
            return
        if not descend:
            return
        with _Open(self.tree, node, where if rel else None) as here:
            mark = len(self.headers)
            if header:
                self.headers.append((named, node, here))
            if keep:
                self.flush()
            for name, child in self.tree.children(node, here).items():
                below = f"{rel}/{os.fsdecode(name)}" if rel else os.fsdecode(name)
                self.take(child, named + b"/" + name, below, included, excluded, here)
            del self.headers[mark:]

    def flush(self) -> None:
        for named, node, here in self.headers:
            self.tree.fill(node, here.fd)
            self.rows.append((named, node.digest))
        self.headers.clear()


class _Pool:
    """Threads that hash large files, started when there is one. Leaving it waits for all of them."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._waiting: list[tuple[Future[bytes], _Node, Callable[[bytes], None] | None]] = []

    def submit(
        self,
        node: _Node,
        fd: int,
        info: os.stat_result,
        cancelled: Callable[[], bool],
        then: Callable[[bytes], None] | None,
    ) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "chantier-hash")
        self._waiting.append((self._executor.submit(digest_file, fd, info, cancelled), node, then))
        if len(self._waiting) >= 64:  # each holds a descriptor
            self._drain(32)

    def _drain(self, keep: int) -> None:
        while len(self._waiting) > keep:
            future, node, then = self._waiting.pop(0)
            node.digest = future.result()
            if then is not None:
                then(node.digest)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        try:
            if kind is None:
                self._drain(0)
        finally:
            if self._executor is not None:
                self._executor.shutdown()


__all__ = ["EMPTY", "ContentTree", "Known", "Selector", "pack_known", "unpack_checked"]
