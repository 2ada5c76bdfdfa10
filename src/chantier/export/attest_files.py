# SPDX-License-Identifier: Apache-2.0
"""Attestations as files beside plain results: about every file of the result (protocol.md 8.5)."""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from chantier.errors import CancelledError_, UsageError
from chantier.op.worker import threaded
from chantier.session.types import FilesRequest
from chantier.session.walk import walk
from chantier.spec import dumps_indent

from .attest import statement, unbundle
from .types import Exportable, ExportContext


async def statement_files(
    what: Exportable, platform: str, below: str, prefix: str, root: Path, context: ExportContext
) -> dict[str, bytes]:
    """By name; none for what is only worth carrying in images. `root` is the mounted result, `below` the folder it goes to.

    Several platforms in one folder have their names told apart: `provenance.linux_amd64.json`. Raises UsageError for a name
    that is taken.
    """
    said = [one for one in what.attestations.get(platform, ()) if not one.inline_only]
    if not said:
        return {}
    files: dict[str, bytes] = {}
    subjects = await threaded(lambda cancelled: _subjects(root, cancelled))
    for one in await unbundle(said, context):
        base, dot, ending = (prefix + posixpath.basename(one.path)).rpartition(".")
        name = prefix + posixpath.basename(one.path)
        if what.is_multi and not below:
            name = f"{base}.{platform.replace('/', '_')}{dot}{ending}" if dot else f"{name}.{platform.replace('/', '_')}"
        if name in files:
            raise UsageError(f"duplicate attestation path name {name}")
        if "/" in name:
            raise UsageError(f"invalid attestation-prefix {prefix!r}: it is the beginning of a name, not a directory")
        if os.path.lexists(root / name):
            raise UsageError(
                f"cannot write attestation {name}: the result has a file of that name", hint="use attestation-prefix"
            )
        files[name] = dumps_indent(await statement(one, list(subjects.items()), context))
    return files


def _subjects(root: Path, cancelled: Callable[[], bool]) -> dict[str, Mapping[str, str]]:
    """The digests of all regular files, in the order they are sent in."""
    found: dict[str, Mapping[str, str]] = {}
    for entry in walk(root, FilesRequest(name=""), cancelled=cancelled):
        if cancelled():
            raise CancelledError_
        if stat.S_ISREG(entry.mode):
            with open(root / entry.path, "rb") as file:
                found[entry.path] = {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return found


__all__ = ["statement_files"]
