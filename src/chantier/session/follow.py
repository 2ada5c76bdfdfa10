# SPDX-License-Identifier: Apache-2.0
"""Both halves of a directory's transfer on one machine: a tree is made to follow another, and it is told what that changed.

With the library of `kernel.trees` a walk, its comparison with the index and the copying of small files are each one call; what
differs otherwise goes entry by entry to the `Receiver`, as everything does without it. The results are the same.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chantier.errors import CancelledError_, SessionError
from chantier.kernel.trees import NONE, Trees, trees

from .rows import entry_at, path_at, time_at, value_at
from .sync import (
    COARSE_CLOCK,
    COARSE_TICK_NS,
    SIGNATURE,
    SMALL,
    TICK_NS,
    Directories,
    Known,
    Receiver,
    is_hard,
    pack,
    pack_rows,
    row,
    sync,
    take,
    unpack,
    unpack_rows,
)
from .types import FilesRequest, Followed
from .walk import Entry, filter_of, walk

_BATCH = 256  # files that are copied in one call
_FEW = 16  # files that are not worth a thread
_OWNER = (0, 0)


def follow(
    source: Path,
    request: FilesRequest,
    into: Path,
    index: bytes | None,
    *,
    digest: Callable[[int, bytes], bytes],
    changing: Callable[[], None],
    on_bytes: Callable[[int], None] = lambda _n: None,
    cancelled: Callable[[], bool],
) -> Followed:
    """Make `into`, which is as it was when `index` was given (None: empty), hold what the request selects of `source`.

    `digest` is that of a small file of this mode and these bytes, of which trees.c knows the same. `changing` is called before
    the first change. Raises SessionError for what cannot be read, OSError for what cannot be written.
    """
    library = trees()
    if library is not None:
        before = unpack_rows(index) or b""
        done = _Bulk(library, source, request, into, before, digest, changing, on_bytes, cancelled).follow()
        if done is not None:
            return done
    return _by_entry(source, request, into, unpack(index), digest, changing, on_bytes, cancelled)


def differing(before: Known, after: Known) -> list[bytes]:
    """The paths of what is new, may be other, or is gone."""
    found = [path for path, value in after.items() if not value or before.get(path) != value or is_hard(value)]
    found += [path for path in before if path not in after]
    return [os.fsencode(path) for path in found]


def _by_entry(
    source: Path,
    request: FilesRequest,
    into: Path,
    known: Known | None,
    digest: Callable[[int, bytes], bytes],
    changing: Callable[[], None],
    on_bytes: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> Followed:
    digests: dict[bytes, bytes] = {}
    before = dict(known or {})
    with Receiver(into, known, changing=changing) as receiver:
        now = sync(source, request, receiver, on_bytes=on_bytes, on_file=noting(digests, digest), cancelled=cancelled)
    if not receiver.changed and known is not None:
        return Followed(index=None, digests={})
    return Followed(index=pack(now), changed=differing(before, now), digests=digests)


def noting(digests: dict[bytes, bytes], digest: Callable[[int, bytes], bytes]) -> Callable[[Entry, int, bytes], None]:
    """Hash a small file while its bytes are at hand: its copy is root's."""

    def note(entry: Entry, _inode: int, data: bytes) -> None:
        if not entry.xattrs:
            digests[os.fsencode(entry.path)] = digest(entry.mode, data)

    return note


class _Bulk:
    def __init__(
        self,
        library: Trees,
        source: Path,
        request: FilesRequest,
        into: Path,
        before: bytes,
        digest: Callable[[int, bytes], bytes],
        changing: Callable[[], None],
        on_bytes: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self.library = library
        self.source = source
        self.request = request
        self.into = into
        self.before = before
        self.digest = digest
        self.changing = changing
        self.on_bytes = on_bytes
        self.cancelled = cancelled
        self.digests: dict[bytes, bytes] = {}

    def follow(self) -> Followed | None:
        """None if the index is damaged."""
        started = time.clock_gettime_ns(COARSE_CLOCK)
        root = os.open(self.source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.rows = self._walk(root)
            found = self.library.compare(self.before, self.rows)
            if found is None:
                return None
            pairs, directories = found
            if not pairs and self.before:
                return Followed(index=None, digests={})
            changed = self._change(root, pairs, dict(map(self._time, directories)))
        finally:
            os.close(root)
        kept = self.library.settled(self.rows, started, TICK_NS, COARSE_TICK_NS)
        return Followed(index=pack_rows(kept), changed=changed, digests=self.digests)

    def _walk(self, root: int) -> bytes:
        chosen = filter_of(self.source, self.request)
        if chosen.includes or chosen.excludes:
            return b"".join(map(row, walk(self.source, self.request, cancelled=self.cancelled)))
        try:
            return self.library.walk(root, self.cancelled)
        except OSError as err:
            if err.errno == errno.ECANCELED:
                raise CancelledError_ from err
            raise SessionError(f"failed to read {err.filename or '.'}: {(err.strerror or '').lower()}") from err

    def _time(self, offset: int) -> tuple[str, int]:
        return os.fsdecode(path_at(self.rows, offset)), time_at(self.rows, offset)

    def _change(self, root: int, pairs: Sequence[tuple[int, int]], times: dict[str, int]) -> list[bytes]:
        """Do what differs: directories and all that is special, then small files, then names of these. Gives all paths."""
        changed, known = [], {}
        small, replace, odd, hard = [], bytearray(), [], []
        rows, before = self.rows, self.before
        for new, old in pairs:
            if new == NONE:
                path = before[old : before.index(b"\0", old)]
            else:
                end = rows.index(b"\0", new)
                path = rows[new:end]
                mode, size, _, _, _, _, is_link = SIGNATURE.unpack_from(rows, end + 3)
                if is_link:
                    hard.append(new)
                elif stat.S_ISREG(mode) and size <= SMALL:
                    small.append(new)
                    replace.append(old != NONE)
                else:
                    odd.append(new)
            if old != NONE:
                known[os.fsdecode(path)] = value_at(before, old)
            changed.append(path)
        with Receiver(self.into, known, changing=self.changing, directories=times) as receiver:
            self._one_by_one(root, receiver, odd)
            left = self._copy(root, receiver, small, bytes(replace)) if small else []
            self._one_by_one(root, receiver, left + hard)
            receiver.finish()
        return changed

    def _one_by_one(self, root: int, receiver: Receiver, offsets: Sequence[int]) -> None:
        directories = Directories(root)
        try:
            for offset in offsets:
                if self.cancelled():
                    raise CancelledError_
                entry = entry_at(self.rows, offset)
                try:
                    entry.dir_fd, _ = directories.parent(entry.path)
                except OSError:  # gone or changed since it was seen
                    entry.xattrs = {}
                if receiver.want(entry):
                    note = noting(self.digests, self.digest)
                    take(entry, receiver, on_bytes=self.on_bytes, on_file=note, cancelled=self.cancelled)
        finally:
            directories.close()

    def _copy(self, root: int, receiver: Receiver, offsets: Sequence[int], replace: bytes) -> list[int]:
        """Make small files, and note what became of them; gives those that are left to do."""
        receiver.begin()
        left = []
        for at, results in self._batches(root, receiver.root, offsets, replace):
            total = 0
            for offset, (_inode, done, digest) in zip(offsets[at : at + _BATCH], results, strict=True):
                if not done:
                    left.append(offset)
                    continue
                path = path_at(self.rows, offset)
                receiver.wrote(os.fsdecode(path))
                total += SIGNATURE.unpack_from(self.rows, offset + len(path) + 3)[1]
                if digest:
                    self.digests[path] = digest
            self.on_bytes(total)
        return left

    def _batches(
        self, root: int, into: int, offsets: Sequence[int], replace: bytes
    ) -> Iterator[tuple[int, Iterator[tuple[int, bool, bytes]]]]:
        def copy(at: int) -> Iterator[tuple[int, bool, bytes]]:
            if self.cancelled():
                raise CancelledError_
            some = slice(at, at + _BATCH)
            return self.library.copy(root, into, self.rows, offsets[some], replace[some], _OWNER)

        starts = range(0, len(offsets), _BATCH)
        if len(offsets) <= _FEW:
            yield from zip(starts, map(copy, starts), strict=True)
            return
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1), "chantier-copy") as pool:
            yield from zip(starts, pool.map(copy, starts), strict=True)


__all__ = ["Followed", "differing", "follow", "noting"]
