# SPDX-License-Identifier: Apache-2.0
"""One build being recorded: what it says goes on to its listeners and into its log, how it ended into its record."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from chantier.errors import ChantierError
from chantier.kernel.trace import point
from chantier.progress import Event, Reporter, Vertex, Warning
from chantier.record import (
    ATTESTATION_TYPE,
    CANCELED,
    COMPLETED,
    ERROR,
    PLATFORM,
    PREDICATE,
    Attachment,
    BuildRecord,
    StepRecord,
)
from chantier.solver import Explanation
from chantier.spec import dumps_indent
from chantier.spec.slsa import PROVENANCE
from chantier.values import asdict

from .attachments import Attachments
from .events import dump
from .record_file import write
from .request import SolveResult

if TYPE_CHECKING:
    from .history import History


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
        self._held = write(directory / "start.json", asdict(record), hold=True)
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
                write(self._directory / "record.json", document)
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


__all__ = ["Recording", "predicates"]
