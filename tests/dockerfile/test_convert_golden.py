# SPDX-License-Identifier: Apache-2.0
"""The golden cases as far as no step need run: config, history, errors of the conversion, answers to calls.

The frontend runs over directories read in place; what it gives is compared with what a stock engine recorded.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from chantier.dockerfile.frontend import frontend
from chantier.errors import ChantierError

from .fakes import BASE, FakeBridge

GOLDEN = Path(os.environ.get("CHANTIER_GOLDEN") or Path(__file__).parents[3] / "shared" / "golden")
CASES = sorted(p for p in (GOLDEN / "cases").glob("*") if (p / "case.json").exists())


def test_the_cases_are_there() -> None:
    if not CASES and "CHANTIER_GOLDEN" not in os.environ:
        pytest.skip("no recorded cases here: set CHANTIER_GOLDEN to their folder")
    assert CASES, f"no cases below {GOLDEN}"


# Errors that come from doing, not from converting: the conversion of these must succeed.
RUNTIME = re.compile(
    r"failed to compute cache key|did not complete successfully|^mkdir |invalid user index|^lstat |^secret .*: not found"
    r"|unset ssh forward key|includepatterns"
)
# Errors a client finds before it asks for a build.
CLIENT = re.compile(r"^(?!failed to solve: )")


def options(case: Path, ctx: Path, flags: list[str], call: str) -> tuple[dict[str, str], dict[str, Path]]:
    """The frontend's options for a build client's flags, and the directories it would offer."""
    opts: dict[str, str] = {}
    dirs = {"context": ctx, "dockerfile": ctx}
    hosts: list[str] = []
    values = iter(flags)
    for flag in values:
        name, equals, value = flag.partition("=")
        if not equals and name != "--no-cache":
            value = next(values)
        value = value.replace("{case}", str(case)).replace("{ctx}", str(ctx))
        key, _, rest = value.partition("=")
        match name:
            case "--build-arg":
                if "=" in value:  # else the client takes it from its environment, where it is not set
                    opts["build-arg:" + key] = rest
            case "--label":
                opts["label:" + key] = rest
            case "--target" | "--platform":
                opts[name[2:]] = value
            case "--no-cache":
                opts["no-cache"] = ""
            case "--no-cache-filter":
                opts["no-cache"] = value
            case "--network":
                opts["force-network-mode"] = value
            case "--shm-size":
                opts["shm-size"] = str(int(value.rstrip("m")) << 20)
            case "--ulimit":
                opts["ulimit"] = value
            case "--add-host":
                host, _, ip = value.partition(":") if "=" not in value else value.partition("=")
                hosts.append(f"{host}={ip}")
            case "--build-context":
                if "://" in rest:
                    opts["context:" + key] = rest
                else:
                    opts["context:" + key] = "local:" + key
                    dirs[key] = Path(rest)
            case "-f":
                file = ctx / value if not os.path.isabs(value) else Path(value)
                opts["filename"] = file.name
                dirs["dockerfile"] = file.parent
            case "--secret" | "--allow" | "--annotation":
                pass
            case _:
                raise AssertionError(f"no reading of the flag {name}")
    if hosts:
        opts["add-hosts"] = ",".join(hosts)
    if call:
        opts["requestid"] = {"check": "frontend.lint"}.get(call, "frontend." + call)
    return opts, dirs


def run(case: Path, tmp: Path) -> dict[str, Any]:
    spec = json.loads((case / "case.json").read_text())
    ctx = case / "ctx"
    if "ocker" in spec.get("setup", ""):
        ctx = shutil.copytree(ctx, tmp / "ctx", symlinks=True)
        subprocess.run(["bash", "-euc", spec["setup"]], cwd=ctx, check=True, capture_output=True)
    opts, dirs = options(case, ctx, spec.get("flags", []), spec.get("call", ""))
    images = {"golden.test/base:1": BASE, "golden.test/base:latest": BASE}
    bridge = FakeBridge(dirs, images)
    try:
        made = asyncio.run(frontend(opts, {}, bridge))
    except ChantierError as err:
        return {"status": 1, "error": f"failed to solve: {err}"}
    if spec.get("call"):
        return {
            "status": int(made.metadata.get("result.statuscode", b"0")),
            "call": scrub(json.loads(made.metadata["result.json"])),
        }
    platforms = {p["ID"]: p for p in json.loads(made.metadata["refs.platforms"])["Platforms"]}
    out = {}
    for id in platforms:
        config = json.loads(made.metadata.get(f"containerimage.config/{id}") or made.metadata["containerimage.config"])
        plat = "/".join(x for x in (config.get("os"), config.get("architecture"), config.get("variant")) if x)
        keys = ("created_by", "empty_layer", "comment")
        rows = [{k: h[k] for k in keys if k in h} for h in config.get("history", [])]
        out[plat] = {
            "config": config["config"],
            "history": [r for r in rows if not r["created_by"].startswith("umoci")],
        }
    return {"status": 0, "images": out}


def scrub(doc: Any) -> Any:
    if isinstance(doc, dict):
        return {k: scrub(v) for k, v in sorted(doc.items()) if k not in ("data", "sources", "source", "digest")}
    if isinstance(doc, list):
        return [scrub(x) for x in doc]
    return doc


def expected(case: Path) -> dict[str, Any] | None:
    """What the conversion alone can be held to; None where the client would not even ask."""
    want = json.loads((case / "expected.json").read_text())
    if "error" in want:
        if CLIENT.match(want["error"]):
            return None
        text = want["error"].removeprefix("failed to solve: ")
        return {"converts": True} if RUNTIME.search(text) else {"status": 1, "error": want["error"]}
    if "call" in want:
        return want
    images = {}
    for plat, image in want["images"].items():
        history = [h for h in image["history"] if h.get("comment") != "buildkit.exporter.image.v0"]
        images[plat] = {"config": image["config"], "history": history}
    return {"status": 0, "images": images}


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.name)
def test_golden(case: Path, tmp_path: Path) -> None:
    want = expected(case)
    if want is None:
        pytest.skip("a client refuses this before it asks for a build")
    got = run(case, tmp_path)
    if want == {"converts": True}:
        assert got["status"] == 0, got
    else:
        assert got == want
