# SPDX-License-Identifier: Apache-2.0
"""The solver's ResultStore over the cache: a result's id is its record's."""

from __future__ import annotations

from collections.abc import Callable

from chantier.cache import Cache, LayerBlob, Ref
from chantier.cache.remote.read import IMPORTED
from chantier.errors import NotFoundError


class Results:
    def __init__(self, cache: Cache, gone: Callable[[LayerBlob], bool] = lambda _layer: False) -> None:
        """`gone` says of a layer whose bytes are elsewhere that they are there no more."""
        self._cache = cache
        self._gone = gone

    def save(self, result: Ref) -> str:
        return result.id

    def load(self, id: str) -> Ref | None:
        try:
            ref = self._cache.get(id)
        except NotFoundError:
            return None
        if ref.lazy and ref.get_meta(IMPORTED) is not None and self._lost(ref):
            # Somebody has deleted the cache that it was taken from. Then the step is to run, not the build to fail.
            ref.release()
            return None
        return ref

    def exists(self, id: str) -> bool:
        return self._cache.exists(id)

    def lost(self, result: Ref) -> str:
        return result.lost()

    def _lost(self, ref: Ref) -> bool:
        layers = ref.known_layers()
        return layers is None or any(self._gone(layer) for layer in layers if not layer.local)
