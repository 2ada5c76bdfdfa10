# SPDX-License-Identifier: Apache-2.0
"""One run of a file operation: its actions done in the order they need each other, each on a tree of its own or of its chain.

A chain of actions works on one mutable tree; a tree that somebody else needs as it is gets committed first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.cache.content import VOLATILE
from chantier.errors import CancelledError_, ChantierError, UsageError
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
from chantier.pb import ops_pb2 as pb
from chantier.snapshot import mounted

from .kept import FailedTrees
from .worker import Worker

if TYPE_CHECKING:
    from chantier.cache import MutableRef, Ref
    from chantier.solver import Job

NONE = -1
"""No input, no output."""


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
            tree = self.mutable if self.mutable is not None else self.ref
            if tree is not None:
                mounts = tree.mounts()
                self.overlaid = any(mount.type == "overlay" for mount in mounts)
                scratch = tree.cache.root.scratch()
                self.root = self.mount.enter_context(mounted(mounts, readonly=self.mutable is None, where=scratch))
        return self.root

    def commit(self) -> None:
        if self.mutable is not None:
            self.close()
            self.ref, self.mutable = self.mutable.commit(), None

    def close(self) -> None:
        self.root = None
        self.mount.close()


class FileRun:
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
        self._bases: dict[int, _Tree] = {}
        self._cancelled = cancelled
        self._shared = _shared(actions, len(inputs))
        # A file that `mkfile` finds is written to: it must not be one that is somebody else's as well.
        self._sharing = all(action.WhichOneof("action") != "mkfile" for action in actions)

    def __enter__(self) -> FileRun:
        return self

    def __exit__(self, *exc: object) -> None:
        for tree in (*self._inputs, *self._made.values()):
            tree.close()
        for tree in self._made.values():
            if tree.mutable is not None:
                tree.mutable.release()
            if tree.ref is not None:
                tree.ref.release()

    def results(self, outputs: Sequence[int], keep: Sequence[Job] = ()) -> list[Ref | None]:
        """The trees of these actions, the caller's to release. An error carries what there was by then, for the jobs `keep`."""
        try:
            return [_handle(self._action(action).ref) for action in outputs]
        except ChantierError as err:
            if keep and not isinstance(err, CancelledError_):
                err.failed = self._left(err.subject)
                err.failed.keep_for(keep)
            raise

    def _left(self, subject: tuple[str, int] | None) -> FailedTrees:
        """The inputs, and by action the trees that have not become another's; of the one that failed, as far as it got."""
        for tree in self._made.values():
            tree.commit()
        if subject is not None and subject[1] not in self._made and (base := self._bases.get(subject[1])) is not None:
            self._made[subject[1]] = _Tree(ref=_handle(base.ref))  # it has changed nothing yet
        made = [self._made.get(number) for number in range(len(self._actions))]
        inputs = [_handle(tree.ref) for tree in self._inputs]
        return FailedTrees(inputs, [_handle(tree.ref) if tree is not None else None for tree in made])

    def _tree(self, index: int) -> _Tree:
        if index == NONE:
            return _Tree()
        if not NONE < index < self._count + len(self._actions):
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
        base = self._bases[number] = self._tree(action.input)
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
            self._made[number] = tree  # as far as it got
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


def _handle(ref: Ref | None) -> Ref | None:
    return ref.clone() if ref is not None else None


def _shared(actions: Sequence[pb.FileAction], inputs: int) -> set[int]:
    """Actions whose tree is needed as it is: outputs, sources of copies, and starts of more than one other action."""
    shared = {i for i, action in enumerate(actions) if action.output != NONE}
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
        mode=copy.mode if copy.mode != NONE and not copy.modeStr else None,
        mode_text=copy.modeStr,
        time_ns=_time(copy.timestamp),
        replace=copy.alwaysReplaceExistingDestPaths,
    )


def _time(timestamp: int) -> int | None:
    return None if timestamp == -1 else timestamp


__all__ = ["NONE", "FileRun"]
