# SPDX-License-Identifier: Apache-2.0
"""COPY, ADD, WORKDIR and their like: actions on trees (`pb.FileOp`).

Actions form a graph of their own: each starts from an input or from another action's tree, and may be an output. A chain
of actions works on one mutable tree; a tree that somebody else needs as it is gets committed first.

The key is the actions with the directory part of copied sources left out: what is copied counts by its content.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.cache.content import VOLATILE, Selector, content_digests
from chantier.errors import CancelledError_, ChantierError, NotFoundError, UsageError
from chantier.layer.actions import (
    Owner,
    group_id,
    make_directory,
    make_file,
    make_symlink,
    remove,
    user_ids,
)
from chantier.layer.copy import CopyOptions, copy_tree
from chantier.layer.shared import read_shared, write_shared
from chantier.layer.stage import Stage
from chantier.llb.definition import LoadedVertex
from chantier.pb import ops_pb2 as pb
from chantier.snapshot import mounted
from chantier.solver.types import CacheMap, Dep
from chantier.spec import dumps, new_id
from chantier.spec.glob import base_name, has_wildcards
from chantier.spec.patterns import clean

from .key_json import digest_of, digests
from .worker import Worker

if TYPE_CHECKING:
    from chantier.cache import MutableRef, Ref
    from chantier.solver.types import JobContext

_TYPE = "buildkit.file.v0"
_NONE = -1


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

        def work(cancelled: Callable[[], bool]) -> list[Ref | None]:
            said = lambda text: job.step.log(f"WARNING: {text}\n".encode(errors="surrogateescape"), 2)  # noqa: E731
            with _Run(self._worker, self._name, self._actions, inputs, cancelled, said) as run:
                return run.results(outputs)

        return await self._worker.threaded(work, _release)

    # -- the key

    def _selectors(self) -> tuple[dict[int, list[tuple[str, Selector]]], set[int]]:
        """What is read of each input (with the path as it was asked for), and which inputs are written on.

        These count by how they were made.
        """
        selectors: dict[int, list[tuple[str, Selector]]] = {}
        written: set[int] = set()
        for action in self._actions:
            if action.input != _NONE and action.input < self._inputs:
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
            raise kind(
                f"failed to calculate checksum of ref {worker_id(worker)}::{ref.id}: {err}", detail=err.detail, hint=err.hint
            ) from err

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
        if base != (count + i - 1 if i else 0) or source not in (_NONE, 1) or output != (0 if i == count - 1 else _NONE):
            return False
    return count > 0


def _outputs(actions: Sequence[pb.FileAction]) -> list[int]:
    """The action behind each output."""
    found = {action.output: i for i, action in enumerate(actions) if action.output != _NONE}
    for number in range(len(found)):
        if number not in found:
            raise UsageError(f"missing output index {number}")
    return [found[number] for number in range(len(found))]


def _release(refs: Sequence[Ref | None]) -> None:
    for ref in refs:
        if ref is not None:
            ref.release()


class _Tree:
    """What an action made: mutable while only the chain it belongs to needs it, then a Ref."""

    def __init__(self, mutable: MutableRef | None = None, ref: Ref | None = None) -> None:
        self.mutable = mutable
        self.ref = ref
        self.mount = ExitStack()
        self.root: Path | None = None
        self.overlaid = False  # of an open one: the root is a mounted overlay

    @property
    def kept(self) -> bool:
        """Whether it is a view of a tree that follows a client's directory: none of its files is ever written to again."""
        return self.ref is not None and self.ref.get_tree_meta(VOLATILE) is not None

    def open(self) -> Path | None:
        """The tree as a directory; None for the empty tree."""
        if self.root is None:
            mounts = self.mutable.mounts() if self.mutable is not None else self.ref.mounts() if self.ref is not None else None
            if mounts is not None:
                self.overlaid = any(mount.type == "overlay" for mount in mounts)
                self.root = self.mount.enter_context(mounted(mounts, readonly=self.mutable is None))
        return self.root

    def commit(self) -> None:
        if self.mutable is not None:
            self.close()
            self.ref, self.mutable = self.mutable.commit(), None

    def close(self) -> None:
        self.root = None
        self.mount.close()


class _Run:
    """One run of a FileOp, in a worker thread. Leaving it drops all that was not handed out."""

    def __init__(
        self,
        worker: Worker,
        name: str,
        actions: Sequence[pb.FileAction],
        inputs: Sequence[Ref | None],
        cancelled: Callable[[], bool],
        told: Callable[[str], None],
    ) -> None:
        self._told = told
        self._cache = worker.cache
        self._name = name
        self._actions = actions
        self._count = len(inputs)
        self._inputs = [_Tree(ref=ref) for ref in inputs]
        self._made: dict[int, _Tree] = {}
        self._cancelled = cancelled
        self._shared = _shared(actions, len(inputs))
        # A file that `mkfile` finds is written to: it must not be one that is somebody else's as well.
        self._sharing = all(action.WhichOneof("action") != "mkfile" for action in actions)

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *exc: object) -> None:
        for tree in self._inputs:
            tree.close()
        for tree in self._made.values():
            tree.close()
            if tree.mutable is not None:
                tree.mutable.release()
            if tree.ref is not None:
                tree.ref.release()

    def results(self, outputs: Sequence[int]) -> list[Ref | None]:
        found: list[Ref | None] = []
        for action in outputs:
            ref = self._action(action).ref
            found.append(ref.clone() if ref is not None else None)
        return found

    def _tree(self, index: int) -> _Tree:
        if index == _NONE:
            return _Tree()
        if not _NONE < index < self._count + len(self._actions):
            raise UsageError(f"invalid input index {index}, {self._count} provided")
        return self._inputs[index] if index < self._count else self._action(index - self._count)

    def _action(self, number: int) -> _Tree:
        if number not in self._made:
            action = self._actions[number]
            if any(index - self._count >= number for index in (action.input, action.secondaryInput)):
                raise UsageError(f"invalid action {number}: it needs a later one")
            try:
                self._made[number] = self._perform(number, action)
            except ChantierError as err:
                err.subject = err.subject or ("file", number)
                raise
        return self._made[number]

    def _perform(self, number: int, action: pb.FileAction) -> _Tree:
        if self._cancelled():
            raise CancelledError_
        base = self._tree(action.input)
        source = self._tree(action.secondaryInput) if action.WhichOneof("action") == "copy" else _Tree()
        owner = self._owner(action)
        if base.mutable is not None:  # the chain goes on
            tree, base.mutable = _Tree(mutable=base.mutable), None
            base.close()
        else:
            tree = _Tree(mutable=self._cache.new(base.ref, description=self._name))
        try:
            root = tree.open()
            assert root is not None
            if action.WhichOneof("action") == "copy":
                self._copy(action.copy, tree, root, source, owner)
            else:
                _act(action, root, owner)
            if number in self._shared:
                tree.commit()
        except BaseException:
            tree.close()
            if tree.mutable is not None:
                tree.mutable.release()
            raise
        return tree

    def _copy(self, copy: pb.FileActionCopy, tree: _Tree, root: Path, source: _Tree, owner: Owner | None) -> None:
        assert tree.mutable is not None
        stack = tree.mutable.stack()
        stage = None
        if stack and (tree.overlaid or root == stack[0]):
            sharing = self._sharing and source.kept
            stage = Stage(stack[0] if tree.overlaid else None, sharing=sharing, taken=read_shared(stack) if sharing else None)
        try:
            options = _copy_options(copy, owner)
            copy_tree(source.open(), copy.src, root, copy.dest, options, cancelled=self._cancelled, told=self._told, stage=stage)
            if stage is None:
                return
            if stage.shared:
                own = read_shared(stack[:1])
                own.add(stage.shared)
                write_shared(stack[0], own)
            if stage.waiting:
                tree.close()
                stage.place()
        finally:
            if stage is not None:
                stage.close()

    def _owner(self, action: pb.FileAction) -> Owner | None:
        """Names are looked up in the tree they point at, before the action changes it."""
        kind = action.WhichOneof("action")
        subject = getattr(action, kind) if kind and kind != "rm" else None
        if subject is None or not subject.HasField("owner"):
            return None
        uid = gid = 0
        user, group = subject.owner.user, subject.owner.group
        if user.WhichOneof("user") == "byID":
            uid = gid = user.byID
        elif user.WhichOneof("user") == "byName":
            uid, gid = self._named("user", user.byName, user_ids) or (0, 0)
        if group.WhichOneof("user") == "byID":
            gid = group.byID
        elif group.WhichOneof("user") == "byName":
            found = self._named("group", group.byName, group_id)
            gid = gid if found is None else found
        return uid, gid

    def _named(self, what: str, named: pb.NamedUserOpt, look: Callable[[Path, str], Any]) -> Any:
        if named.input < 0:
            raise UsageError(f"invalid {what} index: {named.input}")
        root = self._tree(named.input).open()
        return look(root, named.name) if root is not None else None


def _shared(actions: Sequence[pb.FileAction], inputs: int) -> set[int]:
    """Actions whose tree is needed as it is: outputs, sources of copies, and starts of more than one other action."""
    shared = {i for i, action in enumerate(actions) if action.output != _NONE}
    started: set[int] = set()
    for action in actions:
        if action.input >= inputs:
            number = action.input - inputs
            (shared if number in started else started).add(number)
        if action.WhichOneof("action") == "copy" and action.secondaryInput >= inputs:
            shared.add(action.secondaryInput - inputs)
        kind = action.WhichOneof("action")
        subject = getattr(action, kind) if kind and kind != "rm" else None
        if subject is not None and subject.HasField("owner"):
            for named in (subject.owner.user, subject.owner.group):
                if named.WhichOneof("user") == "byName" and named.byName.input >= inputs:
                    if named.byName.input != action.input:
                        shared.add(named.byName.input - inputs)
    return shared


def _act(action: pb.FileAction, root: Path, owner: Owner | None) -> None:
    kind = action.WhichOneof("action")
    if kind == "mkdir":
        directory = action.mkdir
        make_directory(
            root,
            directory.path,
            directory.mode,
            parents=directory.makeParents,
            owner=owner,
            time_ns=_time(directory.timestamp),
        )
    elif kind == "mkfile":
        file = action.mkfile
        make_file(root, file.path, file.mode, file.data, owner=owner, time_ns=_time(file.timestamp))
    elif kind == "symlink":
        link = action.symlink
        make_symlink(root, link.oldpath, link.newpath, owner=owner, time_ns=_time(link.timestamp))
    elif kind == "rm":
        remove(root, action.rm.path, missing_ok=action.rm.allowNotFound, wildcard=action.rm.allowWildcard)
    else:
        raise UsageError(f"unknown action type {kind}")


def _copy_options(copy: pb.FileActionCopy, owner: Owner | None) -> CopyOptions:
    return CopyOptions(
        include=tuple(copy.include_patterns),
        exclude=tuple(copy.exclude_patterns),
        required=tuple(copy.required_paths),
        dir_contents=copy.dirCopyContents,
        follow_links=copy.followSymlink,
        create_dest_path=copy.createDestPath,
        wildcard=copy.allowWildcard,
        empty_wildcard=copy.allowEmptyWildcard,
        unpack=copy.attemptUnpackDockerCompatibility,
        owner=owner,
        mode=copy.mode if copy.mode != _NONE and not copy.modeStr else None,
        mode_text=copy.modeStr,
        time_ns=_time(copy.timestamp),
        replace=copy.alwaysReplaceExistingDestPaths,
    )


def _time(timestamp: int) -> int | None:
    return None if timestamp == -1 else timestamp


__all__ = ["FileOp", "content_key", "dedupe", "worker_id"]
