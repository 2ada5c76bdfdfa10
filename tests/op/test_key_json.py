# SPDX-License-Identifier: Apache-2.0
"""Keys of operations are BuildKit's to the byte. The digests are records of caches that Docker 26.1 (BuildKit 0.13) exported."""

from __future__ import annotations

import hashlib
import json

from chantier.op.image import source_key
from chantier.op.key_json import digests, struct
from chantier.op.run_key import key_digests
from chantier.pb import ops_pb2 as pb
from chantier.spec import Platform

AMD64 = Platform("linux", "amd64")
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def record(digest: str) -> str:
    """The digest of the first output as a cache config shows it."""
    return "sha256:" + hashlib.sha256(f"{digest}@0".encode()).hexdigest()


def run(args: str, *mounts: pb.Mount, **meta: object) -> pb.ExecOp:
    shell = pb.Meta(args=["/bin/sh", "-c", args], env=[PATH], removeMountStubsRecursive=True)
    shell.MergeFrom(pb.Meta(**meta))  # type: ignore[arg-type]
    return pb.ExecOp(meta=shell, mounts=[pb.Mount(dest="/"), *mounts])


def test_a_plain_step_has_one_key() -> None:
    digest, also, detail = key_digests(run("id > /tmp/id", cwd="/", user="app"), AMD64)
    assert json.loads(detail) == {
        "Type": "buildkit.exec.v0",
        "Exec": {
            "meta": {
                "args": ["/bin/sh", "-c", "id > /tmp/id"],
                "env": [PATH],
                "cwd": "/",
                "user": "app",
                "removeMountStubsRecursive": True,
            }
        },
        "OS": "linux",
        "Arch": "amd64",
    }
    assert b"id \\u003e /tmp/id" in detail
    assert record(digest) == RECORDED["id"]
    assert also == ()


def test_steps_with_mounts_have_two() -> None:
    cache = pb.Mount(input=-1, dest="/cache", output=-1, mountType=pb.CACHE, cacheOpt=pb.CacheOpt(ID="//cache"))
    digest, also, _ = key_digests(run("echo hi > /cache/x && cp /cache/x /work/x", cache, cwd="/work"), AMD64)
    assert [record(d) for d in also] == [RECORDED["cache"]]
    assert record(digest) != RECORDED["cache"]
    bind = pb.Mount(input=1, selector="/data", dest="/data", output=-1, readonly=True)
    _, also, _ = key_digests(run("ls -l /data > /work/list", bind, cwd="/work"), AMD64)
    assert [record(d) for d in also] == [RECORDED["bind"]]


def test_the_name_of_a_cache_mount_counts_only_if_it_is_its_place() -> None:
    def key(**option: object) -> str:
        mount = pb.Mount(input=-1, dest="/c", output=-1, mountType=pb.CACHE, cacheOpt=pb.CacheOpt(**option))  # type: ignore[arg-type]
        return key_digests(run("true", mount), AMD64)[0]

    assert key(ID="one") == key(ID="two", sharing=pb.LOCKED)
    assert key(ID="/c") != key(ID="one")
    assert key(ID="space//c") not in (key(ID="one"), key(ID="/c"))
    assert key(ID="/c", sharing=pb.LOCKED) == key(ID="one")


def test_users() -> None:
    by_name = pb.ChownOpt(user=pb.UserOpt(byName=pb.NamedUserOpt(name="app", input=0)), group=pb.UserOpt(byID=7))
    copy = pb.FileActionCopy(src="a", dest="/b", owner=by_name, mode=-1, timestamp=-1)
    assert struct(copy)["owner"] == {"user": {"User": {"byName": {"name": "app"}}}, "group": {"User": {"byId": 7}}}
    assert struct(copy, old=True)["owner"] == {
        "user": {"User": {"byName": {"name": "app", "input": 0}}},
        "group": {"User": {"byID": 7}},
    }
    assert struct(pb.UserOpt(byID=0)) == struct(pb.UserOpt(byID=0), old=True) == {"User": {}}
    assert struct(pb.UserOpt(), old=True) == {"User": None}


def test_merges_write_a_first_input_or_not() -> None:
    op = pb.MergeOp(inputs=[pb.MergeInput(input=0), pb.MergeInput(input=1)])
    _, also, detail = digests(lambda make: {"Type": "buildkit.merge.v0", "Merge": make(op)})
    assert detail == b'{"Type":"buildkit.merge.v0","Merge":{"inputs":[{},{"input":1}]}}'
    assert [record(d) for d in also] == [RECORDED["merge"]]


def test_maps_are_in_order_and_bytes_are_base64() -> None:
    op = pb.BuildOp(builder=-1, inputs={"b": pb.BuildInput(input=1), "a": pb.BuildInput()}, attrs={"z": "1", "y": "2"})
    assert list(struct(op)["inputs"]) == ["a", "b"]
    assert struct(op, old=True)["inputs"] == {"a": {"input": 0}, "b": {"input": 1}}
    assert list(struct(op)["attrs"]) == ["y", "z"]
    assert struct(pb.FileActionMkFile(path="/f", data=b"\xff", mode=0o644)) == {"path": "/f", "mode": 420, "data": "/w=="}


def test_sources() -> None:
    assert source_key("sha256:00") == "sha256:" + hashlib.sha256(b"buildkit.source.v0:sha256:00").hexdigest()


RECORDED = {
    "id": "sha256:05a5729b835c5ec075d04d49c3112c9159ccc0fdfaf37dbcab407c75298f4a65",
    "cache": "sha256:8f11d0d0ca5259e081474f1281b3dcc67e9db7353260128b59a40f8a513f5884",
    "bind": "sha256:48603a1b8ef3563cfc54420333e7a331fbf0d3fbd59fb8c0441ba1aa03c3c125",
    "merge": "sha256:24b141c485de433886b0991051173916792b1b037c9a7f9520234a390d95e8c8",
}
