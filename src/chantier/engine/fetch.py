# SPDX-License-Identifier: Apache-2.0
"""The cache's Fetcher: a source written with a blob, such as `registry:docker.io/library/alpine`, to bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chantier.errors import UnsupportedError
from chantier.progress import Step
from chantier.spec import Descriptor, Reference, new_id
from chantier.store import Writer


class RegistryFetcher:
    """Layers from registries (`insecure:` is one whose certificate need not be good) and content stores of sessions.

    `session:STORE` is one of these: an OCI layout, a cache directory.
    """

    def __init__(self, registry_for: Callable[[Sequence[Any]], Any]) -> None:
        self._registry_for = registry_for
        self._places: dict[str, Callable[[Descriptor, Writer, Callable[[], bool]], None]] = {}
        self.layouts: Any = None  # op.layout.LayoutResolver, set by the engine

    def register(self, fetch: Callable[[Descriptor, Writer, Callable[[], bool]], None]) -> str:
        """A source that is known to this process only, as long as it lives."""
        name = new_id()
        self._places[name] = fetch
        return f"place:{name}"

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
        kind, _, name = source.partition(":")
        if kind in ("registry", "insecure"):
            registry = self._registry_for(sessions)
            registry = registry.insecure() if kind == "insecure" else registry
            registry.fetch_blob(Reference.parse(name), descriptor, writer, cancelled=cancelled)
        elif kind == "place" and name in self._places:
            self._places[name](descriptor, writer, cancelled)
        elif kind == "session" and self.layouts is not None:
            self.layouts.fetch(name, descriptor, writer, sessions)
        else:
            raise UnsupportedError(f"cannot fetch {descriptor.digest} from {source!r}")
