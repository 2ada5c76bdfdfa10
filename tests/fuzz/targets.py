# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: for each target its seeds, its tokens, and a check that raises on anything but a proper refusal."""

from __future__ import annotations

import asyncio
import io
import os
import random
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from chantier.errors import ChantierError

if TYPE_CHECKING:
    from chantier.llb import LoadedVertex
    from chantier.pb import ops_pb2 as pb

HERE = Path(__file__).parent
FOUND = HERE / "found"
GOLDEN = Path(os.environ.get("CHANTIER_GOLDEN", str(HERE.parents[2] / "shared/golden")))


class Finding(Exception):
    """Something that no input may bring about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`check` takes an input and raises whatever is wrong; `files` are the parts of chantier whose lines guide the search."""

    name: str
    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    tokens: tuple[bytes, ...]
    files: tuple[str, ...]
    seconds: float = 5.0  # longer is a hang
    mutate: Callable[[random.Random, bytes], bytes] | None = None  # one that knows the form of the input
    close: Callable[[], None] = field(default=lambda: None)


# Dockerfiles: read, print, read again, convert.

_DOCKERFILE_TOKENS = tuple(
    text.encode()
    for text in (
        "FROM scratch\n", "FROM alpine AS b\n", "RUN ", "COPY ", "ADD ", "ENV ", "LABEL ", "ARG ", "ONBUILD ", "HEALTHCHECK ",
        "CMD ", "ENTRYPOINT ", "EXPOSE ", "VOLUME ", "USER ", "WORKDIR ", "SHELL ", "STOPSIGNAL ", "MAINTAINER ", "# syntax=",
        "# escape=`\n", "# check=skip=all\n", "--from=", "--mount=type=", "--mount=type=cache,target=/c", "--chown=", "--chmod=",
        "--link ", "--parents ", "--exclude=", "--checksum=", "--network=none ", "--security=insecure ", "--platform=",
        "<<EOF\n", "\nEOF\n", '<<-"E"\n', "${x:-y}", "${x#*}", "${x/a/b}", "${x//a*/b}", "${x:?no}", "$x", '"', "'", "\\", "\\\n",
        "`\n", "[", "]", '["a", "b"]', "\n", "\r\n", "\t", " ", "#", "\ufeff", "\u0085", "\x00", "\udcff".encode(errors="surrogateescape").decode("latin1"),
        "80-90/udp", "1h2m3.5s", "https://example.com/a.git#main:sub", "git@h:p.git", "*", "?", "!", "..", "/./",
    )
)  # fmt: skip


def _dockerfile_seeds() -> list[bytes]:
    found = [p.read_bytes() for p in sorted((HERE.parent / "dockerfile/malformed").glob("*.dockerfile"))]
    found += [p.read_bytes() for p in sorted((HERE.parent / "realworld").rglob("Dockerfile*"))]
    found += [p.read_bytes() for p in sorted(GOLDEN.glob("cases/*/ctx/Dockerfile"))]
    return found or [b"FROM scratch\nCOPY a b\n"]


def _check_dockerfile(data: bytes) -> None:
    from chantier.dockerfile import parse

    from ..dockerfile.same import check_round_trip

    try:
        program = parse(data)
    except ChantierError:
        return
    check_round_trip(program)
    _convert(data)


def _convert(data: bytes) -> None:
    from chantier.dockerfile import to_llb
    from chantier.dockerfile.options import Options
    from chantier.llb import load, raw_ops

    from ..dockerfile.fakes import BASE, FakeBridge

    class Images(dict[str, bytes]):
        def get(self, key: str, default: object = None) -> bytes:  # type: ignore[override]
            return BASE

    options = Options.from_frontend_attrs({"build-arg:x": "y"})
    try:
        made = asyncio.run(to_llb(data, options, FakeBridge(images=Images())))
        load(made.definition)
        raw_ops(made.definition)
    except ChantierError:
        return


# LLB: bytes of a Definition.


def _llb_seeds() -> list[bytes]:
    from chantier.llb import cache, diff, http, image, local, merge, scratch
    from chantier.llb.constraints import SourceMap

    base = image("docker.io/library/alpine:3")
    ran = base.run("make", mounts=[cache("/c", id="id")], env={"A": "b"}).mount("/")
    copied = scratch().copy(local("context", exclude=["a", "!b"]), "x*", "/y/")
    filed = scratch().mkdir("/a", parents=True).mkfile("/a/f", b"data").symlink("f", "/a/l").rm("/a/f")
    joined = merge([ran, copied, filed])
    fetched = joined.copy(http("https://example.com/f"), "f", "/f")
    source = SourceMap(filename="Dockerfile", data=b"FROM a\n", language="Dockerfile")
    placed = fetched.run(["a", "b"], locations=[source.at()])
    states = (ran, copied, filed, joined, fetched, diff(base, ran), placed)
    return [state.marshal().SerializeToString() for state in states]


def _check_llb(data: bytes) -> None:
    from google.protobuf.message import DecodeError

    from chantier.pb import ops_pb2 as pb

    definition = pb.Definition()
    try:
        definition.ParseFromString(data)
    except DecodeError:
        return
    _check_definition(definition)
    mended = _mended(definition)
    if mended is not None:
        _check_definition(mended)


def _mended(definition: pb.Definition) -> pb.Definition | None:
    """The same with edges that lead somewhere: a change of any operation changes its digest, and few inputs would be graphs."""
    from google.protobuf.message import DecodeError

    from chantier.llb import raw_ops
    from chantier.pb import ops_pb2 as pb
    from chantier.spec import digest_of

    out, digests = pb.Definition(), []
    for raw in raw_ops(definition)[:200]:
        op = pb.Op()
        try:
            op.ParseFromString(raw)
        except DecodeError:
            return None
        if op.WhichOneof("op") is None:
            continue
        number = len(digests)
        for edge in op.inputs:
            if edge.digest not in digests:
                edge.digest = digests[hash(edge.digest) % number] if number else ""
        written = op.SerializeToString(deterministic=True)
        digests.append(digest_of(written))
        getattr(out, "def").append(written)
        if digest_of(raw) in definition.metadata:
            out.metadata[digests[-1]].CopyFrom(definition.metadata[digest_of(raw)])
    out.Source.CopyFrom(definition.Source)
    if digests:
        getattr(out, "def").append(pb.Op(inputs=[pb.Input(digest=digests[-1])]).SerializeToString(deterministic=True))
    return out


def _mutate_llb(chance: random.Random, data: bytes) -> bytes:
    """Change values, not bytes: of the operations and of what stands around them."""
    from google.protobuf.message import DecodeError

    from chantier.llb import raw_ops
    from chantier.pb import ops_pb2 as pb

    from .messages import change

    definition = pb.Definition()
    try:
        definition.ParseFromString(data)
        ops = [pb.Op.FromString(raw) for raw in raw_ops(definition)]
    except DecodeError:
        return data
    for _ in range(1 << chance.randrange(4)):
        if chance.random() < 0.1:
            change(chance, definition)
        elif ops:
            change(chance, chance.choice(ops))
    del getattr(definition, "def")[:]
    getattr(definition, "def").extend(op.SerializeToString(deterministic=True) for op in ops)
    return definition.SerializeToString()


def _check_definition(definition: pb.Definition) -> None:
    from chantier.llb import from_definition, load, marshal_op
    from chantier.llb.picture import to_dot, to_json, to_svg
    from chantier.spec import digest_of

    try:
        graph = load(definition)
    except ChantierError:
        return
    for digest, vertex in graph.vertices.items():
        if digest_of(marshal_op(vertex.op)) != digest:
            raise Finding(f"the digest of {vertex.name!r} is not that of its bytes")
        if any(parent not in graph.vertices for parent, _ in vertex.inputs):
            raise Finding(f"{vertex.name!r} has an input that is not in the graph")
        _key(vertex)
    for draw in (to_dot, to_json):
        draw(graph)
    ET.fromstring(to_svg(graph))
    try:
        again = load(from_definition(definition).marshal())
    except ChantierError:
        return
    if (again.root is None) != (graph.root is None):
        raise Finding("a definition that was loaded and written again has another result")


def _key(vertex: LoadedVertex) -> None:
    """What the engine asks of an operation before it has run anything."""
    from chantier.llb.definition import platform_of
    from chantier.op.file import FileOp
    from chantier.op.run_key import cache_map_of

    nothing: Any = SimpleNamespace()
    try:
        if vertex.op.WhichOneof("op") == "exec":
            cache_map_of(vertex.op.exec, len(vertex.inputs), platform_of(vertex.op), nothing)
        elif vertex.op.WhichOneof("op") == "file":
            asyncio.run(FileOp(vertex, nothing).cache_map(nothing, 0))
    except ChantierError:
        return


# Layers: a tar is unpacked below a directory whose surroundings must stay as they are.


class _Cell:
    """A directory to unpack into, with neighbours that links and names of the seeds point at."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="chantier-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.canary = self.root / "canary"
        (self.canary / "dir").mkdir(parents=True)
        (self.canary / "file").write_text("untouched")
        self.into = self.root / "into"
        self._before = self._look()

    def __call__(self, data: bytes) -> None:
        from chantier.layer import decompressor, unpack

        for convert in ("overlay", "apply"):
            self._clear()
            self.into.mkdir()
            if convert == "apply":
                (self.into / "old").mkdir()
                (self.into / "old/file").write_text("old")
                (self.into / "out").symlink_to(self.canary)
            try:
                unpack(decompressor(io.BytesIO(data)), self.into, lowers=() if convert == "overlay" else None, convert=convert)
            except ChantierError:
                pass
            if self._look() != self._before:
                raise Finding("something outside the target was changed")

    def _clear(self) -> None:
        if self.into.exists():
            shutil.rmtree(self.into)

    def _look(self) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for here, directories, files in os.walk(self.root):
            if here == str(self.root):
                directories[:] = [d for d in directories if d != "into"]
                found.append(tuple(sorted([*directories, *files])))
                continue
            for name in (".", *sorted([*directories, *files])):
                path = os.path.join(here, name)
                info = os.lstat(path)
                text = Path(path).read_bytes() if stat.S_ISREG(info.st_mode) else b""
                found.append((path, info.st_mode, info.st_uid, info.st_nlink, info.st_mtime_ns, text, tuple(os.listxattr(path))))
        return found

    def close(self) -> None:
        self._clear()
        shutil.rmtree(self.root, ignore_errors=True)


def _layer_seeds(canary: str) -> list[bytes]:
    from ..layer.trees import make_everything, make_tar

    names: list[tuple[str | tuple[str, dict[str, object]], ...]] = [
        ("a/", "a/f", "a/l -> f", "a/h => a/f"),
        ("../canary/file", "/canary/file", f"{canary}/file"),
        (f"d -> {canary}", "d/file", "d/new/"),
        ("d -> ../canary", "d/file", "d/.wh.file", "d/.wh..wh..opq"),
        (f"f => {canary}/file", "f"),
        ("f => ../canary/file", ("f", {"data": b"x" * 700})),
        ("old/.wh.file", ".wh.old", ".wh..wh..opq", "old/.wh..wh.plnk/"),
        ("out/file", "out/.wh.file", "out/dir/.wh..wh..opq", ".wh.out"),
        (("n", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}), ("p", {"type": tarfile.FIFOTYPE})),
        ("x" * 150 + "/", ("x" * 150 + "/" + "y" * 200, {"data": b"z"})),
        (("p", {"data": b"q", "pax_headers": {"SCHILY.xattr.user.a": "b", "mtime": "1.5", "path": "../canary/file"}}),),
        (("s", {"data": b"", "mode": 0o7777, "uid": 1 << 31, "gid": 70000, "mtime": -1}),),
    ]
    seeds = [make_tar(*items, format=form) for items in names for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]
    if os.geteuid() == 0:
        with tempfile.TemporaryDirectory() as made:
            root = Path(made) / "t"
            root.mkdir()
            make_everything(root)
            (root / "sparse").unlink()  # large: mutating it costs time and finds nothing
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w") as tar:
                tar.add(root, ".")
            seeds.append(out.getvalue())
    return seeds


def _layer() -> Target:
    cell = _Cell()
    canary = os.fsencode(cell.canary)
    return Target(
        name="layer",
        check=cell,
        seeds=lambda: _layer_seeds(str(cell.canary)),
        tokens=(
            b"../", b"/", b"..", b".wh.", b".wh..wh..opq", b".wh..wh.", b"\x00", b"ustar\x0000", b"ustar  \x00", b"././@LongLink",
            b"0000644\x00", b"7777777\x00", b"11 path=..\n", b"30 mtime=99999999999999.9999\n", b"25 SCHILY.xattr.user.a=b\n",
            b"30 SCHILY.xattr.trusted.overlay.redirect=/\n", b"22 GNU.sparse.major=1\n", b"27 GNU.sparse.realsize=-1\n",
            b"\x80\x00\x00\x00\x00\x00\x00\x01", b"\xff\xff\xff\xff\xff\xff\xff\xff", canary, canary + b"/file", b"\x00" * 512,
            b"1", b"2", b"3", b"5", b"6", b"L", b"K", b"x", b"g", b"S", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd",
        ),
        files=("chantier/layer/",),
        close=cell.close,
    )  # fmt: skip


def targets() -> dict[str, Callable[[], Target]]:
    return {
        "dockerfile": lambda: Target(
            name="dockerfile",
            check=_check_dockerfile,
            seeds=_dockerfile_seeds,
            tokens=_DOCKERFILE_TOKENS,
            files=("chantier/dockerfile/", "chantier/spec/patterns", "chantier/spec/reference", "chantier/llb/git_url"),
        ),
        "llb": lambda: Target(
            name="llb",
            check=_check_llb,
            seeds=_llb_seeds,
            tokens=(
                b"docker-image://", b"local://context", b"\x0a", b"\x12", b"\x1a", b"\x22", b"sha256:", b"sha256:" + b"0" * 64,
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x08\x01", b"/", b"llb.customname", b"\x00", b"<script>", b'"', b"\n",
            ),
            files=("chantier/llb/", "chantier/op/run_key", "chantier/op/file"),
            mutate=_mutate_llb,
        ),
        "layer": _layer,
    }  # fmt: skip


def found(name: str) -> Iterator[Path]:
    """Inputs that once showed a fault of this target."""
    yield from sorted(p for p in (FOUND / name).glob("*") if p.is_file() and not p.name.startswith("."))


__all__ = ["FOUND", "Finding", "Target", "found", "targets"]
