# SPDX-License-Identifier: Apache-2.0
"""Caches in directories of this machine: OCI layouts whose index.json names each cache (or export of a cache mount) by a tag.

The engine reads and writes blobs only. Which manifest is meant is looked up before the build, and written down after it, by
whoever asks for the build.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.errors import ChantierError, UsageError
from chantier.kernel.temporary import write_whole
from chantier.spec import OCI_INDEX, Digest, Manifest, parse_manifest

if TYPE_CHECKING:
    from .call import CacheSpec, Prepared

REF_NAME = "org.opencontainers.image.ref.name"
MANIFEST_KEY = "cache.manifest"  # of the build's answer: the descriptor of what was exported
_TAG = "latest"


def store_id(directory: str) -> str:
    """How the engine asks for the directory: as it was written, which is also what stands in `src` and `dest`."""
    return f"local:{directory}"


def with_digest(spec: CacheSpec) -> CacheSpec:
    """A local import with the digest its tag names. Unchanged if there is none: the engine says that it is not used."""
    if spec.type != "local" or spec.attrs.get("digest") or not spec.attrs.get("src"):
        return spec
    digest = find(Path(spec.attrs["src"]), spec.attrs.get("tag") or _TAG)
    return type(spec)(type=spec.type, attrs={**spec.attrs, "digest": digest}) if digest else spec


def stores(imports: Sequence[CacheSpec], exports: Sequence[CacheSpec]) -> dict[str, Path]:
    """The directories a session must offer, by the names the engine asks for. Raises UsageError."""
    found = {}
    for specs, key in ((imports, "src"), (exports, "dest")):
        for spec in specs:
            if spec.type != "local":
                continue
            directory = spec.attrs.get(key)
            if not directory:
                raise UsageError(f"local cache {'importer' if key == 'src' else 'exporter'} requires {key}", hint=f"{key}=DIR")
            found[store_id(directory)] = Path(directory).absolute()
    return found


def find(directory: Path, tag: str) -> str:
    """The digest of the manifest with that tag, "" if there is none."""
    for entry in reversed(_index(directory)["manifests"]):
        if isinstance(entry, dict) and (entry.get("annotations") or {}).get(REF_NAME) == tag:
            return str(entry.get("digest") or "")
    return ""


def name_caches(prepared: Prepared, response: Mapping[str, str]) -> None:
    """After a build: give the exported cache its tag in each directory it went to, as the last step of all."""
    text = response.get(MANIFEST_KEY)
    if not text:
        return
    descriptor = json.loads(text)
    for spec in prepared.call.cache_exports:
        directory = Path(spec.attrs.get("dest", ""))
        digest = Digest.parse(descriptor["digest"])
        if spec.type == "local" and (directory / "blobs" / digest.algorithm / digest.hex).exists():
            name_cache(directory, descriptor, spec.attrs.get("tag") or _TAG)


def name_cache(directory: Path, descriptor: Mapping[str, Any], tag: str) -> None:
    """Replace what the tag named. The file is replaced as a whole. Raises ChantierError."""
    index = _index(directory)
    kept = [one for one in index["manifests"] if (one.get("annotations") or {}).get(REF_NAME) != tag]
    index["manifests"] = [*kept, {**descriptor, "annotations": {**(descriptor.get("annotations") or {}), REF_NAME: tag}}]
    path = directory / "index.json"
    try:
        write_whole(path, json.dumps(index, separators=(",", ":")).encode(), sync=True)
    except OSError as err:
        raise ChantierError(f"failed to write {path}: {(err.strerror or str(err)).lower()}") from err


def collect(directory: Path, artifact_type: str) -> None:
    """Delete the blobs that no manifest names any more, if all manifests of the index are of that type and can be read."""
    wanted: set[str] = set()
    for entry in _index(directory)["manifests"]:
        if entry.get("artifactType") != artifact_type:
            return
        try:
            digest = Digest.parse(entry["digest"])
            manifest = parse_manifest((directory / "blobs" / digest.algorithm / digest.hex).read_bytes())
        except (OSError, KeyError, ChantierError):
            return  # what a damaged one needs is not known: nothing goes
        if isinstance(manifest, Manifest):
            wanted |= {digest, manifest.config.digest, *(layer.digest for layer in manifest.layers)}
    for path in (directory / "blobs/sha256").iterdir():
        if f"sha256:{path.name}" not in wanted:
            path.unlink(missing_ok=True)


def _index(directory: Path) -> dict[str, Any]:
    """index.json, or an empty one if it is missing or none."""
    try:
        index = json.loads((directory / "index.json").read_bytes())
    except (OSError, ValueError):
        index = None
    if not isinstance(index, dict) or not isinstance(index.get("manifests"), list):
        return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    return index


__all__ = ["collect", "find", "name_cache", "name_caches", "store_id", "stores", "with_digest"]
