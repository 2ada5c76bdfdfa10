# SPDX-License-Identifier: Apache-2.0
"""Source policies of a build: the request's rules, then what the client's verifier says (protocol.md 2.10, 3.9)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from chantier.engine import apply_rules, check_rules
from chantier.errors import PolicyError
from chantier.pb import gateway_pb2, ops_pb2, sourcepolicy_pb2
from chantier.pb import policysession_pb2 as pb
from chantier.wire import GrpcError, json_detail
from chantier.wire.status import UNIMPLEMENTED, UNKNOWN

if TYPE_CHECKING:
    from chantier.session.remote import RemoteSession

_PATH = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy"
_MOST_QUESTIONS = 10

Resolve = Callable[[gateway_pb2.ResolveSourceMetaRequest], Awaitable[gateway_pb2.ResolveSourceMetaResponse]]


class SourcePolicy:
    """Called with each source; see engine.SourceCheck. `resolve` finds the metadata a verifier asks for, without policies."""

    def __init__(self, rules: Sequence[sourcepolicy_pb2.Policy], verifier: RemoteSession | None = None) -> None:
        check_rules(rules)
        self._rules = tuple(rules)
        self._verifier = verifier
        self.resolve: Resolve | None = None

    async def __call__(self, source: ops_pb2.SourceOp, platform: ops_pb2.Platform | None) -> ops_pb2.SourceOp:
        current = apply_rules(self._rules, source)
        if self._verifier is None:
            return current
        known = gateway_pb2.ResolveSourceMetaResponse(Source=current)
        for _ in range(_MOST_QUESTIONS):
            answer = await self._ask(pb.CheckPolicyRequest(Platform=platform, Source=known))
            if answer is None:
                return current
            if answer.WhichOneof("result") == "request":
                known = await self._more(answer.request, current)
                continue
            changed = self._decided(answer.decision, current)
            if changed is None:
                return current
            current = apply_rules(self._rules, changed)
            known = gateway_pb2.ResolveSourceMetaResponse(Source=current)
        raise PolicyError("too many policy requests")

    async def _ask(self, request: pb.CheckPolicyRequest) -> pb.CheckPolicyResponse | None:
        assert self._verifier is not None
        try:
            answer: pb.CheckPolicyResponse = await self._verifier.call(_PATH, request, pb.CheckPolicyResponse, timeout_s=None)
        except GrpcError as err:
            if err.code == UNIMPLEMENTED:
                return None
            raise
        return answer

    def _decided(self, decision: pb.DecisionResponse, source: ops_pb2.SourceOp) -> ops_pb2.SourceOp | None:
        """None if the source may be used as it is; what is to be asked about in its place."""
        if decision.action == sourcepolicy_pb2.DENY:
            said = {"action": "DENY", "denyMessages": [{"message": m.message} for m in decision.denyMessages]}
            raise GrpcError(
                UNKNOWN,
                f'source "{source.identifier}" not allowed by policy: action DENY',
                [json_detail("policysession.DecisionResponse", {key: value for key, value in said.items() if value})],
            )
        if decision.action == sourcepolicy_pb2.CONVERT and decision.HasField("update"):
            return decision.update
        return None

    async def _more(
        self, request: gateway_pb2.ResolveSourceMetaRequest, source: ops_pb2.SourceOp
    ) -> gateway_pb2.ResolveSourceMetaResponse:
        if request.Source != source:
            raise PolicyError("a source policy may ask about the source it was given only")
        assert self.resolve is not None
        return await self.resolve(request)


__all__ = ["SourcePolicy"]
