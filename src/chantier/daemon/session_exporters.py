# SPDX-License-Identifier: Apache-2.0
"""Exporters that the client names only when the result is there (protocol.md 2.10)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chantier.engine import FrontendResult
from chantier.pb import exporter_pb2 as pb
from chantier.session.remote import RemoteSession
from chantier.wire import GrpcError
from chantier.wire.status import UNAVAILABLE, UNIMPLEMENTED

_SERVICE = "/moby.exporter.v1.Exporter"


class SessionExporters:
    """`name_of` gives results the ids by which the client may read them."""

    def __init__(self, session: RemoteSession) -> None:
        self._session = session
        self.name_of: Callable[[Any], str] = lambda _ref: ""

    async def find(self, result: FrontendResult) -> Sequence[tuple[str, Mapping[str, str]]]:
        request = pb.FindExportersRequest(
            metadata=dict(result.metadata), refs=[self.name_of(ref) for ref in result.refs.values()]
        )
        answer = await self._call("FindExporters", request, pb.FindExportersResponse)
        return [(one.Type, dict(one.Attrs)) for one in answer.exporters] if answer is not None else []

    async def finish(self, response: Mapping[str, str]) -> None:
        request = pb.FinalizeExportRequest(exporter_response=dict(response))
        await self._call("FinalizeExport", request, pb.FinalizeExportResponse)

    async def _call(self, method: str, request: Any, response: Any) -> Any | None:
        """None from a client that does not offer it."""
        try:
            return await self._session.call(f"{_SERVICE}/{method}", request, response, timeout_s=None)
        except GrpcError as err:
            if err.code in (UNAVAILABLE, UNIMPLEMENTED):
                return None
            raise


__all__ = ["SessionExporters"]
