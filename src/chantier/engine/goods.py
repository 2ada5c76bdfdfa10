# SPDX-License-Identifier: Apache-2.0
"""What a build exports, and how it is made good when it turns out not to be there.

A result may be found in a cache and its data be damaged or gone there, which shows when an exporter reads it. Then the steps
run after all, and each exporter that has failed begins anew with what they made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from chantier.dockerfile.bridge import FrontendResult
from chantier.errors import CancelledError_, ChantierError
from chantier.export import Exportable, ExportContext, Exporter, Response
from chantier.progress import Step

from .bridge import EngineRef

if TYPE_CHECKING:
    from chantier.export.types import Finalize
    from chantier.solver import Built

    from .attest import Attesting


class Goods:
    """The results with their attestations."""

    def __init__(self, attesting: Attesting, result: FrontendResult, built: Mapping[str, Built | None]) -> None:
        self.result = result
        self.built = built
        self._attesting = attesting
        self._lock = asyncio.Lock()
        self._made: Exportable | None = None

    async def get(self, instead: Exportable | None = None) -> Exportable | None:
        """What to export; `instead` of what has failed, None if that failed for another reason."""
        async with self._lock:
            if self._made is instead:
                if instead is not None and not await self._renew():
                    return None
                self._made = await self._make()
            return self._made

    async def _renew(self) -> bool:
        return any([await ref.renew() for ref in self.result.refs.values() if isinstance(ref, EngineRef)])

    async def _make(self) -> Exportable:
        self.result = await self._attesting.scanned(self.result)
        said = await self._attesting.attest(self.result)
        refs = {key: one.value if one is not None else None for key, one in self.built.items()}
        return Exportable(refs=refs, metadata=self.result.metadata, attestations=said)


class Export:
    """One exporter's work on the goods."""

    def __init__(self, exporter: Exporter, context: ExportContext, goods: Goods) -> None:
        self.exporter = exporter
        self.answer: Response = {}
        self.finalize: Finalize | None = None
        self._context = context
        self._goods = goods
        self._what: Exportable | None = None

    async def make(self, shown: Step) -> None:
        self._what = what = await self._goods.get()
        while what is not None:
            try:
                self.answer, self.finalize = await self.exporter.export(what, self._context, shown)
                return
            except CancelledError_:
                raise
            except ChantierError:
                what = await self._goods.get(instead=what)
                if what is None:
                    raise
                self._what = what

    async def push(self, shown: Step) -> None:
        while self.finalize is not None:
            try:
                await self.finalize(shown)
                return
            except CancelledError_:
                raise
            except ChantierError:
                if await self._goods.get(instead=self._what) is None:
                    raise
                await self.make(shown)


__all__ = ["Export", "Goods"]
