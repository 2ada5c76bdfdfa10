# SPDX-License-Identifier: Apache-2.0
"""The digests of a whole tree, computed as they are asked for."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from chantier.errors import CancelledError_, ChantierError, NotFoundError
from chantier.kernel import is_whiteout, open_in_root
from chantier.spec.glob import base_name, compile_glob, split_wildcards
from chantier.spec.patterns import clean
from chantier.values import dataclass

from .content_node import DIR, FILE, LINK, Node
from .file_digest import digest_file, header, text, xattrs, xattrs_at
from .types import never

if TYPE_CHECKING:
    from .content_walk import Walk

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no bytes

_MAX_LINKS = 255
_MOST_NAMES = 2000  # that a missing one is compared with
_LARGE = 1 << 20  # files from here on are read by threads of their own
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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


class ContentTree:
    """Digests of one tree, computed as they are asked for. Use it inside `reading`, from one thread at a time."""

    def __init__(self, top: Node | None = None) -> None:
        """`top` is what is known of the tree already (`content_node.unpack`)."""
        self.top = top or Node(b"", None, DIR)
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
                todo += node.children.values()

    def digest_before(self, selector: Selector) -> str:
        """What BuildKit before v0.26 makes of a filtered selector: names without their directories, parted by NUL."""
        path = clean("/" + selector.path)
        rows = self._rows(path, selector)[0] if selector.filtered else []
        if not rows or (len(rows) == 1 and base_name(os.fsdecode(rows[0][0])) == base_name(path)):
            return self.digest(selector)
        parts = (os.fsencode(base_name(os.fsdecode(where))) + text(value).encode() for where, value in rows)
        return "sha256:" + hashlib.sha256(b"\0".join(parts)).hexdigest()

    # -- paths

    def find(self, path: str, *, follow: bool) -> Node:
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

    def _near(self, here: Node, name: bytes) -> str | None:
        """What may have been meant by a name that a directory has not."""
        names = [os.fsdecode(other) for other in islice(self.children(here), _MOST_NAMES)] if here.kind == DIR else []
        near = get_close_matches(os.fsdecode(name), names, n=1)
        return (
            f"did you mean {json.dumps(os.path.join('/', os.fsdecode(here.path), near[0]), ensure_ascii=False)}?"
            if near
            else None
        )

    def size(self, selectors: Sequence[Selector]) -> int:
        """About how many entries the selectors take, once `digest` was asked for them: that of what is filtered is not known."""
        plain = [selector for selector in selectors if not selector.filtered]
        return sum(self.find(clean("/" + selector.path), follow=selector.follow_links).below for selector in plain)

    def _rows(self, path: str, selector: Selector) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """The files and directory headers a filtered selector takes, in byte order, and the path they are named below."""
        from .content_walk import Walk

        prefix, pattern = split_wildcards(path) if selector.wildcard else (path, "")
        try:
            base = self.find(prefix, follow=True)
        except NotFoundError:
            if selector.wildcard:  # whether a wildcard may match nothing is for the copy to say
                return [], b""
            raise
        named = os.fsencode(prefix).rstrip(b"/")
        walk = Walk(self, selector)
        if not pattern:
            with OpenDirectory(self, base.parent or base) as above:
                walk.take(base, named, "", (), (), above, header=path != "/")
        else:
            self._match(base, named, pattern.split("/"), walk)
        return walk.rows, named

    def _match(self, node: Node, named: bytes, parts: list[str], walk: Walk) -> None:
        if node.kind != DIR:
            return
        with OpenDirectory(self, node) as here:
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

    def open(self, node: Node) -> int:
        return open_in_root(self._root, node.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def children(self, node: Node, here: OpenDirectory | None = None) -> dict[bytes, Node]:
        if not node.listed:
            if here is not None:
                self._list(node, here.fd)
            else:
                with OpenDirectory(self, node) as opened:
                    self._list(node, opened.fd)
        return node.children

    def _list(self, node: Node, fd: int) -> None:
        children: dict[bytes, Node] = {}
        before = node.children
        with os.scandir(fd) as entries:
            for entry in entries:
                name, kind, link = os.fsencode(entry.name), FILE, b""
                if entry.is_symlink():
                    kind, link = LINK, os.readlink(name, dir_fd=fd)
                elif entry.is_dir(follow_symlinks=False):
                    kind = DIR
                elif not entry.is_file(follow_symlinks=False) and is_whiteout(entry.stat(follow_symlinks=False)):
                    continue  # of a result whose only layer is looked at without overlayfs
                known = before.get(name)
                same = known is not None and known.kind == kind and known.link == link
                children[name] = known if known is not None and same else Node(name, node, kind, link)
        node.children = dict(sorted(children.items()))
        self.changed = True

    def total(self, node: Node) -> bytes:
        """The digest of an entry with all that is in it."""
        if node.kind != DIR:
            if not node.digest:
                with OpenDirectory(self, node.parent or node) as here:
                    self.fill(node, here.fd)
            return node.digest
        if not node.total:
            with OpenDirectory(self, node) as here, _Pool() as pool:
                self._pool = pool
                try:
                    self._fill_all(node, here)
                finally:
                    self._pool = None
            self._sum(node)
        return node.total

    def _fill_all(self, node: Node, here: OpenDirectory) -> None:
        """Read everything below a directory that has not been read."""
        if self._cancelled():
            raise CancelledError_
        if not node.digest:
            self.fill(node, here.fd)
        for child in self.children(node, here).values():
            if child.kind == DIR:
                if not child.total:
                    with OpenDirectory(self, child, here) as below:
                        self._fill_all(child, below)
            elif not child.digest:
                self.fill(child, here.fd)

    def _sum(self, node: Node) -> bytes:
        if not node.total:
            digest = hashlib.sha256(b"\0" + text(node.digest).encode())
            for name, child in node.children.items():
                digest.update(b"\0" + name + text(self._sum(child) if child.kind == DIR else child.digest).encode())
            node.total = digest.digest()
            self.changed = True
        return node.total

    def fill(self, node: Node, fd: int) -> None:
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
                self._read(node, fd, info)
            else:
                kind = {stat.S_IFCHR: "3", stat.S_IFBLK: "4", stat.S_IFIFO: "6"}.get(stat.S_IFMT(info.st_mode), "0")
                node.digest = header(info, kind, 0, b"", xattrs_at(fd, node.name)).digest()
        self.changed = True

    def _read(self, node: Node, fd: int, info: os.stat_result) -> None:
        if self._cancelled():
            raise CancelledError_
        file = os.open(node.name, _READ, dir_fd=fd)
        if self._pool is not None and info.st_size >= _LARGE:
            self._pool.submit(node, file, info, self._cancelled)
            return
        node.digest = digest_file(file, info, self._cancelled)


class OpenDirectory:
    """A directory of the tree, opened when it is first needed."""

    def __init__(self, tree: ContentTree, node: Node, above: OpenDirectory | None = None) -> None:
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

    def __enter__(self) -> OpenDirectory:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Pool:
    """Threads that hash large files, started when there is one. Leaving it waits for all of them."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._waiting: list[tuple[Future[bytes], Node]] = []

    def submit(self, node: Node, fd: int, info: os.stat_result, cancelled: Callable[[], bool]) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "chantier-hash")
        self._waiting.append((self._executor.submit(digest_file, fd, info, cancelled), node))
        if len(self._waiting) >= 64:  # each holds a descriptor
            self._drain(32)

    def _drain(self, keep: int) -> None:
        while len(self._waiting) > keep:
            future, node = self._waiting.pop(0)
            node.digest = future.result()

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        try:
            if kind is None:
                self._drain(0)
        finally:
            if self._executor is not None:
                self._executor.shutdown()


__all__ = ["EMPTY", "ContentTree", "OpenDirectory", "Selector"]
