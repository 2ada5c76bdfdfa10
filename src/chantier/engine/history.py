# SPDX-License-Identifier: Apache-2.0
"""What was built on this root: a record and the whole log of each build, kept within bounds of age and number.

    ROOT/builds/REF/start.json     what was asked for; locked as long as the build runs
    ROOT/builds/REF/events.jsonl   every event, as it came
    ROOT/builds/REF/log            the same as a daemon's clients get it, in place of events.jsonl, while the build runs
    ROOT/builds/REF/blobs/HEX      attachments by sha256: that log once it is whole, errors with details, attestations, a trace
    ROOT/builds/REF/record.json    how it ended, written last and as a whole

A directory without a record whose lock is free is of a build whose process died: it is `interrupted`, and what it said until
then is there. An export is a tar of such directories.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from chantier.errors import NotFoundError, UsageError
from chantier.kernel.trace import point
from chantier.progress import Event, Reporter
from chantier.record import (
    INTERRUPTED,
    LOG_TYPE,
    RUNNING,
    TRACE_TYPE,
    BuildRecord,
    choose,
    load_record,
)
from chantier.values import asdict, replace

from .attachments import Attachments
from .events import load
from .outlines import Outlines
from .record_file import last_change, locked, read, write
from .recording import Recording
from .request import SolveRequest
from .secrecy import open_attrs
from .trace import encode, spans_of

KEEP = 50
KEEP_S = 48 * 3600.0
_INTERRUPTED = "the engine died while it ran this build"
_REF = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,127}\Z")
_BLOB = re.compile(r"blobs/[0-9a-f]{64}\Z")
_MEMBERS = ("start.json", "events.jsonl", "log", "record.json")


class History:
    """The builds of one root. Any process may use it at any time; sync and quick, but for logs."""

    def __init__(
        self, root: Path, *, max_age_s: float = 0.0, max_entries: int = 0, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.directory = root / "builds"
        self.clock = clock
        self.read_log: Callable[[Path], Iterator[Event]] | None = None  # how to read logs in the form of LOG_TYPE
        self.on_removed: Callable[[BuildRecord], None] | None = None  # by age and number; from any thread
        self._outlines = Outlines(self.directory, self._load)
        self.bound(max_age_s=max_age_s, max_entries=max_entries)

    def bound(self, *, max_age_s: float, max_entries: int) -> None:
        """What is kept; 0 for the default."""
        self._max_age_s = max_age_s or KEEP_S
        self._max_entries = max_entries or KEEP

    # A build's way

    def begin(self, request: SolveRequest, reporter: Reporter, *, events: bool = True) -> Recording:
        """Record a build from now on; report to the recording in place of `reporter`. Raises OSError.

        Without `events` whoever began it keeps its log: in `Recording.log` as long as it runs, then as an attachment.
        """
        directory = self._path(request.ref)
        if (directory / "record.json").exists():  # its client chose the reference of an earlier build
            self._delete(request.ref)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        record = BuildRecord(
            ref=request.ref,
            started=self.clock(),
            frontend=request.frontend,
            attrs=open_attrs(request.attrs),
            exporters=tuple((kind, open_attrs(attrs)) for kind, attrs in request.exporters),
            cache_imports=tuple((one.type, open_attrs(one.attrs)) for one in request.cache_imports),
            cache_exports=tuple((one.type, open_attrs(one.attrs)) for one in request.cache_exports),
        )
        return Recording(self, directory, record, reporter, events=events)

    # What is kept

    def records(self) -> list[BuildRecord]:
        """Newest first."""
        records = [record for name in self.refs() if (record := self._load(name)) is not None]
        return sorted(records, key=lambda record: (-record.started, record.ref))

    def get(self, ref: str = "") -> BuildRecord:
        """By reference, by its unique beginning, by `^N` (the N-th before the newest), "" for the newest. Raises NotFoundError."""
        if ref and (exact := self.find(ref.rpartition("/")[2]) if _REF.match(ref.rpartition("/")[2]) else None) is not None:
            return exact
        return choose(self.records(), ref)

    def find(self, ref: str) -> BuildRecord | None:
        """By its whole reference."""
        return self._load(self._path(ref).name)

    def refs(self) -> list[str]:
        try:
            return [name for name in os.listdir(self.directory) if _REF.match(name)]
        except FileNotFoundError:
            return []

    def events(self, ref: str) -> Iterator[Event]:
        """All that a build said, in order; of one that runs, until now."""
        path = self._path(ref) / "events.jsonl"
        if not path.exists() and self.read_log is not None and (log := self.log(ref)) is not None:
            yield from self.read_log(log)
            return
        try:
            with path.open("rb") as file:
                for line in file:
                    event = load(line)
                    if event is not None:
                        yield event
        except FileNotFoundError:
            raise NotFoundError(f"no log of build {ref}") from None

    def log(self, ref: str) -> Path | None:
        """The file of a log in the form of LOG_TYPE, where there is one: of a build that ended, or was recorded so far."""
        record = self.find(ref)
        kept = record.attached(LOG_TYPE) if record is not None else None
        path = self.attachment(ref, kept.digest) if kept is not None else self._path(ref) / "log"
        return path if path is not None and path.exists() else None

    def remove(self, ref: str) -> None:
        """Raises NotFoundError, UsageError for a build that runs."""
        record = self.get(ref)
        if record.status == RUNNING:
            raise UsageError(f"cannot remove build {record.ref}: it is running")
        self._delete(record.ref)

    def pin(self, ref: str, *, pinned: bool) -> BuildRecord:
        """A pinned build is kept until it is removed by name."""
        record = self.get(ref)
        if record.status == RUNNING:
            raise UsageError(f"cannot pin build {record.ref}: it is running")
        return self._change(record, pinned=pinned)

    def attach(self, ref: str, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> BuildRecord:
        """Keep something more with a build that has ended. Raises OSError."""
        record = self.get(ref)
        made = Attachments(self._path(record.ref)).put(media_type, data, annotations)
        return record if made in record.attachments else self._change(record, attachments=(*record.attachments, made))

    def trace(self, ref: str = "", events: Iterable[Event] | None = None) -> BuildRecord:
        """The record of a build with its trace, which is made of its log when it is first asked for, or of these events.

        Raises NotFoundError, UsageError for a build that runs, OSError.
        """
        record = self.get(ref)
        if record.status == RUNNING:
            raise UsageError(f"build {record.ref} has no trace yet: it is running")
        if record.attached(TRACE_TYPE) is not None:
            return record
        spans = spans_of(record, self.events(record.ref) if events is None else events)
        return self.attach(record.ref, TRACE_TYPE, encode(record, spans))

    def adopt_log(self, ref: str, media_type: str) -> BuildRecord:
        """Make the log of a build that was interrupted an attachment."""
        record = self.get(ref)
        log = self._path(record.ref) / "log"
        if record.status == RUNNING or not log.exists():
            return record
        made = Attachments(self._path(record.ref)).adopt(media_type, log)
        return self._change(record, attachments=(*record.attachments, made))

    def attachment(self, ref: str, digest: str) -> Path | None:
        """The file of an attachment, or None. Raises UsageError for what is no digest."""
        return Attachments(self._path(ref)).path(digest)

    def blob(self, ref: str, digest: str) -> bytes:
        """The bytes of an attachment. Raises NotFoundError, UsageError."""
        path = self.attachment(ref, digest)
        if path is None:
            raise NotFoundError(f"attachment {digest} of build {ref} is not kept here")
        return path.read_bytes()

    def attached(self) -> Iterator[tuple[str, Path]]:
        """All attachments: digest and file."""
        for ref in self.refs():
            attachments = Attachments(self._path(ref))
            for name in attachments.names():
                yield f"sha256:{name}", self._path(ref) / "blobs" / name

    def _change(self, record: BuildRecord, **changes: Any) -> BuildRecord:
        changed = replace(record, generation=record.generation + 1, **changes)
        write(self._path(record.ref) / "record.json", asdict(changed))
        return changed

    def collect(self) -> list[str]:
        """Remove what is beyond both bounds: the newest are kept by number, and those younger than the age. Gives what went."""
        oldest = self.clock() - int(self._max_age_s * 1e9)
        refs = list(self.refs())
        if len(refs) <= self._max_entries:  # so few that none needs to be read
            self._sweep()
            return []
        loose = [one for one in self._outlines.of_ended(refs) if not one.pinned]
        loose.sort(key=lambda one: (-one.started, one.ref))
        doomed = [one.ref for one in loose[self._max_entries :] if one.ended < oldest]
        for ref in doomed:
            record = self._load(ref)
            self._delete(ref)
            if self.on_removed is not None and record is not None:
                self.on_removed(record)
        self._sweep()
        return doomed

    def _sweep(self) -> None:
        """Remove what processes that died left of removals and imports."""
        for entry in os.scandir(self.directory) if self.directory.is_dir() else ():
            if entry.name.startswith(".rm-") or (entry.name.startswith(".import-") and not _lives(entry.name.rpartition("-")[2])):
                shutil.rmtree(entry.path, ignore_errors=True)

    # On their way

    def export(self, refs: Sequence[str], out: BinaryIO) -> None:
        """A tar.gz of these builds."""
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            for ref in refs:
                record = self.get(ref)
                if record.status == RUNNING:
                    raise UsageError(f"cannot export build {record.ref}: it is running")
                for member in _MEMBERS:
                    path = self._path(record.ref) / member
                    if path.exists():
                        tar.add(path, arcname=f"{record.ref}/{member}", filter=_plain)
                for one in record.attachments:
                    if (found := self.attachment(record.ref, one.digest)) is not None:
                        tar.add(found, arcname=f"{record.ref}/blobs/{found.name}", filter=_plain)

    def import_(self, source: BinaryIO) -> list[str]:
        """Take over what `export` wrote; a build that is here already is left as it is. Raises UsageError for what is none."""
        taken: dict[str, Path] = {}
        try:
            with tarfile.open(fileobj=source, mode="r:*") as tar:
                for member in tar:
                    ref, _, name = member.name.partition("/")
                    known = name in _MEMBERS or _BLOB.match(name)
                    if not known or not _REF.match(ref) or not member.isfile():
                        raise UsageError(f"not a build history: unexpected {member.name!r}")
                    if ref not in taken:
                        if self._path(ref).exists():
                            continue
                        taken[ref] = self.directory / f".import-{ref}-{os.getpid()}"
                        shutil.rmtree(taken[ref], ignore_errors=True)
                        taken[ref].mkdir(mode=0o700, parents=True)
                    content = tar.extractfile(member) or BytesIO()
                    if name not in _MEMBERS:
                        Attachments(taken[ref]).take(name.removeprefix("blobs/"), content)
                        continue
                    with (taken[ref] / name).open("wb") as file:
                        shutil.copyfileobj(content, file)
            for ref, directory in taken.items():
                document = read(directory / "record.json")
                if document is None or document.get("ref") != ref:
                    raise UsageError(f"not a build history: no record of {ref}")
                os.rename(directory, self._path(ref))
                point("history.imported")
        except (tarfile.TarError, EOFError) as err:
            raise UsageError(f"not a build history: {err}") from err
        finally:
            for directory in taken.values():
                shutil.rmtree(directory, ignore_errors=True)
        return sorted(taken)

    # Inside

    def _path(self, ref: str) -> Path:
        if not _REF.match(ref):
            raise UsageError(f"invalid build reference {ref!r}")
        return self.directory / ref

    def _load(self, name: str) -> BuildRecord | None:
        if not _REF.match(name):
            return None
        directory = self.directory / name
        document = read(directory / "record.json")
        if document is None:
            document = read(directory / "start.json")
            if document is None:
                return None
            if locked(directory / "start.json"):
                document["status"] = RUNNING
            elif (again := read(directory / "record.json")) is not None:  # it ended as we looked
                document = again
            else:
                document |= {"status": INTERRUPTED, "completed": last_change(directory), "error": _INTERRUPTED, "code": 2}
        return load_record(document)

    def _delete(self, ref: str) -> None:
        doomed = self.directory / f".rm-{ref}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._path(ref), doomed)
            point("history.removing")
        shutil.rmtree(doomed, ignore_errors=True)
        point("history.removed")


def _lives(pid: str) -> bool:
    return pid.isdecimal() and Path("/proc", pid).exists()


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


__all__ = ["History"]
