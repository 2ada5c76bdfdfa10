# SPDX-License-Identifier: Apache-2.0
"""Parts for the tests of the cache, also used by the child processes they kill."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chantier.cache import Cache, LayerSource, MutableRef, Ref
from chantier.errors import RegistryError
from chantier.progress import Step
from chantier.snapshot import Native, Overlay
from chantier.spec import OCI_LAYER_GZIP, Descriptor, Digest
from chantier.store import Root, Writer

Tree = dict[str, str | bytes | None]


class FakeFetcher:
    """Serves blobs from memory: whole, slowly, damaged, or not at all."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.calls: list[tuple[str, str, int]] = []
        self.broken: dict[str, Exception] = {}  # by source
        self.chunk = 1 << 16
        self.pause_s = 0.0
        self.meet: threading.Barrier | None = None

    def fetch(
        self,
        source: str,
        descriptor: Descriptor,
        writer: Writer,
        *,
        step: Step | None,
        sessions: Sequence[Any],
        cancelled: Callable[[], bool],
    ) -> None:
        self.calls.append((source, descriptor.digest, writer.offset))
        if source in self.broken:
            raise self.broken[source]
        if self.meet is not None:
            self.meet.wait(60)
        data = self.blobs.get(descriptor.digest)
        if data is None:
            raise RegistryError(f"no blob {descriptor.digest}")
        for at in range(writer.offset, len(data), self.chunk):
            if cancelled():
                return
            writer.write(data[at : at + self.chunk])
            time.sleep(self.pause_s)


def tar_of(files: Tree) -> bytes:
    """A layer tar: text or bytes for files, None for a directory, `-> x` for a symbolic link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mtime = 1_600_000_000
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            elif isinstance(content, str) and content.startswith("-> "):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, content[3:], 0o777
                tar.addfile(info)
            else:
                data = content.encode() if isinstance(content, str) else content
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def layer_of(fetcher: FakeFetcher, files: Tree, *, level: int = 6, source: str = "registry:test") -> LayerSource:
    tar = tar_of(files)
    blob = gzip.compress(tar, level, mtime=0)
    digest = Digest("sha256:" + hashlib.sha256(blob).hexdigest())
    fetcher.blobs[digest] = blob
    return LayerSource(
        descriptor=Descriptor(media_type=OCI_LAYER_GZIP, digest=digest, size=len(blob)),
        diff_id=Digest("sha256:" + hashlib.sha256(tar).hexdigest()),
        sources=(source,),
        created_at=1_600_000_000 * 10**9,
    )


class Home:
    """A root with a cache on it, in this process."""

    def __init__(self, path: Path, *, fetcher: FakeFetcher | None = None, native: bool = False) -> None:
        self.path = path
        self.native = native
        self.fetcher = fetcher or FakeFetcher()
        self.warnings: list[str] = []
        self.root = Root.open(path, warn=self.warnings.append)
        self.snapshots = (Native if native else Overlay)(path, self.root.db)
        self.cache = Cache(self.root, self.root.db, self.root.blobs, self.snapshots, self.fetcher)

    def close(self) -> None:
        self.root.close()

    def reopen(self) -> Home:
        self.close()
        return Home(self.path, fetcher=self.fetcher, native=self.native)

    def layer(self, files: Tree, **kwargs: Any) -> LayerSource:
        return layer_of(self.fetcher, files, **kwargs)

    def image(self, *layers: Tree, **kwargs: Any) -> Ref:
        ref = self.cache.image([self.layer(files) for files in layers], description="pulled from test", **kwargs)
        assert ref is not None
        return ref

    def step(self, parent: Ref | None, files: Tree, *, remove: Sequence[str] = (), **kwargs: Any) -> Ref:
        """What a RUN does: a tree on top of another, written through a mount."""
        mutable = self.cache.new(parent, **kwargs)
        write(mutable, files, remove)
        return mutable.commit()

    def tree(self, ref: Ref) -> Tree:
        with ref.mounted() as path:
            return read(path)


def write(mutable: MutableRef, files: Tree, remove: Sequence[str] = ()) -> None:
    with mutable.mounted() as path:
        for name in remove:
            target = path / name
            if target.is_dir() and not target.is_symlink():
                import shutil

                shutil.rmtree(target)
            else:
                target.unlink()
        for name, content in files.items():
            target = path / name
            if content is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str) and content.startswith("-> "):
                target.symlink_to(content[3:])
            else:
                target.write_bytes(content.encode() if isinstance(content, str) else content)


def read(path: Path) -> Tree:
    """A tree as a dict: only its leaves, and empty directories."""
    found: Tree = {}
    for directory, names, files in os.walk(path):
        here = os.path.relpath(directory, path)
        prefix = "" if here == "." else here + "/"
        links = [name for name in names if os.path.islink(os.path.join(directory, name))]
        if not names and not files and here != ".":
            found[here] = None
        for name in sorted([*files, *links]):
            full = os.path.join(directory, name)
            if os.path.islink(full):
                found[prefix + name] = "-> " + os.readlink(full)
            elif os.path.isfile(full):
                found[prefix + name] = Path(full).read_text()
            else:
                found[prefix + name] = f"device {os.lstat(full).st_rdev}"
    return found


def names_in(blob: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        return tar.getnames()
