# SPDX-License-Identifier: Apache-2.0
"""The trees of an operation that failed: what it was given, and what it had made so far.

Kept only where a build asked for it (`Job.keep_failed`): committing what is thrown away otherwise costs time. Every job that
was there holds them; the last one to leave gives them back.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chantier.cache import Ref
    from chantier.solver import Job
    from chantier.solver.types import JobContext


class FailedTrees:
    """`inputs` are those of the operation, or of a step's mounts; `mounts` what was made, by mount or by action of a file operation."""

    def __init__(self, inputs: Sequence[Ref | None], mounts: Sequence[Ref | None] = ()) -> None:
        self.inputs = tuple(inputs)
        self.mounts = tuple(mounts)
        self._holders: set[str] = set()
        self._lock = threading.Lock()
        self._released = False

    def keep_for(self, jobs: Sequence[Job]) -> None:
        """Let these hold it until they end."""
        for job in jobs:
            self.hold(job.id)
            job.failures.append(self)

    def hold(self, owner: str) -> bool:
        """Keep it until `drop(owner)`; False if it was given back already."""
        with self._lock:
            if self._released:
                return False
            self._holders.add(owner)
            return True

    def drop(self, owner: str) -> None:
        with self._lock:
            self._holders.discard(owner)
            if self._holders or self._released:
                return
            self._released = True
        for ref in (*self.inputs, *self.mounts):
            if ref is not None:
                ref.release()


def keepers(job: JobContext) -> tuple[Job, ...]:
    """The builds that want to look into what fails."""
    return tuple(other for other in getattr(job, "jobs", ()) if other.keep_failed)


__all__ = ["FailedTrees", "keepers"]
