# SPDX-License-Identifier: Apache-2.0
"""Copying between two trees as LLB's copy action means it: COPY and ADD of a Dockerfile.

Both trees may be hostile. A path is resolved inside its root once; from there on everything goes by directory descriptors
that follow no link, so no symbolic link of either tree leads outside. Paths in errors are those inside the tree.

The order of things for one source (after wildcards): ensure the destination's parents, follow the source, decide whether
the source goes to the destination or below it, then walk. Directories get owner, mode and times after their children.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import stat
from array import array
from bisect import insort
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from chantier.errors import CancelledError_, ChantierError, DiskFullError, NotFoundError
from chantier.kernel import copy_file, in_user_namespace, is_whiteout, open_in_root, resolve_in_root, write_all
from chantier.kernel.temporary import TemporaryDirectory
from chantier.kernel.trees import trees
from chantier.spec.glob import base_name, compile_glob, has_wildcards, split_wildcards
from chantier.spec.patterns import Filter, Parents, clean
from chantier.values import dataclass

from .chmod import Change, parse_mode
from .stage import Stage

_SMALL = 256 * 1024  # up to here read and write beat copy_file_range
_PRIVATE = ("trusted.overlay.", "user.overlay.")  # how overlayfs marks a layer: no property of the file
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

State = tuple[Parents, Parents]


def _never() -> bool:
    return False


def _silent(_text: str) -> None:
    """Whoever does not want to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """What a copy action says beside its two paths."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    required: tuple[str, ...] = ()  # paths of the source tree that must exist
    dir_contents: bool = False  # a directory's children go to the destination, not the directory itself
    follow_links: bool = False  # of the source path's last component
    create_dest_path: bool = False
    wildcard: bool = False
    empty_wildcard: bool = False  # nothing matches: nothing to do
    unpack: bool = False  # archives are extracted, as ADD does
    owner: tuple[int, int] | None = None
    mode: int | None = None  # of everything copied and of parents made on the way
    mode_text: str = ""  # symbolic, applied to what is copied only
    time_ns: int | None = None
    replace: bool = False  # what stands at the destination gives way, whatever its type


def copy_tree(
    source: Path | None,
    src: str,
    target: Path,
    dest: str,
    options: CopyOptions | None = None,
    *,
    cancelled: Callable[[], bool] = _never,
    told: Callable[[str], None] = _silent,
    stage: Stage | None = None,
) -> None:
    """Copy `src` of the tree at `source` (None: an empty tree) to `dest` of the tree at `target`.

    `told` hears what had to be left out: device nodes, in a user namespace. With a `stage` new directories may be in it until
    it is placed.
    Raises ChantierError with BuildKit's texts, CancelledError_ if `cancelled()` turns true; what was copied then stays.
    """
    options = options or CopyOptions()
    src, dest = clean_path(src), clean_path(dest)
    with ExitStack() as stack, translated():
        if not options.create_dest_path:
            _need_parent(target, dest)
        target_fd = _open_root(target)
        stack.callback(os.close, target_fd)
        if source is None:
            if options.wildcard and has_wildcards(src) and options.empty_wildcard:
                return
            if src.strip("/."):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "lstat " + src)
            source = Path(stack.enter_context(TemporaryDirectory("empty")))  # the root is there, with nothing in it
            source.chmod(0o755)
        source_fd = _open_root(source)
        stack.callback(os.close, source_fd)
        for path in options.required:
            _need(source, path)
        copy = _Copy(source, source_fd, target, target_fd, options, cancelled, told)
        matches = resolve_wildcards(source, source_fd, src) if options.wildcard else [src]
        if not matches and not options.empty_wildcard:
            raise NotFoundError(f"{src} not found")
        # The next match would have to find what this one staged: only the last one is.
        for match in matches:
            copy.stage = stage if match is matches[-1] else None
            if not (options.unpack and copy.unpack(match, dest)):
                copy.one(match, dest)


def clean_path(path: str) -> str:
    """An absolute clean path that still ends in `/` or `/.` if `path` does."""
    cleaned = clean("/" + path)
    if path.endswith("/.") or path == ".":
        return ("" if cleaned == "/" else cleaned) + "/."
    if path.endswith("/") and cleaned != "/":
        return cleaned + "/"
    return cleaned


def resolve_wildcards(root: Path, root_fd: int, path: str) -> list[str]:
    """Absolute paths that match, in lexical order; the path itself if it has no wildcard. No link is followed below the
    directories that come before the first wildcard, and matched directories are not entered.
    """
    head, pattern = split_wildcards(path)
    if not pattern:
        return [path]
    base = resolve_in_root(root, head)
    try:
        fd = open_in_root(root_fd, base, os.O_RDONLY | os.O_DIRECTORY)
    except (NotADirectoryError, FileNotFoundError) as err:
        if os.path.lexists(root / base):  # something that holds nothing
            return []
        raise OSError(err.errno, err.strerror, "lstat /" + base) from err
    out: list[str] = []
    try:
        _expand(fd, "/" + base if base else "", pattern.split("/"), out)
    finally:
        os.close(fd)
    return out


def _expand(fd: int, base: str, parts: list[str], out: list[str]) -> None:
    expression = compile_glob(parts[0])
    for name in sorted(filter(expression.match, os.listdir(fd)), key=os.fsencode):
        path = base + "/" + name
        if len(parts) == 1:
            out.append(path)
            continue
        try:
            below = os.open(name, _DIR, dir_fd=fd)
        except OSError as err:
            if err.errno in (errno.ENOTDIR, errno.ELOOP):  # not a directory, or a link to one
                continue
            raise
        try:
            _expand(below, path, parts[1:], out)
        finally:
            os.close(below)


def _open_root(root: Path) -> int:
    return os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _need_parent(target: Path, dest: str) -> None:
    parent = resolve_in_root(target, posixpath.dirname(dest.rstrip("/")) or "/")
    if parent and not os.path.lexists(target / parent):
        raise NotFoundError(f"failed to stat {dest}: lstat /{parent}: no such file or directory")


def _need(source: Path, path: str) -> None:
    if not os.path.lexists(source / resolve_in_root(source, path, follow_last=False)):
        raise NotFoundError(f'"{clean("/" + path)}": not found')


@contextmanager
def translated() -> Iterator[None]:
    """OSError to ChantierError: `operation path: reason`, as Go writes it; `filename` holds the first two."""
    try:
        yield
    except RecursionError as err:
        raise ChantierError("the directory tree is too deep") from err
    except OSError as err:
        reason = os.strerror(err.errno).lower() if err.errno else str(err)
        place = os.fsdecode(err.filename) if isinstance(err.filename, str | bytes) else ""
        kind = {errno.ENOENT: NotFoundError, errno.ENOSPC: DiskFullError, errno.EDQUOT: DiskFullError}.get(err.errno or 0)
        raise (kind or ChantierError)(f"{place}: {reason}" if place else reason) from err


@dataclass(slots=True)
class _Dir:
    """A directory on the way down: `target` is -1 until something below it is really copied."""

    source: int
    path: str  # inside the target tree
    info: os.stat_result
    target: int = -1
    created: bool = False
    plain: bool = False  # `target` is seen through no overlay


class _Copy:
    """One copy action at work."""

    def __init__(
        self,
        source: Path,
        source_fd: int,
        target: Path,
        target_fd: int,
        options: CopyOptions,
        cancelled: Callable[[], bool],
        told: Callable[[str], None],
    ) -> None:
        self.told = told
        self.source = source
        self.source_fd = source_fd
        self.target = target
        self.target_fd = target_fd
        self.options = options
        self.cancelled = cancelled
        self.filter = Filter(includes=options.include, excludes=options.exclude)
        self.filtering = bool(self.filter.includes or self.filter.excludes)
        self.change: Change | None = parse_mode(options.mode_text) if options.mode_text else None
        self.links: dict[tuple[int, int], str] = {}
        self.stage: Stage | None = None
        self.shared: set[int] = set()  # inodes this walk gave further names to
        self.unshared: array[int] | None = None  # in order: inodes that no name is given to, once somebody asked
        self.stack: list[_Dir] = []

    # -- one source ------------------------------------------------------------------------------------------------

    def unpack(self, src: str, dest: str) -> bool:
        """Extract the source if it is an archive; False leaves it to `one`."""
        from .untar import extract, is_archive

        path = resolve_in_root(self.source, src)
        try:
            fd = open_in_root(self.source_fd, path, _READ)
        except OSError as err:
            if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                return False
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return False
        with open(fd, "rb", buffering=0) as file:
            if not is_archive(file):
                return False
            into = self.mkdirs(resolve_in_root(self.target, dest), mode=0o755)
            try:
                extract(file, into, owner=self.options.owner, cancelled=self.cancelled, told=self.told)
            finally:
                os.close(into)
        return True

    def one(self, src: str, dest: str) -> None:
        options = self.options
        ensure = dest if dest.endswith(("/", "/.")) else posixpath.dirname(dest)
        os.close(self.mkdirs(resolve_in_root(self.target, ensure)))
        into = resolve_in_root(self.target, dest)
        follow = options.follow_links or src.endswith(("/", "/."))
        found = resolve_in_root(self.source, src, follow_last=follow)
        source_parent, source_name = self.open_parent(self.source_fd, found)
        try:
            info = self.lstat(source_parent, source_name, found)
            is_dir = stat.S_ISDIR(info.st_mode)
            existing = self.stat_target(into)
            if existing is not None and (
                (is_dir and not options.dir_contents) or (not is_dir and stat.S_ISDIR(existing.st_mode))
            ):
                name = "" if src.endswith("/.") else base_name(src).strip("/")
                into = posixpath.join(into, name).rstrip("/")
            made = is_dir and options.dir_contents and existing is None
            os.close(self.mkdirs(into if made else posixpath.dirname(into)))
            self.links.clear()
            self.shared.clear()
            self.unshared = None
            parent, name = self.open_parent(self.target_fd, into)
            try:
                if is_dir:
                    self.directory(
                        source_parent, source_name, info, parent, name, into, "", ((), ()), top=True, include=True, made=made
                    )
                else:
                    self.leaf(source_parent, source_name, info, parent, name, into)
            finally:
                os.close(parent)
            if self.stage is not None:
                self.stage.note(self.shared)
        finally:
            os.close(source_parent)

    def open_parent(self, root_fd: int, path: str) -> tuple[int, str]:
        head, _, name = path.rpartition("/")
        try:
            return open_in_root(root_fd, head, os.O_RDONLY | os.O_DIRECTORY), name or "."
        except OSError as err:
            raise OSError(err.errno, err.strerror, "lstat /" + path) from err

    def lstat(self, dir_fd: int, name: str, path: str) -> os.stat_result:
        try:
            return os.lstat(name, dir_fd=dir_fd)
        except OSError as err:
            raise OSError(err.errno, err.strerror, "lstat /" + path) from err

    def stat_target(self, path: str) -> os.stat_result | None:
        try:
            fd = open_in_root(self.target_fd, path, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as err:
            raise OSError(err.errno, err.strerror, "failed to lstat destination path: stat /" + path) from err
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def mkdirs(self, path: str, *, mode: int | None = None) -> int:
        """Open a resolved directory of the target, making what is missing with the action's owner, mode and time."""
        if mode is None:
            mode = 0o755 if self.options.mode is None else self.options.mode & 0o777
        fd = os.open(".", _DIR, dir_fd=self.target_fd)
        done = ""
        for name in filter(None, path.split("/")):
            done += "/" + name
            try:
                below = os.open(name, _DIR, dir_fd=fd)
            except FileNotFoundError:
                below = self.mkdir(fd, name, mode)
            except OSError as err:
                os.close(fd)
                reason = errno.ENOTDIR if err.errno in (errno.ELOOP, errno.ENOTDIR) else err.errno
                raise OSError(reason, err.strerror, "mkdir " + done) from err
            os.close(fd)
            fd = below
        return fd

    def mkdir(self, fd: int, name: str, mode: int) -> int:
        os.mkdir(name, 0o700, dir_fd=fd)
        below = os.open(name, _DIR, dir_fd=fd)
        if self.options.owner is not None:
            os.fchown(below, *self.options.owner)
        os.fchmod(below, mode)
        if self.options.time_ns is not None:
            os.utime(below, ns=(self.options.time_ns, self.options.time_ns))
        return below

    # -- the walk --------------------------------------------------------------------------------------------------

    def directory(
        self,
        source_parent: int,
        source_name: str,
        info: os.stat_result,
        parent: int,
        name: str,
        path: str,
        rel: str,
        state: State,
        *,
        top: bool = False,
        include: bool,
        made: bool = False,
    ) -> None:
        """Copy a directory; `parent` may be -1 while no directory above has been made (include patterns).

        `made` says that the target was made for it just now.
        """
        fd = os.open(source_name, _DIR, dir_fd=source_parent)
        here = _Dir(fd, path, info)
        self.stack.append(here)
        try:
            if include:
                self.open_target(here, parent, name, self.stack[-2] if len(self.stack) > 1 else None, made=made)
            for child, its_info in self.listing(here):
                self.entry(here, child, its_info, rel, state)
            if here.created or (include and not top):
                self.finish(here)
            elif top:
                os.utime(here.target, ns=self.times(info))
        finally:
            self.stack.pop()
            os.close(fd)
            if here.target >= 0:
                os.close(here.target)

    def listing(self, here: _Dir) -> Iterator[tuple[str, os.stat_result]]:
        """What is to be copied of a directory, in the order of names' bytes; its files are shared at once where all can be."""
        library = trees() if self.shares_all and here.plain else None
        if library is None or self.stage is None or not self.stage.sharing:
            with os.scandir(here.source) as entries:
                found = sorted(entries, key=_by_bytes)
            return ((entry.name, entry.stat(follow_symlinks=False)) for entry in found)
        if self.cancelled():
            raise CancelledError_
        if self.unshared is None:
            self.unshared = array("Q", sorted({*self.stage.taken.numbers, *(ino for _, ino in self.links)} - self.shared))
        linked, rest = library.link(here.source, here.target, self.unshared, self.options.owner)
        self.shared.update(linked)
        return ((os.fsdecode(name), os.lstat(name, dir_fd=here.source)) for name in rest)

    @property
    def shares_all(self) -> bool:
        """Whether each file would be shared that can be (see `share`)."""
        options = self.options
        plain = options.mode is None and self.change is None and options.time_ns is None
        return plain and not self.filtering and self.stage is not None and not self.stage.taken.all

    def entry(self, here: _Dir, name: str, info: os.stat_result, rel: str, state: State) -> None:
        if self.cancelled():
            raise CancelledError_
        if is_whiteout(info):
            return
        is_dir = stat.S_ISDIR(info.st_mode)
        below = f"{rel}/{name}" if rel else name
        keep = descend = True
        if self.filtering:
            verdict = self.filter.look(below, directory=is_dir, state=state)
            keep, descend, state = verdict.keep, verdict.descend, verdict.state
        path = f"{here.path}/{name}" if here.path else name
        if is_dir:
            if keep:
                self.need_targets()
            if keep or descend:
                self.directory(here.source, name, info, here.target, name, path, below, state, include=keep)
        elif keep:
            self.need_targets()
            self.leaf(here.source, name, info, here.target, name, path)

    def need_targets(self) -> None:
        """Make the directories above that were left out so far, now that something below them is copied."""
        if self.stack[-1].target >= 0:
            return
        for above, here in zip(self.stack, self.stack[1:], strict=False):
            if here.target < 0:
                self.open_target(here, above.target, here.path.rpartition("/")[2], above)
                if not here.created:
                    os.fchmod(here.target, here.info.st_mode & 0o7777)

    def open_target(self, here: _Dir, parent: int, name: str, above: _Dir | None, *, made: bool = False) -> None:
        self.make_target(here, parent, name)
        if self.stage is None:
            return
        here.plain = self.stage.direct if above is None else above.plain
        if not here.plain and (here.created or made):
            staged = self.stage.begin(here.target, here.path)
            if staged is not None:
                os.close(here.target)
                here.target, here.plain = staged, True

    def make_target(self, here: _Dir, parent: int, name: str) -> None:
        for _ in range(2):
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
                here.created = True
            except FileExistsError:
                pass
            try:
                here.target = os.open(name, _DIR, dir_fd=parent)
            except OSError as err:
                if err.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                if not self.options.replace:
                    raise ChantierError(f"cannot copy to non-directory: /{here.path}") from err
                os.unlink(name, dir_fd=parent)
                continue
            return

    def leaf(self, source: int, source_name: str, info: os.stat_result, parent: int, name: str, path: str) -> None:
        """Copy one file that is not a directory; what stands in its place is removed first."""
        mode = info.st_mode
        for attempt in (0, 1):
            try:
                if stat.S_ISREG(mode):
                    if not self.share(source, source_name, info, parent, name, path):
                        self.regular(source, source_name, info, parent, name, path)
                elif stat.S_ISLNK(mode):
                    self.symlink(source, source_name, info, parent, name)
                else:
                    self.node(source, source_name, info, parent, name)
            except FileExistsError:
                if attempt:
                    raise
                self.remove(parent, name, path)
            except OSError as err:
                if err.filename is None or (isinstance(err.filename, str) and "/" not in err.filename):
                    raise OSError(err.errno, err.strerror, "failed to copy files: /" + path) from err
                raise
            else:
                return

    def remove(self, parent: int, name: str, path: str) -> None:
        if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            os.unlink(name, dir_fd=parent)
        elif self.options.replace:
            shutil.rmtree(name, dir_fd=parent)
        else:
            raise ChantierError(f"cannot replace to directory /{path} with file")

    def share(self, source: int, source_name: str, info: os.stat_result, parent: int, name: str, path: str) -> bool:
        """Give the file a further name instead of copying it, where a copy would be the same in everything."""
        if self.stage is None or not self.stage.sharing:
            return False
        if self.options.owner not in (None, (info.st_uid, info.st_gid)) or self.options.time_ns is not None:
            return False
        if self.mode(info.st_mode) != info.st_mode & 0o7777:
            return False
        inode = (info.st_dev, info.st_ino)
        if inode in self.links and info.st_ino not in self.shared:  # its first name was copied: this is one of the copy
            return False
        if self.stack[-1].plain if self.stack else self.stage.direct:
            made = self.stage.link(source, source_name, info, parent, name, self.shared)
        else:
            made = self.stage.large(source, source_name, info, parent, name, path, self.shared)
        if not made:
            return False
        if info.st_nlink > 1:
            self.links.setdefault(inode, path)
        return True

    def regular(self, source: int, source_name: str, info: os.stat_result, parent: int, name: str, path: str) -> None:
        if info.st_nlink > 1 and self.link(info, parent, name, path):
            return
        read = os.open(source_name, _READ, dir_fd=source)
        try:
            write = os.open(name, _CREATE, 0o600, dir_fd=parent)
            try:
                self.contents(read, write, info)
                uid, gid = self.options.owner or (info.st_uid, info.st_gid)
                os.fchown(write, uid, gid)
                os.fchmod(write, self.mode(info.st_mode))  # after the owner, whose change clears set-id bits
                copy_xattrs(read, write)
                os.utime(write, ns=self.times(info))
            finally:
                os.close(write)
        finally:
            os.close(read)
        if info.st_nlink > 1:
            self.links.setdefault((info.st_dev, info.st_ino), path)
            if self.unshared is not None:  # further names are those of the copy
                insort(self.unshared, info.st_ino)

    def contents(self, read: int, write: int, info: os.stat_result) -> None:
        size = info.st_size
        if size > _SMALL:
            if info.st_blocks * 512 < size:
                _copy_sparse(read, write, size, self.cancelled)
            else:
                _copy_large(read, write, size, self.cancelled)
            return
        if size:
            data = os.read(read, size + 1)
            if len(data) != size:  # it changed since it was looked at
                data += _rest(read)
            write_all(write, data)

    def link(self, info: os.stat_result, parent: int, name: str, path: str) -> bool:
        first = self.links.get((info.st_dev, info.st_ino))
        if first is None:
            return False
        root, first = (self.stage and self.stage.where(first)) or (self.target_fd, first)
        fd = open_in_root(root, first, os.O_PATH | os.O_NOFOLLOW)
        try:
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=parent, follow_symlinks=True)
        except OSError as err:
            if err.errno == errno.EXDEV and self.stage is not None:  # one of them is staged: a copy until it is placed
                self.stage.relink(self.links[info.st_dev, info.st_ino], path)
            elif err.errno != errno.EMLINK:
                raise
            return False
        finally:
            os.close(fd)
        return True

    def symlink(self, source: int, source_name: str, info: os.stat_result, parent: int, name: str) -> None:
        os.symlink(os.readlink(source_name, dir_fd=source), name, dir_fd=parent)
        uid, gid = self.options.owner or (info.st_uid, info.st_gid)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        copy_xattrs_at(source, source_name, parent, name)
        os.utime(name, ns=self.times(info), dir_fd=parent, follow_symlinks=False)

    def node(self, source: int, source_name: str, info: os.stat_result, parent: int, name: str) -> None:
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFSOCK:  # a socket without its listener: a stub
            kind = stat.S_IFREG
        try:
            os.mknod(name, kind | 0o600, info.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0, dir_fd=parent)
        except PermissionError:
            if not in_user_namespace() or kind not in (stat.S_IFCHR, stat.S_IFBLK):
                raise
            self.told(f"device node {name} left out: a user namespace cannot make one")
            return
        uid, gid = self.options.owner or (info.st_uid, info.st_gid)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        os.chmod(name, self.mode(info.st_mode), dir_fd=parent)
        copy_xattrs_at(source, source_name, parent, name)
        os.utime(name, ns=self.times(info), dir_fd=parent, follow_symlinks=False)

    def finish(self, here: _Dir) -> None:
        uid, gid = self.options.owner or (here.info.st_uid, here.info.st_gid)
        os.fchown(here.target, uid, gid)
        os.fchmod(here.target, self.mode(here.info.st_mode))
        copy_xattrs(here.source, here.target)
        os.utime(here.target, ns=self.times(here.info))

    def mode(self, mode: int) -> int:
        if self.change is not None:
            return self.change(mode)
        if self.options.mode is not None:
            return self.options.mode & 0o7777
        return mode & 0o7777

    def times(self, info: os.stat_result) -> tuple[int, int]:
        at = self.options.time_ns
        return (info.st_atime_ns, info.st_mtime_ns) if at is None else (at, at)


def _by_bytes(entry: os.DirEntry[str]) -> bytes:
    return os.fsencode(entry.name)


def _rest(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def _copy_large(read: int, write: int, size: int, cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise CancelledError_
    copy_file(read, write, size)


def _copy_sparse(read: int, write: int, size: int, cancelled: Callable[[], bool]) -> None:
    """Copy the data of a file with holes, and leave the holes holes."""
    at = 0
    while at < size:
        try:
            start = os.lseek(read, at, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # nothing but a hole up to the end
                break
            if err.errno == errno.EINVAL:
                os.lseek(read, 0, os.SEEK_SET)
                _copy_large(read, write, size, cancelled)
                return
            raise
        end = os.lseek(read, start, os.SEEK_HOLE)
        os.lseek(read, start, os.SEEK_SET)
        os.lseek(write, start, os.SEEK_SET)
        while start < end:
            if cancelled():
                raise CancelledError_
            data = os.read(read, min(end - start, 1 << 20))
            if not data:
                break
            write_all(write, data)
            start += len(data)
        at = end
    os.ftruncate(write, size)


def copy_xattrs(source: int, target: int) -> None:
    """Copy extended attributes between open files, as far as the target's file system takes them."""
    try:
        names = os.listxattr(source)
    except OSError:  # this file system has none
        return
    for name in names:
        if not name.startswith(_PRIVATE):
            with suppress(OSError):  # a label or capability this user may not set is no reason to fail a copy
                os.setxattr(target, name, os.getxattr(source, name))


def copy_xattrs_at(source: int, source_name: str, target: int, name: str) -> None:
    """The same for files that cannot be opened without an effect: links, devices, pipes."""
    there, here = f"/proc/self/fd/{source}/{source_name}", f"/proc/self/fd/{target}/{name}"
    try:
        names = os.listxattr(there, follow_symlinks=False)
    except OSError:
        return
    for attribute in names:
        if not attribute.startswith(_PRIVATE):
            with suppress(OSError):
                os.setxattr(here, attribute, os.getxattr(there, attribute, follow_symlinks=False), follow_symlinks=False)


__all__ = ["CopyOptions", "clean_path", "copy_tree", "copy_xattrs", "copy_xattrs_at", "resolve_wildcards", "translated"]
