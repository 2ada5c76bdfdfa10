# SPDX-License-Identifier: Apache-2.0
"""File operations on real results: chains, outputs, owners, keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chantier.cache.content import Selector
from chantier.errors import ChantierError, UsageError
from chantier.op.file import FileOp, dedupe
from chantier.pb import ops_pb2 as pb

if TYPE_CHECKING:
    from conftest import Bench

pytestmark = pytest.mark.root

BASE = {"createDestPath": True, "allowWildcard": True, "allowEmptyWildcard": True, "followSymlink": True, "dirCopyContents": True}


def action(*, input: int = -1, secondary: int = -1, output: int = -1, **kind: Any) -> pb.FileAction:
    return pb.FileAction(input=input, secondaryInput=secondary, output=output, **kind)


def copy(src: str, dest: str, **more: Any) -> pb.FileActionCopy:
    return pb.FileActionCopy(src=src, dest=dest, **{"mode": -1, "timestamp": -1, **BASE, **more})


def mkdir(path: str, **more: Any) -> pb.FileActionMkDir:
    return pb.FileActionMkDir(path=path, **{"mode": 0o755, "timestamp": -1, **more})


def mkfile(path: str, data: bytes = b"data", **more: Any) -> pb.FileActionMkFile:
    return pb.FileActionMkFile(path=path, data=data, **{"mode": 0o644, "timestamp": -1, **more})


def owner(user: str | int | None = None, group: str | int | None = None, *, input: int = 0) -> pb.ChownOpt:
    def one(name: str | int | None) -> pb.UserOpt | None:
        if name is None:
            return None
        return pb.UserOpt(byID=name) if isinstance(name, int) else pb.UserOpt(byName=pb.NamedUserOpt(name=name, input=input))

    return pb.ChownOpt(user=one(user), group=one(group))


def op(bench: Bench, *actions: pb.FileAction, inputs: int = 0) -> FileOp:
    return FileOp(bench.vertex(pb.Op(file=pb.FileOp(actions=actions)), inputs), bench.worker)


def context(root: Path) -> None:
    (root / "d/sub").mkdir(parents=True)
    for name in ("a", "b", "d/x", "d/sub/y"):
        (root / name).write_text(name)


def accounts(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\napp:x:1000:1001:app:/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nstaff:x:50:app\n")


def test_chain_of_actions_on_nothing(bench: Bench) -> None:
    made = op(
        bench,
        action(mkdir=mkdir("/w/deep", makeParents=True, owner=owner(3, 4), mode=0o700)),
        action(input=0, mkfile=mkfile("/w/f", mode=0o600, timestamp=5_000_000_000)),
        action(input=1, symlink=pb.FileActionSymlink(oldpath="f", newpath="/w/l", owner=owner(7), timestamp=-1)),
        action(input=2, mkfile=mkfile("/w/gone")),
        action(input=3, output=0, rm=pb.FileActionRm(path="/w/g*", allowWildcard=True)),
    )
    (ref,) = bench.run(made)
    assert bench.files(ref) == {"w": "/ 700 3:4", "w/deep": "/ 700 3:4", "w/f": "data 600", "w/l": "-> f 7:7"}


def test_copy_leaves_both_inputs_alone(bench: Bench) -> None:
    base, source = bench.tree(accounts), bench.tree(context)
    made = op(bench, action(input=0, secondary=1, output=0, copy=copy("/d", "/t", owner=owner("app", "staff"))), inputs=2)
    (ref,) = bench.run(made, [base, source])
    got = bench.files(ref)
    assert got["t/sub/y"] == "d/sub/y 1000:50"
    assert got["t"] == "/ 1000:50"
    assert "t" not in bench.files(base)
    assert bench.files(source).keys() == {"a", "b", "d", "d/x", "d/sub", "d/sub/y"}


def test_outputs_share_what_came_before(bench: Bench) -> None:
    made = op(
        bench,
        action(mkfile=mkfile("/one")),
        action(input=0, output=1, mkfile=mkfile("/two")),
        action(input=0, output=0, mkfile=mkfile("/three")),
        action(input=1, output=2, mkfile=mkfile("/four")),
    )
    first, second, third = bench.run(made)
    assert bench.files(first).keys() == {"one", "three"}
    assert bench.files(second).keys() == {"one", "two"}
    assert bench.files(third).keys() == {"one", "two", "four"}


def test_copy_from_an_actions_tree(bench: Bench) -> None:
    made = op(bench, action(mkfile=mkfile("/inline")), action(secondary=0, output=0, copy=copy("/inline", "/x/y")))
    (ref,) = bench.run(made)
    assert bench.files(ref) == {"x": "/", "x/y": "data"}


@pytest.mark.parametrize(
    ("who", "want"),
    [
        (owner(7), "7:7"),
        (owner(7, 8), "7:8"),
        (owner("app"), "1000:1001"),
        (owner("app", "nosuch"), "1000:1001"),
        (owner("app", 0), "1000:0"),
        (owner(55, "staff"), "55:50"),
        (owner("nosuch"), ""),
        (owner(None, "staff"), "0:50"),
    ],
)
def test_owners(bench: Bench, who: pb.ChownOpt, want: str) -> None:
    made = op(bench, action(input=0, output=0, mkfile=mkfile("/f", owner=who)), inputs=1)
    (ref,) = bench.run(made, [bench.tree(accounts)])
    assert bench.files(ref)["f"] == f"data {want}".strip()


def test_owner_by_name_needs_a_tree(bench: Bench) -> None:
    with pytest.raises(UsageError, match=r"^invalid user index: -1$"):
        bench.run(op(bench, action(output=0, mkfile=mkfile("/f", owner=owner("app", input=-1)))))
    hostile = bench.tree(lambda root: (root / "etc").mkdir() or os.mkfifo(root / "etc/passwd"))  # type: ignore[func-returns-value]
    with pytest.raises(ChantierError, match="not a regular file"):
        bench.run(op(bench, action(input=0, output=0, mkfile=mkfile("/f", owner=owner("app"))), inputs=1), [hostile])


def test_errors_name_the_action_and_leave_nothing(bench: Bench) -> None:
    made = op(bench, action(mkfile=mkfile("/f")), action(input=0, output=0, mkdir=mkdir("/f/d", makeParents=True)))
    before = len(bench.cache.usage())
    with pytest.raises(ChantierError) as caught:
        bench.run(made)
    assert str(caught.value) == "mkdir /f: not a directory"
    assert caught.value.subject == ("file", 1)
    assert len(bench.cache.usage()) == before


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ({"mkdir": mkdir("/no/parent")}, "mkdir /no: no such file or directory"),
        ({"mkfile": mkfile("/no/parent")}, "open /no/parent: no such file or directory"),
        ({"symlink": pb.FileActionSymlink(oldpath="x", newpath="/a")}, "symlink x /a: file exists"),
        ({"rm": pb.FileActionRm(path="/nofile")}, "lstat /nofile: no such file or directory"),
        ({"rm": pb.FileActionRm(path="/")}, "rmPath: invalid empty path"),
        ({"secondary": -1, "copy": copy("/x", "/y")}, "lstat /x: no such file or directory"),
        ({"copy": copy("/x", "/y", modeStr="rwxr"), "secondary": 0}, "invalid syntax"),
    ],
)
def test_error_texts(bench: Bench, what: dict[str, Any], text: str) -> None:
    with pytest.raises(ChantierError) as caught:
        bench.run(op(bench, action(input=0, output=0, **what), inputs=1), [bench.tree(context)])
    assert str(caught.value) == text


def test_things_that_are_there_already(bench: Bench) -> None:
    made = op(
        bench,
        action(input=0, mkdir=mkdir("/d", mode=0o700)),
        action(input=1, mkdir=mkdir("/d/sub/n", makeParents=True)),
        action(input=2, mkfile=mkfile("/a", b"new", mode=0o600)),
        action(input=3, rm=pb.FileActionRm(path="/nofile", allowNotFound=True)),
        action(input=4, output=0, rm=pb.FileActionRm(path="/d/x")),
        inputs=1,
    )
    (ref,) = bench.run(made, [bench.tree(context)])
    got = bench.files(ref)
    assert got == {"a": "new", "b": "b", "d": "/", "d/sub": "/", "d/sub/n": "/", "d/sub/y": "d/sub/y"}


def test_missing_output(bench: Bench) -> None:
    with pytest.raises(UsageError, match=r"^missing output index 0$"):
        bench.run(op(bench, action(output=1, mkfile=mkfile("/f"))))


def test_key_knows_the_name_and_the_content_not_the_folder(bench: Bench) -> None:
    def made(src: str, dest: str = "/x", **more: Any) -> FileOp:
        return op(bench, action(input=0, secondary=1, output=0, copy=copy(src, dest, **more)), inputs=2)

    key = bench.map_of(made("/d/x")).digest
    assert key == bench.map_of(made("/other/x")).digest
    assert key != bench.map_of(made("/d/y")).digest
    assert key != bench.map_of(made("/d/x", "/z")).digest
    assert key != bench.map_of(made("/d/x", mode=0o600)).digest
    base, source = bench.map_of(made("/d/x")).deps
    assert base.content is None
    assert base.selector == ""
    assert source.selector != ""
    same = bench.tree(lambda root: context(root) or (root / "more").write_text("m"))  # type: ignore[func-returns-value]
    assert bench.content(made("/d/x"), 1, bench.tree(context)) == bench.content(made("/d/x"), 1, same)
    assert bench.content(made("/"), 1, bench.tree(context)) != bench.content(made("/"), 1, same)


def test_key_of_a_missing_source(bench: Bench) -> None:
    made = op(bench, action(secondary=0, output=0, copy=copy("/nofile", "/x")), inputs=1)
    source = bench.tree(context)
    with pytest.raises(ChantierError) as caught:
        bench.content(made, 0, source)
    text = str(caught.value)
    assert text.startswith("failed to calculate checksum of ref ")
    assert text.endswith(f'::{source.id}: "/nofile": not found')


def test_key_of_an_input_that_is_copied_and_written_keeps_the_folder(bench: Bench) -> None:
    def made(src: str) -> FileOp:
        return op(bench, action(input=0, secondary=0, output=0, copy=copy(src, "/x")), inputs=1)

    assert bench.map_of(made("/a/x")).digest != bench.map_of(made("/b/x")).digest
    assert bench.map_of(made("/a/x")).deps[0].content is None


def test_dedupe() -> None:
    a, ab, follow, wild = (
        Selector(path="/a"),
        Selector(path="/a/b"),
        Selector(path="/a/b", follow_links=True),
        Selector(path="/a/*", wildcard=True),
    )
    assert dedupe([ab, a, wild, follow, a]) == [a, wild, follow]
    assert dedupe([Selector(path="/ab"), a]) == [a, Selector(path="/ab")]
