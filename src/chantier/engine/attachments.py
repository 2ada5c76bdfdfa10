# SPDX-License-Identifier: Apache-2.0
"""What is kept with a build's record: logs in the form of BuildKit's clients, errors with their details, attestations.

Each is a file of the build's directory, named by its sha256; which there are, and what they are, stands in the record.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from chantier.errors import UsageError
from chantier.kernel.trace import point
from chantier.record import Attachment

_HEX = re.compile(r"[0-9a-f]{64}\Z")


class Attachments:
    """Those of one build."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "blobs"

    def put(self, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> Attachment:
        """Raises OSError."""
        digest = hashlib.sha256(data).hexdigest()
        part = self._part(digest)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return self._name(part, media_type, digest, len(data), annotations)

    def adopt(self, media_type: str, path: Path, annotations: Mapping[str, str] | None = None) -> Attachment:
        """A file on the same file system, which moves. Raises OSError."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            os.fsync(file.fileno())
        self._directory.mkdir(mode=0o700, exist_ok=True)
        return self._name(path, media_type, digest, size, annotations)

    def take(self, name: str, source: IO[bytes]) -> None:
        """One that comes with an import. Raises UsageError if it is not what it is called."""
        part = self._part(name)
        with part.open("wb") as file:
            shutil.copyfileobj(source, file)
        with part.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != name:
                raise UsageError(f"not a build history: the attachment {name} is damaged")
        os.rename(part, self._directory / name)

    def path(self, digest: str) -> Path | None:
        """None if it is not here. Raises UsageError for what is no sha256 digest."""
        name = digest.removeprefix("sha256:")
        if not _HEX.match(name):
            raise UsageError(f"invalid digest {digest!r}")
        found = self._directory / name
        return found if found.exists() else None

    def names(self) -> list[str]:
        """Of the files that are whole, in hex."""
        try:
            return sorted(name for name in os.listdir(self._directory) if _HEX.match(name))
        except FileNotFoundError:
            return []

    def _part(self, name: str) -> Path:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        return self._directory / f".{name}.{os.getpid()}"

    def _name(self, part: Path, media_type: str, digest: str, size: int, annotations: Mapping[str, str] | None) -> Attachment:
        os.rename(part, self._directory / digest)
        point("history.attached")
        return Attachment(media_type=media_type, digest=f"sha256:{digest}", size=size, annotations=annotations or {})


__all__ = ["Attachments"]
