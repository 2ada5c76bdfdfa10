# SPDX-License-Identifier: Apache-2.0
"""A build that failed in a step, while it can still be looked into: `SolveRequest.on_failure` is called with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chantier.errors import ChantierError, StepError
from chantier.op.failed import FailedContainer, FailedStep
from chantier.values import dataclass

if TYPE_CHECKING:
    from .build import Build


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedBuild:
    """`error` is what the build is about to raise; `step` says which process ended badly."""

    error: ChantierError
    step: FailedStep
    sessions: Sequence[Any]

    async def open(self) -> FailedContainer:
        """A container in the state that the step left. Close it; what is written in it is thrown away."""
        return await self.step.open(self.sessions)


async def look(build: Build, err: ChantierError) -> None:
    """Let whoever asked look into the failed step, if a step it was that failed."""
    ask = build.request.on_failure
    found: BaseException | None = err
    while found is not None and not isinstance(found, StepError):
        found = found.__cause__
    if ask is None or found is None or found.failed is None or not found.failed.hold(build.job.id):
        return
    build.job.failures.append(found.failed)
    await ask(FailedBuild(error=err, step=found.failed, sessions=build.sessions))


__all__ = ["FailedBuild", "look"]
