# SPDX-License-Identifier: Apache-2.0
"""Statements about results: what frontends and the engine said of them becomes in-toto statements (protocol.md 8.2).

A statement's content is made when it is asked for: provenance tells of layers that only the export has made.
"""

from __future__ import annotations

import json
import os
import posixpath
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from chantier.cache import Ref
from chantier.errors import IntegrityError, NotFoundError, UsageError
from chantier.kernel import open_in_root
from chantier.op.worker import threaded
from chantier.values import dataclass, field, replace

from .types import ExportContext

T = TypeVar("T")
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SPDX = "https://spdx.dev/Document"
_PROVENANCE = "https://slsa.dev/provenance/"
_MOST_BYTES = 40 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """`self` is what the exporter writes; `raw` has digests of its own, each ALGORITHM:HEX."""

    kind: Literal["self", "raw"] = "self"
    name: str = ""
    digests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """A predicate from a file of a result, or by `content` where it is the engine's own. A bundle is a directory of statements.

    No subjects: it is about what the exporter writes. `metadata` has `reason`, `inline-only`, `sbom-core` (protocol.md 1.5).
    """

    kind: Literal["in-toto", "bundle"] = "in-toto"
    path: str = ""
    predicate_type: str = ""
    subjects: tuple[Subject, ...] = ()
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    ref: Ref | None = None
    content: Callable[[], Awaitable[bytes]] | None = None

    @property
    def inline_only(self) -> bool:
        """It is only worth carrying in an image that goes to a registry."""
        return self.metadata.get("inline-only") == b"true"

    @property
    def is_core(self) -> bool:
        """It describes the result itself, not another tree that was scanned beside it."""
        core = self.metadata.get("sbom-core")
        return core is not None and posixpath.basename(self.path).partition(".")[0] == core.decode()


Subjects = Sequence[tuple[str, Mapping[str, str]]]
"""(name, digest by algorithm) of what the exporter writes."""


async def unbundle(attestations: Sequence[Attestation], context: ExportContext) -> list[Attestation]:
    """Single statements, the core first. Raises UsageError, IntegrityError for what cannot be one."""
    found: list[Attestation] = []
    for one in attestations:
        _check(one)
        found += await _opened(one, context) if one.kind == "bundle" else [one]
    for one in found:
        if not one.path:
            raise UsageError("attestation does not have set path")
    return [one for one in found if one.is_core] + [one for one in found if not one.is_core]


async def statement(attestation: Attestation, subjects: Subjects, context: ExportContext) -> dict[str, Any]:
    """One in-toto statement. Raises IntegrityError for a predicate that is not JSON."""
    return {
        "_type": STATEMENT_TYPE,
        "predicateType": attestation.predicate_type,
        "subject": _subjects(attestation.subjects or (Subject(),), subjects),
        "predicate": await predicate_of(attestation, context),
    }


async def predicate_of(attestation: Attestation, context: ExportContext) -> Any:
    content = attestation.content
    if content is not None:
        data = await content()
    else:
        data = await _within(attestation, context, lambda root: _read(root, attestation.path))
    try:
        return json.loads(data) if data else None
    except ValueError as err:
        raise IntegrityError(f"attestation {attestation.path} is not JSON: {err}") from err


def _check(attestation: Attestation) -> None:
    provenance = attestation.predicate_type.startswith(_PROVENANCE)
    if attestation.content is None and attestation.ref is None:
        raise UsageError("attestation does not have available content")
    if attestation.kind == "in-toto" and provenance and attestation.content is None:
        raise UsageError("frontend may not set provenance attestations")


async def _opened(bundle: Attestation, context: ExportContext) -> list[Attestation]:
    statements = await _within(bundle, context, lambda root: _directory(root, bundle.path))
    found = []
    for name, document in statements:
        kind = str(document.get("predicateType") or "")
        if bundle.predicate_type and kind != bundle.predicate_type:
            raise UsageError(f"bundle entry {kind} does not match required predicate type {bundle.predicate_type}")
        if kind.startswith(_PROVENANCE):
            raise UsageError("frontend may not bundle provenance attestations")
        data = json.dumps(document.get("predicate"), ensure_ascii=False).encode()

        async def content(data: bytes = data) -> bytes:
            return data

        found.append(
            replace(
                bundle,
                kind="in-toto",
                path=posixpath.join(bundle.path, name),
                predicate_type=kind,
                subjects=tuple(_raw_subject(one) for one in document.get("subject") or ()),
                content=content,
            )
        )
    return found


def _raw_subject(raw: Any) -> Subject:
    if not isinstance(raw, dict):
        raise IntegrityError("invalid in-toto statement: a subject is not an object")
    digests = tuple(f"{algorithm}:{value}" for algorithm, value in (raw.get("digest") or {}).items())
    return Subject(kind="raw", name=str(raw.get("name") or ""), digests=digests)


async def _within(attestation: Attestation, context: ExportContext, work: Callable[[Path], T]) -> T:
    ref = attestation.ref
    if ref is None:
        raise UsageError("no ref provided for attestation bundle")

    def run(cancelled: Callable[[], bool]) -> T:
        with ref.mounted(sessions=context.sessions, cancelled=cancelled) as root:
            return work(root)

    return await threaded(run)


def _directory(root: Path, path: str) -> list[tuple[str, dict[str, Any]]]:
    fd = _open(root, path or "/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = sorted(os.listdir(fd))
    finally:
        os.close(fd)
    found = []
    for name in names:
        try:
            document = json.loads(_read(root, posixpath.join(path, name)))
        except ValueError as err:
            raise IntegrityError(f"cannot decode in-toto statement {name}: {err}") from err
        if not isinstance(document, dict):
            raise IntegrityError(f"in-toto statement {name} is not a single JSON object")
        found.append((name, document))
    return found


def _read(root: Path, path: str) -> bytes:
    with open(_open(root, path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UsageError(f"cannot read in-toto attestation: {path} is not a regular file")
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise IntegrityError(f"{path} exceeds {_MOST_BYTES} bytes")
    return data


def _open(root: Path, path: str, flags: int) -> int:
    try:
        return open_in_root(root, path, flags)
    except OSError as err:
        raise NotFoundError(f"cannot read in-toto attestation: open {path}: {(err.strerror or str(err)).lower()}") from err


def _subjects(wanted: Sequence[Subject], own: Subjects) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for subject in wanted:
        if subject.kind == "raw":
            digests = dict(digest.split(":", 1) for digest in subject.digests)
            made.append({"name": subject.name or "_", "digest": digests})
            continue
        for name, digest in own:
            names = [name, *([subject.name] if subject.name not in ("", "_") else [])]
            made += [{"name": one, "digest": dict(digest)} for one in names]
    return made


__all__ = ["SPDX", "STATEMENT_TYPE", "Attestation", "Subject", "Subjects", "predicate_of", "statement", "unbundle"]
