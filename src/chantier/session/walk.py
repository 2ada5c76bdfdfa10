# SPDX-License-Identifier: Apache-2.0
"""The sending half of a directory: which entries of a tree belong to a request, in the order the protocol wants them.

Depth first, each directory before what it holds, siblings by the bytes of their names. Owners are not told: everything is
root's. Sockets are stubs of empty files. The second name of a file refers to the first that is sent.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from chantier.errors import CancelledError_, ChantierError, SessionError
from chantier.pb import fsutil_pb2 as pb
from chantier.spec.glob import glob_match, has_wildcards
from chantier.spec.patterns import Filter, Parents, clean

from .types import FilesRequest

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_LINKS = 255


def _never() -> bool:
    return False


class Entry:
    """One entry of a directory that is sent. `mode` is POSIX's st_mode.

    `link` is a symbolic link's target, or for a further name of a file (`hard`) the path of its first. `dir_fd` is the
    directory that holds it, good until the walk goes on; -1 if the entry came from elsewhere, as do `ino` and `ctime_ns` 0.
    """

    __slots__ = ("ctime_ns", "dir_fd", "hard", "ino", "link", "mode", "mtime_ns", "path", "rdev", "size", "xattrs")

    def __init__(
        self,
        path: str,
        mode: int,
        *,
        size: int = 0,
        mtime_ns: int = 0,
        link: str = "",
        hard: bool = False,
        rdev: int = 0,
        ino: int = 0,
        ctime_ns: int = 0,
        dir_fd: int = -1,
        xattrs: dict[str, bytes] | None = None,
    ) -> None:
        self.path = path
        self.mode = mode
        self.size = size
        self.mtime_ns = mtime_ns
        self.link = link
        self.hard = hard
        self.rdev = rdev
        self.ino = ino
        self.ctime_ns = ctime_ns
        self.dir_fd = dir_fd
        self.xattrs = xattrs  # None: not read; see `read_xattrs`

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def has_content(self) -> bool:
        """Whether there are bytes to send for it."""
        return stat.S_ISREG(self.mode) and not self.hard

    def open(self) -> int:
        """The file's bytes as a descriptor. Only for an entry of a walk, before the walk goes on."""
        return os.open(self.name, _READ, dir_fd=self.dir_fd)

    def read_xattrs(self) -> dict[str, bytes]:
        """All extended attributes that travel."""
        if self.xattrs is None:
            self.xattrs = xattrs_of(f"/proc/self/fd/{self.dir_fd}/{self.name}") if self.dir_fd >= 0 else {}
        return self.xattrs


class _Frame:
    __slots__ = ("entries", "fd", "pending", "state")

    def __init__(
        self, fd: int, entries: Iterator[os.DirEntry[str]], pending: Entry | None, state: tuple[Parents, Parents]
    ) -> None:
        self.fd = fd
        self.entries = entries
        self.pending = pending  # the directory itself, until something in it is sent
        self.state = state


def filter_of(root: Path, request: FilesRequest) -> Filter:
    """The request's patterns as one filter, links of `follow` resolved. Raises ChantierError with stock clients' texts."""
    include = list(request.include)
    if request.follow:
        targets = follow_links(root, request.follow)
        if targets is not None:
            include = _outermost(sorted({*include, *targets})) or []
    return Filter(includes=include, excludes=request.exclude)


def walk(root: Path, request: FilesRequest | None = None, *, cancelled: Callable[[], bool] = _never) -> Iterator[Entry]:
    """The entries of a request, `root` itself left out. Raises SessionError for what cannot be read and is not excluded."""
    chosen = filter_of(root, request) if request is not None else Filter()
    filtering = bool(chosen.includes or chosen.excludes)
    first: dict[tuple[int, int], str] = {}
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack = [_Frame(fd, _listing(fd, ""), None, ((), ()))]
    prefix = [""]
    try:
        while stack:
            frame = stack[-1]
            entry = next(frame.entries, None)
            if entry is None:
                os.close(frame.fd)
                stack.pop()
                prefix.pop()
                continue
            if cancelled():
                raise CancelledError_
            path = prefix[-1] + entry.name
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # gone since the directory was read
                continue
            directory = stat.S_ISDIR(info.st_mode)
            keep, descend, state = True, directory, frame.state
            if filtering:
                verdict = chosen.look(path, directory=directory, state=frame.state)
                keep, descend, state = verdict.keep, verdict.descend, verdict.state
                if not keep and not descend:
                    continue
            made = _entry(path, info, frame.fd, entry.name)
            if made is None:
                continue
            if keep:
                yield from _pending(stack)
                if info.st_nlink > 1 and stat.S_ISREG(info.st_mode):
                    other = first.setdefault((info.st_dev, info.st_ino), path)
                    if other != path:
                        made.link, made.hard = other, True
                yield made
            if descend:
                below = _enter(frame.fd, entry.name, path)
                if below is not None:
                    stack.append(_Frame(below, _listing(below, path), None if keep else made, state))
                    prefix.append(path + "/")
    finally:
        for frame in stack:
            os.close(frame.fd)


def _pending(stack: Sequence[_Frame]) -> Iterator[Entry]:
    for frame in stack:
        if frame.pending is not None:
            entry, frame.pending = frame.pending, None
            yield entry


def _entry(path: str, info: os.stat_result, dir_fd: int, name: str) -> Entry | None:
    mode, size, link = info.st_mode, 0, ""
    if stat.S_ISLNK(mode):
        try:
            link = os.readlink(name, dir_fd=dir_fd)
        except OSError:  # gone or no link any more
            return None
        size = len(os.fsencode(link))
    elif stat.S_ISREG(mode):
        size = info.st_size
    elif stat.S_ISSOCK(mode):
        mode = stat.S_IFREG | stat.S_IMODE(mode)
    rdev = info.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0
    return Entry(
        path,
        mode,
        size=size,
        mtime_ns=info.st_mtime_ns,
        link=link,
        rdev=rdev,
        ino=info.st_ino,
        ctime_ns=info.st_ctime_ns,
        dir_fd=dir_fd,
    )


def _enter(dir_fd: int, name: str, path: str) -> int | None:
    try:
        return os.open(name, _DIR, dir_fd=dir_fd)
    except (FileNotFoundError, NotADirectoryError):  # changed since it was looked at
        return None
    except OSError as err:
        raise SessionError(f"failed to read {path}: {(err.strerror or '').lower()}") from err


def _listing(fd: int, path: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(fd) as entries:
            return iter(sorted(entries, key=_by_bytes))
    except OSError as err:
        raise SessionError(f"failed to read {path or '.'}: {(err.strerror or '').lower()}") from err


def _by_bytes(entry: os.DirEntry[str]) -> bytes:
    return os.fsencode(entry.name)


def xattrs_of(file: int | str) -> dict[str, bytes]:
    """The extended attributes of an open file, or at a path, a last link not followed."""
    follow = isinstance(file, int)
    try:
        names = os.listxattr(file, follow_symlinks=follow)
        return {
            name: os.getxattr(file, name, follow_symlinks=follow)
            for name in sorted(names)
            if not name.startswith(("com.apple.", "trusted.overlay.", "user.overlay."))
        }
    except OSError:  # none here, or none for this user
        return {}


# -- followpaths -------------------------------------------------------------------------------------------------------


def follow_links(root: Path, paths: Sequence[str]) -> list[str] | None:
    """Paths and what the links on their way lead to, as include patterns; None if the root is among them (no filter)."""
    found: dict[str, None] = {}
    for path in paths:
        _follow(root, path, found, 0)
    return _outermost(sorted(found))


def _follow(root: Path, path: str, found: dict[str, None], depth: int) -> None:
    if depth > _MAX_LINKS:
        return
    parts = [part for part in clean("/" + path).split("/") if part] or ["."]
    current = ""
    for i, part in enumerate(parts):
        current = f"{current}/{part}" if current else part
        targets = _targets(root, current)
        rest = "/".join(parts[i + 1 :])
        if (targets or not rest) and current in found:
            # A link met before is not followed again, whatever comes after it: so stock clients do, and the daemon's
            # `"/l/s": not found` for the second of two paths through one link depends on it.
            return
        if targets:
            found[current] = None
            for target in targets:
                _follow(root, f"{target}/{rest}" if rest else target, found, depth + 1)
            return
    found[current] = None


def _targets(root: Path, path: str) -> list[str]:
    """Where a link leads, from the root; for a wildcard in the last component, where all links it matches lead."""
    head, _, name = path.rpartition("/")
    if not has_wildcards(name):
        target = _link_target(root, path)
        return [] if target is None else [target]
    try:
        names = sorted(os.listdir(root / head))
        matches = [n for n in names if glob_match(name, n)]
    except (OSError, ChantierError):  # no such directory; a bad pattern is refused when it is compiled
        return []
    links = (_link_target(root, f"{head}/{n}" if head else n) for n in matches)
    return [link for link in links if link is not None]


def _link_target(root: Path, path: str) -> str | None:
    try:
        target = os.readlink(root / path)
    except OSError:  # not there, or no link
        return None
    if target.startswith("/"):
        return clean(target)
    return clean("/" + path.rpartition("/")[0] + "/" + target)


def _outermost(paths: Sequence[str]) -> list[str] | None:
    """Sorted paths without those below another; None if one is the root."""
    out: list[str] = []
    for path in paths:
        if path == ".":
            return None
        if not (out and path.startswith(out[-1] + "/")):
            out.append(path)
    return out


# -- the wire's form ---------------------------------------------------------------------------------------------------

_GO_TYPES = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
    stat.S_IFREG: 0,
}
_FROM_GO = {value: key for key, value in _GO_TYPES.items()}
_GO_TYPE_BITS = 1 << 31 | 1 << 27 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21
_GO_SPECIAL = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))


def to_go_mode(mode: int) -> int:
    """st_mode as Go's os.FileMode."""
    return _GO_TYPES[stat.S_IFMT(mode)] | (mode & 0o777) | sum(theirs for ours, theirs in _GO_SPECIAL if mode & ours)


def from_go_mode(mode: int) -> int:
    """Go's os.FileMode as st_mode. Raises SessionError for a type no file of ours has."""
    kind = _FROM_GO.get(mode & _GO_TYPE_BITS)
    if kind is None:
        raise SessionError(f"unknown file mode {mode:#o}")
    return kind | (mode & 0o777) | sum(ours for ours, theirs in _GO_SPECIAL if mode & theirs)


def to_stat(entry: Entry) -> pb.Stat:
    made = pb.Stat(
        path=entry.path,
        mode=to_go_mode(entry.mode),
        size=entry.size,
        modTime=entry.mtime_ns,
        linkname=entry.link,
        devmajor=os.major(entry.rdev),
        devminor=os.minor(entry.rdev),
    )
    for name, value in entry.read_xattrs().items():
        made.xattrs[name] = value
    return made


def from_stat(sent: pb.Stat) -> Entry:
    mode = from_go_mode(sent.mode)
    return Entry(
        sent.path,
        mode,
        size=sent.size,
        mtime_ns=sent.modTime,
        link=sent.linkname,
        hard=bool(sent.linkname) and stat.S_ISREG(mode),
        rdev=os.makedev(sent.devmajor, sent.devminor),
        xattrs=dict(sent.xattrs),
    )


__all__ = ["Entry", "filter_of", "follow_links", "from_go_mode", "from_stat", "to_go_mode", "to_stat", "walk", "xattrs_of"]
