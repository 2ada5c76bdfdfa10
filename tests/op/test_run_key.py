# SPDX-License-Identifier: Apache-2.0
"""What counts in the cache key of a step, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chantier.errors import NotFoundError, UsageError
from chantier.llb.definition import Graph, LoadedVertex
from chantier.op.emulate import emulated, runs_here
from chantier.op.key_json import digest_of
from chantier.op.run import RunOp, go_quote
from chantier.op.run_key import cache_mounts_to_clear, key_digest
from chantier.pb import ops_pb2 as pb
from chantier.spec import Platform

if TYPE_CHECKING:
    from conftest import Bench

AMD64 = Platform("linux", "amd64")


def plain() -> pb.ExecOp:
    mounts = [
        pb.Mount(input=0, dest="/", output=0),
        pb.Mount(input=1, dest="/src", selector="/a", output=-1, readonly=True),
        pb.Mount(input=-1, dest="/c", output=-1, mountType=pb.CACHE, cacheOpt=pb.CacheOpt(ID="mine", sharing=pb.LOCKED)),
    ]
    meta = pb.Meta(args=["sh", "-c", "true"], cwd="/", env=["A=b"], extraHosts=[pb.HostIP(Host="h", IP="1.2.3.4")])
    return pb.ExecOp(meta=meta, mounts=mounts)


def changed(change: Callable[[pb.ExecOp], Any]) -> bool:
    op = plain()
    change(op)
    return key_digest(op, AMD64) != key_digest(plain(), AMD64)


@pytest.mark.parametrize(
    "change",
    [
        lambda op: setattr(op.meta.extraHosts[0], "IP", "4.3.2.1"),
        lambda op: op.meta.proxy_env.CopyFrom(pb.ProxyEnv(http_proxy="http://p")),
        lambda op: setattr(op.mounts[1], "selector", "/b"),
        lambda op: op.mounts[2].cacheOpt.CopyFrom(pb.CacheOpt(ID="other", sharing=pb.PRIVATE)),
    ],
)
def test_does_not_count(change: Callable[[pb.ExecOp], Any]) -> None:
    assert not changed(change)


@pytest.mark.parametrize(
    "change",
    [
        lambda op: op.meta.args.append("x"),
        lambda op: op.meta.env.append("C=d"),
        lambda op: setattr(op.meta, "user", "app"),
        lambda op: setattr(op.meta, "cwd", "/w"),
        lambda op: setattr(op.meta, "hostname", "h"),
        lambda op: setattr(op.meta, "cgroupParent", "p"),
        lambda op: op.meta.ulimit.append(pb.Ulimit(Name="nofile", Soft=1, Hard=2)),
        lambda op: setattr(op.meta.extraHosts[0], "Host", "g"),
        lambda op: setattr(op, "network", pb.NONE),
        lambda op: setattr(op, "security", pb.INSECURE),
        lambda op: op.secretenv.append(pb.SecretEnv(ID="s", name="S")),
        lambda op: op.mounts.append(pb.Mount(input=-1, dest="/s", mountType=pb.SECRET, secretOpt=pb.SecretOpt(ID="s"))),
        lambda op: setattr(op.mounts[1], "dest", "/elsewhere"),
    ],
)
def test_counts(change: Callable[[pb.ExecOp], Any]) -> None:
    assert changed(change)


def test_a_default_cache_mount_counts_by_its_name() -> None:
    def named(id: str) -> str:
        op = plain()
        op.mounts[2].cacheOpt.CopyFrom(pb.CacheOpt(ID=id, sharing=pb.SHARED))
        return key_digest(op, AMD64)

    assert named("/c") != named("x")
    assert named("ns//c") != named("/c")
    assert named("x") == named("y")


def test_the_platform_counts() -> None:
    keys = {
        key_digest(plain(), p)
        for p in (AMD64, Platform("linux", "arm64"), Platform("linux", "arm", "v7"), Platform("linux", "arm", "v6"))
    }
    assert len(keys) == 4


def test_one_plain_root_mount_does_not_count_and_any_other_does() -> None:
    def key(*mounts: pb.Mount) -> str:
        return key_digest(pb.ExecOp(meta=pb.Meta(args=["a"]), mounts=mounts), AMD64)

    assert key(pb.Mount(dest="/", output=0)) == key()
    assert key(pb.Mount(dest="/", output=0, readonly=True)) != key()


# Inputs


def deps(bench: Bench, *mounts: pb.Mount, inputs: int = 2) -> Any:
    op = pb.Op(exec=pb.ExecOp(meta=pb.Meta(args=["a"]), mounts=[pb.Mount(input=0, dest="/", output=0), *mounts]))
    return bench.map_of(RunOp(bench.vertex(op, inputs), bench.worker)).deps


@pytest.mark.parametrize(
    ("mount", "by_content"),
    [
        ({"output": -1, "readonly": True, "selector": "/a"}, True),
        ({"output": -1}, True),
        ({"output": 1, "readonly": True}, True),
        ({"output": 1}, True),
        ({"output": 1, "selector": "/a"}, False),
        ({"output": -1, "contentCache": pb.OFF}, False),
        ({"output": 1, "contentCache": pb.ON}, True),
    ],
)
def test_which_inputs_count_by_content(bench: Bench, mount: dict[str, Any], by_content: bool) -> None:
    root, source = deps(bench, pb.Mount(input=1, dest="/m", **mount))
    assert root.content is None
    assert (source.content is not None) == by_content


def test_content_where_it_cannot_be_is_refused(bench: Bench) -> None:
    with pytest.raises(UsageError, match="invalid mount"):
        deps(bench, pb.Mount(input=1, dest="/m", output=1, selector="/a", contentCache=pb.ON))
    with pytest.raises(UsageError, match="invalid mountinput 7"):
        deps(bench, pb.Mount(input=7, dest="/m"))


@pytest.mark.root
def test_only_what_is_selected_counts(bench: Bench) -> None:
    def fill(root: Path, other: str) -> None:
        (root / "d").mkdir()
        (root / "d/f").write_text("same")
        (root / "other").write_text(other)

    one, two = (bench.tree(lambda root, text=text: fill(root, text)) for text in ("1", "2"))

    def op(selector: str) -> RunOp:
        mounts = [
            pb.Mount(input=0, dest="/", output=0),
            pb.Mount(input=1, dest="/m", selector=selector, output=-1, readonly=True),
        ]
        return RunOp(bench.vertex(pb.Op(exec=pb.ExecOp(meta=pb.Meta(args=["a"]), mounts=mounts)), 2), bench.worker)

    assert bench.content(op("/d"), 1, one) == bench.content(op("/d"), 1, two)
    assert bench.content(op(""), 1, one) != bench.content(op(""), 1, two)
    assert bench.map_of(op("/d")).deps[1].selector != bench.map_of(op("/e")).deps[1].selector
    assert bench.map_of(op("")).deps[1].selector == digest_of(b"/")
    with pytest.raises(NotFoundError, match='"/nope": not found'):
        bench.content(op("/nope"), 1, one)


def test_cache_mounts_that_no_cache_empties(bench: Bench) -> None:
    def vertex(name: str, ignore: bool) -> LoadedVertex:
        mount = pb.Mount(dest="/c", mountType=pb.CACHE, cacheOpt=pb.CacheOpt(ID=name))
        op = pb.Op(exec=pb.ExecOp(meta=pb.Meta(args=["a"]), mounts=[mount]))
        return LoadedVertex(name, op, (), pb.OpMetadata(ignore_cache=ignore), name)

    graph = Graph({name: vertex(name, name != "kept") for name in ("a", "kept", "b")}, None)
    assert cache_mounts_to_clear(graph) == ("a", "b")


def test_quoting_is_that_of_go() -> None:
    assert (
        go_quote('a "b" \\ \n\t é \x1b \udcff 日\u200b\U000e0001') == '"a \\"b\\" \\\\ \\n\\t é \\x1b \\xff 日\\u200b\\U000e0001"'
    )


def test_emulators(tmp_path: Path) -> None:
    arm64 = Platform("linux", "arm64")
    assert runs_here(AMD64, AMD64, binfmt=tmp_path)
    assert runs_here(Platform("linux", "386"), AMD64, binfmt=tmp_path)
    assert not runs_here(arm64, AMD64, binfmt=tmp_path)
    assert not runs_here(Platform("windows", "amd64"), AMD64, binfmt=tmp_path)
    entry = tmp_path / "qemu-aarch64"
    for text, works in (
        ("enabled\ninterpreter /q\nflags: F\n", True),
        ("enabled\nflags: OC\n", False),
        ("disabled\nflags: F\n", False),
    ):
        entry.write_text(text)
        assert runs_here(arm64, AMD64, binfmt=tmp_path) is works
        assert emulated(AMD64, binfmt=tmp_path) == (("arm64",) if works else ())
