# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import chantier as library
from chantier.errors import SolveError, StepError
from chantier.progress import Event, Log, Vertex

from ..conftest import Command

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]


def test_a_build_in_this_process(chantier: Command, tmp_path: Path) -> None:
    events: list[Event] = []
    result = library.build(
        tmp_path,
        dockerfile_text='FROM alpine\nARG WHO\nRUN echo "hello $WHO"\n',
        build_args={"WHO": "python"},
        outputs=[f"type=oci,dest={tmp_path}/image.tar"],
        root=chantier.root,
        config=chantier.config,
        on_event=events.append,
    )
    assert result.digest.startswith("sha256:")
    assert (tmp_path / "image.tar").stat().st_size > 1000
    assert any(isinstance(e, Log) and b"hello python" in e.data for e in events)
    assert any(isinstance(e, Vertex) and e.completed for e in events)


def test_failures_are_typed(chantier: Command, tmp_path: Path) -> None:
    with pytest.raises(SolveError) as caught:
        library.build(tmp_path, dockerfile_text="FROM alpine\nRUN exit 3\n", root=chantier.root, config=chantier.config)
    assert isinstance(caught.value.__cause__, StepError)
    assert caught.value.__cause__.exit_status == 3
    assert caught.value.sources[0].ranges[0].start == 2


def test_several_builds_in_one_loop(chantier: Command, tmp_path: Path) -> None:
    async def main() -> list[library.BuildResult]:
        async with library.Builder(root=chantier.root, config=chantier.config) as builder:
            return await asyncio.gather(
                *(
                    builder.abuild(
                        tmp_path,
                        dockerfile_text=f"FROM alpine\nRUN echo {n} > /n\n",
                        outputs=[f"type=oci,dest={tmp_path}/{n}.tar"],
                    )
                    for n in range(3)
                )
            )

    results = asyncio.run(main())
    assert len({r.digest for r in results}) == 3


def test_cancelling_a_build_ends_its_steps(chantier: Command, tmp_path: Path) -> None:
    import subprocess

    async def main() -> None:
        async with library.Builder(root=chantier.root, config=chantier.config) as builder:
            started = asyncio.Event()
            loop = asyncio.get_running_loop()

            def on_event(event: Event) -> None:
                if isinstance(event, Log) and b"started" in event.data:
                    loop.call_soon_threadsafe(started.set)

            task = asyncio.create_task(
                builder.abuild(tmp_path, dockerfile_text="FROM alpine\nRUN echo started; sleep 9876\n", on_event=on_event)
            )
            await asyncio.wait_for(started.wait(), 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert "sleep 9876" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout

    asyncio.run(main())


def test_unknown_options_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="did you mean 'tags'"):
        library.build(tmp_path, tag=["x"])
