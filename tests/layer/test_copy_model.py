# SPDX-License-Identifier: Apache-2.0
"""Random trees copied with random paths and patterns, against a slow model on dictionaries.

The model is written from the rules of LLB's copy as COPY and ADD use it, and shares no code with the copy itself: paths are
walked name by name, patterns are matched by the literal model of `tests/spec`.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from chantier.errors import ChantierError
from chantier.layer.copy import CopyOptions, copy_tree

from ..spec.test_patterns import model_walk

pytestmark = pytest.mark.root


@dataclass
class Node:
    """`kind` f, l or d; `data` is a file's text or a link's target."""

    kind: str
    mode: int = 0o755
    data: str = ""
    below: dict[str, Node] = field(default_factory=dict)

    def same(self) -> Node:
        return Node(self.kind, self.mode, self.data, {k: v.same() for k, v in self.below.items()})

    def list(self, at: str = "") -> Iterator[tuple[str, str, int, str]]:
        for name, node in sorted(self.below.items()):
            path = f"{at}/{name}"
            yield path, node.kind, 0 if node.kind == "l" else node.mode, node.data
            yield from node.list(path)

    def make(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        for name, node in self.below.items():
            if node.kind == "d":
                node.make(path / name)
                os.chmod(path / name, node.mode)
            elif node.kind == "l":
                (path / name).symlink_to(node.data)
            else:
                (path / name).write_text(node.data)
                os.chmod(path / name, node.mode)


def read(path: Path) -> Node:
    node = Node("d", stat.S_IMODE(path.lstat().st_mode))
    for entry in path.iterdir():
        if entry.is_symlink():
            node.below[entry.name] = Node("l", 0, os.readlink(entry))
        elif entry.is_dir():
            node.below[entry.name] = read(entry)
        else:
            node.below[entry.name] = Node("f", stat.S_IMODE(entry.lstat().st_mode), entry.read_text())
    return node


class Refused(Exception):
    """The copy must fail; how far it came then is nobody's business."""


class Model:
    """One copy of COPY: contents of directories, links of the source followed, parents made, wildcards that may match nothing."""

    def __init__(self, source: Node, target: Node, options: CopyOptions) -> None:
        self.source, self.target, self.options = source, target, options

    def copy(self, src: str, dest: str) -> None:
        slash = dest.endswith("/")
        src, dest = "/" + src.strip("/"), "/" + dest.strip("/")
        for match in self.matches(src):
            self.one(match, dest, slash)

    # Paths

    def walk(self, root: Node, path: str, *, last: bool = True) -> list[str]:
        """The names from the root to `path` with links resolved inside the root; what is missing stays as it is."""
        names = [n for n in path.split("/") if n]
        done: list[str] = []
        budget = 100
        while names:
            name = names.pop(0)
            if name == ".":
                continue
            if name == "..":
                done = done[:-1]
                continue
            node = self.get(root, [*done, name])
            if node is not None and node.kind == "l" and (names or last):
                budget -= 1
                if not budget:
                    raise Refused("too many links")
                if node.data.startswith("/"):
                    done = []
                names = [n for n in node.data.split("/") if n] + names
                continue
            done.append(name)
        return done

    def get(self, root: Node, names: list[str]) -> Node | None:
        node: Node | None = root
        for name in names:
            if node is None or node.kind != "d":
                return None
            node = node.below.get(name)
        return node

    def matches(self, src: str) -> list[str]:
        names = src.strip("/").split("/") if src != "/" else []
        first = next((i for i, n in enumerate(names) if any(c in n for c in "*?[")), None)
        if first is None:
            return [src]
        base = self.walk(self.source, "/".join(names[:first]))
        found = [base]
        node = self.get(self.source, base)
        if node is None:
            raise Refused("no such directory")
        if node.kind != "d":
            return []
        for pattern in names[first:]:
            # Directories above the last part are entered only where they are directories themselves.
            found = [
                [*at, name]
                for at in found
                if (here := self.get(self.source, at)) is not None and here.kind == "d"
                for name in sorted(here.below)
                if fnmatch.fnmatchcase(name, pattern.replace("[^", "[!"))
            ]
        return sorted("/" + "/".join(at) for at in found)

    # Copying

    def one(self, src: str, dest: str, slash: bool) -> None:
        parent = dest if slash else dest.rpartition("/")[0]
        self.mkdirs(self.walk(self.target, parent))
        into = self.walk(self.target, dest)
        found = self.get(self.source, self.walk(self.source, src))
        if found is None:
            raise Refused("no such file")
        existing = self.get(self.target, into)
        if found.kind != "d" and existing is not None and existing.kind == "d":
            into = [*into, src.rpartition("/")[2]]
        if found.kind == "d":
            if existing is None:
                made = self.mkdirs(into)
            elif existing.kind != "d":
                raise Refused("cannot copy to non-directory")
            else:
                made = existing
            self.contents(found, made, "")
        else:
            self.put(self.mkdirs(into[:-1]), into[-1] if into else "", found)

    def mkdirs(self, names: list[str]) -> Node:
        node = self.target
        for name in names:
            if node.kind != "d":
                raise Refused("a parent is no directory")
            if name not in node.below:
                node.below[name] = Node("d", 0o755 if self.options.mode is None else self.options.mode)
            node = node.below[name]
        if node.kind != "d":
            raise Refused("a parent is no directory")
        return node

    def put(self, parent: Node, name: str, node: Node) -> None:
        old = parent.below.get(name)
        if not name or (old is not None and old.kind == "d"):
            raise Refused("cannot replace to directory")
        parent.below[name] = Node(node.kind, self.mode(node), node.data)

    def mode(self, node: Node) -> int:
        return node.mode if self.options.mode is None or node.kind == "l" else self.options.mode

    def kept(self, path: str) -> bool:
        includes, excludes = list(self.options.include), list(self.options.exclude)
        return (not includes or model_walk(includes, path)[0]) and not (excludes and model_walk(excludes, path)[0])

    def holds_kept(self, node: Node, path: str) -> bool:
        return any(self.kept(f"{path}/{name}") or self.holds_kept(below, f"{path}/{name}") for name, below in node.below.items())

    def contents(self, source: Node, target: Node, at: str) -> None:
        for name, node in sorted(source.below.items(), key=lambda item: os.fsencode(item[0])):
            path = f"{at}/{name}" if at else name
            kept = self.kept(path)
            if node.kind != "d":
                if kept:
                    self.put(target, name, node)
                continue
            if not kept and not self.holds_kept(node, path):
                continue
            old = target.below.get(name)
            if old is not None and old.kind != "d":
                raise Refused("cannot copy to non-directory")
            new = old is None
            if old is None:
                target.below[name] = old = Node("d")
            # One that was there, and is only on the way, takes the mode of its source, whatever was asked for.
            old.mode = self.mode(node) if kept or new else node.mode
            self.contents(node, old, path)


NAME = st.sampled_from(["a", "b", "c", "ab", "x.y"])
MODE = st.sampled_from([0o755, 0o700, 0o640, 0o777])
LINK = st.sampled_from(["a", "b", "../a", "/a/b", "..", "/", "c/a", "missing", "../../../b"])


def tree(depth: int) -> st.SearchStrategy[Node]:
    file = st.builds(lambda m, d: Node("f", m, d), MODE, st.sampled_from(["", "1", "2"]))
    link = st.builds(lambda d: Node("l", 0, d), LINK)
    if not depth:
        return st.one_of(file, link)
    inner = st.builds(lambda m, b: Node("d", m, "", b), MODE, st.dictionaries(NAME, tree(depth - 1), max_size=3))
    return st.one_of(inner, inner, file, link)


ROOT = st.builds(lambda b: Node("d", 0o755, "", b), st.dictionaries(NAME, tree(2), max_size=4))
PART = st.sampled_from(["a", "b", "c", "ab", "x.y", "*", "a*", "?", "[ab]", "..", "."])
PATH = st.lists(PART, max_size=3).map(lambda parts: "/" + "/".join(parts))
PLAIN = st.lists(st.sampled_from(["a", "b", "c", "new", "ab"]), max_size=3).map(lambda parts: "/" + "/".join(parts))
DEST = st.builds(lambda path, slash: path if path == "/" else path + slash, PLAIN, st.sampled_from(["", "/"]))
PATTERN = st.builds(
    lambda bang, parts: bang + "/".join(parts),
    st.sampled_from(["", "", "!"]),
    st.lists(st.sampled_from(["a", "b", "ab", "*", "**", "?", "x.*", "[a]b"]), min_size=1, max_size=3),
)
PATTERNS = st.one_of(st.just([]), st.lists(PATTERN, max_size=3))


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="chantier-model-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as made:
        yield Path(made)


@given(ROOT, ROOT, PATH, DEST, PATTERNS, PATTERNS, st.sampled_from([None, None, 0o711]))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_a_copy_agrees_with_the_model(
    place: Path, source: Node, target: Node, src: str, dest: str, include: list[str], exclude: list[str], mode: int | None
) -> None:
    names = src.split("/")
    if any(n in ("..", ".") for n in names):  # the frontend cleans the paths that it passes on
        src = os.path.normpath("/" + src.lstrip("/")).replace("//", "/")
    options = CopyOptions(
        include=tuple(include),
        exclude=tuple(exclude),
        mode=mode,
        dir_contents=True,
        follow_links=True,
        create_dest_path=True,
        wildcard=True,
        empty_wildcard=True,
    )
    wanted: Node | None = target.same()
    try:
        assert wanted is not None
        Model(source, wanted, options).copy(src, dest)
    except Refused as refusal:
        event(f"refused: {refusal}")
        wanted = None
    for name, node in (("source", source), ("target", target)):
        shutil.rmtree(place / name, ignore_errors=True)
        node.make(place / name)
    try:
        copy_tree(place / "source", src, place / "target", dest, options)
    except ChantierError:
        assert wanted is None
    else:
        assert wanted is not None, "the model says that this must fail"
        event("copied something" if list(wanted.list()) != list(target.list()) else "copied nothing")
        assert list(read(place / "target").list()) == list(wanted.list())
