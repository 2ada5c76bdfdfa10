# SPDX-License-Identifier: Apache-2.0
"""The solver's ResultStore over the cache: a result's id is its record's."""

from __future__ import annotations

from chantier.cache import Cache, Ref
from chantier.errors import NotFoundError


class Results:
    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def save(self, result: Ref) -> str:
        return result.id

    def load(self, id: str) -> Ref | None:
        try:
            return self._cache.get(id)
        except NotFoundError:
            return None

    def exists(self, id: str) -> bool:
        return self._cache.exists(id)
