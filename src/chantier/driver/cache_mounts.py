# SPDX-License-Identifier: Apache-2.0
"""Cache mounts of a builder leave it for a registry or a directory of this machine, and come back.

The engine reads and writes blobs. Logins are the client's, and so is the index of a directory: which manifest is the export
is looked up before, and written down after the engine is done, as the last step of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from chantier.errors import NotFoundError, UsageError
from chantier.kernel.trace import point
from chantier.values import dataclass

if TYPE_CHECKING:
    from .builder import Builder
    from .node import Driver

_TAG = "latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheMount:
    """`size` in bytes, `last_used` in nanoseconds since 1970; on every node that has it, by its id."""

    id: str
    size: int
    last_used: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Files and bytes of the mount, the blobs they are in, the bytes of blobs that had to be sent, files over the limit."""

    files: int
    bytes: int
    blobs: int
    sent: int = 0
    left_out: int = 0


class Mounts(Protocol):
    """One engine's."""

    async def cache_mounts(self) -> Sequence[Mapping[str, Any]]: ...
    async def move_cache_mount(
        self, what: str, name: str, place: Mapping[str, str], stores: Mapping[str, Path], *, limit: int = 0
    ) -> Mapping[str, Any]:
        """`what` is export or import, `stores` are directories by content store id."""


class CacheMounts:
    """The cache mounts of one builder, which may have several nodes, each with mounts of its own."""

    def __init__(self, engines: Sequence[Mounts]) -> None:
        self._engines = engines

    async def list(self) -> list[CacheMount]:
        """By id; of several nodes the one that was used last."""
        found: dict[str, CacheMount] = {}
        for engine in self._engines:
            for raw in await engine.cache_mounts():
                mount = CacheMount(id=raw["id"], size=raw["size"], last_used=raw["last_used"])
                have = found.get(mount.id)
                if have is None or (mount.last_used or 0) > (have.last_used or 0):
                    found[mount.id] = mount
        return [found[id] for id in sorted(found)]

    async def export(self, name: str, place: Mapping[str, str], *, limit: int = 0) -> Moved:
        """From the first node that has it. `name` is its id or its target; `limit` in bytes, those changed last go first.

        Waits until no step uses it. Raises NotFoundError, UsageError, and what the place raises.
        """
        for engine in self._engines:
            if {name, f"/{name}"} & {mount["id"] for mount in await engine.cache_mounts()}:
                target = _Directory(place) if place.get("type") == "local" else None
                attrs, stores = (target.attrs, target.stores) if target else (place, {})
                raw = await engine.move_cache_mount("export", name, attrs, stores, limit=limit)
                if target is not None:
                    target.name(raw["manifest"])
                return _moved(raw)
        raise NotFoundError(f"no cache mount {name!r}", hint="chantier cache-mount ls")

    async def import_(self, name: str, place: Mapping[str, str]) -> Moved:
        """Into every node, in the place of what the mount holds there: steps that use that go on with it."""
        source = _Directory(place) if place.get("type") == "local" else None
        attrs, stores = (source.attrs, source.stores) if source else (place, {})
        if source is not None and not attrs["digest"]:
            raise NotFoundError(
                f"no such export of a cache mount: {source}", hint="chantier cache-mount export ID --to PLACE makes one"
            )
        for engine in self._engines:
            raw = await engine.move_cache_mount("import", name, attrs, stores)
        return _moved(raw)


class _Directory:
    """`type=local,dest=DIR[,tag=TAG]`, or src=DIR: an OCI layout of this machine, the export under a tag."""

    def __init__(self, place: Mapping[str, str]) -> None:
        from chantier.client.cache_dir import find, store_id

        directory = place.get("dest") or place.get("src")
        if not directory:
            raise UsageError(f"cannot keep a cache mount in {dict(place)}", hint="type=local,dest=DIR")
        self._path = Path(directory).absolute()
        self._tag = place.get("tag") or _TAG
        self.attrs = {"type": "local", "dest": str(self._path), "digest": find(self._path, self._tag)}
        self.stores = {store_id(str(self._path)): self._path}

    def __str__(self) -> str:
        return f"{self._path} has none with the tag {self._tag!r}"

    def name(self, manifest: Mapping[str, Any]) -> None:
        from chantier.client.cache_dir import collect, name_cache

        point("cache-mount.written")
        name_cache(self._path, manifest, self._tag)
        point("cache-mount.named")
        collect(self._path, manifest["artifactType"])


class _Node:
    """A daemon's, behind a builder's node."""

    def __init__(self, builder: Builder, driver: Driver) -> None:
        self._builder = builder
        self._driver = driver

    async def cache_mounts(self) -> Sequence[Mapping[str, Any]]:
        from chantier.progress import Silent

        async with await self._builder.reach(self._driver, Silent()) as client:
            return await client.cache_mounts()

    async def move_cache_mount(
        self, what: str, name: str, place: Mapping[str, str], stores: Mapping[str, Path], *, limit: int = 0
    ) -> Mapping[str, Any]:
        from chantier.progress import Silent
        from chantier.session.local import LocalSession
        from chantier.session.serve import Offered

        from .logins import credentials_of

        with LocalSession(credentials=credentials_of(self._builder.env)) as session:
            async with await self._builder.reach(self._driver, Silent()) as client:
                return await client.move_cache_mount(what, name, place, Offered(session, stores=stores), limit=limit)


def cache_mounts_of(builder: Builder) -> CacheMounts:
    return CacheMounts([_Node(builder, driver) for driver in builder.drivers])


def _moved(raw: Mapping[str, Any]) -> Moved:
    return Moved(**{key: raw[key] for key in ("files", "bytes", "blobs", "sent", "left_out")})


__all__ = ["CacheMount", "CacheMounts", "Mounts", "Moved", "cache_mounts_of"]
