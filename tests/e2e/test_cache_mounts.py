# SPDX-License-Identifier: Apache-2.0
"""Cache mounts leave the machine and come back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import Command, RealRegistry

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


@pytest.mark.parametrize("kind", ["registry", "local"])
def test_there_and_back(make_command: Callable[..., Command], registry: RealRegistry, tmp_path: Path, kind: str) -> None:
    one, two = make_command(name="one"), make_command(name="two")
    name = f"type=registry,ref={registry.host}/mounts/things:1" if kind == "registry" else f"type=local,dest={tmp_path}/kept"
    one.build(FILL.format(n=1)).ok()
    assert "things" in one("cache-mount", "ls").ok().out
    first = one("cache-mount", "export", "things", "--to", name).ok().out
    assert sent(first) > 300_000
    # Nothing changed: nothing is sent. One small file changed: its bucket alone.
    assert sent(one("cache-mount", "export", "things", "--to", name).ok().out) == 0
    one.build(
        "FROM alpine\nRUN --mount=type=cache,id=things,target=/c echo ONE > /c/a/one && touch -d '2001-02-03 04:05:06' /c/a/one\n"
    ).ok()
    assert 0 < sent(one("cache-mount", "export", "things", "--to", name).ok().out) < 10_000

    two.build("FROM alpine\nRUN --mount=type=cache,id=things,target=/c echo old > /c/old\n").ok()
    assert "imported 4 files" in two("cache-mount", "import", "things", "--from", name.replace("dest=", "src=")).ok().out
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
    assert two("fsck").out == "clean\n"


def test_a_limit_keeps_what_changed_last(make_command: Callable[..., Command], tmp_path: Path) -> None:
    one, two = make_command(name="one"), make_command(name="two")
    text = "FROM alpine\nRUN --mount=type=cache,target=/c for n in 1 2 3 4; do dd if=/dev/urandom of=/c/$n bs=1k count=100 2>/dev/null; touch -d 2020-01-0$n /c/$n; done\n"
    one.build(text).ok()
    done = one("cache-mount", "export", "/c", "--to", f"type=local,dest={tmp_path}/kept", "--limit", "250k").ok()
    assert "2 left out by the limit" in done.out
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
