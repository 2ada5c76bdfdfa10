# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import os
import re
import runpy
import signal
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import chantier as library
from chantier.errors import SolveError, StepError
from chantier.progress import Event, Log, Vertex

from ..conftest import Command, run_ok, start_registry
from ..daemon.conftest import mark, those_that_run

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]
HOME = Path(__file__).parents[2]


@pytest.fixture
def settled(chantier: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to work in; the library finds the root and the config of `chantier`."""
    monkeypatch.setenv("CHANTIER_ROOT", str(chantier.root))
    monkeypatch.setenv("CHANTIER_CONFIG", str(chantier.config))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_the_examples_of_the_page(settled: Path) -> None:
    (settled / "app").mkdir()
    (settled / "app/greeting.txt").write_text("hello\n")
    (settled / "app/Dockerfile").write_text("FROM alpine\nARG WHO\nRUN echo $WHO > /who\n")
    names: dict[str, Any] = {}
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", (HOME / "docs/library.md").read_text(), re.MULTILINE | re.DOTALL)
    ):
        exec(compile(block, f"library.md, block {number + 1}", "exec"), names)
    assert (settled / "out/said").read_text() == "hello\n"
    assert all(tarfile.is_tarfile(settled / f"{name}.tar") for name in ("app", "one", "two", "three"))


@pytest.mark.parametrize("name", sorted(p.name for p in (HOME / "examples").glob("*.py")))
def test_example(settled: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(HOME / "examples" / name), run_name="__main__")
    assert "sha256:" in capsys.readouterr().out


def test_a_build_in_the_thread_of_a_running_loop(chantier: Command, tmp_path: Path) -> None:
    """As in a notebook, whose cells are run inside a loop."""

    async def cell() -> str:
        out = [f"type=oci,dest={tmp_path}/i.tar"]
        return library.build(
            tmp_path, dockerfile_text="FROM alpine\nRUN true\n", outputs=out, root=chantier.root, config=chantier.config
        ).digest

    assert asyncio.run(cell()).startswith("sha256:")


def test_interrupting_a_build_in_the_thread_of_a_running_loop(chantier: Command, tmp_path: Path) -> None:
    command = mark()

    def interrupt(event: Event) -> None:
        if isinstance(event, Log) and b"started" in event.data:
            os.kill(os.getpid(), signal.SIGINT)

    async def cell() -> None:
        with pytest.raises(KeyboardInterrupt):
            library.build(
                tmp_path,
                dockerfile_text=f"FROM alpine\nRUN echo started; {command}\n",
                root=chantier.root,
                config=chantier.config,
                on_event=interrupt,
            )

    # As a notebook does: asyncio.run would take SIGINT for itself.
    loop = asyncio.new_event_loop()
    loop.run_until_complete(cell())
    loop.close()
    assert not those_that_run(command)


def test_logins_of_the_program(chantier: Command, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(run_ok("htpasswd", "-nbB", "me", "hunter2"))
    guarded = start_registry(tmp_path / "reg", f"auth: {{htpasswd: {{realm: test, path: {tmp_path}/htpasswd}}}}\n")
    chantier.config.write_text(chantier.config.read_text() + f'[registry."{guarded.host}"]\nhttp = true\n')
    try:
        push = {"dockerfile_text": "FROM alpine\nRUN echo 1 > /1\n", "tags": [f"{guarded.host}/a:1"], "push": True}
        with library.Builder(root=chantier.root, config=chantier.config) as builder:
            with pytest.raises(SolveError, match="authorization failed"):
                builder.build(tmp_path, **push, logins={guarded.host: ("me", "wrong")})
            pushed = builder.build(tmp_path, **push, logins={guarded.host: ("me", "hunter2")})
            again = builder.solve(
                library.image(f"{guarded.host}/a:1").run("test -f /1"), logins={guarded.host: ("me", "hunter2")}
            )
        found = run_ok(
            "skopeo",
            "inspect",
            "--creds=me:hunter2",
            "--tls-verify=false",
            "--format={{.Digest}}",
            f"docker://{guarded.host}/a:1",
        )
    finally:
        guarded.stop()
    assert found.strip() == pushed.digest and again.ref


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
    command = mark()

    async def main() -> None:
        async with library.Builder(root=chantier.root, config=chantier.config) as builder:
            started = asyncio.Event()
            loop = asyncio.get_running_loop()

            def on_event(event: Event) -> None:
                if isinstance(event, Log) and b"started" in event.data:
                    loop.call_soon_threadsafe(started.set)

            task = asyncio.create_task(
                builder.abuild(tmp_path, dockerfile_text=f"FROM alpine\nRUN echo started; {command}\n", on_event=on_event)
            )
            await asyncio.wait_for(started.wait(), 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not those_that_run(command)

    asyncio.run(main())


def test_unknown_options_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="did you mean 'tags'"):
        library.build(tmp_path, tag=["x"])
