# SPDX-License-Identifier: Apache-2.0
"""Images in archives, `docker save`'s or of an OCI layout, turned into a layout on disk that a session can serve.

    docker-archive:FILE[:NAME]   what `docker save`, `podman save` or `-o type=docker` wrote
    oci-archive:FILE[:TAG]       a tar of an OCI layout, as `-o type=oci` writes
    docker-daemon:NAME           an image of the engine that runs containers here, saved for the build

Archives come from outside: only plain files below the target are written, and every digest is computed, not believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from chantier.errors import ChantierError, NotFoundError, ReferenceError_, UsageError
from chantier.spec import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_LAYER_TAR,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Reference,
    digest_of,
)

Save = Callable[[str], AbstractContextManager[BinaryIO]]
"""Opens an image of the local container engine as a docker archive."""

_CHUNK = 1 << 20
_DOCUMENT = 8 << 20
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


def open_archive(value: str, into: Path, save: Save | None) -> str:
    """Make `into` the layout of the image that a context names; returns the digest. Raises UsageError, NotFoundError."""
    kind, _, rest = value.partition(":")
    if kind == "docker-daemon":
        if save is None:
            raise UsageError(f"cannot take {value}: no way to a container engine", hint="save it, and use docker-archive:FILE")
        with save(rest) as stream:
            _extract(stream, into, rest)
        return _layout(into, "", rest)
    path, name = _split(rest)
    with path.open("rb") as file:
        _extract(file, into, str(path))
    return _layout(into, name, str(path))


def _split(text: str) -> tuple[Path, str]:
    """FILE[:NAME]; colons may stand in both."""
    at = len(text)
    while True:
        if os.path.isfile(text[:at]):
            return Path(text[:at]), text[at + 1 :]
        at = text.rfind(":", 0, at)
        if at < 0:
            raise UsageError(f"stat {text}: no such file or directory")


def _extract(stream: BinaryIO, into: Path, what: str) -> None:
    """Plain files, and links among them as copies of names."""
    import tarfile

    links: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for member in tar:
                name = _inside(member.name)
                if member.isfile() and name:
                    source = tar.extractfile(member)
                    assert source is not None
                    target = into / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as file:
                        shutil.copyfileobj(source, file, _CHUNK)
                elif member.issym() and name:
                    links[name] = _inside(posixpath.join(posixpath.dirname(name), member.linkname))
                elif member.islnk() and name:
                    links[name] = _inside(member.linkname)
    except (tarfile.TarError, EOFError, OSError) as err:
        raise ChantierError(f"failed to read the image archive {what}: {err}") from err
    for name, target_name in links.items():
        source_path = into / target_name
        if target_name and source_path.is_file() and not (into / name).exists():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(source_path, into / name)


def _inside(name: str) -> str:
    """A path below the target, "" for one that is not."""
    clean = posixpath.normpath(name.lstrip("/"))
    return "" if clean in (".", "..") or clean.startswith("../") else clean


def _layout(root: Path, name: str, what: str) -> str:
    index, manifest = root / "index.json", root / "manifest.json"
    if index.is_file() and (root / "oci-layout").is_file():
        return _from_index(root, _read(index, what), name, what)
    if manifest.is_file():
        return _from_docker(root, _read(manifest, what), name, what)
    raise UsageError(f"{what} is not an image archive: it has neither index.json nor manifest.json")


def _from_index(root: Path, index: Any, name: str, what: str) -> str:
    offered = [m for m in index.get("manifests") or () if isinstance(m, Mapping)]
    found = [m for m in offered if not name or _is_called(name, [(m.get("annotations") or {}).get(key, "") for key in _NAMES])]
    if not name and len(found) > 1:
        # One image under several names is one image.
        found = found[:1] if len({m.get("digest") for m in found}) == 1 else found
    if len(found) != 1:
        names = [next((a[k] for k in reversed(_NAMES) if (a := m.get("annotations") or {}).get(k)), "") for m in offered]
        raise _which(name, names, what, many=len(found) > 1)
    return str(found[0].get("digest"))


def _from_docker(root: Path, images: Any, name: str, what: str) -> str:
    found = [i for i in images if not name or _is_called(name, i.get("RepoTags") or ())]
    if len(found) != 1:
        raise _which(name, [tag for i in images for tag in i.get("RepoTags") or ()], what, many=len(found) > 1)
    blobs = root / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    image = found[0]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _blob(root, image["Config"], blobs, what, OCI_CONFIG),
        "layers": [_blob(root, layer, blobs, what) for layer in image["Layers"]],
    }
    data = json.dumps(manifest, separators=(",", ":")).encode()
    digest = digest_of(data)
    (blobs / digest.hex).write_bytes(data)
    described = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(data)}
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [described]}))
    (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return str(digest)


def _blob(root: Path, name: str, blobs: Path, what: str, media_type: str = "") -> dict[str, Any]:
    path = root / (_inside(name) or "none")
    if not path.is_file():
        raise UsageError(f"{what} is not whole: {name} is missing")
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not (blobs / digest).exists():
        os.link(path, blobs / digest)
    return {"mediaType": media_type or _layer_type(head), "digest": f"sha256:{digest}", "size": path.stat().st_size}


def _layer_type(head: bytes) -> str:
    if head.startswith(b"\x1f\x8b"):
        return OCI_LAYER_GZIP
    return OCI_LAYER_ZSTD if head == b"\x28\xb5\x2f\xfd" else OCI_LAYER_TAR


def _is_called(name: str, names: Sequence[str]) -> bool:
    return name in names or _full(name) in {_full(n) for n in names if n}


def _full(name: str) -> str:
    try:
        return str(Reference.parse(name).with_default_tag())
    except ReferenceError_:  # a bare tag, or what an engine made up
        return name


def _which(name: str, names: Sequence[str], what: str, *, many: bool) -> ChantierError:
    listed = ", ".join(n for n in names if n) or "images without names"
    if name and not many:
        return NotFoundError(f"no image {name} in {what}", hint=f"it holds {listed}")
    return UsageError(f"{what} holds several images, name one: {what}:NAME", hint=f"it holds {listed}")


def _read(path: Path, what: str) -> Any:
    try:
        if path.stat().st_size > _DOCUMENT:
            raise UsageError(f"{what} is not an image archive: its {path.name} is too large")
        return json.loads(path.read_bytes())
    except ValueError as err:
        raise UsageError(f"{what} is not an image archive: its {path.name} is not JSON") from err


__all__ = ["Save", "open_archive"]
