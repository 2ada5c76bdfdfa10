# SPDX-License-Identifier: Apache-2.0
"""Where a copy makes new directories of an overlay: beside its upper directory, and not through the mount.

Of a directory that is in no layer below, overlayfs shows the upper one as it is. Made through the mount, each of its files
costs twice what it costs on the file system below; and no name of a file outside can be given to it (link(2): EXDEV). So such a
directory is made in a place of its own, and takes the place of its empty namesake once the overlay is unmounted: what lies
below a mounted overlay must not be changed (Documentation/filesystems/overlayfs.rst, "Changes to underlying filesystems").
So does a large file that goes into a directory which is there already, where its bytes need not be copied.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from chantier.kernel import list_xattrs, set_xattr

from .shared import Inodes

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_EMPTY = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEFAULT_ACL = "system.posix_acl_default"
_LARGE = 256 * 1024  # a file from here on costs more to copy than to give two names, one after the other
_NO_LINK = (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP)


class Stage:
    """For one copy action. `beside` is the upper directory of the overlay that the target is a mount of; None: it is no overlay,
    and made in place. `sharing` says that the source's files may get further names, as those of a tree that is never written
    to: `taken` are the inodes that the target's stack has names of already, and gets the new ones.
    """

    def __init__(self, beside: Path | None, *, sharing: bool = False, taken: Inodes | None = None) -> None:
        self.upper = beside
        self.sharing = sharing
        self.taken = taken if taken is not None else Inodes()
        self.shared = Inodes()
        self._place = beside.parent / "stage" if beside is not None else None
        self._fd = -1
        self._made: dict[str, str] = {}  # path in the target -> name in the stage
        self._files: dict[str, str] = {}
        self._linked: list[tuple[str, str]] = []

    @property
    def direct(self) -> bool:
        """Whether the target itself is a plain directory."""
        return self.upper is None

    @property
    def waiting(self) -> bool:
        """Whether there is something to `place`."""
        return bool(self._made or self._files)

    def begin(self, placeholder: int, path: str) -> int | None:
        """Make the directory that will take the place of an empty new one, which is open as `placeholder`.

        None where it cannot be: then it is filled through the mount.
        """
        if self._place is None or _DEFAULT_ACL in list_xattrs(placeholder):  # which its files would inherit
            return None
        place = self._opened(self._place)
        name = str(len(self._made))
        os.mkdir(name, 0o700, dir_fd=place)
        fd = os.open(name, _DIR, dir_fd=place)
        info, here = os.fstat(placeholder), os.fstat(fd)
        if (info.st_uid, info.st_gid) != (here.st_uid, here.st_gid):
            os.fchown(fd, info.st_uid, info.st_gid)
        os.fchmod(fd, stat.S_IMODE(info.st_mode))
        self._made[path] = name
        return fd

    def _opened(self, place: Path) -> int:
        if self._fd < 0:
            place.mkdir(mode=0o700, exist_ok=True)
            self._fd = os.open(place, _DIR)
        return self._fd

    def large(self, source: int, name: str, info: os.stat_result, parent: int, to: str, path: str, here: set[int]) -> bool:
        """As `link`, for a large file that goes into a directory of the overlay: an empty one stands for it until `place`."""
        if self._place is None or info.st_size < _LARGE or _DEFAULT_ACL in list_xattrs(parent):
            return False
        placed = f"file{len(self._files)}"
        if not self.link(source, name, info, self._opened(self._place), placed, here):
            return False
        try:
            os.close(os.open(to, _EMPTY, 0o600, dir_fd=parent))
        except OSError:
            os.unlink(placed, dir_fd=self._fd)
            raise
        self._files[path] = placed
        return True

    def where(self, path: str) -> tuple[int, str] | None:
        """The directory and the path in it by which a staged path of the target is found."""
        if path in self._files:
            return self._fd, self._files[path]
        for top, name in self._made.items():
            if path == top or path.startswith(top + "/"):
                return self._fd, name + path[len(top) :]
        return None

    def link(self, source: int, name: str, info: os.stat_result, parent: int, to: str, here: set[int]) -> bool:
        """Give a file of the source a further name; False if it has to be copied. `here` are inodes this walk has met."""
        inode = info.st_ino
        if not self.sharing or (inode in self.taken and inode not in here):
            return False
        try:
            os.link(name, to, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except OSError as err:
            if err.errno not in _NO_LINK:
                raise
            self.sharing = err.errno == errno.EMLINK
            return False
        here.add(inode)
        return True

    def note(self, here: set[int]) -> None:
        """The walk is done: what it linked is in the target's stack from now on."""
        self.taken.numbers |= here
        self.shared.numbers |= here

    def relink(self, first: str, path: str) -> None:
        """Once placed, make `path`, a copy of the file `first`, a further name of it."""
        self._linked.append((first, path))

    def place(self) -> None:
        """Move what was made to where it belongs. The overlay must not be mounted."""
        if self.upper is None or self._place is None or self._fd < 0:
            return
        for path, name in self._made.items():
            target, made = self.upper / path, self._place / name
            for key in list_xattrs(target):
                if key in _OPAQUE:  # a layer below had something of that name, which was deleted in this one
                    set_xattr(made, key, b"y")
            _rename(made, target)  # which is an empty directory
        for path, name in self._files.items():
            _rename(self._place / name, self.upper / path)  # which is an empty file
        for number, (first, path) in enumerate(self._linked):
            fresh = self._place / f"link{number}"
            try:
                os.link(self.upper / first, fresh, follow_symlinks=False)
            except OSError as err:
                if err.errno != errno.EMLINK:
                    raise
                continue  # it stays a copy
            _rename(fresh, self.upper / path)
        self.close()
        self._place.rmdir()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _rename(source: Path, target: Path) -> None:
    above = target.parent.lstat()
    source.rename(target)
    os.utime(target.parent, ns=(above.st_atime_ns, above.st_mtime_ns))


__all__ = ["Stage"]
