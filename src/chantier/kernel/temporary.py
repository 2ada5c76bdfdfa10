# SPDX-License-Identifier: Apache-2.0
"""Directories and files for a while that a process which is killed does not leave for ever.

A directory is made in a place of its user's own, and flock'ed as long as its owner lives:

    TMP/chantier-UID/KIND-XXXXXXXX

Whoever makes the next one there removes those that nobody holds. The place itself is locked while one is made, so none is seen
before it is held. systemd-tmpfiles(8) leaves alone what is locked like this. A file has no name before it is whole (O_TMPFILE,
open(2)): of one that is never finished nothing stays.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from .files import is_ours, write_all
from .mounts import remove_unmounted
from .namespaces import parse_id_map

_PLACE = "chantier-"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)  # a file system, or a kernel, without it


class TemporaryDirectory(tempfile.TemporaryDirectory[str]):
    """`tempfile.TemporaryDirectory` of mode 0700 that the next one removes if its owner is killed.

    `kind` is how its name begins; `base` is another directory than that for temporary files. Where the place is somebody else's
    or its file system has no locks, it is an ordinary one.
    """

    def __init__(self, kind: str, *, base: str | os.PathLike[str] | None = None) -> None:
        directory = Path(base or tempfile.gettempdir())
        dead: list[tuple[Path, int]] = []
        try:
            with _place(directory / f"{_PLACE}{_user_of_the_machine()}") as place:
                if place is not None:
                    dead = _unheld(place)
                super().__init__(prefix=f"{kind}-" if place else f"{_PLACE}{kind}-", dir=place or directory)
                self._place = place
                if place is not None:
                    self._release = weakref.finalize(self, os.close, _held(Path(self.name)))
        finally:
            for path, fd in dead:
                remove_unmounted(path)
                os.close(fd)

    def cleanup(self) -> None:
        super().cleanup()
        place, self._place = self._place, None
        if place is None:
            return
        self._release()
        fd = _locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if fd >= 0:  # else another is being made in it
            with suppress(OSError):  # there are others
                place.rmdir()
            os.close(fd)


@contextmanager
def _place(path: Path) -> Iterator[Path | None]:
    """The directory, locked; None if it cannot be ours."""
    fd = _locked(path, fcntl.LOCK_EX)
    try:
        yield path if fd >= 0 else None
    finally:
        if fd >= 0:
            os.close(fd)


def _locked(path: Path, kind: int) -> int:
    """A descriptor that holds the lock of the place, which is made if it is not there; -1 if it cannot be ours."""
    while True:
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            pass
        except OSError:  # whatever is made next says so
            return -1
        try:
            fd = os.open(path, _DIRECTORY)
        except FileNotFoundError:  # who used it last has removed it just now
            continue
        except OSError:  # a link, or somebody else's
            return -1
        try:
            if not is_ours(os.fstat(fd)):
                raise PermissionError
            fcntl.flock(fd, kind)
            if os.path.samestat(os.lstat(path), os.fstat(fd)):
                return fd
        except FileNotFoundError:  # removed while we waited
            os.close(fd)
            continue
        except OSError:  # no locks there
            os.close(fd)
            return -1
        os.close(fd)


def _held(path: Path) -> int:
    """The descriptor whose lock says that the owner lives."""
    fd = os.open(path, _DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _unheld(place: Path) -> list[tuple[Path, int]]:
    """What the dead left, with descriptors that hold it from now on: it is removed when others may go on."""
    found = []
    for entry in list(os.scandir(place)):
        try:
            fd = os.open(entry.path, _DIRECTORY)
        except OSError:  # just gone, or no directory: it is none of ours
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append((Path(entry.path), fd))
        except OSError:  # its owner lives
            os.close(fd)
    return found


@cache
def _user_of_the_machine() -> int:
    """Who we are outside: root of a user namespace is 0 inside, like everybody's (user_namespaces(7))."""
    own = os.geteuid()
    try:
        ranges = parse_id_map(Path("/proc/self/uid_map").read_text(encoding="ascii"))
    except OSError:  # a kernel without user namespaces
        return own
    return next((part.outside + own - part.inside for part in ranges if part.inside <= own < part.inside + part.size), own)


class NewFile:
    """A file that takes its name when it is whole, and the place of what has that name. `fd` is open for writing.

    Its mode is what the umask leaves of 0666. Where the file system knows no files without a name it has one of its own before:
    `.NAME.XXXXXXXX`. Raises OSError.
    """

    def __init__(self, target: Path, mode: int = 0o666) -> None:
        self.target = target
        self._named: Path | None = None
        try:
            self.fd = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, mode)
            if os.path.exists(self._link):
                return
            os.close(self.fd)  # no /proc: it could not be given a name
        except OSError as err:
            if err.errno not in _NO_TMPFILE:
                raise
        self._named = self._beside()
        self.fd = os.open(self._named, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    @property
    def _link(self) -> str:
        return f"/proc/self/fd/{self.fd}"

    def _beside(self) -> Path:
        return self.target.with_name(f".{self.target.name[:200]}.{secrets.token_hex(4)}")

    def take(self) -> None:
        """Close it and give it its name; if that fails nothing is left of it."""
        try:
            if self._named is None and not self._linked(self.target):
                self._named = self._beside()
                self._linked(self._named)
            self._close()
            if self._named is not None:
                os.replace(self._named, self.target)
        except BaseException:
            self.drop()
            raise

    def _linked(self, path: Path) -> bool:
        """linkat(2) as its page gives it for O_TMPFILE; False if the name is taken."""
        parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(self._link, path.name, dst_dir_fd=parent, follow_symlinks=True)
            return True
        except FileExistsError:
            return False
        finally:
            os.close(parent)

    def drop(self) -> None:
        """There will be no such file."""
        with suppress(OSError):  # a disk that is full says so again
            self._close()
        if self._named is not None:
            self._named.unlink(missing_ok=True)

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def write_whole(path: Path, data: bytes, *, mode: int = 0o666, exact: bool = False, sync: bool = False) -> None:
    """Write a file that is there as a whole or not at all; the umask cuts `mode` unless it is `exact`. Raises OSError."""
    file = NewFile(path, mode)
    try:
        write_all(file.fd, data)
        if exact:
            os.fchmod(file.fd, mode)
        if sync:
            os.fsync(file.fd)
    except BaseException:
        file.drop()
        raise
    file.take()


__all__ = ["NewFile", "TemporaryDirectory", "write_whole"]
