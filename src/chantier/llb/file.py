# SPDX-License-Identifier: Apache-2.0
"""Changes to a tree without a process: FileOp and its actions (protocol.md 1.4.4).

Actions are chained, `copy(src, "a", "/b").mkdir("/c")`, and bound to the state they are put on by `State.file`. An action
bound elsewhere with `on(state)` may itself be the source of a copy: its result is then never a layer of its own.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING

from chantier.errors import UsageError
from chantier.pb import ops_pb2 as pb
from chantier.values import dataclass, field, replace

from . import caps as cap
from .constraints import Constraints
from .vertex import Output, Writer, real

if TYPE_CHECKING:
    from .state import State


@dataclass(frozen=True, slots=True)
class Owner:
    """`user[:group]`, each a name or a number; names are looked up in the tree that is changed."""

    user: str | int | None = None
    group: str | int | None = None

    @classmethod
    def parse(cls, text: str) -> Owner:
        user, colon, group = text.partition(":")
        return cls(_id(user), _id(group) if colon else None)

    def to_pb(self, base: int) -> pb.ChownOpt:
        out = pb.ChownOpt()
        for value, field_ in ((self.user, out.user), (self.group, out.group)):
            if isinstance(value, int):
                field_.byID = value & 0xFFFFFFFF
            elif value:
                field_.byName.CopyFrom(pb.NamedUserOpt(name=value, input=base))
            elif value == "":  # an empty part is a user without a name: number 0, as the client writes it
                field_.byID = 0
        return out


def _id(text: str) -> str | int:
    if text == "root":
        return 0
    digits = text[1:] if text[:1] in ("+", "-") else text
    if digits.isascii() and digits.isdigit():
        number = int(text)
        if -(2**31) <= number < 2**31:
            return number
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mkdir:
    path: str
    mode: int
    parents: bool
    owner: Owner | None
    time: int | None

    def to_pb(self, cwd: str, base: int) -> pb.FileAction:
        made = pb.FileActionMkDir(
            path=absolute(cwd, self.path), mode=self.mode & 0o777, makeParents=self.parents, timestamp=_time(self.time)
        )
        _chown(made, self.owner, base)
        return pb.FileAction(mkdir=made)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mkfile:
    path: str
    mode: int
    data: bytes
    owner: Owner | None
    time: int | None

    def to_pb(self, cwd: str, base: int) -> pb.FileAction:
        made = pb.FileActionMkFile(
            path=absolute(cwd, self.path), mode=self.mode & 0o777, data=self.data, timestamp=_time(self.time)
        )
        _chown(made, self.owner, base)
        return pb.FileAction(mkfile=made)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Symlink:
    old: str
    new: str
    owner: Owner | None
    time: int | None

    def to_pb(self, cwd: str, base: int) -> pb.FileAction:
        # The one action whose path the client does not complete with the working directory.
        made = pb.FileActionSymlink(oldpath=self.old, newpath=self.new, timestamp=_time(self.time))
        _chown(made, self.owner, base)
        return pb.FileAction(symlink=made)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rm:
    path: str
    missing_ok: bool
    wildcard: bool

    def to_pb(self, cwd: str, base: int) -> pb.FileAction:
        made = pb.FileActionRm(path=absolute(cwd, self.path), allowNotFound=self.missing_ok, allowWildcard=self.wildcard)
        return pb.FileAction(rm=made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copying:
    """How to copy; the defaults are those of a bare LLB copy, `DOCKERFILE` is what COPY of a path does."""

    mode: int | str | None = None  # octal value, or a symbolic mode such as u=rwX
    follow_symlinks: bool = False
    contents_only: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    unpack: bool = False
    create_dest: bool = False
    wildcard: bool = False
    empty_wildcard: bool = False
    replace_existing: bool = False
    owner: Owner | None = None
    time: int | None = None


DOCKERFILE = Copying(follow_symlinks=True, contents_only=True, create_dest=True, wildcard=True, empty_wildcard=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    source: State | BoundAction
    src: str
    dest: str
    how: Copying

    def to_pb(self, cwd: str, base: int) -> pb.FileAction:
        how = self.how
        made = pb.FileActionCopy(
            src=self._source_path(),
            dest=absolute(cwd, self.dest, keep_slash=True),
            include_patterns=how.include,
            exclude_patterns=how.exclude,
            required_paths=how.required,
            allowWildcard=how.wildcard,
            allowEmptyWildcard=how.empty_wildcard,
            followSymlink=how.follow_symlinks,
            dirCopyContents=how.contents_only,
            attemptUnpackDockerCompatibility=how.unpack,
            createDestPath=how.create_dest,
            timestamp=_time(how.time),
            alwaysReplaceExistingDestPaths=how.replace_existing,
        )
        if isinstance(how.mode, str):
            made.modeStr = how.mode
        else:
            made.mode = -1 if how.mode is None else how.mode
        _chown(made, how.owner, base)
        return pb.FileAction(copy=made)

    def _source_path(self) -> str:
        path = posixpath.normpath(self.src) if self.src else "."
        cwd = self.source.state.cwd if isinstance(self.source, BoundAction) else self.source.cwd
        return clean(path if path.startswith("/") else posixpath.join(cwd or "/", path))


_Step = _Mkdir | _Mkfile | _Symlink | _Rm | _Copy


@dataclass(frozen=True, eq=False)
class FileAction:
    """One or more steps, in order; not yet on any tree."""

    steps: tuple[_Step, ...] = ()

    def _then(self, step: _Step) -> FileAction:
        return FileAction((*self.steps, step))

    def mkdir(
        self, path: str, mode: int = 0o755, *, parents: bool = False, owner: Owner | None = None, time: int | None = None
    ) -> FileAction:
        """`time` is in nanoseconds since the epoch, None is now."""
        return self._then(_Mkdir(path=path, mode=mode, parents=parents, owner=owner, time=time))

    def mkfile(
        self, path: str, data: bytes, mode: int = 0o644, *, owner: Owner | None = None, time: int | None = None
    ) -> FileAction:
        return self._then(_Mkfile(path=path, mode=mode, data=data, owner=owner, time=time))

    def symlink(self, old: str, new: str, *, owner: Owner | None = None, time: int | None = None) -> FileAction:
        """A link at `new` whose text is `old`."""
        return self._then(_Symlink(old=old, new=new, owner=owner, time=time))

    def rm(self, path: str, *, missing_ok: bool = False, wildcard: bool = False) -> FileAction:
        return self._then(_Rm(path=path, missing_ok=missing_ok, wildcard=wildcard))

    def copy(self, source: State | BoundAction, src: str, dest: str, how: Copying | None = None) -> FileAction:
        return self._then(_Copy(source=source, src=src, dest=dest, how=how or Copying()))

    def on(self, state: State) -> BoundAction:
        return BoundAction(self, state)


@dataclass(frozen=True, eq=False)
class BoundAction:
    """An action with the tree it changes; the source of another copy."""

    action: FileAction
    state: State


@dataclass(eq=False)
class _Actions:
    """The numbering of inputs and actions while one FileOp is written."""

    op: pb.Op
    writer: Writer
    rows: list[tuple[_Step, str, int, int | None, int, int | None]] = field(default_factory=list)
    bound: dict[int, int] = field(default_factory=dict)  # id of a BoundAction -> number of its last action

    def add(self, bound: BoundAction) -> int:
        if id(bound) in self.bound:
            return self.bound[id(bound)]
        last: int | None = None
        for step in bound.action.steps:
            out = real(bound.state.output)
            base = self.writer.add_input(self.op, out) if out is not None else -1
            second, second_action = -1, None
            if isinstance(step, _Copy):
                if isinstance(step.source, BoundAction):
                    second_action = self.add(step.source)
                else:
                    src = real(step.source.output)
                    second = self.writer.add_input(self.op, src) if src is not None else -1
            self.rows.append((step, bound.state.cwd, base, last, second, second_action))
            last = len(self.rows) - 1
        if last is None:
            raise UsageError("action is required")
        self.bound[id(bound)] = last
        return last

    def write(self) -> None:
        inputs = len(self.op.inputs)
        for number, (step, cwd, base, previous, second, second_action) in enumerate(self.rows):
            made = step.to_pb(cwd, base)
            made.input = inputs + previous if previous is not None else base
            made.secondaryInput = inputs + second_action if second_action is not None else second
            made.output = 0 if number == len(self.rows) - 1 else -1
            self.op.file.actions.append(made)


@dataclass(frozen=True, eq=False)
class FileVertex:
    bound: BoundAction
    how: Constraints

    def inputs(self) -> Sequence[Output]:
        """In the Go client's order, the last step's first: it decides the order of a definition, not its digests."""
        found: dict[int, Output] = {}
        _note_all(found, self.bound)
        return tuple(found.values())

    def index(self, slot: object) -> int:
        return 0

    def write(self, op: pb.Op, writer: Writer) -> set[str]:
        op.ClearField("platform")
        actions = _Actions(op, writer)
        actions.add(self.bound)
        actions.write()
        return {cap.FILE_BASE}  # the finer file.* caps are never sent by the Go client either


def _note_all(found: dict[int, Output], bound: BoundAction) -> None:
    for step in reversed(bound.action.steps):
        _note(found, real(bound.state.output))
        if isinstance(step, _Copy):
            if isinstance(step.source, BoundAction):
                _note_all(found, step.source)
            else:
                _note(found, real(step.source.output))


def _note(found: dict[int, Output], out: Output | None) -> None:
    if out is not None:
        found[id(out)] = out


def _time(time: int | None) -> int:
    return -1 if time is None else time


def _chown(
    made: pb.FileActionMkDir | pb.FileActionMkFile | pb.FileActionSymlink | pb.FileActionCopy, owner: Owner | None, base: int
) -> None:
    if owner is not None:
        made.owner.CopyFrom(owner.to_pb(base))


def clean(path: str) -> str:
    """Go's path.Clean, whose only difference from normpath is that two leading slashes are one."""
    out = posixpath.normpath(path) if path else "."
    return "/" + out.lstrip("/") if out.startswith("//") else out


def absolute(cwd: str, path: str, *, keep_slash: bool = False) -> str:
    """`path` under `cwd`, cleaned; a trailing `/` or `/.` is kept where it means something."""
    out = clean(path)
    if not out.startswith("/"):
        out = clean(posixpath.join("/", cwd, out))
    if keep_slash:
        if path.endswith("/") and not out.endswith("/"):
            out += "/"
        elif path.endswith("/."):
            out = (out if out == "/" else out + "/") + "."
    return out


def mkdir(path: str, mode: int = 0o755, *, parents: bool = False, owner: Owner | None = None) -> FileAction:
    return FileAction().mkdir(path, mode, parents=parents, owner=owner)


def mkfile(path: str, data: bytes, mode: int = 0o644, *, owner: Owner | None = None) -> FileAction:
    return FileAction().mkfile(path, data, mode, owner=owner)


def symlink(old: str, new: str, *, owner: Owner | None = None) -> FileAction:
    return FileAction().symlink(old, new, owner=owner)


def rm(path: str, *, missing_ok: bool = False, wildcard: bool = False) -> FileAction:
    return FileAction().rm(path, missing_ok=missing_ok, wildcard=wildcard)


def copy(source: State | BoundAction, src: str, dest: str, how: Copying | None = None) -> FileAction:
    return FileAction().copy(source, src, dest, how)


def with_owner(how: Copying, owner: str | Owner | None) -> Copying:
    return replace(how, owner=Owner.parse(owner) if isinstance(owner, str) else owner)


__all__ = [
    "DOCKERFILE",
    "BoundAction",
    "Copying",
    "FileAction",
    "FileVertex",
    "Owner",
    "absolute",
    "clean",
    "copy",
    "mkdir",
    "mkfile",
    "rm",
    "symlink",
    "with_owner",
]
