# SPDX-License-Identifier: Apache-2.0
"""What is the native sandbox's own: one helper for all steps of a process, and nothing of it that outlives `close`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from chantier.runtime import Container, Native, Process
from chantier.spec import new_id

pytestmark = pytest.mark.root
ENV = ("PATH=/bin",)


def children() -> set[int]:
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def container(rootfs: Path, *args: str) -> Container:
    return Container(id=new_id(), rootfs=rootfs, process=Process(args=args, env=ENV, cwd="/"))


@pytest.mark.parametrize("helper", ["c", "python"])
def test_steps_that_begin_together_share_one_helper(rootfs: Path, tmp_path: Path, helper: str) -> None:
    before = children()

    async def main() -> None:
        runtime = Native(tmp_path / "executor", helper=helper)
        try:
            runs = [runtime.run(container(rootfs, "true"), output=lambda *_: None) for _ in range(8)]
            assert [done.code for done in await asyncio.gather(*runs)] == [0] * 8
            assert len(children() - before) == 1
        finally:
            await runtime.close()

    asyncio.run(main())
    assert not children() - before
    assert os.listdir(tmp_path / "executor") == []


@pytest.mark.parametrize("wait_s", [0.0, 0.0005, 0.002, 0.01])
def test_the_first_step_is_cancelled_while_the_helper_is_made(rootfs: Path, tmp_path: Path, wait_s: float) -> None:
    before = children()

    async def main() -> None:
        runtime = Native(tmp_path / "executor", helper="python")
        first = asyncio.create_task(runtime.run(container(rootfs, "sleep", "600"), output=lambda *_: None))
        await asyncio.sleep(wait_s)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await runtime.close()

    asyncio.run(main())
    assert not children() - before
    assert not (tmp_path / "executor").exists() or os.listdir(tmp_path / "executor") == []
