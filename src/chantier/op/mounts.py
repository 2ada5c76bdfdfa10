# SPDX-License-Identifier: Apache-2.0
"""What a step's mounts are made of while it runs: `pb.Mount`s and inputs become a rootfs, binds, and results to commit.

    PLACE/rootfs        the root, mounted
    PLACE/mN            the N-th mount of the operation, where it had to be mounted or a part of it was selected
    PLACE/secrets       a tmpfs

Everything here runs in a thread and is undone by `Stage.close`, in the opposite order.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier import kernel
from chantier.errors import NotFoundError, UsageError
from chantier.pb import ops_pb2 as pb
from chantier.runtime.types import Bind
from chantier.snapshot import mount_all, unmount
from chantier.snapshot.mount import Mount
from chantier.spec import new_id
from chantier.values import dataclass, field

if TYPE_CHECKING:
    from chantier.cache import Cache, MutableRef, Ref
    from chantier.progress import Step

ROOT = "/"
_SHARING = {pb.SHARED: "shared", pb.PRIVATE: "private", pb.LOCKED: "locked"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What was found out or taken before the mounts are made; keys are indexes of mounts."""

    secrets: Mapping[int, bytes] = field(default_factory=dict)
    sockets: Mapping[int, Path] = field(default_factory=dict)
    caches: Mapping[int, MutableRef] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class Stage:
    """The mounts of one step. `outputs` are the handles to commit (or, for an untouched input, to give on), by number."""

    place: Path
    rootfs: Path
    readonly: bool = False
    binds: list[Bind] = field(default_factory=list)
    outputs: dict[int, MutableRef | Ref] = field(default_factory=dict)
    thrown: dict[int, MutableRef] = field(default_factory=dict)  # by mount: layers that nobody asked for
    _mounted: ExitStack = field(default_factory=ExitStack)

    def unmount(self) -> None:
        """Unmount everything; the outputs may then be committed."""
        self._mounted.close()

    def commit(self) -> dict[int, Ref]:
        """Turn the outputs into results, in order. After `unmount`."""
        done: dict[int, Ref] = {}
        try:
            for number in sorted(self.outputs):
                handle = self.outputs.pop(number)
                done[number] = handle.commit() if hasattr(handle, "commit") else handle
        except BaseException:
            for result in done.values():
                result.release()
            raise
        return done

    def commit_all(self, mounts: Sequence[pb.Mount], inputs: Sequence[Ref | None]) -> list[Ref | None]:
        """What each mount holds after the step, whether or not it is an output; by the number of the mount. After `unmount`."""
        left: list[Ref | None] = []
        try:
            for index, mount in enumerate(mounts):
                if mount.output in self.outputs and mount.mountType == pb.BIND:
                    handle: MutableRef | Ref | None = self.outputs.pop(mount.output)
                elif index in self.thrown:
                    handle = self.thrown.pop(index)
                else:
                    given = input_of(mount, inputs)
                    handle = given.clone() if given is not None else None
                left.append(handle.commit() if handle is not None and hasattr(handle, "commit") else handle)
        except BaseException:
            for ref in left:
                if ref is not None:
                    ref.release()
            raise
        return left

    def close(self) -> None:
        """Unmount what is mounted and give back what was not committed."""
        try:
            self._mounted.close()
        finally:
            for handle in (*self.outputs.values(), *self.thrown.values()):
                handle.release()
            self.outputs.clear()
            self.thrown.clear()


def take_caches(
    cache: Cache, mounts: Sequence[pb.Mount], inputs: Sequence[Ref | None], cancelled: Callable[[], bool]
) -> dict[int, MutableRef]:
    """Handles on the cache mounts of a step; the same id on the same input is one handle, standing more than once.

    They are taken in the order of their names: two steps that lock the same two never wait for each other.
    """
    wanted: dict[tuple[str, str], list[int]] = {}
    for index, mount in enumerate(mounts):
        if mount.mountType == pb.CACHE:
            base = input_of(mount, inputs)
            wanted.setdefault((mount.cacheOpt.ID, base.id if base is not None else ""), []).append(index)
    taken: dict[int, MutableRef] = {}
    try:
        for (id, _base), indexes in sorted(wanted.items()):
            mount = mounts[indexes[0]]
            handle = cache.mutable(
                cache_index(id),
                sharing=_SHARING[mount.cacheOpt.sharing],
                base=input_of(mount, inputs),
                description=f"cached mount {mount.dest} from exec",
                cancelled=cancelled,
            )
            taken.update(dict.fromkeys(indexes, handle))
    except BaseException:
        release_caches(taken)
        raise
    return taken


def release_caches(taken: Mapping[int, MutableRef]) -> None:
    for handle in {id(handle): handle for handle in taken.values()}.values():
        handle.release()


def cache_index(id: str) -> str:
    """The name under which a cache mount is kept and found."""
    return f"cache-dir:{id}"


def input_of(mount: pb.Mount, inputs: Sequence[Ref | None]) -> Ref | None:
    if mount.input < 0:
        return None
    if mount.input >= len(inputs):
        raise UsageError(f"missing input {mount.input}")
    return inputs[mount.input]


def stage(
    cache: Cache,
    mounts: Sequence[pb.Mount],
    inputs: Sequence[Ref | None],
    given: Given,
    *,
    place: Path,
    cwd: str,
    label: str,
    step: Step | None = None,
    sessions: Sequence[Any] = (),
    cancelled: Callable[[], bool],
) -> Stage:
    """Make all mounts of a step, the parents of others first. Undone if it fails."""
    staged = Stage(place=place, rootfs=place / "rootfs")
    maker = _Maker(cache, inputs, given, staged, cwd, label, step, sessions, cancelled)
    try:
        for index, mount in sorted(enumerate(mounts), key=lambda pair: pair[1].dest):
            maker.add(index, mount)
    except BaseException:
        staged.close()
        raise
    return staged


@dataclass(slots=True, eq=False)
class _Maker:
    cache: Cache
    inputs: Sequence[Ref | None]
    given: Given
    stage: Stage
    cwd: str
    label: str
    step: Step | None
    sessions: Sequence[Any]
    cancelled: Callable[[], bool]

    def add(self, index: int, mount: pb.Mount) -> None:
        if mount.mountType == pb.BIND:
            mounts = self._tree(index, mount)
            if mount.dest == ROOT:
                self._root(mount, mounts)
            else:
                self._bind(index, mount, mounts)
        elif mount.mountType == pb.CACHE:
            self._bind(index, mount, self.given.caches[index].mounts())
        elif mount.mountType == pb.TMPFS:
            self._place(mount, Mount("tmpfs", "tmpfs", _tmpfs_options(mount)))
        elif mount.mountType == pb.SECRET:
            if index in self.given.secrets:
                self._secret(mount, self.given.secrets[index])
        elif mount.mountType == pb.SSH:
            if index in self.given.sockets:
                source = str(self.given.sockets[index])
                self._place(mount, Mount("bind", source, ("rbind", "nodev", "nosuid", "noexec")))
        else:
            raise UsageError(f"mount type {mount.mountType} not implemented")

    def _tree(self, index: int, mount: pb.Mount) -> tuple[Mount, ...]:
        """The mounts of a bind's tree: the input itself, or a writable layer on it that is an output or is thrown away."""
        ref = input_of(mount, self.inputs)
        if mount.output >= 0:
            if mount.readonly and ref is not None and mount.dest != ROOT:
                self.stage.outputs[mount.output] = ref.clone()
                return self._readable(ref)
            made = self._new(mount, ref)
            self.stage.outputs[mount.output] = made
            return made.mounts()
        if mount.readonly and mount.dest != ROOT and ref is not None:
            return self._readable(ref)
        # A read-only root gets a layer too: the runtime must be able to make mount points in it.
        made = self._new(mount, ref)
        self.stage.thrown[index] = made
        return made.mounts()

    def _new(self, mount: pb.Mount, ref: Ref | None) -> MutableRef:
        if ref is not None:
            ref.realise(step=self.step, sessions=self.sessions, cancelled=self.cancelled)
        return self.cache.new(ref, description=f"mount {mount.dest} from exec {self.label}")

    def _readable(self, ref: Ref) -> tuple[Mount, ...]:
        return ref.mounts(step=self.step, sessions=self.sessions, cancelled=self.cancelled)

    def _root(self, mount: pb.Mount, mounts: tuple[Mount, ...]) -> None:
        if mount.selector not in ("", "/"):
            raise UsageError(f"invalid mount {mount.dest}: the root cannot have a selector")
        self.stage.readonly = mount.readonly
        self.stage.rootfs.mkdir(mode=0o700)
        self._mount(mounts, self.stage.rootfs)

    def _bind(self, index: int, mount: pb.Mount, mounts: tuple[Mount, ...]) -> None:
        if len(mounts) == 1 and mounts[0].type == "bind":
            whole = Path(mounts[0].source)
        else:
            whole = self.stage.place / f"m{index}"
            whole.mkdir(mode=0o700)
            self._mount(mounts, whole)
        source = whole if mount.selector in ("", "/") else self._part(index, mount, whole)
        self._place(mount, Mount("bind", str(source), ("rbind", "ro" if mount.readonly else "rw")))

    def _part(self, index: int, mount: pb.Mount, whole: Path) -> Path:
        """A part of a tree, bound by descriptor: no link in the tree leads out of it, whoever else writes to it."""
        try:
            fd = kernel.open_in_root(whole, mount.selector, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError as err:
            raise NotFoundError(f'failed to mount {mount.dest}: "{mount.selector}": not found') from err
        try:
            point = self.stage.place / f"m{index}-part"
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                point.mkdir(mode=0o700)
            else:
                point.touch(mode=0o600)
            kernel.bind(f"/proc/self/fd/{fd}", str(point))
            self.stage._mounted.callback(unmount, point)
        finally:
            os.close(fd)
        return point

    def _secret(self, mount: pb.Mount, value: bytes) -> None:
        option = mount.secretOpt
        directory = self.stage.place / "secrets"
        if not directory.exists():
            directory.mkdir(mode=0o700)
            kernel.mount("tmpfs", str(directory), "tmpfs", kernel.MS_NODEV | kernel.MS_NOSUID, "mode=0700")
            self.stage._mounted.callback(unmount, directory)
        path = directory / new_id()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            kernel.write_all(fd, value)
            os.fchown(fd, option.uid, option.gid)
            os.fchmod(fd, option.mode & 0o777)
        finally:
            os.close(fd)
        flags = ("nodev", "nosuid") if option.mode & 0o111 else ("nodev", "nosuid", "noexec")
        self._place(mount, Mount("bind", str(path), ("rbind", "ro", *flags)))

    def _mount(self, mounts: tuple[Mount, ...], where: Path) -> None:
        mount_all(mounts, where)
        self.stage._mounted.callback(unmount, where)

    def _place(self, mount: pb.Mount, what: Mount) -> None:
        self.stage.binds.append(Bind(target=target_of(mount, self.cwd), mount=what))


def target_of(mount: pb.Mount, cwd: str) -> str:
    """Where a mount goes: a relative place is below the working directory."""
    return os.path.normpath(os.path.join("/", cwd, mount.dest))


def _tmpfs_options(mount: pb.Mount) -> tuple[str, ...]:
    options = ["nosuid"]
    if mount.readonly:
        options.append("ro")
    if mount.TmpfsOpt.size > 0:
        options.append(f"size={mount.TmpfsOpt.size}")
    return tuple(options)


__all__ = ["Given", "Stage", "cache_index", "input_of", "release_caches", "stage", "take_caches", "target_of"]
