# SPDX-License-Identifier: Apache-2.0
"""Graphs that no Dockerfile makes: merge and diff, with deletions, replaced directories, links. No image is needed for them.

What each gives stands in `expected/graphs/NAME.json`, recorded from BuildKit by `record_graphs.py`, never from our own output:
its layers, and the tree that they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import chantier
from chantier.errors import SolveError
from chantier.llb import Copying, State, diff, local, merge, mkdir, mkfile, rm, scratch

from .look import images


def _link(target: str, path: str) -> tuple[State, str, str]:
    """What `copy` takes to make a link: older BuildKits have no operation for it."""
    return local("context"), f"/links/{target}", path


def _base() -> State:
    """d/{a,b,sub/c}, f, l -> f; in two layers."""
    first = scratch().file(mkdir("/d/sub", parents=True).mkfile("/d/a", b"a").mkfile("/d/b", b"b").mkfile("/d/sub/c", b"c"))
    return first.file(mkfile("/f", b"f")).copy(*_link("f", "/l"))


def _one(text: str = "1") -> State:
    return scratch().file(mkdir("/d").mkfile("/d/one", text.encode()))


def _linked() -> State:
    """h/1 and h/2 are one file, and so are h/3 and h/sub/4; h/alone is not."""
    return scratch().copy(local("context"), "/h", "/h", options=Copying(contents_only=True, create_dest=True))


BASE, LINKED = _base(), _linked()
GONE_DIR = BASE.file(rm("/d"))
OPAQUE = BASE.file(rm("/d").mkdir("/d").mkfile("/d/new", b"n"))
OPAQUE_LATER = GONE_DIR.file(mkdir("/d").mkfile("/d/new", b"n"))
TO_FILE = BASE.file(rm("/d").mkfile("/d", b"file now"))
TO_LINK = BASE.file(rm("/d").copy(*_link("elsewhere", "/d")))
TO_DIR = BASE.file(rm("/f").mkdir("/f").mkfile("/f/in", b"in"))
MODES = BASE.file(mkdir("/d", 0o700, parents=True)).file(rm("/d/a").mkfile("/d/a", b"a", 0o600))
OTHER = scratch().file(mkdir("/d/sub", 0o711, parents=True).mkfile("/d/a", b"other", 0o600).mkfile("/z", b"z"))

CASES: dict[str, Callable[[], State]] = {
    # merge
    "merge-two": lambda: merge([_one(), scratch().file(mkdir("/e").mkfile("/e/two", b"2"))]),
    "merge-later-wins": lambda: merge([_one("1"), _one("2")]),
    "merge-directory-modes": lambda: merge([_one(), scratch().file(mkdir("/d", 0o700).mkfile("/d/two", b"2"))]),
    "merge-directory-owner": lambda: merge([_one(), scratch().file(mkdir("/d", 0o750)).copy(_one(), "/d/one", "/d/x", owner="7:8")]),
    "merge-file-over-directory": lambda: merge([BASE, scratch().file(mkfile("/d", b"a file"))]),
    "merge-directory-over-file": lambda: merge([BASE, scratch().file(mkdir("/f").mkfile("/f/in", b"in"))]),
    "merge-link-over-directory": lambda: merge([BASE, scratch().copy(*_link("f", "/d"))]),
    "merge-directory-over-link": lambda: merge([BASE, scratch().file(mkdir("/l").mkfile("/l/in", b"in"))]),
    "merge-link-over-file": lambda: merge([BASE, scratch().copy(*_link("d", "/f"))]),
    "merge-file-over-link": lambda: merge([BASE, scratch().file(mkfile("/l", b"no link"))]),
    "merge-with-itself": lambda: merge([BASE, BASE]),
    "merge-of-merges": lambda: merge([merge([_one(), OTHER]), merge([scratch().file(mkfile("/y", b"y")), _one("3")])]),
    "merge-with-nothing": lambda: merge([scratch(), _one(), scratch()]),
    "merge-then-write": lambda: merge([BASE, OTHER]).file(rm("/d/b").mkfile("/d/sub/new", b"n")),
    "merge-order": lambda: merge([OTHER, BASE]),
    "merge-deletions-stay-in-the-past": lambda: merge([OTHER, GONE_DIR]),
    "merge-opaque-over-other": lambda: merge([OTHER, OPAQUE]),
    "merge-hard-links": lambda: merge([scratch().file(mkdir("/h").mkfile("/h/2", b"was here")), LINKED]),
    "merge-part-of-hard-links": lambda: merge([LINKED, scratch().file(mkdir("/h").mkfile("/h/2", b"broken off"))]),
    # diff
    "diff-of-one-layer": lambda: diff(BASE, BASE.file(mkfile("/new", b"n"))),
    "diff-of-several-layers": lambda: diff(BASE, BASE.file(mkfile("/new", b"n")).file(rm("/f")).file(mkfile("/d/x", b"x"))),
    "diff-deletes-a-file": lambda: diff(BASE, BASE.file(rm("/f"))),
    "diff-deletes-a-directory": lambda: diff(BASE, GONE_DIR),
    "diff-deletes-inside": lambda: diff(BASE, BASE.file(rm("/d/sub"))),
    "diff-opaque": lambda: diff(BASE, OPAQUE),
    "diff-opaque-in-two-steps": lambda: diff(BASE, OPAQUE_LATER),
    "diff-directory-to-file": lambda: diff(BASE, TO_FILE),
    "diff-directory-to-link": lambda: diff(BASE, TO_LINK),
    "diff-file-to-directory": lambda: diff(BASE, TO_DIR),
    "diff-same-content": lambda: diff(BASE, BASE.file(rm("/f").mkfile("/f", b"f"))),
    "diff-modes": lambda: diff(BASE, MODES),
    "diff-unrelated": lambda: diff(BASE, OTHER),
    "diff-unrelated-backwards": lambda: diff(OTHER, BASE),
    "diff-lower-is-nothing": lambda: diff(scratch(), BASE),
    "diff-upper-is-nothing": lambda: diff(BASE, scratch()),
    "diff-of-itself": lambda: diff(BASE, BASE),
    "diff-backwards": lambda: diff(BASE.file(mkfile("/new", b"n")), BASE),
    "diff-hard-links": lambda: diff(scratch().file(mkfile("/f", b"f")), LINKED),
    "diff-one-name-of-a-hard-link-goes": lambda: diff(LINKED, LINKED.file(rm("/h/2"))),
    "diff-one-name-of-a-hard-link-is-written": lambda: diff(LINKED, LINKED.file(rm("/h/2").mkfile("/h/2", b"new"))),
    # diff on something else
    "apply-deletion": lambda: merge([OTHER, diff(BASE, BASE.file(rm("/d/a")))]),
    "apply-deletion-of-what-is-not-there": lambda: merge([_one(), diff(BASE, BASE.file(rm("/f")))]),
    "apply-directory-deletion": lambda: merge([OTHER, diff(BASE, GONE_DIR)]),
    "apply-opaque": lambda: merge([OTHER, diff(BASE, OPAQUE)]),
    "apply-opaque-in-two-steps": lambda: merge([OTHER, diff(BASE, OPAQUE_LATER)]),
    "apply-file-for-directory": lambda: merge([OTHER, diff(BASE, TO_FILE)]),
    "apply-link-for-directory": lambda: merge([OTHER, diff(BASE, TO_LINK)]),
    "apply-directory-for-file": lambda: merge([OTHER, diff(BASE, TO_DIR)]),
    "apply-several-layers": lambda: merge([OTHER, diff(BASE, GONE_DIR.file(mkfile("/q", b"q")).file(rm("/f")))]),
    "apply-unrelated": lambda: merge([BASE, diff(OTHER, _one())]),
    "apply-to-nothing": lambda: merge([diff(BASE, GONE_DIR), _one()]),
    "apply-twice": lambda: merge([BASE, diff(BASE, GONE_DIR), _one(), diff(BASE, GONE_DIR)]),
    "copy-from-diff": lambda: scratch().copy(diff(BASE, TO_DIR), "/", "/c", options=Copying(create_dest=True, contents_only=True)),
    "diff-of-merges": lambda: diff(merge([BASE, _one()]), merge([BASE, _one(), OTHER])),
    "diff-of-a-merged-deletion": lambda: merge([BASE, diff(_one(), merge([_one(), diff(BASE, OPAQUE)]))]),
}  # fmt: skip


def make_context(where: Path) -> Path:
    (where / "h/sub").mkdir(parents=True)
    (where / "h/1").write_text("12")
    (where / "h/3").write_text("34")
    (where / "h/alone").write_text("12")
    (where / "links").mkdir()
    for target in ("f", "d", "elsewhere"):
        (where / "links" / target).symlink_to(target)
    os.link(where / "h/1", where / "h/2")
    os.link(where / "h/3", where / "h/sub/4")
    return where


def build(name: str, work: Path, builder: Mapping[str, Any]) -> dict[str, Any]:
    """`builder` are options of `chantier.solve` that say where it runs."""
    context = make_context(work / "context")
    state, config = CASES[name](), {"architecture": "amd64", "os": "linux"}
    outputs = (f"type=oci,dest={work}/out.tar", f"type=local,dest={work}/tree")
    try:
        for output in outputs:  # one after the other: older daemons take one output
            chantier.solve(state, locals={"context": context}, image_config=config, outputs=[output], **builder)
    except SolveError as err:
        return {"error": str(err)}
    found = {"layers": images(work / "out.tar", times=False)["linux/amd64"]["layers"], "tree": tree(work / "tree")}
    shutil.rmtree(work / "tree")
    return found


def tree(root: Path) -> list[str]:
    """One line a path, sorted; names of one file share a number."""
    lines, numbers = [], dict[tuple[int, int], int]()
    for here, directories, files in sorted(os.walk(root)):
        for name in sorted([*directories, *files]):
            path = Path(here, name)
            info = path.lstat()
            line = f"{path.relative_to(root)} {info.st_mode:o}"
            if path.is_symlink():
                line += f" -> {os.readlink(path)}"
            elif path.is_file():
                line += f" {path.read_text()!r}"
                if info.st_nlink > 1:
                    line += f" #{numbers.setdefault((info.st_dev, info.st_ino), len(numbers))}"
            lines.append(line)
    return lines


__all__ = ["CASES", "build"]
