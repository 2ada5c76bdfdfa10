# SPDX-License-Identifier: Apache-2.0
"""Results as plain files: into a folder of the user's, or as one tar (semantics.md 6.12)."""

from __future__ import annotations

import asyncio
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from chantier.cache import Ref
from chantier.errors import CancelledError_, IntegrityError, UsageError
from chantier.kernel import write_all
from chantier.layer import Entry, encode, pack_diff
from chantier.layer.header import DIRECTORY, HARDLINK, REGULAR
from chantier.op.worker import threaded
from chantier.progress import Step
from chantier.session.types import FileSink, SentTree
from chantier.spec import host_platform

from .attest_files import statement_files
from .options import Epoch, parse_bool
from .rewrite import TRAILER, rewrite_tar
from .types import Exportable, ExportContext, Finalize, Response

_QUEUED_CHUNKS = 16
_CHUNK = 1 << 20


class LocalExporter:
    """`type=local`: owners become the user's, modes and times are kept."""

    name = "exporting to client directory"

    def __init__(self, attrs: Mapping[str, str]) -> None:
        self._mode = attrs.get("mode", "copy")
        if self._mode not in ("copy", "delete"):
            raise UsageError(f'invalid local exporter mode "{self._mode}"', hint="modes are copy and delete")
        self._split = _split(attrs)
        self._prefix = attrs.get("attestation-prefix", "")
        self._epoch = Epoch.of(attrs)

    async def export(self, what: Exportable, context: ExportContext, step: Step) -> tuple[Response, Finalize | None]:
        if context.session is None:
            raise UsageError("could not export without session")
        places = _places(what, self._split)
        async with AsyncExitStack() as stack:
            trees, names = [], []
            for platform, below in places:
                epoch = self._epoch.of_result(what, platform)
                root = await stack.enter_async_context(_mounted(what.refs[platform], context, step))
                trees.append(SentTree(root=root, below=below, epoch=epoch))
                names.append(platform)
                said = await statement_files(what, platform, below, self._prefix, root, context)
                if said:
                    beside = await stack.enter_async_context(_written(said, context))
                    trees.append(SentTree(root=beside, below=below, epoch=epoch))
                    names.append(f"attestations of {platform}" if platform else "attestations")
            await threaded(lambda cancelled: _check_merge(trees, names, cancelled))
            started = {
                label: step.status(label, name="transferring")
                for label in (f"copying files {platform}" if platform else "copying files" for platform, _ in places)
            }
            # All in one go: a client that deletes what the result has not must see the whole result.
            await context.session.send_trees(context.number, trees, remove_others=self._mode == "delete")
            for label, at in started.items():
                step.status(label, name="transferring", started=at, done=True)
        return {}, None


class TreeTarExporter:
    """`type=tar`: owners, modes and times as in the result."""

    name = "exporting to client tarball"

    def __init__(self, attrs: Mapping[str, str]) -> None:
        self._split = _split(attrs)
        self._prefix = attrs.get("attestation-prefix", "")
        self._epoch = Epoch.of(attrs)

    async def export(self, what: Exportable, context: ExportContext, step: Step) -> tuple[Response, Finalize | None]:
        if context.session is None:
            raise UsageError("could not export without session")
        with step.action("sending tarball"):
            sink = await context.session.send_file(context.number, {})
            try:
                for platform, below in _places(what, self._split):
                    prefix = f"{below}/" if below else ""
                    epoch = self._epoch.of_result(what, platform)
                    async with _mounted(what.refs[platform], context, step) as root:
                        await _send_tree(sink, root, prefix, epoch, context)
                        said = await statement_files(what, platform, below, self._prefix, root, context)
                    for name, data in sorted(said.items()):
                        mtime_ns = (epoch if epoch is not None else int(time.time())) * 1_000_000_000
                        entry = Entry((prefix + name).encode(), REGULAR, 0o600, size=len(data), mtime_ns=mtime_ns)
                        await sink.write(encode(entry) + data + bytes(-len(data) % 512))
                await sink.write(TRAILER)
            except BaseException:
                await sink.abort()
                raise
            await sink.close()
        return {}, None


def _split(attrs: Mapping[str, str]) -> bool | None:
    return parse_bool("platform-split", attrs["platform-split"]) if "platform-split" in attrs else None


def _places(what: Exportable, split: bool | None) -> list[tuple[str, str]]:
    """For each platform's id the folder its files go to: one of its own where there are several, unless the attribute says else."""
    wanted = split if split is not None else what.is_multi
    return [
        (id, (id or (platform or host_platform()).format_all()).replace("/", "_") if wanted else "")
        for id, platform in what.platforms()
    ]


def _check_merge(trees: Sequence[SentTree], names: Sequence[str], cancelled: Callable[[], bool]) -> None:
    """Trees that go to one folder may share directories, nothing else."""
    seen: dict[tuple[str, str], int] = {}
    if len({tree.below for tree in trees}) == len(trees):
        return
    for number, tree in enumerate(trees):
        for directory, folders, files in os.walk(tree.root):
            if cancelled():
                raise CancelledError_
            inside = os.path.relpath(directory, tree.root)
            links = [name for name in folders if os.path.islink(os.path.join(directory, name))]
            for name in (*files, *links):
                path = os.path.normpath(os.path.join(inside, name))
                first = seen.setdefault((tree.below, path), number)
                if first != number:
                    raise UsageError(
                        f"cannot overwrite {path} from {names[first]} with {names[number]} when split option is disabled",
                        hint="leave out platform-split=false",
                    )


@asynccontextmanager
async def _written(files: Mapping[str, bytes], context: ExportContext) -> AsyncIterator[Path]:
    """A directory of these files, as long as the block lasts."""

    def write(_cancelled: Callable[[], bool]) -> Path:
        folder = Path(tempfile.mkdtemp(dir=context.scratch))
        folder.chmod(0o755)
        for name, data in files.items():
            with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
        return folder

    folder = await threaded(write)
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


class _mounted:
    """The tree of a result, mounted in a thread for as long as the block lasts; an empty directory for an empty result."""

    def __init__(self, ref: Ref | None, context: ExportContext, step: Step) -> None:
        self._ref = ref
        self._context = context
        self._step = step
        self._stack = ExitStack()

    async def __aenter__(self) -> Path:
        return await threaded(self._enter)

    async def __aexit__(self, *exc: object) -> None:
        await threaded(lambda _: self._stack.close())

    def _enter(self, cancelled: Callable[[], bool]) -> Path:
        return self._stack.enter_context(_open(self._ref, self._context, self._step, cancelled))


@contextmanager
def _open(ref: Ref | None, context: ExportContext, step: Step, cancelled: Callable[[], bool]) -> Iterator[Path]:
    if ref is None:
        with tempfile.TemporaryDirectory(dir=context.scratch) as empty:
            yield Path(empty)
        return
    with ref.mounted(step=step, sessions=context.sessions, cancelled=cancelled) as root:
        yield root


async def _send_tree(sink: FileSink, root: Path, prefix: str, epoch: int | None, context: ExportContext) -> None:
    """The tar is written by threads; this passes on its chunks, never more than a few at once in memory."""
    chunks: queue.Queue[bytes | None] = queue.Queue(_QUEUED_CHUNKS)
    failed = threading.Event()

    def put(chunk: bytes | None, cancelled: Callable[[], bool]) -> None:
        while not cancelled() and not failed.is_set():
            try:
                chunks.put(chunk, timeout=0.2)
            except queue.Full:
                continue
            return
        raise CancelledError_

    def produce(cancelled: Callable[[], bool]) -> None:
        _pack_tree(root, prefix, epoch, lambda data: put(data, cancelled), cancelled)
        put(None, cancelled)

    producing = asyncio.ensure_future(threaded(produce))
    try:
        while (chunk := await asyncio.to_thread(_get, chunks, producing)) is not None:
            await sink.write(chunk)
    except BaseException:
        failed.set()
        producing.cancel()
        await asyncio.gather(producing, return_exceptions=True)
        raise
    await producing


def _get(chunks: queue.Queue[bytes | None], producing: asyncio.Future[None]) -> bytes | None:
    while True:
        try:
            return chunks.get(timeout=0.2)
        except queue.Empty:
            if producing.done():
                return None


def _pack_tree(root: Path, prefix: str, epoch: int | None, out: Callable[[bytes], None], cancelled: Callable[[], bool]) -> None:
    """The tree as a tar without an end marker: packed into a pipe by one thread, its headers changed by this one."""
    read_end, write_end = os.pipe()
    failure: list[BaseException] = []

    def pack() -> None:
        try:
            with open(write_end, "wb", buffering=0) as pipe:
                pack_diff((), (root,), lambda data: write_all(pipe.fileno(), data), plain=True, cancelled=cancelled)
        except BaseException as err:  # handed to the thread that reads
            failure.append(err)

    def change(entry: Entry) -> Entry:
        moved = entry._replace(name=prefix.encode() + entry.name)
        if entry.type == HARDLINK:
            moved = moved._replace(link=prefix.encode() + entry.link)
        return moved if epoch is None else moved._replace(mtime_ns=epoch * 1_000_000_000)

    packing = threading.Thread(target=pack, name="chantier-pack", daemon=True)
    packing.start()
    try:
        with open(read_end, "rb", buffering=0) as pipe:
            if prefix:
                out(encode(Entry(prefix.rstrip("/").encode(), DIRECTORY, 0o755, mtime_ns=(epoch or 0) * 1_000_000_000)))
            rewrite_tar(lambda: pipe.read(_CHUNK), out, change, cancelled=cancelled)
    except IntegrityError:
        packing.join()
        if failure:
            raise failure[0] from None
        raise
    packing.join()
    if failure:
        raise failure[0]
