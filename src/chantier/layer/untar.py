# SPDX-License-Identifier: Apache-2.0
"""Archives of ADD: recognised by their content, extracted as docker does it.

Unlike a layer, an archive's `.wh.` names are plain files. The directory extracted into is the archive's `/`: absolute
names, `..` and links all stay inside it. Owners and modes are the archive's unless an owner is given; parents that the
archive does not name are root's, 0755.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, BinaryIO, cast

from chantier.errors import CancelledError_, ChantierError
from chantier.kernel import in_user_namespace, makedirs_in_root, mknod, open_in_root, write_all
from chantier.spec.patterns import clean

from . import owners

_MAGICS = ((b"\x1f\x8b\x08", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))
_XATTR = "SCHILY.xattr."
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20


def _never() -> bool:
    return False


def _silent(_text: str) -> None:
    """Whoever does not want to know."""


def compression_of_bytes(head: bytes) -> str:
    """The compression the first bytes of a file tell: gzip, bzip2, xz, zstd or ""."""
    for magic, name in _MAGICS:
        if head.startswith(magic):
            return name
    # A zstd stream may begin with a skippable frame: 0x184D2A50 to 0x184D2A5F, little endian (RFC 8878, 3.1.2).
    if len(head) >= 4 and head[0] & 0xF0 == 0x50 and head[1:4] == b"\x2a\x4d\x18":
        return "zstd"
    return ""


def decompressed(file: BinaryIO) -> BinaryIO:
    """A reader of what is inside a file of any of the compressions; the file itself if it has none."""
    kind = compression_of_bytes(file.read(10))
    file.seek(0)
    if kind == "gzip":
        from isal import igzip

        opened: Any = igzip.open  # isal's signature is only half typed
        return cast("BinaryIO", opened(file, "rb"))
    if kind == "bzip2":
        import bz2

        return cast("BinaryIO", bz2.open(file, "rb"))
    if kind == "xz":
        import lzma

        return cast("BinaryIO", lzma.open(file, "rb"))
    if kind == "zstd":
        return _zstd(file)
    return file


def _zstd(file: BinaryIO) -> BinaryIO:
    import sys

    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return cast("BinaryIO", zstd.open(file, "rb"))


def is_archive(file: BinaryIO) -> bool:
    """Whether a file begins as an archive, compressed or not, with at least one entry. Leaves the file at its start."""
    try:
        # Small reads: of an archive that is cut off later the first header must still be seen, so that it fails as an archive.
        return _open(file, tarfile.RECORDSIZE).next() is not None
    except (tarfile.TarError, OSError, EOFError, ValueError):  # whatever a decompressor says of other bytes
        return False
    except Exception as err:  # each decompressor has an error class of its own, some directly below Exception
        if _of_decompressor(err):
            return False
        raise
    finally:
        file.seek(0)


def extract(
    file: BinaryIO,
    into: int,
    *,
    owner: tuple[int, int] | None = None,
    cancelled: Callable[[], bool] = _never,
    told: Callable[[str], None] = _silent,
) -> None:
    """Extract all of the archive in a file into the directory open as `into`. `told` hears what had to be left out."""
    try:
        tar = _open(file, _CHUNK)
        work = _Extraction(tar, into, owner, told)
        try:
            while (member := tar.next()) is not None:
                if cancelled():
                    raise CancelledError_
                work.member(member)
                tar.members.clear()  # a stream's members are of no use once they are out
            work.finish()
        finally:
            work.close()
    except (tarfile.TarError, EOFError) as err:
        raise ChantierError(f"failed to extract archive: {err}") from err
    except Exception as err:  # as above
        if _of_decompressor(err):
            raise ChantierError(f"failed to extract archive: {err}") from err
        raise


def _open(file: BinaryIO, size: int) -> Any:  # a TarFile, whose `members` typeshed does not know
    return tarfile.open(fileobj=cast("IO[bytes]", decompressed(file)), mode="r|", bufsize=size)


def _of_decompressor(err: Exception) -> bool:
    return type(err).__module__.partition(".")[0] in ("lzma", "_lzma", "zlib", "gzip", "isal", "backports", "compression")


class _Extraction:
    def __init__(self, archive: tarfile.TarFile, into: int, owner: tuple[int, int] | None, told: Callable[[str], None]) -> None:
        self.told = told
        self.archive = archive
        self.into = into
        self.owner = owner
        self.times: list[tuple[str, tuple[int, int]]] = []
        self.parent_path = ""
        self.parent = -1

    def close(self) -> None:
        if self.parent >= 0:
            os.close(self.parent)
            self.parent = -1

    def member(self, member: tarfile.TarInfo) -> None:
        path = clean("/" + member.name)
        if path == "/":
            return
        head, _, name = path.rpartition("/")
        parent = self.open(head)
        try:
            if member.isdir():
                self.directory(member, parent, name, path)
            elif member.isreg():
                self.fresh(parent, name, lambda: self.regular(member, parent, name))
            elif member.islnk():
                self.fresh(parent, name, lambda: self.hard_link(member, parent, name))
            elif member.issym():
                self.fresh(parent, name, lambda: self.symlink(member, parent, name))
            elif member.ischr() or member.isblk() or member.isfifo():
                self.fresh(parent, name, lambda: self.node(member, parent, name, path))
            else:
                raise ChantierError(f"unhandled tar header type {ord(member.type)}")
        except OSError as err:
            raise OSError(err.errno, err.strerror, f"failed to extract {path}") from err

    def open(self, path: str) -> int:
        """The directory a member lies in. The last one is kept open until a name that may lead elsewhere is made."""
        if self.parent >= 0 and path == self.parent_path:
            return self.parent
        self.close()
        self.parent, self.parent_path = makedirs_in_root(self.into, path or "/", 0o755), path
        return self.parent

    def fresh(self, parent: int, name: str, make: Callable[[], None]) -> None:
        """Make a name; what stood there goes."""
        try:
            make()
        except FileExistsError:
            self.remove(parent, name)
            make()

    def remove(self, parent: int, name: str) -> None:
        self.parent_path = "\0"  # likewise: the open directory may be one of those that go
        if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            shutil.rmtree(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)

    def ids(self, member: tarfile.TarInfo) -> tuple[int, int]:
        return self.owner or owners.held(member.uid, member.gid)

    def directory(self, member: tarfile.TarInfo, parent: int, name: str, path: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                self.remove(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, _DIR, dir_fd=parent)
        try:
            self.attributes(member, fd)
        finally:
            os.close(fd)
        self.times.append((path, _times(member)))

    def regular(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
        try:
            source = self.archive.extractfile(member)
            done = 0
            while source is not None and (chunk := source.read(_CHUNK)):
                write_all(fd, chunk)
                done += len(chunk)
            if done != member.size:
                raise ChantierError(f"failed to extract archive: unexpected EOF in {member.name}")
            self.attributes(member, fd)
            os.utime(fd, ns=_times(member))
        finally:
            os.close(fd)

    def attributes(self, member: tarfile.TarInfo, fd: int) -> None:
        os.fchown(fd, *self.ids(member))
        for key, value in member.pax_headers.items():
            if key.startswith(_XATTR):
                _set_xattr(fd, key.removeprefix(_XATTR), value)
        os.fchmod(fd, member.mode & 0o7777)

    def hard_link(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        """The link's own header counts too: its owner and mode become those of the file."""
        fd = open_in_root(self.into, clean("/" + member.linkname), os.O_PATH | os.O_NOFOLLOW)
        try:
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=parent, follow_symlinks=True)
            os.chown(name, *self.ids(member), dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                os.chmod(name, member.mode & 0o7777, dir_fd=parent)
                os.utime(name, ns=_times(member), dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(fd)

    def symlink(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        os.symlink(member.linkname, name, dir_fd=parent)
        os.chown(name, *self.ids(member), dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=_times(member), dir_fd=parent, follow_symlinks=False)
        self.parent_path = "\0"  # no member's parent: the next one is resolved anew, as the link may lie on its way

    def node(self, member: tarfile.TarInfo, parent: int, name: str, path: str) -> None:
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK if member.isblk() else stat.S_IFIFO
        try:
            mknod(name, kind | 0o600, os.makedev(member.devmajor, member.devminor), dir_fd=parent)
        except PermissionError:
            if not in_user_namespace() or kind == stat.S_IFIFO:
                raise
            self.told(f"device node {path} left out: a user namespace cannot make one")
            return
        os.chown(name, *self.ids(member), dir_fd=parent, follow_symlinks=False)
        os.chmod(name, member.mode & 0o7777, dir_fd=parent)
        os.utime(name, ns=_times(member), dir_fd=parent, follow_symlinks=False)

    def finish(self) -> None:
        """Directories' times, now that nothing is made in them any more."""
        for path, times in self.times:
            try:
                fd = open_in_root(self.into, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except OSError as err:
                if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a later member took its place
                    continue
                raise
            try:
                os.utime(fd, ns=times)
            finally:
                os.close(fd)


def _times(member: tarfile.TarInfo) -> tuple[int, int]:
    changed = _nanoseconds(member.pax_headers.get("mtime"), member.mtime)
    return max(_nanoseconds(member.pax_headers.get("atime"), 0), changed), changed


def _nanoseconds(text: str | None, seconds: float) -> int:
    """A PAX time as written: the float that tarfile makes of it is good to some hundred nanoseconds only."""
    if text is None:
        return int(seconds) * 1_000_000_000
    whole, _, part = text.partition(".")
    try:
        nanos = int((part + "000000000")[:9])
        return int(whole) * 1_000_000_000 + (-nanos if whole.startswith("-") else nanos)
    except ValueError:
        return int(seconds) * 1_000_000_000


def _set_xattr(fd: int, name: str, value: str) -> None:
    with suppress(OSError):  # an attribute this file system or user cannot have is no reason to fail
        os.setxattr(fd, name, value.encode("utf-8", "surrogateescape"))


__all__ = ["compression_of_bytes", "decompressed", "extract", "is_archive"]
