# SPDX-License-Identifier: Apache-2.0
"""The values of the cache: where a layer's bytes can be had, what a layer is, who fetches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from chantier.progress import Step
from chantier.spec import Descriptor, Digest
from chantier.store import Writer
from chantier.values import dataclass


def never() -> bool:
    """The cancellation of work that nobody cancels."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSource:
    """One layer of an image that may not be here yet.

    `sources` say where its bytes can be had, best first, as `registry:docker.io/library/alpine`; they are kept with the
    blob, so that a later process can still fetch it. `created_at` is in nanoseconds since the epoch.
    """

    descriptor: Descriptor
    diff_id: Digest
    sources: tuple[str, ...] = ()
    created_at: int | None = None
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBlob:
    """One layer of a result, packed. `local` tells whether the bytes are here; if not, `Ref.fetch_blobs` brings them."""

    descriptor: Descriptor
    diff_id: Digest
    created_at: int
    description: str = ""
    sources: tuple[str, ...] = ()
    local: bool = True


class Fetcher(Protocol):
    """Brings a blob's bytes from one of its sources; the engine wires it to registries and sessions."""

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
        """Write the bytes from `writer.offset` on; the cache commits and verifies them, and reports the bytes to `step`.

        Called from worker threads, several at once. Raises what went wrong; the cache then tries the next source.
        """


__all__ = ["Fetcher", "LayerBlob", "LayerSource", "never"]
