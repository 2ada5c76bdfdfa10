# SPDX-License-Identifier: Apache-2.0
"""Where exports of cache mounts lie: a repository of a registry, or a directory in the layout of OCI images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from chantier.errors import ChantierError, IntegrityError, NotFoundError, UsageError
from chantier.kernel.trace import point
from chantier.registry import Registry
from chantier.spec import (
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Manifest,
    Reference,
    descriptor_to_json,
    digest_of,
    dumps,
    parse_manifest,
)
from chantier.store import Writer

ARTIFACT = "application/vnd.chantier.cache-mount.v1"
_LIMIT = 64 << 20
_REF_NAME = "org.opencontainers.image.ref.name"


class Place(Protocol):
    """Where an export lies. Sync."""

    def manifest(self) -> bytes | None: ...
    def read(self, descriptor: Descriptor) -> bytes:
        """A small blob, verified."""

    def fetch(self, descriptor: Descriptor, writer: Writer) -> None:
        """A blob's bytes; the caller commits and so verifies them."""

    def has(self, descriptor: Descriptor) -> bool: ...
    def put(self, descriptor: Descriptor, open: Callable[[], BinaryIO]) -> None: ...
    def commit(self, manifest: bytes) -> None:
        """Let this manifest be the export from now on, all or nothing."""


class RegistryPlace:
    def __init__(self, registry: Registry, name: str) -> None:
        self._registry = registry
        self._ref = Reference.parse(name).with_default_tag()

    def manifest(self) -> bytes | None:
        try:
            found = self._registry.resolve(self._ref)
        except NotFoundError:
            return None
        return found.data if found.data is not None else self._registry.manifest(self._ref, found.descriptor)[0]

    def read(self, descriptor: Descriptor) -> bytes:
        return self._registry.read_blob(self._ref, descriptor)

    def fetch(self, descriptor: Descriptor, writer: Writer) -> None:
        self._registry.fetch_blob(self._ref, descriptor, writer)

    def has(self, descriptor: Descriptor) -> bool:
        return self._registry.exists(self._ref, descriptor)

    def put(self, descriptor: Descriptor, open: Callable[[], BinaryIO]) -> None:
        self._registry.push_blob(self._ref, descriptor, open)

    def commit(self, manifest: bytes) -> None:
        self._registry.push_manifest(self._ref, manifest, OCI_MANIFEST)


class DirectoryPlace:
    """An OCI layout on this machine, the export under a tag."""

    def __init__(self, directory: Path, tag: str = "latest") -> None:
        self._directory = directory.absolute()
        self._tag = tag

    def manifest(self) -> bytes | None:
        for entry in self._index()["manifests"]:
            if (entry.get("annotations") or {}).get(_REF_NAME) == self._tag:
                return self._bytes(Digest.parse(entry["digest"]))
        return None

    def read(self, descriptor: Descriptor) -> bytes:
        return self._bytes(descriptor.digest)

    def fetch(self, descriptor: Descriptor, writer: Writer) -> None:
        writer.restart()
        try:
            with self._blob(descriptor.digest).open("rb") as file:
                while chunk := file.read(1 << 20):
                    writer.write(chunk)
        except FileNotFoundError as err:
            raise NotFoundError(f"{descriptor.digest}: not found in {self._directory}") from err

    def has(self, descriptor: Descriptor) -> bool:
        try:
            return self._blob(descriptor.digest).stat().st_size == descriptor.size
        except FileNotFoundError:
            return False

    def put(self, descriptor: Descriptor, open: Callable[[], BinaryIO]) -> None:
        target = self._blob(descriptor.digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open() as source:
            self._write(target, iter(lambda: source.read(1 << 20), b""))

    def commit(self, manifest: bytes) -> None:
        digest = digest_of(manifest)
        self.put(Descriptor(media_type=OCI_MANIFEST, digest=digest, size=len(manifest)), lambda: BytesIO(manifest))
        self._write(self._directory / "oci-layout", iter([b'{"imageLayoutVersion":"1.0.0"}']))
        index = self._index()
        others = [entry for entry in index["manifests"] if (entry.get("annotations") or {}).get(_REF_NAME) != self._tag]
        entry = descriptor_to_json(Descriptor(media_type=OCI_MANIFEST, digest=digest, size=len(manifest)))
        index["manifests"] = [*others, {**entry, "artifactType": ARTIFACT, "annotations": {_REF_NAME: self._tag}}]
        self._write(self._directory / "index.json", iter([dumps(index)]))
        self._collect()

    def _collect(self) -> None:
        """Blobs that no manifest names any more go, if all that is here are exports of cache mounts."""
        wanted: set[str] = set()
        for entry in self._index()["manifests"]:
            if entry.get("artifactType") != ARTIFACT:
                return
            manifest = parse_manifest(self._bytes(Digest.parse(entry["digest"])))
            if isinstance(manifest, Manifest):
                wanted |= {str(entry["digest"]), str(manifest.config.digest), *(str(layer.digest) for layer in manifest.layers)}
        for path in (self._directory / "blobs/sha256").iterdir():
            if f"sha256:{path.name}" not in wanted:
                path.unlink(missing_ok=True)

    def _index(self) -> dict[str, Any]:
        try:
            index = json.loads((self._directory / "index.json").read_bytes())
        except (OSError, ValueError):
            index = None
        if not isinstance(index, dict) or not isinstance(index.get("manifests"), list):
            return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        return index

    def _bytes(self, digest: Digest) -> bytes:
        try:
            data = self._blob(digest).read_bytes()
        except FileNotFoundError as err:
            raise NotFoundError(f"{digest}: not found in {self._directory}") from err
        if len(data) > _LIMIT or digest_of(data) != digest:
            raise IntegrityError(f"blob {digest} in {self._directory} is damaged")
        return data

    def _blob(self, digest: str) -> Path:
        parsed = Digest.parse(digest)
        return self._directory / "blobs" / parsed.algorithm / parsed.hex

    def _write(self, path: Path, chunks: Iterator[bytes]) -> None:
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with part.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            point("cache-mount.written")
            os.replace(part, path)
        except OSError as err:
            part.unlink(missing_ok=True)
            raise ChantierError(f"failed to write {path}: {(err.strerror or str(err)).lower()}") from err


def place_of(attrs: Mapping[str, str], registry: Callable[[bool], Registry]) -> Place:
    """From `type=registry,ref=NAME` or `type=local,dest=DIR` (or src=DIR). Raises UsageError."""
    kind = attrs.get("type", "")
    if kind == "registry" and attrs.get("ref"):
        return RegistryPlace(registry(attrs.get("registry.insecure", "") == "true"), attrs["ref"])
    directory = attrs.get("dest") or attrs.get("src")
    if kind == "local" and directory:
        return DirectoryPlace(Path(directory), attrs.get("tag") or "latest")
    raise UsageError(f"cannot keep a cache mount in {dict(attrs)}", hint="type=registry,ref=NAME or type=local,dest=DIR")


__all__ = ["ARTIFACT", "DirectoryPlace", "Place", "RegistryPlace", "place_of"]
