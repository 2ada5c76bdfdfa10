# SPDX-License-Identifier: Apache-2.0
"""Directories of the client as sources (semantics.md 3.13).

Each (name, hint, client's shared key) has one tree that is kept between builds and follows the client's directory: only
what changed is taken. What a build sees of it is a frozen view, given back when the build is done. The key is random: what
is built on a directory is found by content.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.cache.content import VOLATILE, forget, renew
from chantier.cache.file_digest import small_digest
from chantier.errors import ChantierError, DiskFullError, NotFoundError, SessionError, UsageError
from chantier.kernel import copy_file
from chantier.layer.shared import Inodes, write_shared
from chantier.llb.definition import LoadedVertex
from chantier.session.follow import follow
from chantier.session.sync import Receiver, unpack_rows
from chantier.session.types import FilesRequest, Followed
from chantier.session.walk import Entry, filter_of, to_stat, walk
from chantier.solver.types import CacheMap
from chantier.spec import dumps
from chantier.spec.patterns import Patterns

from .worker import Worker

if TYPE_CHECKING:
    from chantier.cache import MutableRef, Ref
    from chantier.session.types import Session
    from chantier.solver.types import JobContext

_log = logging.getLogger(__name__)
_INDEX = "local.index"
_METADATA_FILE = ".fsutil-metadata"
_REPORT_EVERY_S = 0.15


class LocalOp:
    """Implements `solver.types.Op`."""

    def __init__(self, vertex: LoadedVertex, worker: Worker) -> None:
        source = vertex.op.source
        attrs = source.attrs
        self._worker = worker
        self._session, self._name = _session_and_name(attrs.get("local.session", ""), source.identifier)
        self._unique = attrs.get("local.unique", "")
        self._hint = attrs.get("local.sharedkeyhint", "")
        self._compare = attrs.get("local.differ", "metadata") != "none"
        self._request = FilesRequest(
            name=self._name,
            include=_list(attrs.get("local.includepattern", "")),
            exclude=_list(attrs.get("local.excludepatterns", "")),
            follow=_list(attrs.get("local.followpaths", "")),
        )
        self._metadata_only = attrs.get("local.metadatatransfer", "") == "true"
        self._metadata_except = _list(attrs.get("local.metadatatransferexclude", ""))

    def acquire(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        request = self._request
        detail = dumps(
            {
                "SessionID": self._session or _sessions(job)[0].id,
                "IncludePatterns": list(request.include),
                "ExcludePatterns": list(request.exclude),
                "FollowPaths": list(request.follow),
                "Unique": self._unique,
                "MetadataOnly": [self._metadata_only, *self._metadata_except],
            }
        )
        key = f"buildkit.source.v0:session:{self._name}:sha256:{hashlib.sha256(detail).hexdigest()}"
        return CacheMap(digest="random:" + hashlib.sha256(key.encode()).hexdigest(), detail=detail), True

    async def run(self, job: JobContext, inputs: Sequence[Ref | None]) -> Sequence[Ref | None]:
        """Raises SessionError without a client, NotFoundError if no client offers the directory."""
        missing: ChantierError | None = None
        for session in self._candidates(job):
            try:
                return [await self._take(job, session)]
            except NotFoundError as err:
                missing = err
        raise missing if missing is not None else SessionError("could not access local files without session")

    def _candidates(self, job: JobContext) -> list[Session]:
        return list(self._worker.sessions_of(self._session, job.sessions)) or _sessions(job)

    async def _take(self, job: JobContext, session: Session) -> Ref:
        source = await session.locate(self._name)
        progress = _Progress(job, self._name)
        mutable = await self._worker.threaded(lambda _cancelled: self._mutable(session), lambda made: made.release())
        try:
            if source is None or not await self._followed(mutable, source, progress):
                await self._receive(mutable, session, progress)
            progress.done()
            return await self._worker.threaded(lambda _cancelled: mutable.freeze(), lambda view: view.release())
        finally:
            mutable.release()  # has no effect on one that was frozen

    def _mutable(self, session: Session) -> MutableRef:
        """The tree kept for this directory, or a new one where there is none that nobody else uses."""
        cache = self._worker.cache
        index = f"local:{self._name}:{self._hint}:{session.shared_key}" + (":metadata" if self._metadata_only else "")
        for id in cache.find(index):
            kept = cache.get_mutable(id)
            if kept is not None:
                return kept
        made = cache.new(None, description=f"local source for {self._name}", record_type="source.local", index=index)
        made.set_meta(VOLATILE, b"1")
        # If ever something is built on it: any of its files may have further names in layers.
        for upper in made.stack()[:1]:
            write_shared(upper, Inodes(all=True))
        return made

    async def _followed(self, mutable: MutableRef, source: Path, progress: _Progress) -> bool:
        """False if this process may not read something of the directory: the client perhaps may."""
        try:
            await self._worker.threaded(lambda cancelled: self._follow(mutable, source, progress, cancelled))
        except SessionError as err:
            if not isinstance(err.__cause__, PermissionError):
                raise
            _log.debug("directory %s cannot be read in place: %s", self._name, err)
            return False
        return True

    def _follow(self, mutable: MutableRef, source: Path, progress: _Progress, cancelled: Callable[[], bool]) -> None:
        """The client's directory lies on this machine: both halves of the transfer run here."""
        kept = _Kept(mutable, compare=self._compare)
        request = self._checked(source)
        with mutable.mounted() as into, _translated(self._name):
            kept.start(into)
            if self._metadata_only:
                with Receiver(into, {}) as receiver:
                    self._metadata(source, receiver, into, cancelled)
                return
            done = follow(
                source,
                request,
                into,
                kept.index,
                digest=small_digest,
                changing=kept.changing,
                on_bytes=progress.add,
                cancelled=cancelled,
            )
            kept.end(done)

    def _checked(self, source: Path) -> FilesRequest:
        try:
            filter_of(source, self._request)
        except ChantierError as err:
            # As a client behind a wire reports it, so that users meet one text.
            raise SessionError(f"rpc error: code = Unknown desc = {err}") from err
        return self._request

    async def _receive(self, mutable: MutableRef, session: Session, progress: _Progress) -> None:
        """The client's directory is elsewhere."""
        kept = _Kept(mutable, compare=self._compare)

        def mount(_cancelled: Callable[[], bool]) -> tuple[Any, Path]:
            context = mutable.mounted()
            into = context.__enter__()
            kept.start(into)
            return context, into

        context, into = await self._worker.threaded(mount)
        rows: list[bytes] = []
        wanted = Patterns(self._metadata_except)
        try:
            if self._metadata_only:
                await session.receive(
                    self._request,
                    into,
                    known={},
                    wants=lambda entry: wanted.matches(entry.path),
                    on_bytes=progress.add,
                    on_stat=lambda stat: rows.append(struct.pack("<I", len(stat)) + stat),
                )
                await self._worker.threaded(lambda _cancelled: _list_instead(into, wanted, rows))
                return
            done = await session.follow(
                self._request, into, kept.index, digest=small_digest, changing=kept.changing, on_bytes=progress.add
            )
        finally:
            await self._worker.threaded(lambda _cancelled: context.__exit__(None, None, None))
        await self._worker.threaded(lambda _cancelled: kept.end(done))

    def _metadata(self, source: Path, receiver: Receiver, into: Path, cancelled: Callable[[], bool]) -> None:
        """Attributes of all, in one file, and the files that are exceptions."""
        wanted = Patterns(self._metadata_except)
        rows = []
        for entry in walk(source, self._request, cancelled=cancelled):
            sent = to_stat(entry).SerializeToString(deterministic=True)
            rows.append(struct.pack("<I", len(sent)) + sent)
            if not receiver.want(entry):
                continue
            fd = receiver.open(entry)
            if wanted.matches(entry.path):
                _fill(entry, fd)
            receiver.close_file(entry, fd)
        receiver.finish()
        _list_instead(into, wanted, rows)


class _Kept:
    """A kept tree that is made to follow a directory. Until it is whole again there is no index: what a killed build left half-made
    is then made anew.
    """

    def __init__(self, mutable: MutableRef, *, compare: bool) -> None:
        self._mutable = mutable
        index = mutable.get_meta(_INDEX) if compare else None
        self.index = index if unpack_rows(index) is not None else None
        self._digests: bytes | None = None

    def start(self, into: Path) -> None:
        """Without an index, what is there is of no use."""
        if self.index is None:
            self._mutable.set_meta(_INDEX, None)
            forget(self._mutable)
            _empty(into)

    def changing(self) -> None:
        if self.index is not None:
            self._mutable.set_meta(_INDEX, None)
            self._digests = forget(self._mutable)

    def end(self, done: Followed) -> None:
        if done.index is not None:
            self._mutable.note()
            renew(self._mutable, self._digests, done.changed, done.digests)
            self._mutable.set_meta(_INDEX, done.index)


class _Progress:
    """`transferring NAME:` with the bytes so far, told now and then. Called from one thread."""

    def __init__(self, job: JobContext, name: str) -> None:
        self._step = job.step
        self._id = f"transferring {name}:"
        self._bytes = 0
        self._started: int | None = None
        self._next = 0.0

    def add(self, count: int) -> None:
        self._bytes += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _REPORT_EVERY_S
            self._tell()

    def done(self) -> None:
        if self._started is None:
            self._tell()
        self._tell(done=True)

    def _tell(self, *, done: bool = False) -> None:
        self._started = self._step.status(self._id, name="transferring", current=self._bytes, started=self._started, done=done)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        kind = DiskFullError if err.errno in (errno.ENOSPC, errno.EDQUOT) else SessionError
        place = f"{os.fsdecode(err.filename)}: " if isinstance(err.filename, str | bytes) else ""
        raise kind(f"failed to transfer {name}: {place}{(err.strerror or '').lower()}") from err


def _fill(entry: Entry, fd: int) -> None:
    read = entry.open()
    try:
        copy_file(read, fd, entry.size)
    finally:
        os.close(read)


def _list_instead(into: Path, wanted: Patterns, rows: Sequence[bytes]) -> None:
    """The list of all entries in place of those that are not wanted; directories stay where something wanted is in them."""
    for base, names, files in os.walk(into, topdown=False):
        times = os.stat(base)
        for name in (*files, *names):
            path = os.path.join(base, name)
            if wanted.matches(os.path.relpath(path, into)):
                continue
            if os.path.isdir(path) and not os.path.islink(path):
                with suppress(OSError):  # not empty
                    os.rmdir(path)
            else:
                os.unlink(path)
        os.utime(base, ns=(times.st_atime_ns, times.st_mtime_ns))
    (into / _METADATA_FILE).write_bytes(b"".join(rows))


def _empty(into: Path) -> None:
    with os.scandir(into) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def _sessions(job: JobContext) -> list[Session]:
    sessions = list(job.sessions)
    if not sessions:
        raise SessionError("could not access local files without session")
    return sessions


def _session_and_name(attr: str, identifier: str) -> tuple[str, str]:
    """`prefix:id` puts the session's directories under names `prefix-NAME`."""
    name = identifier.removeprefix("local://")
    prefix, colon, id = attr.partition(":")
    return (id, f"{prefix}-{name}") if colon else (attr, name)


def _list(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    try:
        found = json.loads(text)
    except ValueError as err:
        raise UsageError(f"invalid pattern list {text!r} of a local source") from err
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise UsageError(f"invalid pattern list {text!r} of a local source")
    return tuple(found)


__all__ = ["LocalOp"]
