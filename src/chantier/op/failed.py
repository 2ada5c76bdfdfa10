# SPDX-License-Identifier: Apache-2.0
"""A step that failed, as it was when it failed: what its mounts held, and containers to look into them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from chantier.errors import NotFoundError
from chantier.kernel import open_in_root
from chantier.llb.shells import NO_SHELL, NO_SHELL_HINT, shells_of
from chantier.pb import ops_pb2 as pb

from .container import ContainerSpec, HeldContainer
from .kept import FailedTrees
from .worker import Worker, threaded

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from chantier.cache import Ref
    from chantier.runtime import Exit


class FailedStep(FailedTrees):
    """`inputs` and `mounts` go by the number of the mount: what it was given, and what the step left in it."""

    def __init__(self, worker: Worker, op: pb.Op, inputs: Sequence[Ref | None], mounts: Sequence[Ref | None]) -> None:
        super().__init__(inputs, mounts)
        self._worker = worker
        self._op = op

    @property
    def op(self) -> pb.Op:
        return self._op

    @property
    def argv(self) -> tuple[str, ...]:
        return tuple(self._op.exec.meta.args)

    @property
    def meta(self) -> pb.Meta:
        return self._op.exec.meta

    async def open(self, sessions: Sequence[Any]) -> FailedContainer:
        """A container with the step's mounts. The caller closes it."""
        trees: list[Ref | None] = []
        mounts = []
        for mount, tree in zip(self._op.exec.mounts, self.mounts, strict=True):
            made = pb.Mount()
            made.CopyFrom(mount)
            made.input, made.output = (len(trees), -1) if tree is not None else (-1, -1)
            if tree is not None:
                trees.append(tree)
            mounts.append(made)
        spec = ContainerSpec(
            mounts=mounts,
            inputs=trees,
            network=self._op.exec.network,
            platform=self._op.platform if self._op.HasField("platform") else None,
            hostname=self.meta.hostname,
            extra_hosts=tuple(self.meta.extraHosts),
        )
        container = HeldContainer(self._worker, spec, sessions)
        await container.open()
        root = next(i for i, mount in enumerate(mounts) if mount.dest == "/")
        return FailedContainer(container, self._op.exec, root)


class FailedContainer:
    """Processes in the state of a failed step: its user, environment and directory are those of the step."""

    def __init__(self, container: HeldContainer, exec: pb.ExecOp, root: int) -> None:
        self._container = container
        self._exec = exec
        self._root = root

    async def shell(self) -> tuple[str, ...]:
        """The shell of the step itself, or one that the image has. Raises NotFoundError where there is none."""
        root = self._container.path_of(self._root)
        places = shells_of(self._exec.meta.args)

        def find(_cancelled: Callable[[], bool]) -> str | None:
            for place in places:
                try:
                    os.close(open_in_root(root, place, os.O_PATH | os.O_CLOEXEC))
                except OSError:  # not there, or not to be reached
                    continue
                return place
            return None

        found = await threaded(find)
        if found is None:
            raise NotFoundError(NO_SHELL, hint=NO_SHELL_HINT)
        return (found,)

    async def run(
        self,
        args: Sequence[str],
        *,
        output: Callable[[int, bytes], None],
        stdin: Callable[[], Awaitable[bytes]] | None = None,
        terminal: bool = False,
        env: Sequence[str] = (),
        resized: Callable[[Callable[[int, int], None]], None] | None = None,
    ) -> Exit:
        meta = pb.Meta()
        meta.CopyFrom(self._exec.meta)
        del meta.args[:]
        meta.args.extend(args)
        meta.env.extend(env)
        return await self._container.run(
            meta,
            output=output,
            stdin=stdin,
            terminal=terminal,
            insecure=self._exec.security == pb.INSECURE,
            secrets=tuple(self._exec.secretenv),
            resized=resized,
        )

    async def close(self) -> None:
        await self._container.close()


__all__ = ["FailedContainer", "FailedStep"]
