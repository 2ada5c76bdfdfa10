# SPDX-License-Identifier: Apache-2.0
"""A new result that holds one file, while it is written: what a web server, a registry or a client sends."""

from __future__ import annotations

import hashlib
import os
import posixpath
from typing import TYPE_CHECKING

from chantier.errors import DiskFullError, UsageError
from chantier.kernel import write_all
from chantier.spec import Digest
from chantier.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chantier.cache import Cache, Ref
    from chantier.progress import Step

_TELL_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileAttrs:
    """How the file is to stand: `http.filename`, `http.perm`, `http.uid`, `http.gid` of a source. "" leaves the name open."""

    name: str
    mode: int
    uid: int
    gid: int

    @classmethod
    def of(cls, attrs: Mapping[str, str]) -> FileAttrs:
        """Raises UsageError for what is no number."""
        return cls(
            name=attrs.get("http.filename", ""),
            mode=_number(attrs.get("http.perm", ""), 8, "http.perm", 0o600),
            uid=_number(attrs.get("http.uid", ""), 10, "http.uid", 0),
            gid=_number(attrs.get("http.gid", ""), 10, "http.gid", 0),
        )


class FileWriter:
    """A `registry.BlobWriter` over an open file that is empty. `name` is for messages; `algorithm` is that of `digest`."""

    def __init__(self, fd: int, name: str, algorithm: str = "sha256") -> None:
        self._fd = fd
        self._name = name
        self._algorithm = algorithm
        self._hash = hashlib.new(algorithm)
        self.size = 0

    @property
    def offset(self) -> int:
        return self.size

    def digest(self) -> Digest:
        """Of what was written so far."""
        return Digest(f"{self._algorithm}:{self._hash.hexdigest()}")

    def write(self, data: bytes | memoryview, /) -> int:
        """Raises DiskFullError."""
        try:
            write_all(self._fd, data)
        except OSError as err:
            raise DiskFullError(f"failed to write {self._name}: {(err.strerror or '').lower()}") from err
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def restart(self) -> None:
        """Drop what was written."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.new(self._algorithm)
        self.size = 0


class FileResult(FileWriter):
    """Any thread, one at a time: `open`, then `write` and `restart`, then `commit` or `abort`."""

    def __init__(
        self,
        cache: Cache,
        attrs: FileAttrs,
        name: str,
        step: Step,
        *,
        description: str,
        record_type: str,
        algorithm: str = "sha256",
    ) -> None:
        super().__init__(-1, safe_name(name), algorithm)
        self._cache = cache
        self._attrs = attrs
        self._step = step
        self._description = description
        self._record_type = record_type
        self._told = 0
        self._started: int | None = None
        self.total = 0  # what is expected, if that is known

    def open(self) -> None:
        self._mutable = self._cache.new(None, description=self._description, record_type=self._record_type)
        try:
            self._mount = self._mutable.mounted()
            root = self._mount.__enter__()
            self._fd = os.open(root / self._name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except BaseException:
            self._mutable.release()
            raise

    def write(self, data: bytes | memoryview, /) -> int:
        super().write(data)
        if self.size - self._told >= _TELL_BYTES:
            self._tell()
        return len(data)

    def restart(self) -> None:
        super().restart()
        self._told = 0

    def _tell(self, *, done: bool = False) -> None:
        self._told = self.size
        self._started = self._step.status(
            f"downloading {self._name}",
            name="downloading",
            current=self.size,
            total=self.total,
            started=self._started,
            done=done,
        )

    def commit(self, modified: int | None = None) -> Ref:
        """The result, to be released; `modified` is the file's time in seconds since the epoch."""
        os.fchown(self._fd, self._attrs.uid, self._attrs.gid)
        os.fchmod(self._fd, self._attrs.mode & 0o7777)
        at = (modified or 0) * 1_000_000_000  # epoch 0: the same file makes the same layer whenever it is fetched
        os.utime(self._fd, ns=(at, at))
        self._close()
        if self._told:
            self._tell(done=True)
        return self._mutable.commit()

    def abort(self) -> None:
        if self._fd >= 0:
            self._close()
        self._mutable.release()

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._mount.__exit__(None, None, None)


def is_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def safe_name(name: str) -> str:
    base = posixpath.basename(name.rstrip("/"))
    return base if is_name(base) else "download"


def _number(text: str, base: int, name: str, default: int) -> int:
    if not text:
        return default
    try:
        return int(text, base)
    except ValueError as err:
        raise UsageError(f"invalid {name} {text!r} of a source") from err


__all__ = ["FileAttrs", "FileResult", "FileWriter", "is_name", "safe_name"]
