# SPDX-License-Identifier: Apache-2.0
"""Cache mounts that outlive the machine: the content of `--mount=type=cache,id=NAME` to a registry or a directory, and back.

The files of a mount are dealt into buckets by the directory they lie in; each bucket that is not empty is one blob (tar, zstd)
of an OCI artifact. A bucket whose files have the sizes, modes and times they had at the last export is not even read again, and
one that packs to the same bytes is not sent. The manifest goes last: until then the old export stands. An import is unpacked
beside the mount and takes its place in one transaction.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.cache import Cache
from chantier.errors import CancelledError_, ChantierError, IntegrityError, NotFoundError
from chantier.kernel.trace import point
from chantier.layer import Compressor, decompressor, unpack
from chantier.op.mounts import cache_index
from chantier.op.worker import threaded
from chantier.session.types import Session
from chantier.spec import (
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    descriptor_to_json,
    digest_of,
    dumps,
    parse_manifest,
)
from chantier.values import dataclass, fields

from .mount_places import ARTIFACT, Place, place_of

if TYPE_CHECKING:
    from .engine import Engine

CONFIG = "application/vnd.chantier.cache-mount.config.v1+json"
_BUCKETS = 64
_BUCKET_KEY = "chantier.cache-mount.bucket"
_PREFIX = cache_index("")
_NO_ID = (1 << 32) - 1  # to chown(2) it means: as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    id: str
    record: str
    size: int
    last_used: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What an export or an import did. `sent` counts the bytes of blobs that had to travel, `left_out` the files over the limit.

    `manifest` is that of an export: in a directory the client has yet to name it.
    """

    files: int
    bytes: int
    blobs: int
    sent: int = 0
    left_out: int = 0
    manifest: Descriptor | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        manifest = descriptor_to_json(self.manifest) if self.manifest is not None else None
        return {**{one.name: getattr(self, one.name) for one in fields(self)}, "manifest": manifest}


class CacheMounts:
    """The cache mounts of an engine, for the loop it runs in. `name` is an id, or a target; places are what `place_of` takes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._work = _Work(engine.cache)

    async def list(self) -> list[Mount]:
        """By id, the newest record of each."""
        return await threaded(lambda _cancelled: self._work.list())

    async def export(self, name: str, attrs: Mapping[str, str], session: Session | None, *, limit: int = 0) -> Moved:
        """Waits until nobody uses the mount. With a limit in bytes the files changed last are taken, as many as fit.

        Raises NotFoundError, UsageError, and what the place raises.
        """
        return await threaded(
            lambda cancelled: self._work.export(name, place_of(attrs, self._engine, session, cancelled), limit, cancelled)
        )

    async def import_(self, name: str, attrs: Mapping[str, str], session: Session | None) -> Moved:
        """Put the export in the place of the mount; steps that use the old content just now go on with it."""
        return await threaded(
            lambda cancelled: self._work.import_(name, place_of(attrs, self._engine, session, cancelled), cancelled)
        )


class _Work:
    """The same in a thread."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def list(self) -> list[Mount]:
        found: dict[str, Mount] = {}
        for usage in self._cache.usage(filters=("type==exec.cachemount",)):
            for index in self._cache.records.indexes(usage.id):
                if index.startswith(_PREFIX):
                    id = index.removeprefix(_PREFIX)
                    found[id] = Mount(id=id, record=usage.id, size=usage.size, last_used=usage.last_used_at)
        return [found[id] for id in sorted(found)]

    def export(self, name: str, place: Place, limit: int, cancelled: Callable[[], bool]) -> Moved:
        id = _choose(name, [mount.id for mount in self.list()])
        if id is None:
            raise NotFoundError(f"no cache mount {name!r}", hint="chantier cache-mount ls")
        ref = self._cache.mutable(cache_index(id), sharing="locked", cancelled=cancelled)
        try:
            with self._cache.root.lease(), ref.mounted() as root:
                return _Export(self._cache, id, root, place, limit, cancelled).run()
        finally:
            ref.release()

    def import_(self, name: str, place: Place, cancelled: Callable[[], bool]) -> Moved:
        data = place.manifest()
        if data is None:
            raise NotFoundError(
                f"no such export of a cache mount: {place.where} has none",
                hint="chantier cache-mount export ID --to PLACE makes one",
            )
        manifest = parse_manifest(data)
        if not isinstance(manifest, Manifest) or manifest.config.media_type != CONFIG:
            raise IntegrityError(f"{place.where} is not an export of a cache mount")
        config = _Described.of(place.read(manifest.config))
        known = [mount.id for mount in self.list()]
        # Where the mount is new it is called as where it was exported, or by another name as a Dockerfile gives it.
        id = _choose(name, known) or _choose(name, [config.id]) or f"/{name}"
        ref = self._cache.new(None, description=f"cache mount {id}", record_type="exec.cachemount", cancelled=cancelled)
        try:
            with self._cache.root.lease(), ref.mounted() as root:
                os.chmod(root, config.mode)
                for layer in manifest.layers:
                    _unpack(self._cache, place, layer, root, cancelled)
                _times(root, config.directories)
            point("cache-mount.unpacked")
            self._cache.replace_index(ref.id, cache_index(id))
            point("cache-mount.replaced")
        finally:
            ref.release()
        return Moved(files=config.files, bytes=config.size, blobs=len(manifest.layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Described:
    """What the config of an export says. Directories: their mode, owner, group, and time in nanoseconds."""

    id: str
    files: int
    size: int
    mode: int
    directories: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, data: bytes) -> _Described:
        """Anybody may have written it. Raises IntegrityError."""
        try:
            raw = json.loads(data)
            directories = {path: [int(number) for number in numbers] for path, numbers in (raw.get("directories") or {}).items()}
            for path, (mode, uid, gid, mtime_ns) in directories.items():
                if "\0" in path or mode < 0 or not (0 <= uid < _NO_ID and 0 <= gid < _NO_ID and abs(mtime_ns) < 1 << 63):
                    raise ValueError("a directory is described wrongly")
            return cls(
                id=str(raw.get("id", "")),
                files=int(raw.get("files", 0)),
                size=int(raw.get("bytes", 0)),
                mode=int(raw.get("mode", "755"), 8) & 0o7777,
                directories=directories,
            )
        except (ValueError, TypeError, AttributeError, RecursionError) as err:
            raise IntegrityError(f"the export of a cache mount is damaged: {err}") from err


@dataclass(slots=True)
class _File:
    path: str
    info: os.stat_result


def _choose(name: str, known: Sequence[str]) -> str | None:
    """The id that is meant. Frontends put their namespace and a slash before ids and targets: `/ID`, `//TARGET`."""
    return next((id for id in (name, f"/{name}") if id in known), None)


class _Export:
    def __init__(self, cache: Cache, id: str, root: Path, place: Place, limit: int, cancelled: Callable[[], bool]) -> None:
        self._cache = cache
        self._id = id
        self._root = root
        self._place = place
        self._limit = limit
        self._cancelled = cancelled

    def run(self) -> Moved:
        files, directories = self._walk()
        kept = self._within_limit(files)
        buckets: dict[int, list[_File]] = {}
        for file in kept:
            buckets.setdefault(_bucket_of(file.path), []).append(file)
        known = self._known()
        layers: list[Descriptor] = []
        states: dict[str, Any] = {}
        sent = 0
        for number in sorted(buckets):
            state = _state(buckets[number])
            before = known.get(number)
            if before is not None and before[0] == state and self._place.has(before[1]):
                descriptor = before[1]
            else:
                descriptor = self._pack(number, buckets[number])
                if not self._place.has(descriptor):
                    self._place.put(descriptor, lambda descriptor=descriptor: self._cache.blobs.open(descriptor.digest))  # type: ignore[misc]
                    sent += descriptor.size
                    point("cache-mount.sent")
            layers.append(descriptor)
            states[str(number)] = state
        total = sum(file.info.st_size for file in kept)
        config = dumps(
            {
                "id": self._id,
                "files": len(kept),
                "bytes": total,
                "mode": oct(stat.S_IMODE(os.stat(self._root).st_mode))[2:],
                "states": states,
                "directories": directories,
            }
        )
        described = Descriptor(media_type=CONFIG, digest=digest_of(config), size=len(config))
        self._place.put(described, lambda: BytesIO(config))
        point("cache-mount.committing")
        manifest = dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "artifactType": ARTIFACT,
                "config": descriptor_to_json(described),
                "layers": [descriptor_to_json(layer) for layer in layers],
            }
        )
        self._place.commit(manifest)
        return Moved(
            files=len(kept),
            bytes=total,
            blobs=len(layers),
            sent=sent,
            left_out=len(files) - len(kept),
            manifest=Descriptor(media_type=OCI_MANIFEST, digest=digest_of(manifest), size=len(manifest), artifact_type=ARTIFACT),
        )

    def _walk(self) -> tuple[list[_File], dict[str, list[int]]]:
        """Files and links, and the modes, owners and times of directories. Sockets, pipes and devices stay."""
        files: list[_File] = []
        directories: dict[str, list[int]] = {}
        for here, _, names in os.walk(self._root):
            if self._cancelled():
                raise CancelledError_("context canceled")
            relative = os.path.relpath(here, self._root)
            if relative != ".":
                info = os.lstat(here)
                directories[relative] = [stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns]
            for name in sorted({*names, *(n for n in os.listdir(here) if os.path.islink(os.path.join(here, n)))}):
                if name.startswith(".wh."):
                    continue  # a deletion in a tar of layers
                info = os.lstat(os.path.join(here, name))
                if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
                    files.append(_File(name if relative == "." else f"{relative}/{name}", info))
        return files, directories

    def _within_limit(self, files: Sequence[_File]) -> list[_File]:
        if not self._limit:
            return list(files)
        left = self._limit
        kept = []
        for file in sorted(files, key=lambda file: -file.info.st_mtime_ns):
            if file.info.st_size <= left:
                left -= file.info.st_size
                kept.append(file)
        return sorted(kept, key=lambda file: file.path)

    def _known(self) -> dict[int, tuple[str, Descriptor]]:
        """What the last export was made of, where it is one."""
        try:
            data = self._place.manifest()
            manifest = parse_manifest(data) if data is not None else None
            if not isinstance(manifest, Manifest) or manifest.config.media_type != CONFIG:
                return {}
            states = dict(json.loads(self._place.read(manifest.config))["states"])
        except (ChantierError, ValueError, TypeError, KeyError):
            return {}  # it is damaged or gone: everything is sent
        found = {}
        for layer in manifest.layers:
            number = layer.annotations.get(_BUCKET_KEY, "")
            if number.isdecimal() and number in states:
                found[int(number)] = (str(states[number]), layer)
        return found

    def _pack(self, number: int, files: Sequence[_File]) -> Descriptor:
        with self._cache.blobs.writer(media_type=OCI_LAYER_ZSTD) as writer:
            compressor = Compressor("zstd", writer.write)
            with tarfile.open(fileobj=_Out(compressor), mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
                for file in files:
                    if self._cancelled():
                        raise CancelledError_("context canceled")
                    self._add(tar, file)
            compressor.finish()
            size = writer.offset
            digest = writer.commit()
        return Descriptor(media_type=OCI_LAYER_ZSTD, digest=digest, size=size, annotations={_BUCKET_KEY: str(number)})

    def _add(self, tar: tarfile.TarFile, file: _File) -> None:
        info = tarfile.TarInfo(file.path)
        info.mode = stat.S_IMODE(file.info.st_mode)
        info.uid, info.gid = file.info.st_uid, file.info.st_gid
        seconds, ns = divmod(file.info.st_mtime_ns, 10**9)
        info.mtime = seconds
        if ns:
            info.pax_headers = {"mtime": f"{seconds}.{ns:09d}"}
        full = self._root / file.path
        if stat.S_ISLNK(file.info.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(full)
            tar.addfile(info)
            return
        info.size = file.info.st_size
        with open(full, "rb") as content:
            tar.addfile(info, content)


class _Out:
    def __init__(self, compressor: Compressor) -> None:
        self._compressor = compressor

    def write(self, data: bytes) -> int:
        self._compressor.write(data)
        return len(data)


def _bucket_of(path: str) -> int:
    """Files of one directory stay together, so that what is built together is one blob."""
    return hashlib.sha256(os.path.dirname(path).encode("utf-8", "surrogateescape")).digest()[0] % _BUCKETS


def _state(files: Sequence[_File]) -> str:
    """What tells without reading whether files changed. On another machine it differs, and the same bytes are packed again."""
    digest = hashlib.sha256()
    for file in files:
        info = file.info
        line = (
            f"{file.path}\0{info.st_mode}\0{info.st_uid}\0{info.st_gid}\0{info.st_size}\0{info.st_mtime_ns}\0{info.st_ctime_ns}\n"
        )
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _unpack(cache: Cache, place: Place, layer: Descriptor, root: Path, cancelled: Callable[[], bool]) -> None:
    with cache.blobs.writer(key=str(layer.digest), media_type=layer.media_type, cancelled=cancelled) as writer:
        if cache.blobs.exists(layer.digest):
            writer.abort()
        else:
            place.fetch(layer, writer)
            writer.commit(layer.digest, layer.size)
    with cache.blobs.open(layer.digest) as file, closing(decompressor(file, layer.media_type)) as tar:
        unpack(tar, root, convert="apply", cancelled=cancelled)


def _times(root: Path, directories: Mapping[str, Sequence[int]]) -> None:
    """Directories as they were, deepest first: what is in them is there."""
    for path in sorted(directories, key=lambda path: -path.count("/")):
        full = root / path
        if ".." in path.split("/") or path.startswith("/") or not _inside(root, full):
            continue
        mode, uid, gid, mtime = directories[path]
        full.mkdir(parents=True, exist_ok=True)
        os.chown(full, uid, gid)
        os.chmod(full, mode & 0o7777)
        os.utime(full, ns=(mtime, mtime))


def _inside(root: Path, path: Path) -> bool:
    """No part of the way is a link."""
    here = root
    for part in path.relative_to(root).parts:
        here = here / part
        if here.is_symlink():
            return False
    return True


__all__ = ["CacheMounts", "Mount", "Moved"]
