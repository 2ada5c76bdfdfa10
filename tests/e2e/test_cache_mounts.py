# SPDX-License-Identifier: Apache-2.0
"""Cache mounts leave the machine and come back."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conftest import Command, Done, RealRegistry
from ..daemon.conftest import Chantierd, _starter, _stop_all

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]

FILL = """FROM alpine
RUN --mount=type=cache,id=things,target=/c mkdir -p /c/a/b /c/z && echo one > /c/a/one && echo two > /c/a/b/two \
 && ln -s one /c/a/link && chmod 700 /c/a/b && chown 1000:1001 /c/a/b/two && touch -d '2001-02-03 04:05:06' /c/a/one /c/z \
 && dd if=/dev/urandom of=/c/z/big bs=1k count=300 2>/dev/null # {n}
"""
SHOW = "FROM alpine\nRUN --mount=type=cache,id=things,target=/c cat /c/a/link /c/a/b/two && stat -c '%n %a %u:%g %Y' /c/a/b /c/a/b/two /c/a/one /c/z && ls /c/z # {n}\n"


def sent(text: str) -> float:
    """In bytes."""
    found = re.search(r"([\d.]+)\s?(k|M)?B sent", text)
    assert found, text
    return float(found[1]) * {"k": 1e3, "M": 1e6, None: 1}[found[2]]


class Door:
    """A command whose engine is its own, or that of a daemon of its own."""

    def __init__(self, command: Command, daemon: Chantierd | None) -> None:
        self._command = command
        self._flags = ("--builder", daemon.address) if daemon else ()
        self._root = ("--root", str(daemon.root)) if daemon else ()

    def build(self, text: str) -> Done:
        return self._command.build(text, *self._flags)

    def mounts(self, *args: str) -> Done:
        return self._command("cache-mount", *args, *self._flags)

    def fsck(self) -> str:
        return self._command("fsck", *self._root).out


@pytest.fixture(params=["embedded", "daemon"])
def doors(
    request: pytest.FixtureRequest, make_command: Callable[..., Command], registry: RealRegistry, tmp_path: Path
) -> Iterator[tuple[Door, Door]]:
    one, two = make_command(name="one"), make_command(name="two")
    start, started = _starter(tmp_path, registry)
    try:
        daemons = [start(name=name) if request.param == "daemon" else None for name in ("one", "two")]
        yield Door(one, daemons[0]), Door(two, daemons[1])
    finally:
        _stop_all(started)


@pytest.mark.parametrize("kind", ["registry", "local"])
def test_there_and_back(doors: tuple[Door, Door], registry: RealRegistry, tmp_path: Path, kind: str) -> None:
    one, two = doors
    name = f"type=registry,ref={registry.host}/mounts/things:1" if kind == "registry" else f"type=local,dest={tmp_path}/kept"
    one.build(FILL.format(n=1)).ok()
    assert "things" in one.mounts("ls").ok().out
    first = one.mounts("export", "things", "--to", name).ok().out
    assert sent(first) > 300_000
    # Nothing changed: nothing is sent. One small file changed: its bucket alone.
    assert sent(one.mounts("export", "things", "--to", name).ok().out) == 0
    one.build(
        "FROM alpine\nRUN --mount=type=cache,id=things,target=/c echo ONE > /c/a/one && touch -d '2001-02-03 04:05:06' /c/a/one\n"
    ).ok()
    assert 0 < sent(one.mounts("export", "things", "--to", name).ok().out) < 10_000

    two.build("FROM alpine\nRUN --mount=type=cache,id=things,target=/c echo old > /c/old\n").ok()
    assert "imported 4 files" in two.mounts("import", "things", "--from", name.replace("dest=", "src=")).ok().out
    shown = two.build(SHOW.format(n=1)).ok().step("RUN --mount")
    for line in (
        "ONE",
        "two",
        "/c/a/b 700 0:0",
        "/c/a/b/two 644 1000:1001",
        "/c/a/one 644 0:0 981173106",
        "/c/z 755 0:0",
        "big",
    ):
        assert line in shown, shown
    assert two.fsck() == "clean\n"
    if kind == "local":
        # One export is kept: what only the earlier ones had is gone, and nothing that was half written is there.
        manifest = json.loads((tmp_path / "kept/index.json").read_text())["manifests"][0]
        blobs = json.loads((tmp_path / "kept/blobs/sha256" / manifest["digest"][7:]).read_text())
        wanted = {manifest["digest"], blobs["config"]["digest"], *(layer["digest"] for layer in blobs["layers"])}
        assert {f"sha256:{path.name}" for path in (tmp_path / "kept/blobs/sha256").iterdir()} == wanted
        assert sorted(os.listdir(tmp_path / "kept")) == ["blobs", "index.json", "oci-layout"]
        _named(tmp_path / "kept", one, two)


def _named(place: Path, one: Door, two: Door) -> None:
    """Two exports beside each other in one directory."""
    one.build("FROM alpine\nRUN --mount=type=cache,id=more,target=/c echo more > /c/more\n").ok()
    one.mounts("export", "more", "--to", f"type=local,dest={place},tag=more").ok()
    two.mounts("import", "more", "--from", f"type=local,src={place},tag=more").ok()
    assert "more" in two.build("FROM alpine\nRUN --mount=type=cache,id=more,target=/c ls /c\n").ok().step("RUN --mount")
    two.mounts("import", "things", "--from", f"type=local,src={place}").ok()
    assert {line.split()[0] for line in two.mounts("ls").ok().out.splitlines()[1:]} == {"/more", "/things"}
    missing = two.mounts("import", "x", "--from", f"type=local,src={place},tag=none")
    assert missing.code != 0 and "no such export of a cache mount" in missing.err


def test_a_limit_keeps_what_changed_last(make_command: Callable[..., Command], tmp_path: Path) -> None:
    one, two = make_command(name="one"), make_command(name="two")
    text = "FROM alpine\nRUN --mount=type=cache,target=/c for n in 1 2 3 4; do dd if=/dev/urandom of=/c/$n bs=1k count=100 2>/dev/null; touch -d 2020-01-0$n /c/$n; done\n"
    one.build(text).ok()
    done = one("cache-mount", "export", "/c", "--to", f"type=local,dest={tmp_path}/kept", "--limit", "250k").ok()
    assert "2 left out by the limit" in done.out
    assert two("cache-mount", "ls").ok().out.count("\n") == 1
    two("cache-mount", "import", "/c", "--from", f"type=local,src={tmp_path}/kept").ok()
    done = two.build("FROM alpine\nRUN --mount=type=cache,target=/c echo have $(ls /c)\n").ok()
    assert "have 3 4" in done.step("RUN --mount")


def test_a_damaged_export_changes_nothing(make_command: Callable[..., Command], tmp_path: Path) -> None:
    one = make_command(name="one")
    one.build(FILL.format(n=1)).ok()
    where = tmp_path / "kept"
    one("cache-mount", "export", "things", "--to", f"type=local,dest={where}").ok()
    index = json.loads((where / "index.json").read_text())
    manifest = json.loads((where / "blobs/sha256" / index["manifests"][0]["digest"][7:]).read_text())
    victim = where / "blobs/sha256" / max(manifest["layers"], key=lambda layer: layer["size"])["digest"][7:]
    victim.write_bytes(victim.read_bytes()[::-1])
    two = make_command(name="two")
    two.build("FROM alpine\nRUN --mount=type=cache,id=things,target=/c echo mine > /c/mine\n").ok()
    assert two("cache-mount", "import", "things", "--from", f"type=local,src={where}").code != 0
    done = two.build("FROM alpine\nRUN --mount=type=cache,id=things,target=/c ls /c\n").ok()
    assert "mine" in done.step("RUN --mount")
    assert two("fsck").out == "clean\n"
    assert one("cache-mount", "export", "nothing", "--to", f"type=local,dest={where}").code != 0
    assert one("cache-mount", "export", "things", "--to", "type=other").code != 0
