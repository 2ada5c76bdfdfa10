# SPDX-License-Identifier: Apache-2.0
"""COPY, ADD, WORKDIR and their like: actions on trees (`pb.FileOp`).

Actions form a graph of their own: each starts from an input or from another action's tree, and may be an output.

The key is the actions with the directory part of copied sources left out: what is copied counts by its content.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from chantier.cache.content import Selector, content_digests
from chantier.errors import CancelledError_, ChantierError, NotFoundError, UsageError
from chantier.llb.definition import LoadedVertex
from chantier.pb import ops_pb2 as pb
from chantier.solver.types import CacheMap, Dep
from chantier.spec import dumps, new_id
from chantier.spec.glob import base_name, has_wildcards
from chantier.spec.patterns import clean

from .file_run import NONE, FileRun
from .kept import FailedTrees, keepers
from .key_json import digest_of, digests
from .worker import Worker

if TYPE_CHECKING:
    from chantier.cache import Ref
    from chantier.solver.types import JobContext

_TYPE = "buildkit.file.v0"


class FileOp:
    """Implements `solver.types.Op`."""

    def __init__(self, vertex: LoadedVertex, worker: Worker) -> None:
        self._worker = worker
        self._name = vertex.name
        self._actions = list(vertex.op.file.actions)
        self._inputs = len(vertex.inputs)

    def acquire(self) -> AbstractAsyncContextManager[None]:
        return self._worker.slot()

    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        selectors, written = self._selectors()
        digest, also, detail = digests(self._keyed)
        deps = tuple(self._dep(selectors.get(i, []) if i not in written else []) for i in range(self._inputs))
        return CacheMap(digest=digest, also=also, deps=deps, detail=detail), True

    async def run(self, job: JobContext, inputs: Sequence[Ref | None]) -> Sequence[Ref | None]:
        outputs = _outputs(self._actions)
        keep = keepers(job)

        def work(cancelled: Callable[[], bool]) -> list[Ref | None]:
            said = lambda text: job.step.log(f"WARNING: {text}\n".encode(errors="surrogateescape"), 2)  # noqa: E731
            with FileRun(self._worker, self._name, self._actions, inputs, cancelled, said) as run:
                return run.results(outputs, keep)

        return await self._worker.threaded(work, _release)

    # -- the key

    def _selectors(self) -> tuple[dict[int, list[tuple[str, Selector]]], set[int]]:
        """What is read of each input (with the path as it was asked for), and which inputs are written on.

        These count by how they were made.
        """
        selectors: dict[int, list[tuple[str, Selector]]] = {}
        written: set[int] = set()
        for action in self._actions:
            if action.input != NONE and action.input < self._inputs:
                written.add(action.input)
            kind = action.WhichOneof("action")
            subject = getattr(action, kind) if kind else None
            if subject is not None and kind != "rm" and subject.HasField("owner"):
                for named, path in ((subject.owner.user, "/etc/passwd"), (subject.owner.group, "/etc/group")):
                    if named.WhichOneof("user") == "byName" and 0 <= named.byName.input < self._inputs:
                        selectors.setdefault(named.byName.input, []).append((path, Selector(path=path, follow_links=True)))
            if kind == "copy" and 0 <= action.secondaryInput < self._inputs:
                selectors.setdefault(action.secondaryInput, []).append((action.copy.src, _selector(action.copy)))
        return selectors, written

    def _keyed(self, struct: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        actions = []
        _, written = self._selectors()
        for action in self._actions:
            kind = action.WhichOneof("action") or "copy"
            subject = type(getattr(action, kind))()
            subject.CopyFrom(getattr(action, kind))
            # What is copied counts by its content, and so its directory does not; of an input that is written on it does.
            if kind == "copy" and 0 <= action.secondaryInput < self._inputs and action.secondaryInput not in written:
                subject.src = base_name(subject.src)
            actions.append(b64encode(dumps(struct(subject))).decode())
        whole: dict[str, Any] = {"Type": _TYPE, "Actions": actions}
        indexes = [[action.input, action.secondaryInput, action.output] for action in self._actions]
        if not _is_plain(indexes):
            whole["indexes"] = indexes
        return whole

    def _dep(self, selectors: Sequence[tuple[str, Selector]]) -> Dep:
        if not selectors:
            return Dep(prepare=self._realise)
        paths = sorted((path.encode("utf-8", "surrogateescape") for path, _ in selectors), reverse=True)
        return Dep(
            selector=digest_of(b"\0".join(paths)),
            content=content_key(self._worker, dedupe([selector for _, selector in selectors])),
            prepare=self._realise,
        )

    async def _realise(self, job: JobContext, ref: Ref | None) -> None:
        if ref is not None and ref.lazy:
            await self._worker.threaded(lambda cancelled: ref.realise(step=job.step, sessions=job.sessions, cancelled=cancelled))


def content_key(worker: Worker, selectors: Sequence[Selector]) -> Callable[[Any, Any], Awaitable[str]]:
    """The slow key of an input: the digest of what the selectors take of it. Also used by steps, for their mounts."""

    async def key(job: JobContext, ref: Ref | None) -> str:
        try:
            found = await worker.threaded(
                lambda cancelled: content_digests(
                    ref,
                    selectors,
                    step=job.step,
                    sessions=tuple(job.sessions),
                    cancelled=cancelled,
                    listings=worker.cache.listings,
                )
            )
            return " ".join(found)
        except CancelledError_:
            raise
        except ChantierError as err:
            if ref is None:
                raise
            kind = NotFoundError if isinstance(err, NotFoundError) else ChantierError
            failed = kind(
                f"failed to calculate checksum of ref {worker_id(worker)}::{ref.id}: {err}", detail=err.detail, hint=err.hint
            )
            if keep := keepers(job):
                failed.failed = FailedTrees([ref.clone()])
                failed.failed.keep_for(keep)
            raise failed from err

    return key


def worker_id(worker: Worker) -> str:
    """What stands before `::` in the id of a result, as clients print it."""
    return str(worker.kept("id", new_id))


def dedupe(selectors: Sequence[Selector]) -> list[Selector]:
    """Without what other selectors cover, in the order of paths; the order counts in the key."""
    plain = sorted({s for s in selectors if not s.filtered and not s.required}, key=lambda s: (s.follow_links, s.path))
    kept = [
        s
        for s in plain
        if not any(
            other is not s and other.follow_links == s.follow_links and s.path.startswith(other.path.rstrip("/") + "/")
            for other in plain
        )
    ]
    kept += [s for s in selectors if s.filtered or s.required]
    return sorted(kept, key=lambda s: s.path.encode("utf-8", "surrogateescape"))


def _selector(copy: pb.FileActionCopy) -> Selector:
    return Selector(
        path=clean("/" + copy.src),
        wildcard=copy.allowWildcard and has_wildcards(copy.src),
        follow_links=copy.followSymlink,
        include=tuple(copy.include_patterns),
        exclude=tuple(copy.exclude_patterns),
        required=tuple(copy.required_paths),
    )


def _is_plain(indexes: Sequence[Sequence[int]]) -> bool:
    """Whether they are a chain over the first input, copying from the second, the last of them the output: what COPY makes.

    BuildKit leaves such indexes out of the key.
    """
    count = len(indexes)
    for i, (base, source, output) in enumerate(indexes):
        if base != (count + i - 1 if i else 0) or source not in (NONE, 1) or output != (0 if i == count - 1 else NONE):
            return False
    return count > 0


def _outputs(actions: Sequence[pb.FileAction]) -> list[int]:
    """The action behind each output."""
    found = {action.output: i for i, action in enumerate(actions) if action.output != NONE}
    for number in range(len(found)):
        if number not in found:
            raise UsageError(f"missing output index {number}")
    return [found[number] for number in range(len(found))]


def _release(refs: Sequence[Ref | None]) -> None:
    for ref in refs:
        if ref is not None:
            ref.release()


__all__ = ["FileOp", "content_key", "dedupe", "worker_id"]
