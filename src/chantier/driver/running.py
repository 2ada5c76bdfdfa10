# SPDX-License-Identifier: Apache-2.0
"""What a driver of builds is, and its blocking face: one event loop that lives from the first build to `close`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from chantier.client import BuildResult, Prepared
from chantier.progress import Reporter
from chantier.values import dataclass

if TYPE_CHECKING:
    from chantier.config import Config
    from chantier.pb import ops_pb2 as pb

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """Graphs by platform ("" where there is one). `metadata` holds the image configs: `containerimage.config[/PLATFORM]`."""

    definitions: Mapping[str, pb.Definition]
    metadata: Mapping[str, bytes]


class Running:
    """Base of drivers. Not for several threads at once; builds may overlap in one loop."""

    heading = ""  # the first line of plain progress
    title = ""  # what a terminal shows beside the counter
    place = "embedded/embedded0"  # BUILDER/NODE, before the id of a build

    without_output = ""  # how the warning about that goes on
    config: Config | None = None  # what the engine's log is written by here; None: as without a file

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None

    @property
    def default_output(self) -> str:
        """What a build makes that names no output: "image", "docker" (loaded), or "" for nothing."""
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends what `build` opened; after `abuild`, await `aclose` instead."""
        if self._runner is not None:
            self.run(self.aclose())
            runner, self._runner = self._runner, None
            if _loop_runs_here():
                _in_a_thread(runner.close)
            else:
                runner.close()

    def build(self, prepared: Prepared, reporter: Reporter) -> BuildResult:
        """Run one build to its end; blocks. Interrupting it cancels the build and waits until its steps are gone."""
        return self.run(self.abuild(prepared, reporter))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for something of this driver's in its own loop. Where another loop runs in this thread (a cell of a notebook),
        that one stands still meanwhile, and ours runs in a thread."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        if not _loop_runs_here():
            return self._runner.run(work)
        runner, tasks = self._runner, list[asyncio.Task[Any]]()

        async def noted() -> T:
            task = asyncio.current_task()
            assert task is not None
            tasks.append(task)
            return await work

        def interrupt() -> None:
            for task in tasks:
                runner.get_loop().call_soon_threadsafe(task.cancel)

        return _in_a_thread(partial(runner.run, noted()), interrupt)

    async def abuild(self, prepared: Prepared, reporter: Reporter) -> BuildResult:
        """Run one build in the running loop; several may run at once."""
        raise NotImplementedError

    async def aconvert(self, prepared: Prepared, reporter: Reporter) -> Converted:
        """What the build's frontend makes of it, as graphs: nothing is run for them."""
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


def _loop_runs_here() -> bool:
    return asyncio._get_running_loop() is not None


def _in_a_thread(call: Callable[[], T], interrupt: Callable[[], None] = lambda: None) -> T:
    """What `call` gives, run in a thread; KeyboardInterrupt here interrupts it, and is raised when it has ended."""
    with ThreadPoolExecutor(1, "chantier") as pool:
        done = pool.submit(call)
        try:
            return done.result()
        except KeyboardInterrupt:
            interrupt()
            raise


def result_of(ref: str, response: dict[str, str], metadata: dict[str, bytes]) -> BuildResult:
    """A BuildResult from what exporters and the frontend answered."""
    return BuildResult(
        ref=ref,
        digest=response.get("containerimage.digest", ""),
        config_digest=response.get("containerimage.config.digest", ""),
        image_names=tuple(n for n in response.get("image.name", "").split(",") if n),
        response=response,
        calls={k: v for k, v in metadata.items() if k.startswith("result.") or k == "version"},
    )


__all__ = ["Converted", "Running", "result_of"]
