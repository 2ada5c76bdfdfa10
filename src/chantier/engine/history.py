# SPDX-License-Identifier: Apache-2.0
"""What was built on this root: a record and the whole log of each build, kept within bounds of age and number.

    ROOT/builds/REF/start.json     what was asked for; locked as long as the build runs
    ROOT/builds/REF/events.jsonl   every event, as it came
    ROOT/builds/REF/log            the same as a daemon's clients get it, in place of events.jsonl, while the build runs
    ROOT/builds/REF/blobs/HEX      attachments by sha256: that log once it is whole, errors with details, attestations
    ROOT/builds/REF/record.json    how it ended, written last and as a whole

A directory without a record whose lock is free is of a build whose process died: it is `interrupted`, and what it said until
then is there. An export is a tar of such directories.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tarfile
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from chantier.errors import ChantierError, NotFoundError, UsageError
from chantier.kernel.trace import point
from chantier.progress import Event, Reporter, Vertex, Warning
from chantier.record import (
    ATTESTATION_TYPE,
    CANCELED,
    COMPLETED,
    ERROR,
    INTERRUPTED,
    LOG_TYPE,
    PLATFORM,
    PREDICATE,
    RUNNING,
    Attachment,
    BuildRecord,
    StepRecord,
    choose,
    load_record,
)
from chantier.solver import Explanation
from chantier.spec import dumps_indent
from chantier.spec.slsa import PROVENANCE
from chantier.values import asdict, replace

from .attachments import Attachments
from .events import dump, load
from .outlines import Outlines
from .request import SolveRequest, SolveResult
from .secrecy import open_attrs

KEEP = 50
KEEP_S = 48 * 3600.0
_INTERRUPTED = "the engine died while it ran this build"
_REF = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,127}\Z")
_BLOB = re.compile(r"blobs/[0-9a-f]{64}\Z")
_MEMBERS = ("start.json", "events.jsonl", "log", "record.json")
_MAX_RECORD = 16 << 20


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
        _write(self._path(record.ref) / "record.json", asdict(changed))
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
                document = _read(directory / "record.json")
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
        document = _read(directory / "record.json")
        if document is None:
            document = _read(directory / "start.json")
            if document is None:
                return None
            if _locked(directory / "start.json"):
                document["status"] = RUNNING
            elif (again := _read(directory / "record.json")) is not None:  # it ended as we looked
                document = again
            else:
                document |= {"status": INTERRUPTED, "completed": _last_change(directory), "error": _INTERRUPTED, "code": 2}
        return load_record(document)

    def _delete(self, ref: str) -> None:
        doomed = self.directory / f".rm-{ref}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._path(ref), doomed)
            point("history.removing")
        shutil.rmtree(doomed, ignore_errors=True)
        point("history.removed")


class Recording:
    """One build being recorded. A Reporter; `end` it."""

    def __init__(self, history: History, directory: Path, record: BuildRecord, reporter: Reporter, *, events: bool) -> None:
        self._history = history
        self._directory = directory
        self.record = record
        self.reporter = reporter
        self._lock = threading.Lock()
        self._vertices: dict[str, Vertex] = {}
        self._warnings = 0
        self._steps: tuple[Explanation, ...] = ()
        self._provenance: Mapping[str, Any] = {}
        self._held = _write(directory / "start.json", asdict(record), hold=True)
        self._events: BinaryIO | None = (directory / "events.jsonl").open("ab") if events else None
        self._attachments: list[Attachment] = []
        point("history.begun")

    @property
    def log(self) -> Path:
        """Where whoever keeps the log writes it."""
        return self._directory / "log"

    def attach(self, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> Attachment:
        """Keep something with the record. Raises OSError."""
        made = Attachments(self._directory).put(media_type, data, annotations)
        self._attachments.append(made)
        return made

    def attach_log(self, media_type: str) -> Attachment:
        """Keep what was written to `log`. Raises OSError."""
        made = Attachments(self._directory).adopt(media_type, self.log)
        self._attachments.append(made)
        return made

    def emit(self, event: Event, /) -> None:
        self.reporter.emit(event)
        with self._lock:
            if isinstance(event, Vertex):
                self._vertices[event.digest] = event
            elif isinstance(event, Warning):
                self._warnings += 1
            if self._events is None:
                return
            try:
                self._events.write(dump(event) + b"\n")
                point("history.logged")
            except (OSError, ValueError):  # a full disk must not end the build that filled it: the log ends here
                self._events = None

    def _attach_result(self, result: SolveResult) -> None:
        for data, notes in predicates(result.provenance):
            self.attach(ATTESTATION_TYPE, data, notes)
        for media_type, document, about in result.documents:
            self.attach(media_type, document, about)

    def note(self, steps: Sequence[Explanation], provenance: Mapping[str, Any]) -> None:
        """While the build's job lives: what became of its steps, and what it had come to if it has no result."""
        self._steps = tuple(steps)
        self._provenance = provenance

    def end(self, result: SolveResult | None, error: BaseException | None, *, code: int = 0, text: str = "") -> bool:
        """Write how it ended; `code` and `text` are what was answered in place of the error. False if it cannot be written:
        a build is not to fail because it cannot be remembered."""
        from asyncio import CancelledError

        from chantier.errors import CancelledError_

        status = COMPLETED if error is None else CANCELED if isinstance(error, CancelledError | CancelledError_) else ERROR
        completed = self._history.clock()
        vertices = [vertex for vertex in self._vertices.values() if vertex.started or vertex.cached]
        made = dict(result.provenance) if result is not None else {}
        document = asdict(self.record) | {
            "status": status,
            "completed": completed,
            "response": dict(result.response) if result is not None else {},
            "error": "" if error is None else text or str(error) or type(error).__name__,
            "code": code,
            "metadata": _texts(result.metadata) if result is not None else {},
            "results": _descriptors(result.answers) if result is not None else {},
            "total": len(self._vertices),
            "done": sum(1 for vertex in vertices if vertex.completed),
            "cached": sum(1 for vertex in vertices if vertex.cached),
            "warnings": self._warnings,
            "steps": [asdict(_step(step)) for step in self._steps if step.outcome],
            "provenance": next(iter(made.values()), self._provenance),
            "provenances": made if len(made) > 1 else {},
        }
        with self._lock:
            events, self._events = self._events, None
            try:
                if events is not None:
                    events.close()
                if result is not None:
                    self._attach_result(result)
                document["attachments"] = [asdict(one) for one in self._attachments]
                _write(self._directory / "record.json", document)
                written = True
            except OSError:
                written = False  # it will be shown as interrupted
            finally:
                os.close(self._held)
        with contextlib.suppress(ChantierError, OSError):
            self._history.collect()
        return written


def predicates(provenance: Mapping[str, Any]) -> Iterator[tuple[bytes, dict[str, str]]]:
    """The whole provenance of each result, the predicate alone (protocol.md 4.6), and what is noted of it."""
    for platform, predicate in provenance.items():
        notes = {PREDICATE: PROVENANCE + "v1"}
        yield dumps_indent(predicate), notes | ({PLATFORM: platform} if platform else {})


def _step(found: Explanation) -> StepRecord:
    return StepRecord(
        vertex=found.vertex,
        name=found.name,
        outcome=found.outcome,
        reason=found.reason,
        nearest=found.nearest.name if found.nearest is not None else "",
        differences=found.differences,
    )


def _write(path: Path, document: Mapping[str, Any], *, hold: bool = False) -> int:
    """Whole or not at all; with `hold` the file stays open and locked, and its descriptor is given."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if hold:
            fcntl.flock(fd, fcntl.LOCK_EX)
        data = memoryview(json.dumps(document, separators=(",", ":"), default=str).encode())
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
        point("history.writing")
        os.rename(part, path)
        point("history.written")
    except BaseException:
        os.close(fd)
        part.unlink(missing_ok=True)
        raise
    if hold:
        return fd
    os.close(fd)
    return -1


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_RECORD))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _last_change(directory: Path) -> int:
    """When a build that was interrupted last said anything, in nanoseconds since the epoch."""
    times = []
    for name in ("start.json", "events.jsonl", "log"):
        with contextlib.suppress(FileNotFoundError):
            times.append((directory / name).stat().st_mtime_ns)
    return max(times, default=0)


def _texts(metadata: Mapping[str, bytes]) -> dict[str, str]:
    found = {}
    for key, value in metadata.items():
        with contextlib.suppress(UnicodeDecodeError):
            found[key] = value.decode()
    return found


def _descriptors(answers: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Of the images that were exported, by the number of the exporter, in OCI's JSON."""
    key = "containerimage.descriptor"
    return {str(number): json.loads(b64decode(answer[key])) for number, answer in enumerate(answers) if key in answer}


def _lives(pid: str) -> bool:
    return pid.isdecimal() and Path("/proc", pid).exists()


def _locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


__all__ = [
    "CANCELED",
    "COMPLETED",
    "ERROR",
    "INTERRUPTED",
    "RUNNING",
    "BuildRecord",
    "History",
    "Recording",
    "StepRecord",
    "predicates",
]
