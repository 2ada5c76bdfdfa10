# SPDX-License-Identifier: Apache-2.0
"""Handles on results. Each holder has its own: `clone` gives one more, `release` ends this one. Thread-safe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from chantier.progress import Step
from chantier.snapshot.mount import Mount

from .types import LayerBlob, never

if TYPE_CHECKING:
    from .cache import Cache


class Ref:
    """An immutable result: a stack of layers, each a directory tree, a blob or both. It may be lazy: nothing here yet."""

    cache: Cache

    @property
    def id(self) -> str:
        raise NotImplementedError

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the records it is made of: one for a layer, more for a merge, (lower, upper) for a diff."""
        raise NotImplementedError

    @property
    def description(self) -> str:
        raise NotImplementedError

    @property
    def record_type(self) -> str:
        raise NotImplementedError

    @property
    def created_at(self) -> int:
        """Nanoseconds since the epoch."""
        raise NotImplementedError

    @property
    def lazy(self) -> bool:
        """Whether `realise` has work to do."""
        raise NotImplementedError

    def size(self) -> int:
        """Bytes on disk of this record alone: its own tree and its own blobs."""
        raise NotImplementedError

    def clone(self) -> Self:
        raise NotImplementedError

    def release(self) -> None:
        """End this handle; a second call has no effect."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def realise(
        self, *, step: Step | None = None, sessions: Sequence[Any] = (), cancelled: Callable[[], bool] = never
    ) -> None:
        """Fetch what is missing (in parallel), unpack it (in parallel), name it. A failure leaves nothing named."""
        raise NotImplementedError

    def mounts(
        self, *, step: Step | None = None, sessions: Sequence[Any] = (), cancelled: Callable[[], bool] = never
    ) -> tuple[Mount, ...]:
        """How to mount the tree read-only; realises it first."""
        raise NotImplementedError

    def layers(
        self,
        *,
        compression: str = "gzip",
        level: int | None = None,
        force: bool = False,
        oci: bool = True,
        step: Step | None = None,
        sessions: Sequence[Any] = (),
        cancelled: Callable[[], bool] = never,
    ) -> tuple[LayerBlob, ...]:
        """The layers, bottom first; those never packed are packed now. `force` repacks layers of another compression."""
        raise NotImplementedError

    def known_layers(self) -> tuple[LayerBlob, ...] | None:
        """The layers if all have been packed before (or came as blobs), else None; does no work."""
        raise NotImplementedError

    def fetch_blobs(
        self, *, step: Step | None = None, sessions: Sequence[Any] = (), cancelled: Callable[[], bool] = never
    ) -> None:
        """Bring the bytes of all layers that are known but not local."""
        raise NotImplementedError

    def get_meta(self, key: str) -> bytes | None:
        raise NotImplementedError

    def set_meta(self, key: str, value: bytes | None) -> None:
        """Keep a value with the record, gone when the record goes. None removes it."""
        raise NotImplementedError


class MutableRef:
    """A tree being written. `commit` makes it a Ref; `release` drops it, unless it has an index: then it is kept."""

    cache: Cache

    @property
    def id(self) -> str:
        raise NotImplementedError

    @property
    def fresh(self) -> bool:
        """Whether it was made by the call that returned it, and so nothing was written to it before."""
        raise NotImplementedError

    def mounts(self) -> tuple[Mount, ...]:
        """How to mount the tree for writing."""
        raise NotImplementedError

    def commit(self, *, description: str | None = None) -> Ref:
        """Make it immutable; this handle is used up."""
        raise NotImplementedError

    def freeze(self) -> Ref:
        """An immutable view; releasing its last handle gives the mutable back to the cache. This handle is used up.

        The view's id means nothing to `Cache.get` (unless something is built on it: then it becomes a record of its own).
        """
        raise NotImplementedError

    def set_index(self, index: str) -> None:
        """Make it findable by `Cache.find(index)`, and kept after release."""
        raise NotImplementedError

    def get_meta(self, key: str) -> bytes | None:
        raise NotImplementedError

    def set_meta(self, key: str, value: bytes | None) -> None:
        raise NotImplementedError

    def release(self) -> None:
        """End this handle; a second call has no effect."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


__all__ = ["MutableRef", "Ref"]
