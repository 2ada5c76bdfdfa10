# SPDX-License-Identifier: Apache-2.0
"""Unpacking layers: everything a tar can bring, deletions, what lies below, and tars that want out."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chantier import kernel
from chantier.errors import CancelledError_, IntegrityError, UsageError
from chantier.layer import Entry, UnpackResult, View, encode, finish_layer, unpack, write_layer
from chantier.layer.header import TRAILER
from chantier.layer.unpack import clean
from chantier.spec import digest_of

from .trees import describe, make_everything, make_tar

pytestmark = pytest.mark.root
OPAQUE = "trusted.overlay.opaque"


def into(path: Path, data: bytes, *, lowers: Sequence[Path] | None = None, convert: str = "overlay") -> UnpackResult:
    path.mkdir(exist_ok=True)
    return unpack(io.BytesIO(data), path, lowers=lowers, convert=convert)


def layers(tmp_path: Path, *tars: bytes) -> list[Path]:
    """Unpack layers bottom first; the directories top first."""
    stack: list[Path] = []
    for number, tar in enumerate(tars):
        path = tmp_path / f"layer{number}"
        into(path, tar, lowers=stack)
        stack.insert(0, path)
    return stack


def merged(tmp_path: Path, stack: Sequence[Path]) -> dict[str, str]:
    """What the kernel's overlayfs shows: files with their text, links, directories."""
    target = tmp_path / "merged"
    target.mkdir(exist_ok=True)
    (tmp_path / "nothing").mkdir(exist_ok=True)
    kernel.overlay(str(target), [*map(str, stack), str(tmp_path / "nothing")], flags=kernel.MS_RDONLY)
    try:
        found = {}
        for path in sorted(target.rglob("*")):
            name = str(path.relative_to(target))
            if path.is_symlink():
                found[name] = f"-> {os.readlink(path)}"
            else:
                found[name] = path.read_text() if path.is_file() else "dir" if path.is_dir() else "special"
        return found
    finally:
        kernel.umount(str(target))


def applied(tmp_path: Path, *tars: bytes) -> dict[str, str]:
    """The same layers unpacked one over another into one tree."""
    target = tmp_path / "applied"
    for tar in tars:
        into(target, tar, convert="apply")
    return merged(tmp_path, [target])


def test_everything_comes_out_as_umoci_and_gnu_tar_have_it(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    make_everything(tmp_path / "tree")
    data = subprocess.run(
        ["tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", tmp_path / "tree", "-cf", "-", "."],
        capture_output=True,
        check=True,
    ).stdout
    result = into(tmp_path / "out", data)
    assert result.diff_id == digest_of(data)
    assert result.size == len(data)
    assert describe(tmp_path / "out") == describe(tmp_path / "tree")
    (tmp_path / "gnu").mkdir()
    command = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", tmp_path / "gnu", "-xpf", "-"]
    subprocess.run(command, input=data, check=True)
    assert describe(tmp_path / "out") == describe(tmp_path / "gnu")


@pytest.mark.slow
def test_image_unpacked_by_umoci_is_the_same(tmp_path: Path) -> None:
    """A layer of ours, put into an OCI layout by hand, unpacked by umoci."""
    import json

    tree, upper = tmp_path / "tree", tmp_path / "upper"
    tree.mkdir()
    make_everything(tree)
    upper.mkdir()
    into(
        upper,
        make_tar("dir/.wh.file", "dir/new", "sticky/.wh..wh..opq", ("setuid", {"mode": 0o4711}), "h => empty"),
        lowers=[tree],
    )
    layout = tmp_path / "oci"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes) -> dict[str, object]:
        (blobs / digest_of(data).hex).write_bytes(data)
        return {"digest": digest_of(data), "size": len(data)}

    descriptors, diff_ids = [], []
    for lower, stack in (([], [tree]), ([tree], [upper, tree])):
        out = io.BytesIO()
        written = write_layer(lower, stack, out.write)
        descriptors.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **put(out.getvalue())})
        diff_ids.append(written.diff_id)
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    manifest = {
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **put(json.dumps(config).encode())},
        "layers": descriptors,
    }
    named = {"mediaType": "application/vnd.oci.image.manifest.v1+json", **put(json.dumps(manifest).encode())}
    named["annotations"] = {"org.opencontainers.image.ref.name": "x"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout}:x", str(tmp_path / "bundle")], check=True, capture_output=True
    )
    (tmp_path / "merged").mkdir()
    kernel.overlay(str(tmp_path / "merged"), [str(upper), str(tree)], flags=kernel.MS_RDONLY)
    try:
        ours = describe(tmp_path / "merged")
    finally:
        kernel.umount(str(tmp_path / "merged"))
    theirs = describe(tmp_path / "bundle")
    # As with every overlay differ: the copied-up target of a new link looks unchanged, so the link is told as a file.
    assert ours.pop("h")[:6] == theirs.pop("h")[:6]
    assert ours == theirs


def test_whiteouts(tmp_path: Path) -> None:
    base = make_tar("a", "d/", "d/x", "d/y", "e/", "e/z")
    top = make_tar(".wh.a", "d/.wh.x", "d/new", ".wh.e")
    stack = layers(tmp_path, base, top)
    info = (stack[0] / "a").lstat()
    assert kernel.is_whiteout(info)
    expected = {"d": "dir", "d/new": "content of d/new", "d/y": "content of d/y"}
    assert merged(tmp_path, stack) == expected == applied(tmp_path, base, top)


@pytest.mark.parametrize("first", ["marker", "entries"])
def test_opaque_directory(tmp_path: Path, first: str) -> None:
    base = make_tar("d/", "d/x", "d/sub/", "d/sub/y")
    names = ["d/.wh..wh..opq", "d/", "d/new", "d/sub/", "d/sub/z"]
    top = make_tar(*(names if first == "marker" else names[::-1]))
    stack = layers(tmp_path, base, top)
    assert os.getxattr(stack[0] / "d", OPAQUE) == b"y"
    expected = {"d": "dir", "d/new": "content of d/new", "d/sub": "dir", "d/sub/z": "content of d/sub/z"}
    assert merged(tmp_path, stack) == expected == applied(tmp_path, base, top)


def test_opaque_root(tmp_path: Path) -> None:
    base, top = make_tar("a", "d/", "d/x"), make_tar(".wh..wh..opq", "d/", "d/new")
    stack = layers(tmp_path, base, top)
    assert merged(tmp_path, stack) == {"d": "dir", "d/new": "content of d/new"} == applied(tmp_path, base, top)


@pytest.mark.parametrize("order", [1, -1])
def test_deleted_and_made_again(tmp_path: Path, order: int) -> None:
    """A whiteout concerns only the layers below, wherever it stands in the tar."""
    base = make_tar("d/", "d/old", "f", "g/", "g/old")
    top = make_tar(*[".wh.d", "d/", "d/new", ".wh.f", "f", ".wh.g", ("g", {"data": b"file"})][::order])
    stack = layers(tmp_path, base, top)
    expected = {"d": "dir", "d/new": "content of d/new", "f": "content of f", "g": "file"}
    assert merged(tmp_path, stack) == expected
    assert applied(tmp_path, base, top) == expected


def test_deleted_directory_filled_without_entry(tmp_path: Path) -> None:
    base, top = make_tar("d/", "d/e/", "d/e/old"), make_tar("d/.wh.e", "d/e/f/new")
    stack = layers(tmp_path, base, top)
    expected = {"d": "dir", "d/e": "dir", "d/e/f": "dir", "d/e/f/new": "content of d/e/f/new"}
    assert merged(tmp_path, stack) == expected == applied(tmp_path, base, top)


def test_whiteout_of_nothing(tmp_path: Path) -> None:
    stack = layers(tmp_path, make_tar("a"), make_tar("no/where/.wh.x", ".wh.y"))
    assert merged(tmp_path, stack) == {"a": "content of a", "no": "dir", "no/where": "dir"}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh..."])
def test_whiteouts_of_parents(tmp_path: Path, name: str) -> None:
    for convert in ("overlay", "apply"):
        (tmp_path / convert).mkdir()
        (tmp_path / convert / "keep").touch()
        with pytest.raises(IntegrityError, match="invalid whiteout name"):
            into(tmp_path / convert, make_tar(name), convert=convert)
        assert (tmp_path / convert / "keep").exists()


def test_aufs_leftovers(tmp_path: Path) -> None:
    into(tmp_path / "out", make_tar(".wh..wh.aufs", ".wh..wh.plnk/", ".wh..wh.plnk/1.2", "a"))
    assert os.listdir(tmp_path / "out") == ["a"]


def test_parents_look_like_those_below(tmp_path: Path) -> None:
    base = make_tar(
        ("p/", {"mode": 0o1750, "uid": 5, "gid": 6, "mtime": 1_000_000_000}),
        ("p/q/", {"mode": 0o700, "uid": 7, "pax_headers": {"SCHILY.xattr.user.a": "b"}}),
    )
    stack = layers(tmp_path, base, make_tar("p/q/new/file"))
    top = describe(stack[0])
    below = describe(stack[1])
    assert top["p"] == below["p"]
    assert top["p/q"] == below["p/q"]
    assert top["p/q/new"][0] == "0o40755"


def test_root_follows_the_lower_root(tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    os.chmod(tmp_path / "lower", 0o711)
    os.chown(tmp_path / "lower", 3, 4)
    into(tmp_path / "upper", make_tar(("./", {"mode": 0o700, "uid": 99}), "a"), lowers=[tmp_path / "lower"])
    assert describe(tmp_path / "upper", root_too=True)["."] == describe(tmp_path / "lower", root_too=True)["."]


def test_hard_links_to_lower_files(tmp_path: Path) -> None:
    base = make_tar("d/", ("d/f", {"mode": 0o4755, "uid": 9, "data": b"shared"}), "lib -> d")
    top = make_tar("one => d/f", "two => one", "three => lib/f", "n/four => /d/f")
    stack = layers(tmp_path, base, top)
    found = merged(tmp_path, stack)
    assert {found[name] for name in ("d/f", "one", "two", "three", "n/four")} == {"shared"}
    inodes = {(stack[0] / name).stat().st_ino for name in ("d/f", "one", "two", "three", "n/four")}
    assert len(inodes) == 1
    assert describe(stack[0])["d/f"][:3] == ("0o104755", 9, 0)
    assert describe(stack[0])["d"][0] == "0o40755"
    assert (stack[1] / "d/f").stat().st_nlink == 1


def test_missing_hard_link_targets(tmp_path: Path) -> None:
    result = into(tmp_path / "up", make_tar("a => nowhere", "b"))
    assert result.pending.links == ((b"a", b"nowhere"),)
    with pytest.raises(IntegrityError, match="'a': the target 'nowhere' of the hard link is missing"):
        finish_layer(tmp_path / "up", [], result.pending)
    with pytest.raises(IntegrityError, match="is missing"):
        into(tmp_path / "apply", make_tar("a => nowhere"), convert="apply")
    with pytest.raises(IntegrityError, match="is missing"):
        into(tmp_path / "gone", make_tar(".wh.f", "a => f"), lowers=layers(tmp_path, make_tar("f")))
    with pytest.raises(IntegrityError, match="to itself"):
        into(tmp_path / "self", make_tar("a => a"))
    with pytest.raises(IntegrityError, match="hard link to the directory"):
        into(tmp_path / "dir", make_tar("d/", "a => d"))
    with pytest.raises(IntegrityError, match="hard link to the root"):
        into(tmp_path / "root", make_tar("a => /"))


def test_hard_link_replaced_later(tmp_path: Path) -> None:
    result = into(tmp_path / "up", make_tar("a => nowhere", "a"))
    assert result.pending.links == ()
    assert (tmp_path / "up" / "a").read_text() == "content of a"


def test_links_of_links(tmp_path: Path) -> None:
    into(tmp_path / "out", make_tar("s -> nowhere", "t => s", "f", "g => f", ("p", {"type": tarfile.FIFOTYPE}), "q => p"))
    assert os.readlink(tmp_path / "out" / "t") == "nowhere"
    assert (tmp_path / "out" / "s").lstat().st_ino == (tmp_path / "out" / "t").lstat().st_ino
    assert (tmp_path / "out" / "q").is_fifo()


def test_files_below_a_link_of_a_lower_layer(tmp_path: Path) -> None:
    """A merged /usr: the tar says lib/x, below lib is a link to usr/lib."""
    base = make_tar("usr/", ("usr/lib/", {"mode": 0o711}), "usr/lib/old", "usr/lib/both/", "usr/lib/both/o", "lib -> usr/lib")
    top = make_tar("lib/new", "lib/both/", "lib/both/n", "dangle/x")
    stack = layers(tmp_path, base, top)
    found = merged(tmp_path, stack)
    assert found["lib"] == "-> usr/lib"
    assert found["usr/lib/new"] == "content of lib/new"
    assert found["usr/lib/both/n"] == "content of lib/both/n"
    assert found["usr/lib/both/o"] and found["usr/lib/old"]
    assert describe(stack[0])["usr/lib"][0] == "0o40711"
    assert applied(tmp_path, base, top) == found


def test_entries_replace_each_other(tmp_path: Path) -> None:
    data = make_tar(
        "a", "a/", "a/x", ("a", {"data": b"file again"}), "b -> a", "b/", "c/", "c/d/", "c/d/e", "c -> b", "c/f", "g", "g -> x"
    )
    for convert in ("overlay", "apply"):
        into(tmp_path / convert, data, convert=convert)
        found = merged(tmp_path, [tmp_path / convert])
        assert found == {"a": "file again", "b": "dir", "b/f": "content of c/f", "c": "-> b", "g": "-> x"}


def test_directory_times_and_modes_are_set_last(tmp_path: Path) -> None:
    data = make_tar(("d/", {"mtime": 5, "mode": 0o500}), ("d/e/", {"mtime": 6, "mode": 0o000}), "d/e/f", "d/g")
    into(tmp_path / "out", data)
    found = describe(tmp_path / "out")
    assert (found["d"][4], found["d/e"][4]) == (5, 6)
    assert (found["d"][0], found["d/e"][0]) == ("0o40500", "0o40000")


def test_apply_keeps_what_it_is_not_told_about(tmp_path: Path) -> None:
    (tmp_path / "t" / "root").mkdir(parents=True)
    os.chmod(tmp_path / "t" / "root", 0o700)
    os.chown(tmp_path / "t" / "root", 5, 5)
    before = describe(tmp_path / "t")["root"]
    into(tmp_path / "t", make_tar("root/x", "new/y"), convert="apply")
    after = describe(tmp_path / "t")
    assert after["root"][:4] == before[:4]
    assert after["new"][0] == "0o40755"


def test_attributes_that_speak_to_overlayfs_are_left_out(tmp_path: Path) -> None:
    records = {
        f"SCHILY.xattr.{name}": "y" for name in ("trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque")
    }
    into(
        tmp_path / "out",
        make_tar(("d/", {"pax_headers": {**records, "SCHILY.xattr.user.keep": "k"}}), ("f", {"pax_headers": records})),
    )
    assert os.listxattr(tmp_path / "out" / "d") == ["user.keep"]
    assert os.listxattr(tmp_path / "out" / "f") == []


def test_unsupported_attributes_do_not_stop_us(tmp_path: Path) -> None:
    records = {"SCHILY.xattr.user.a": "b", "SCHILY.xattr.nonsense": "x"}
    into(tmp_path / "out", make_tar(("l -> x", {"pax_headers": records}), ("f", {"pax_headers": records})))
    assert os.listxattr(tmp_path / "out" / "f") == ["user.a"]


def test_setgid_target_does_not_leak(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.chown(tmp_path / "out", 0, 77)
    os.chmod(tmp_path / "out", 0o2755)
    into(tmp_path / "out", make_tar("f", "d/", "e/g"))
    assert {value[2] for value in describe(tmp_path / "out").values()} == {0}


# --- tars that want out ---

ESCAPES: dict[str, list[object]] = {
    "dots": ["../evil", "../../../../tmp/evil", "a/../../evil", "..//evil", "a/b/../../../evil"],
    "absolute": ["/evil", "//evil", "/../evil"],
    "link then file": ["l -> ..", "l/evil"],
    "absolute link": ["l -> /", "l/evil"],
    "link to outside": ["l -> {outside}", "l/evil"],
    "link chain": ["a -> b", "b -> ..", "a/evil"],
    "link deep": ["d/", "d/l -> ../../..", "d/l/x/evil"],
    "write through a link": ["evil -> {outside}/victim", ("evil", {"data": b"bad"})],
    "hard link to a link": ["l -> {outside}/victim", "h => l", ("h", {"data": b"bad"})],
    "hard link outside": ["h => ../outside/victim", ("h", {"data": b"bad"})],
    "hard link through a link": ["l -> {outside}", "h => l/victim", ("h", {"data": b"bad"})],
    "hard link absolute": ["h => {outside}/victim"],
    "whiteout through a link": ["l -> {outside}", "l/.wh.victim"],
    "opaque through a link": ["l -> {outside}", "l/.wh..wh..opq"],
    "whiteout with dots": ["../outside/.wh.victim"],
    "directory over a link": ["l -> {outside}", "l/", "l/evil"],
    "mode through a link": ["l -> {outside}", ("l/", {"mode": 0o777})],
    "mode of a hard link": ["h => ../outside/victim", ("h", {"mode": 0o777, "data": b""})],
    "device through a link": ["l -> {outside}", ("l/dev", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})],
    "swap a directory for a link": ["d/", "d/x", "d -> {outside}", "d/evil"],
    "swap a cached parent": ["p/q/a", "p -> {outside}", "p/q/evil", "p/evil"],
    "dangling parent": ["l -> ../../outside/new", "l/evil"],
    "link to itself": ["l -> l", "l/evil"],
    "proc": ["l -> /proc/self/cwd", "l/evil"],
    "proc root": ["l -> /proc/self/root/{outside}", "l/evil"],
    "GNU name": ["../" * 60 + "evil"],
}


@pytest.mark.parametrize("convert", ["overlay", "apply"])
@pytest.mark.parametrize("name", ESCAPES)
def test_no_tar_leads_outside(tmp_path: Path, name: str, convert: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o750)
    (outside / "victim").write_text("victim")
    os.chmod(outside / "victim", 0o640)
    os.utime(outside, (1, 1))
    before = describe(tmp_path, root_too=False)
    items: list[object] = []
    for item in ESCAPES[name]:
        text, fields = (item, {}) if isinstance(item, str) else item  # type: ignore[misc]
        items.append((text.replace("{outside}", str(outside)), fields))
    target = tmp_path / "target"
    target.mkdir()
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        try:
            into(target, make_tar(*items, format=format), convert=convert, lowers=[])  # type: ignore[arg-type]
        except IntegrityError:
            pass
    after = describe(tmp_path)
    assert {key: value for key, value in after.items() if not key.startswith("target")} == before
    assert not os.path.exists("/evil") and not os.path.exists("/tmp/evil") and not (tmp_path / "evil").exists()


def test_finishing_does_not_lead_outside(tmp_path: Path) -> None:
    """Links of lower layers that point out are followed inside the image only."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("victim")
    base = make_tar(f"l -> {outside}", "m -> ../../../../outside", f"f -> {outside}/victim")
    for top in (make_tar("l/evil"), make_tar("m/evil"), make_tar("f/evil")):
        stack = layers(tmp_path, base, top)
        merged(tmp_path, stack)
        assert os.listdir(outside) == ["victim"]
        subprocess.run(["rm", "-rf", *stack], check=True)
    for top in (make_tar("h => l/victim"), make_tar("h => m/victim")):
        with pytest.raises(IntegrityError, match="is missing"):
            layers(tmp_path, base, top)
        subprocess.run(["rm", "-rf", tmp_path / "layer0", tmp_path / "layer1"], check=True)
    assert (outside / "victim").stat().st_nlink == 1


def test_very_deep_and_very_long_names(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="File name too long"):
        into(tmp_path / "a", make_tar("x" * 300))
    with pytest.raises(IntegrityError, match="File name too long"):
        into(tmp_path / "b", make_tar("d/" * 3000 + "x"))
    into(tmp_path / "c", make_tar("d/" * 1900 + "x", ("d", {"data": b"instead"})))
    assert (tmp_path / "c" / "d").read_text() == "instead"


def test_names() -> None:
    assert clean(b"a/b") == b"a/b"
    assert clean(b"./a//b/./c/") == b"a/b/c"
    assert clean(b"/../a/../../b") == b"b"
    assert clean(b".") == clean(b"/") == clean(b"..") == b""
    assert clean(b".hidden") == b".hidden"
    assert clean(b"a/..b") == b"a/..b"


def test_times_no_file_has(tmp_path: Path) -> None:
    data = encode(Entry(b"a", mode=0o644, mtime_ns=10**27)) + encode(Entry(b"b", mode=0o644, mtime_ns=-5 * 10**9)) + TRAILER
    into(tmp_path / "out", data)
    assert describe(tmp_path / "out")["a"][4] == 0
    assert describe(tmp_path / "out")["b"][4] == -5


def test_device_numbers_out_of_range(tmp_path: Path) -> None:
    big = make_tar(("d", {"type": tarfile.CHRTYPE, "devmajor": 0o7777777, "devminor": 0o7777777}))
    with pytest.raises(IntegrityError, match="'d': Invalid argument"):
        into(tmp_path / "out", big)


def test_cancelled_and_broken_streams_leave_no_thread(tmp_path: Path) -> None:
    data = make_tar(("big", {"data": bytes(5_000_000)}))
    calls = iter(range(100))
    (tmp_path / "a").mkdir()
    with pytest.raises(CancelledError_):
        unpack(io.BytesIO(data), tmp_path / "a", cancelled=lambda: next(calls) > 2)

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 2_000_000:
                raise ConnectionResetError("peer")
            return super().read(size)

    with pytest.raises(ConnectionResetError):
        unpack(Broken(data), tmp_path / "a")
    assert [thread.name for thread in threading.enumerate() if "unpack" in thread.name] == []
    with pytest.raises(UsageError):
        unpack(io.BytesIO(data), tmp_path / "a", convert="aufs")


def test_parallel_layers_then_finished_in_order(tmp_path: Path) -> None:
    tars = [make_tar(("d/", {"mode": 0o711}), "d/f"), make_tar("d/g", "h => d/f"), make_tar("d/.wh.g", "i => h")]
    results: dict[int, UnpackResult] = {}

    def work(number: int) -> None:
        results[number] = into(tmp_path / str(number), tars[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stack: list[Path] = []
    for number in range(3):
        finish_layer(tmp_path / str(number), stack, results[number].pending)
        stack.insert(0, tmp_path / str(number))
    found = merged(tmp_path, stack)
    assert set(found) == {"d", "d/f", "h", "i"}
    assert found["i"] == "content of d/f"
    assert describe(stack[0])["d"][0] == "0o40711"


_NAMES = ["a", "b", "a/c", "a/d", "a/c/e", "b/f"]
_items = st.lists(
    st.one_of(
        st.sampled_from(_NAMES),
        st.sampled_from([name + "/" for name in _NAMES]),
        st.sampled_from([f"{name.rpartition('/')[0]}/.wh.{name.rpartition('/')[2]}".lstrip("/") for name in _NAMES]),
        st.sampled_from(["a/.wh..wh..opq", "b/.wh..wh..opq", "a/c/.wh..wh..opq"]),
    ),
    max_size=7,
    unique=True,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(_items, min_size=2, max_size=3))
def test_overlay_and_apply_agree(tmp_path: Path, stack_items: list[list[str]]) -> None:
    """Layers as overlay directories show the same tree as layers applied one over another, and as our own View sees it."""
    tars = []
    for items in stack_items:
        # A well-formed layer: parents before children, nothing both a file and a directory.
        chosen: dict[str, str] = {}
        for item in items:
            chosen.setdefault(item.rstrip("/"), item)
        files = {name for name, item in chosen.items() if not item.endswith("/") and ".wh." not in item}
        tars.append(
            make_tar(*(item for name, item in sorted(chosen.items()) if not any(name.startswith(f + "/") for f in files)))
        )
    work = tmp_path / os.urandom(8).hex()
    work.mkdir()
    stack = layers(work, *tars)
    found = merged(work, stack)
    assert found == applied(work, *tars)
    view = View(stack)
    seen = {}
    todo = [(b"", view.root())]
    while todo:
        path, node = todo.pop()
        assert node is not None
        for name, child in view.children(node):
            below = path + b"/" + name if path else name
            seen[below.decode()] = "dir" if stat.S_ISDIR(child.info.st_mode) else Path(os.fsdecode(child.path)).read_text()
            todo.append((below, child))
    assert seen == found
    kernel.remove_tree(work)
