# SPDX-License-Identifier: Apache-2.0
"""Content digests: what counts, what does not, and what is remembered."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from chantier.cache.content import (
    EMPTY,
    VOLATILE,
    ContentTree,
    Selector,
    combine,
    content_digest,
    forget,
    renew,
    tree_digest,
)
from chantier.cache.content_node import pack, unpack
from chantier.cache.file_digest import small_digest
from chantier.errors import ChantierError, NotFoundError

pytestmark = pytest.mark.root


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def header(kind: str, mode: int, *, size: int = 0, link: str = "", uid: int = 0, gid: int = 0, rest: bytes = b"") -> bytes:
    text = f"namemode{mode}uid{uid}gid{gid}size{size}typeflag{kind}linkname{link}unamegnamedevmajor0devminor0"
    return text.encode() + rest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "d/sub").mkdir(parents=True)
    for name in ("a", "d/x", "d/sub/y", "d/sub.txt"):
        (root / name).write_text(name)
    for path in (root, root / "d", root / "d/sub"):
        os.chmod(path, 0o755)
    (root / "l").symlink_to("d")
    (root / "abs").symlink_to("/d/sub/../x")
    (root / "up").symlink_to("../../../a")
    (root / "gone").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    return root


def one(root: Path, **selector: object) -> str:
    with ContentTree().reading(root) as tree:
        return tree.digest(Selector(**selector))  # type: ignore[arg-type]


def test_file_link_and_directory(root: Path) -> None:
    x = sha(header("0", 0o644, size=3) + b"d/x")
    assert one(root, path="d/x") == one(root, path="/d/./x/") == x
    assert one(root, path="l") == sha(header("2", 0o777, link="d"))
    y = sha(header("0", 0o644, size=7) + b"d/sub/y")
    top = sha(header("5", 0o755))
    sub = sha(f"\0{top}\0y{y}".encode())
    txt = sha(header("0", 0o644, size=9) + b"d/sub.txt")
    assert one(root, path="/d/sub") == sub
    assert one(root, path="/d") == sha(f"\0{top}\0sub{sub}\0sub.txt{txt}\0x{x}".encode())
    assert tree_digest(root, [Selector(path="d/x"), Selector(path="d/sub")]) == sha(f"{x}\0{sub}".encode())


def test_special_files_and_attributes(root: Path) -> None:
    os.mkfifo(root / "p")
    os.chmod(root / "p", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(root / "a", "user.k", b"v")
    os.setxattr(root / "a", "trusted.overlay.opaque", b"y")
    os.chown(root / "a", 5, 6)
    os.chmod(root / "a", 0o4755)
    assert one(root, path="p") == sha(header("6", 0o640))
    assert one(root, path="null") == sha(header("3", 0o600).replace(b"devmajor0devminor0", b"devmajor1devminor3"))
    assert one(root, path="a") == sha(header("0", 0o4755, size=1, uid=5, gid=6, rest=b"user.kv") + b"a")


def test_times_do_not_count_and_whiteouts_are_not_there(root: Path) -> None:
    before = one(root, path="/")
    os.utime(root / "a", ns=(1, 2))
    os.mknod(root / "white", stat.S_IFCHR, 0)
    assert one(root, path="/") == before
    os.chmod(root / "a", 0o600)
    assert one(root, path="/") != before


def test_links_on_the_way_are_followed_inside(root: Path) -> None:
    assert one(root, path="l/x") == one(root, path="abs", follow_links=True) == one(root, path="d/x")
    assert one(root, path="l", follow_links=True) == one(root, path="d")
    assert one(root, path="up", follow_links=True) == one(root, path="a")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nofile", '"/nofile": not found'),
        ("a/b", '"/a/b": not found'),
        ("gone", '"/gone": not found'),
        ("loop", "too many links"),
    ],
)
def test_errors(root: Path, path: str, text: str) -> None:
    with pytest.raises(ChantierError) as caught:
        one(root, path=path, follow_links=True)
    assert str(caught.value) == text


def test_a_near_name_is_told(root: Path) -> None:
    (root / "d/server.conf").write_text("")
    with pytest.raises(NotFoundError) as caught:
        one(root, path="d/srever.conf")
    assert caught.value.hint == 'did you mean "/d/server.conf"?'
    with pytest.raises(NotFoundError) as caught:
        one(root, path="d/nothing-like-it")
    assert caught.value.hint is None


def test_required_paths(root: Path) -> None:
    one(root, include=("d/x",), required=("/d/x",))
    with pytest.raises(NotFoundError, match=r'^"/d/none": not found$'):
        one(root, path="/d", include=("none",), required=("d/none",))


def test_wildcards(root: Path) -> None:
    assert one(root, path="/n*", wildcard=True) == one(root, path="/none/*", wildcard=True) == EMPTY
    x = one(root, path="d/x")
    assert one(root, path="/d/x*", wildcard=True) == sha(f"\0x{x}".encode())
    head = sha(header("5", 0o755))
    y, txt = one(root, path="d/sub/y"), one(root, path="d/sub.txt")
    assert one(root, path="/d/sub*", wildcard=True) == sha(f"\0sub{head}\0sub\0y{y}\0sub.txt{txt}".encode())
    assert one(root, path="/*/x", wildcard=True) == x
    assert one(root, path="/*/x*", wildcard=True) == sha(f"\0d\0x{x}".encode())
    # through a link before the wildcard, and a link that the wildcard itself names
    assert one(root, path="/l/x*", wildcard=True) == sha(f"\0x{x}".encode())
    assert one(root, path="/ab*", wildcard=True, follow_links=True) == sha(f"\0abs{x}".encode())
    with pytest.raises(ChantierError, match=r"^syntax error in pattern$"):
        one(root, path="/[a", wildcard=True)


def test_includes_and_excludes(root: Path) -> None:
    head = sha(header("5", 0o755))
    x, y, txt = (one(root, path=p) for p in ("d/x", "d/sub/y", "d/sub.txt"))
    assert one(root, path="/", include=("d/sub/y",)) == sha(f"\0d{head}\0d\0sub{head}\0d\0sub\0y{y}".encode())
    assert one(root, path="/d", exclude=("sub",)) == sha(f"\0{head}\0sub.txt{txt}\0x{x}".encode())
    assert one(root, path="/d", exclude=("*", "!x")) == sha(f"\0{head}\0x{x}".encode())
    assert one(root, path="/", include=("nothing",)) == EMPTY
    assert one(root, path="/a", exclude=("*",)) == one(root, path="/a")
    one(root, path="/", exclude=("d",))
    (root / "d/new").write_text("n")
    assert one(root, path="/d", include=("x", "sub")) != one(root, path="/d")
    before = one(root, path="/", exclude=("d/new",))
    (root / "d/new").write_text("other")
    assert one(root, path="/", exclude=("d/new",)) == before


def test_large_files_are_hashed_like_small_ones(root: Path) -> None:
    data = os.urandom(3 << 20)
    for name in ("big1", "big2"):
        (root / name).write_bytes(data)
    head = header("0", 0o644, size=len(data))
    assert one(root, path="big1") == sha(head + data)
    with ContentTree().reading(root) as tree:
        tree.digest(Selector())
        assert tree.digest(Selector(path="big2")) == sha(head + data)


def test_empty_tree() -> None:
    assert content_digest(None) == combine([EMPTY])
    with pytest.raises(ChantierError, match=r"^/x: no such file or directory$"):
        content_digest(None, [Selector(path="x")])


class Stored:
    """The part of a cache's Ref that is used: a directory, and meta that outlives the handle."""

    count = 0

    def __init__(self, root: Path, meta: dict[str, bytes], id: str = "one") -> None:
        self.root, self.meta, self.id = root, meta, id
        self.cache = meta  # one store of meta stands for one cache

    def get_meta(self, key: str) -> bytes | None:
        return self.meta.get(key)

    def set_meta(self, key: str, value: bytes | None) -> None:
        if value is None:
            self.meta.pop(key, None)
        else:
            self.meta[key] = value

    def get_tree_meta(self, key: str) -> bytes | None:
        return self.meta.get(key)

    def set_tree_meta(self, key: str, value: bytes | None) -> None:
        self.set_meta(key, value)

    def mounted(self, **_: object) -> nullcontext[Path]:
        return nullcontext(self.root)


class View(Stored):
    """A frozen view of a tree that changes: meta of its own, and the tree's."""

    def __init__(self, root: Path, tree: dict[str, bytes]) -> None:
        Stored.count += 1
        super().__init__(root, {}, f"view{Stored.count}")
        self.tree = tree

    def get_tree_meta(self, key: str) -> bytes | None:
        return self.tree.get(key)

    def set_tree_meta(self, key: str, value: bytes | None) -> None:
        assert value is not None
        self.tree[key] = value


def test_immutable_results_are_not_looked_at_twice(root: Path, tmp_path: Path) -> None:
    meta: dict[str, bytes] = {}
    want = content_digest(Stored(root, meta), [Selector(path="d"), Selector(path="a")])  # type: ignore[arg-type]
    assert want == tree_digest(root, [Selector(path="d"), Selector(path="a")])
    missing = tmp_path / "missing"
    assert content_digest(Stored(missing, meta), [Selector(path="d"), Selector(path="a")]) == want  # type: ignore[arg-type]
    # What the files' digests tell needs no file either: another process, the same meta.
    empty = tmp_path / "empty"
    empty.mkdir()
    other = dict(meta)
    del other["content.results"]
    assert content_digest(Stored(empty, other), [Selector(path="d"), Selector(path="a")]) == want  # type: ignore[arg-type]


class Changing(View):
    """What `forget` and `renew` see of it: the mutable tree behind the views."""

    def get_meta(self, key: str) -> bytes | None:
        return self.tree.get(key)

    def set_meta(self, key: str, value: bytes | None) -> None:
        self.tree.pop(key, None)
        if value is not None:
            self.tree[key] = value


def test_changing_trees_keep_what_nobody_changed(root: Path) -> None:
    meta = {VOLATILE: b"1"}

    def digest() -> str:
        return content_digest(View(root, meta), [Selector(path="/")])  # type: ignore[arg-type]

    def change(*paths: bytes, digests: dict[bytes, bytes] | None = None) -> None:
        known = forget(Changing(root, meta))  # type: ignore[arg-type]
        assert "content.tree" not in meta
        renew(Changing(root, meta), known, paths, digests or {})  # type: ignore[arg-type]

    first = digest()
    assert digest() == first == tree_digest(root)
    kept = unpack(meta["content.tree"])
    assert kept.below == sum(len(names) + len(files) for _, names, files in os.walk(root))
    # A digest that is known is believed: the file is not read again.
    change(b"d/x", digests={b"d/x": b"\1" * 32})
    assert digest() != first
    change(b"d/x")
    assert digest() == first
    # Nothing is looked at but what was said to have changed, and the names in the directories above.
    (root / "d/sub/y").write_text("other")
    (root / "d/new").write_text("new")
    os.unlink(root / "a")
    change(b"a")
    assert digest() not in (first, tree_digest(root))
    change(b"d/new", b"d/sub/y")
    assert digest() == tree_digest(root)


@pytest.mark.parametrize("seed", range(30))
def test_any_change_gives_what_a_new_look_gives(root: Path, seed: int) -> None:
    """Kinds of entries change into each other, directories come and go with all in them."""
    chance = random.Random(seed)
    meta = {VOLATILE: b"1"}
    before = _kinds(root)
    known: bytes | None = None
    renew(Changing(root, meta), known, before, {})  # type: ignore[arg-type]
    for _ in range(8):
        view = View(root, meta)
        selectors = [Selector(), Selector(path="d", include=("**/x", "sub"))]
        assert content_digest(view, selectors[:1]) == tree_digest(root)  # type: ignore[arg-type]
        if (root / "d").is_dir() and not (root / "d").is_symlink():
            assert content_digest(view, selectors[1:]) == tree_digest(root, selectors[1:])  # type: ignore[arg-type]
        known = forget(Changing(root, meta))  # type: ignore[arg-type]
        for _ in range(chance.randrange(1, 4)):
            _change_something(root, chance)
        after = _kinds(root)
        changed = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
        digests = {
            path: small_digest(mode, (root / os.fsdecode(path)).read_bytes())
            for path in changed
            if path in after and stat.S_ISREG(mode := after[path][0]) and chance.random() < 0.5
        }
        renew(Changing(root, meta), known, changed, digests)  # type: ignore[arg-type]
        before = after


def _kinds(root: Path) -> dict[bytes, tuple[int, bytes]]:
    found = {}
    for base, names, files in os.walk(root):
        for path in (Path(base, name) for name in (*names, *files)):
            info = path.lstat()
            text = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            found[os.fsencode(path.relative_to(root))] = (info.st_mode, text)
    return found


def _change_something(root: Path, chance: random.Random) -> None:
    directories = [Path(base) for base, _, _ in os.walk(root)]
    path = chance.choice(directories) / chance.choice(("a", "d", "x", "y", "sub", "l"))
    if chance.random() < 0.8 and os.path.lexists(path):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if chance.random() < 0.5:
            return
    if os.path.lexists(path):
        return
    kind = chance.randrange(3)
    if kind == 0:
        path.write_bytes(chance.randbytes(chance.randrange(20)))
    elif kind == 1:
        path.symlink_to(chance.choice(("a", "d/x", "nowhere")))
    else:
        path.mkdir(mode=chance.choice((0o755, 0o700)))
        (path / "x").write_text("x")


def test_same_size_and_time_changes_are_told(root: Path) -> None:
    meta = {VOLATILE: b"1"}
    selectors = [Selector(path="a"), Selector(path="d")]
    first = content_digest(View(root, meta), selectors)  # type: ignore[arg-type]
    info = os.stat(root / "a")
    known = forget(Changing(root, meta))  # type: ignore[arg-type]
    (root / "a").write_text("b")
    os.utime(root / "a", ns=(info.st_atime_ns, info.st_mtime_ns))
    renew(Changing(root, meta), known, [b"a"], {})  # type: ignore[arg-type]
    assert content_digest(View(root, meta), selectors) != first  # type: ignore[arg-type]


def test_damaged_meta_is_ignored(root: Path) -> None:
    want = content_digest(Stored(root, {}))  # type: ignore[arg-type]
    for junk in (b"", b"CI1\0junk", b"CI2\0junk", b"CV2\0junk", b"{"):
        meta = {"content.tree": junk, "content.results": junk}
        assert content_digest(Stored(root, meta, "damaged")) == want  # type: ignore[arg-type]
        volatile = {"content.tree": junk, VOLATILE: b""}
        assert content_digest(View(root, volatile)) == want  # type: ignore[arg-type]


def test_a_tree_survives_packing(root: Path) -> None:
    with ContentTree().reading(root) as tree:
        want = tree.digest(Selector())
    packed = pack(tree.top)
    assert packed is not None
    assert pack(unpack(packed)) == packed
    with ContentTree(unpack(packed)).reading(root) as again:
        assert again.digest(Selector()) == want
        assert again.digest(Selector(path="l", follow_links=True)) == tree.digest(Selector(path="d"))
