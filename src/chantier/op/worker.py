# SPDX-License-Identifier: Apache-2.0
"""What every operation gets from the engine, and the two bridges operations use: to threads and to the client's machine."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from chantier.errors import SessionError, UnsupportedError
from chantier.solver.slots import Slots
from chantier.spec import Platform, host_platform
from chantier.values import dataclass, field

if TYPE_CHECKING:
    from chantier.cache import Cache
    from chantier.config import Config
    from chantier.progress import Step
    from chantier.registry import Registry
    from chantier.runtime.cdi import Devices
    from chantier.runtime.types import Runtime
    from chantier.session.types import Session

T = TypeVar("T")


class Networks(Protocol):
    """Where a step's network comes from when it asks for the default one. `mode` is what it is called: host, bridge, cni.

    `nameservers` are for steps if the machine's own are all on its loopback; empty where there are none.
    """

    mode: str
    nameservers: tuple[str, ...]

    def acquire(self, hostname: str) -> AbstractAsyncContextManager[str]:
        """Yields what `Container.network` takes: the path of a namespace file, `host` or `none`."""


class JobView(Protocol):
    """The part of solver.types.JobContext that the helpers here need."""

    @property
    def step(self) -> Step: ...

    @property
    def sessions(self) -> Sequence[Any]: ...


@dataclass(kw_only=True, eq=False)
class Worker:
    """One engine's means. Made once by the engine, given to every operation, never changed while builds run.

    `root` is the state directory; `executor` (bundles, hosts files) and `tmp` lie below it, are created here and are
    emptied by recovery after a crash.
    """

    root: Path
    cache: Cache
    config: Config
    runtime: Runtime | None = None  # None: none works here; `no_runtime` says why, and only RUN needs one
    no_runtime: str = ""
    platform: Platform = field(default_factory=host_platform)
    parallelism: int = 0  # steps that may run at once, 0 for no limit
    registries: Any = None  # registry.RegistryPool: ops that talk to registries get their client from it
    networks: Networks | None = None
    session_by_id: Mapping[str, Session] = field(default_factory=dict)  # for `local.session` and its like
    extra: dict[str, Any] = field(default_factory=dict)  # what one kind of operation keeps for the life of the engine
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(64, "chantier-op"))
    registry_for: Callable[[Sequence[Any]], Registry] | None = None  # a client with the credentials of these sessions; any thread
    devices: Devices | None = None  # of this machine, by CDI; None: switched off
    room: Callable[[str], Awaitable[None]] | None = None  # waits until a step may write; raises DiskFullError
    slots: Slots = field(init=False)  # resized when the limit is configured anew
    _making: threading.RLock = field(default_factory=threading.RLock, init=False)  # making one thing may need another

    def __post_init__(self) -> None:
        for directory in (self.executor, self.tmp):
            directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.slots = Slots(self.parallelism)

    @property
    def executor(self) -> Path:
        return self.root / "executor"

    @property
    def tmp(self) -> Path:
        """This process's own: whoever notices its death clears it."""
        return self.cache.root.scratch()

    def slot(self, who: str = "") -> AbstractAsyncContextManager[None]:
        """One of the `parallelism` places; waits for it. This is what `Op.acquire` of a step returns."""
        return self.slots.hold(who) if self.room is None else self._slot_with_room(who, self.room)

    @asynccontextmanager
    async def _slot_with_room(self, who: str, room: Callable[[str], Awaitable[None]]) -> AsyncIterator[None]:
        async with self.slots.hold(who):
            await room("the step")
            yield

    def kept(self, key: str, make: Callable[[], Any]) -> Any:
        """What one kind of operation keeps for the life of the engine, made at first use. Any thread."""
        with self._making:
            if key not in self.extra:
                self.extra[key] = make()
            return self.extra[key]

    def registry(self, sessions: Sequence[Any]) -> Registry:
        """A registry client for a build. Raises UnsupportedError on a worker that was given none."""
        if self.registry_for is None:
            raise UnsupportedError("this worker talks to no registries")
        return self.registry_for(sessions)

    def sessions_of(self, id: str, sessions: Sequence[Any]) -> Sequence[Any]:
        """The client that a source names, else those of the build: it may have gone and come back under another id."""
        if not id:
            return sessions
        found = self.session_by_id.get(id) or next((s for s in sessions if s.id == id), None)
        return sessions if found is None else (found,)

    def close(self) -> None:
        """After the last build: end what was kept, and the threads."""
        for thing in reversed(tuple(self.extra.values())):
            if hasattr(thing, "close"):
                thing.close()
        self.extra.clear()
        self.threads.shutdown()

    async def threaded(self, call: Callable[[Callable[[], bool]], T], undo: Callable[[T], None] | None = None) -> T:
        """`threaded` on this worker's own threads, so that operations never starve the loop's default pool."""
        return await threaded(call, self.threads, undo)


async def threaded(
    call: Callable[[Callable[[], bool]], T], pool: ThreadPoolExecutor | None = None, undo: Callable[[T], None] | None = None
) -> T:
    """Run `call(cancelled)` in a thread: the one way from an operation into the synchronous rooms.

    When the awaiting task is cancelled, `cancelled()` turns true and the task still waits for the thread to end, so that
    nothing works on after the operation is gone; then CancelledError goes on. A result that comes nevertheless has no owner:
    it is given to `undo`, without which a handle (what has a `release`) is released. Without a pool the call gets a thread
    of its own: for calls that may wait for another operation, which would otherwise hold the threads that one needs.
    """
    flag = threading.Event()
    waiting = asyncio.wrap_future(_start(call, flag.is_set, pool))
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        flag.set()
        await _ended(waiting)
        if not waiting.cancelled() and waiting.exception() is None:  # an exception is seen now: the cancellation is reported
            result = waiting.result()
            drop = undo or (_release if hasattr(result, "release") else None)
            if drop is not None:
                await _ended(asyncio.wrap_future(_start(lambda _cancelled: drop(result), flag.is_set, pool)))
        raise


async def _ended(waiting: asyncio.Future[Any]) -> None:
    """Wait for a thread; a second cancellation must not let it out of sight either."""
    while not waiting.done():
        try:
            await asyncio.wait((waiting,))
        except asyncio.CancelledError:
            continue


def _release(handle: Any) -> None:
    handle.release()


def _start(call: Callable[[Callable[[], bool]], T], cancelled: Callable[[], bool], pool: ThreadPoolExecutor | None) -> Future[T]:
    # The thread sees the task's context variables: the lease of the build that the store holds blobs for.
    context = contextvars.copy_context()
    if pool is not None:
        return pool.submit(context.run, call, cancelled)
    future: Future[T] = Future()
    threading.Thread(target=context.run, args=(_fulfil, future, call, cancelled), name="chantier-wait", daemon=True).start()
    return future


def _fulfil(future: Future[T], call: Callable[[Callable[[], bool]], T], cancelled: Callable[[], bool]) -> None:
    try:
        future.set_result(call(cancelled))
    except BaseException as err:  # whatever it is, the awaiting task is the one to see it
        future.set_exception(err)


async def run_all(jobs: Sequence[Awaitable[Any]]) -> None:
    """Run all at once; the first error cancels the others, and is raised once they have ended."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    if not tasks:
        return
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def ask(job: JobView, question: Callable[[Session], Awaitable[T | None]]) -> T | None:
    """The first answer that is not None among the sessions that want the vertex; None if all say None.

    A session that is gone is passed over; SessionError is raised only if none could answer at all.
    """
    gone: SessionError | None = None
    answered = False
    for session in tuple(job.sessions):
        try:
            answer = await question(session)
        except SessionError as err:
            gone = err
            continue
        if answer is not None:
            return answer
        answered = True
    if gone is not None and not answered:
        raise gone
    return None


async def secret_text(job: JobView, id: str) -> str | None:
    """A secret of a client that is one line, as headers and tokens are; None if nobody has it."""

    async def question(session: Session) -> bytes | None:
        return await session.secret(id)

    value = await ask(job, question)
    return value.decode("latin-1").strip() if value is not None else None


__all__ = ["JobView", "Networks", "Worker", "ask", "run_all", "secret_text", "threaded"]
