# SPDX-License-Identifier: Apache-2.0
"""What was built on this root: a record and the whole log of each build, kept within bounds of age and number.

    ROOT/builds/REF/start.json     what was asked for; locked as long as the build runs
    ROOT/builds/REF/events.jsonl   every event, as it came
    ROOT/builds/REF/record.json    how it ended, written last and as a whole

A directory without a record whose lock is free is of a build whose process died: it is `interrupted`, and what it said until
then is there. Everything in a directory is plain JSON, and an export is a tar of it.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, field, fields
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from chantier.errors import ChantierError, NotFoundError, UsageError
from chantier.progress import Event, Reporter, Vertex, Warning, now
from chantier.solver import Explanation
from chantier.values import dataclass

from .events import dump, load
from .request import SolveRequest, SolveResult
from .secrecy import open_attrs

KEEP = 50
KEEP_S = 48 * 3600.0
RUNNING, COMPLETED, ERROR, CANCELED, INTERRUPTED = "running", "completed", "error", "canceled", "interrupted"
_REF = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,127}\Z")
_MEMBERS = ("start.json", "events.jsonl", "record.json")
_MAX_RECORD = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step: whether it was cached, and why it ran."""

    vertex: str
    name: str
    outcome: str
    reason: str
    nearest: str = ""
    differences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecord:
    """One build. Times are nanoseconds since the epoch; `completed` 0 while it runs."""

    ref: str
    status: str = RUNNING
    started: int = 0
    completed: int = 0
    frontend: str = ""
    attrs: Mapping[str, str] = field(default_factory=dict)
    exporters: tuple[tuple[str, Mapping[str, str]], ...] = ()
    cache_imports: tuple[tuple[str, Mapping[str, str]], ...] = ()
    cache_exports: tuple[tuple[str, Mapping[str, str]], ...] = ()
    response: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    total: int = 0
    done: int = 0
    cached: int = 0
    warnings: int = 0
    steps: tuple[StepRecord, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)  # an SLSA v1 predicate: of the first result
    provenances: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by platform, where there are several
    pinned: bool = False

    @property
    def name(self) -> str:
        """What people call it: its target or tag, else the context."""
        for _, attrs in self.exporters:
            if attrs.get("name"):
                return attrs["name"].split(",")[0]
        context = self.attrs.get("context", "") or self.attrs.get("vcs:source", "") or self.attrs.get("filename", "")
        target = self.attrs.get("target", "")
        return " ".join(part for part in (context, f"({target})" if target else "") if part) or self.frontend or "graph"

    @property
    def duration_ns(self) -> int:
        return max((self.completed or now()) - self.started, 0)


class History:
    """The builds of one root. Any process may use it at any time; sync and quick, but for logs."""

    def __init__(
        self, root: Path, *, max_age_s: float = 0.0, max_entries: int = 0, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.directory = root / "builds"
        self._max_age_s = max_age_s or KEEP_S
        self._max_entries = max_entries or KEEP
        self.clock = clock

    # A build's way

    def begin(self, request: SolveRequest, reporter: Reporter) -> Recording:
        """Record a build from now on; report to the recording in place of `reporter`. Raises OSError."""
        directory = self._path(request.ref)
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
        return Recording(self, directory, record, reporter)

    # What is kept

    def records(self) -> list[BuildRecord]:
        """Newest first."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        records = [record for name in names if (record := self._load(name)) is not None]
        return sorted(records, key=lambda record: (-record.started, record.ref))

    def get(self, ref: str = "") -> BuildRecord:
        """By reference, by its unique beginning, by `^N` (the N-th before the newest), "" for the newest. Raises NotFoundError."""
        records = self.records()
        if not ref or ref.startswith("^"):
            if ref[1:] and not ref[1:].isdecimal():
                raise UsageError(f"invalid build reference {ref!r}", hint="^0 is the newest build, ^1 the one before")
            number = int(ref[1:] or 0)
            if number >= len(records):
                raise NotFoundError("no build found" if not ref else f"no build {ref}: only {len(records)} are kept")
            return records[number]
        ref = ref.rpartition("/")[2]
        found = [record for record in records if record.ref == ref] or [r for r in records if r.ref.startswith(ref)]
        if not found:
            raise NotFoundError(f"no record found for ref {ref!r}")
        if len(found) > 1:
            raise UsageError(f"{ref!r} is the beginning of {len(found)} builds", hint="give more of it")
        return found[0]

    def events(self, ref: str) -> Iterator[Event]:
        """All that a build said, in order; of one that runs, until now."""
        path = self._path(ref) / "events.jsonl"
        try:
            with path.open("rb") as file:
                for line in file:
                    event = load(line)
                    if event is not None:
                        yield event
        except FileNotFoundError:
            raise NotFoundError(f"no log of build {ref}") from None

    def remove(self, ref: str) -> None:
        """Raises NotFoundError, UsageError for a build that runs."""
        record = self.get(ref)
        if record.status == RUNNING:
            raise UsageError(f"cannot remove build {record.ref}: it is running")
        self._delete(record.ref)

    def pin(self, ref: str, *, pinned: bool) -> None:
        """A pinned build is kept until it is removed by name."""
        record = self.get(ref)
        if record.status == RUNNING:
            raise UsageError(f"cannot pin build {record.ref}: it is running")
        document = asdict(record) | {"pinned": pinned}
        _write(self._path(record.ref) / "record.json", document)

    def collect(self) -> list[str]:
        """Remove what is beyond both bounds: the newest are kept by number, and those younger than the age. Gives what went."""
        oldest = self.clock() - int(self._max_age_s * 1e9)
        loose = [record for record in self.records() if record.status != RUNNING and not record.pinned]
        doomed = [record.ref for record in loose[self._max_entries :] if (record.completed or record.started) < oldest]
        for ref in doomed:
            self._delete(ref)
        return doomed

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

    def import_(self, source: BinaryIO) -> list[str]:
        """Take over what `export` wrote; a build that is here already is left as it is. Raises UsageError for what is none."""
        taken: dict[str, Path] = {}
        try:
            with tarfile.open(fileobj=source, mode="r:*") as tar:
                for member in tar:
                    ref, _, name = member.name.partition("/")
                    if name not in _MEMBERS or not _REF.match(ref) or not member.isfile():
                        raise UsageError(f"not a build history: unexpected {member.name!r}")
                    if ref not in taken:
                        if self._path(ref).exists():
                            continue
                        taken[ref] = self.directory / f".import-{ref}-{os.getpid()}"
                        shutil.rmtree(taken[ref], ignore_errors=True)
                        taken[ref].mkdir(mode=0o700, parents=True)
                    content = tar.extractfile(member) or BytesIO()
                    with (taken[ref] / name).open("wb") as file:
                        shutil.copyfileobj(content, file)
            for ref, directory in taken.items():
                document = _read(directory / "record.json")
                if document is None or document.get("ref") != ref:
                    raise UsageError(f"not a build history: no record of {ref}")
                os.rename(directory, self._path(ref))
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
            document["status"] = RUNNING if _locked(directory / "start.json") else INTERRUPTED
        return _record(document)

    def _delete(self, ref: str) -> None:
        doomed = self.directory / f".rm-{ref}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._path(ref), doomed)
        shutil.rmtree(doomed, ignore_errors=True)


class Recording:
    """One build being recorded. A Reporter; `end` it."""

    def __init__(self, history: History, directory: Path, record: BuildRecord, reporter: Reporter) -> None:
        self._history = history
        self._directory = directory
        self._record = record
        self._reporter = reporter
        self._lock = threading.Lock()
        self._vertices: dict[str, Vertex] = {}
        self._warnings = 0
        self._steps: tuple[Explanation, ...] = ()
        self._provenance: Mapping[str, Any] = {}
        self._held = _write(directory / "start.json", asdict(record), hold=True)
        self._events: BinaryIO | None = (directory / "events.jsonl").open("ab")

    def emit(self, event: Event, /) -> None:
        self._reporter.emit(event)
        with self._lock:
            if isinstance(event, Vertex):
                self._vertices[event.digest] = event
            elif isinstance(event, Warning):
                self._warnings += 1
            if self._events is None:
                return
            try:
                self._events.write(dump(event) + b"\n")
            except (OSError, ValueError):  # a full disk must not end the build that filled it: the log ends here
                self._events = None

    def note(self, steps: Sequence[Explanation], provenance: Mapping[str, Any]) -> None:
        """While the build's job lives: what became of its steps, and what it had come to if it has no result."""
        self._steps = tuple(steps)
        self._provenance = provenance

    def end(self, result: SolveResult | None, error: BaseException | None) -> None:
        """Write how it ended. Never raises: a build is not to fail because it cannot be remembered."""
        from asyncio import CancelledError

        from chantier.errors import CancelledError_

        status = COMPLETED if error is None else CANCELED if isinstance(error, CancelledError | CancelledError_) else ERROR
        completed = self._history.clock()
        vertices = [vertex for vertex in self._vertices.values() if vertex.started or vertex.cached]
        made = dict(result.provenance) if result is not None else {}
        document = asdict(self._record) | {
            "status": status,
            "completed": completed,
            "response": dict(result.response) if result is not None else {},
            "error": "" if error is None else str(error) or type(error).__name__,
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
                _write(self._directory / "record.json", document)
            except OSError:
                pass  # it will be shown as interrupted
            finally:
                os.close(self._held)
        with contextlib.suppress(ChantierError, OSError):
            self._history.collect()


def _step(found: Explanation) -> StepRecord:
    return StepRecord(
        vertex=found.vertex,
        name=found.name,
        outcome=found.outcome,
        reason=found.reason,
        nearest=found.nearest.name if found.nearest is not None else "",
        differences=found.differences,
    )


def _record(document: Mapping[str, Any]) -> BuildRecord | None:
    known = {one.name for one in fields(BuildRecord)}
    values = {key: value for key, value in document.items() if key in known}
    try:
        for key in ("exporters", "cache_imports", "cache_exports"):
            values[key] = tuple((kind, attrs) for kind, attrs in values.get(key, ()))
        steps = {one.name for one in fields(StepRecord)}
        values["steps"] = tuple(
            StepRecord(**({k: v for k, v in step.items() if k in steps} | {"differences": tuple(step.get("differences", ()))}))
            for step in values.get("steps", ())
        )
        return BuildRecord(**values)
    except (TypeError, ValueError):  # written by another version
        return None


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
        os.rename(part, path)
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


__all__ = ["CANCELED", "COMPLETED", "ERROR", "INTERRUPTED", "RUNNING", "BuildRecord", "History", "Recording", "StepRecord"]
