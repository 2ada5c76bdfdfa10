# SPDX-License-Identifier: Apache-2.0
"""What differs between two keys, in words."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from chantier.cache.listing import Listings, differences
from chantier.engine.explain import Explainer, compare
from chantier.solver import Explanation, Keep, KeyInfo, Link
from chantier.store import Db
from chantier.testing.solver import MemoryKeyStore


def run(**meta: Any) -> dict[str, Any]:
    mounts = meta.pop("mounts", [])
    return {"Type": "buildkit.exec.v0", "Exec": {"meta": meta, "mounts": mounts}, "OS": "linux", "Arch": "amd64"}


def test_steps() -> None:
    before = run(args=["/bin/sh", "-c", "make"], env=["A=1", "B=2"], mounts=[{"dest": "/"}, {"dest": "/c", "mountType": 3}])
    after = run(args=["/bin/sh", "-c", "make all"], env=["A=2", "C=3"], user="app", mounts=[{"dest": "/"}, {"dest": "/d"}])
    assert list(compare(before, after)) == [
        'command "make" became "make all"',
        'variable A: "1" became "2"',
        "variable B is gone",
        "variable C is new",
        'user nothing became "app"',
        "mount /c is gone",
        "mount /d is new",
    ]
    assert list(compare(run(env=["A=1", "B=2"]), run(env=["B=2", "A=1"]))) == ["the order of variables changed"]
    assert list(compare(before, before)) == []


def test_actions_and_kinds() -> None:
    def copy(**action: Any) -> dict[str, Any]:
        return {"Type": "buildkit.file.v0", "Actions": [base64.b64encode(json.dumps(action).encode()).decode()]}

    assert list(compare(copy(src="a", dest="/x"), copy(src="a", dest="/y"))) == ['dest "/x" became "/y"']
    assert list(compare(copy(src="a"), run(args=["a"]))) == ["another kind of step"]


def test_files() -> None:
    before = {
        "a": ("-644", "1"),
        "b": ("-644", "2"),
        "d": ("d755", "3"),
        "gone": ("-644", "4"),
        "same": ("-644", "5"),
        "t": ("-644", "6"),
    }
    after = {
        "a": ("-644", "9"),
        "b": ("-600", "8"),
        "d": ("d755", "7"),
        "new": ("-644", "4"),
        "same": ("-644", "5"),
        "t": ("l777", "6"),
    }
    assert differences(before, after, limit=9) == [
        "a: content changed",
        "b: mode 644 became 600",
        "d: owner or attributes changed",
        "gone is gone",
        "new is new",
        "t is of another type",
    ]
    assert differences(before, after, limit=2)[-1] == "and 4 more"


def test_listings_are_few_and_damage_is_no_error(tmp_path: Path) -> None:
    now = iter(range(10_000))
    listings = Listings(Db(tmp_path / "x.db"), clock=lambda: next(now))
    for number in range(450):
        listings.save(f"k{number}", {"f\udcff": ("-644", "1")})
    assert listings.load("k0") is None
    assert listings.load("k449") == {"f\udcff": ["-644", "1"]}
    db = Db(tmp_path / "x.db")
    with db.write() as cursor:
        cursor.execute("UPDATE key_content SET listing = x'00' WHERE key = 'k449'")
    assert listings.load("k449") is None


def test_base_images(tmp_path: Path) -> None:
    keys = MemoryKeyStore()
    keys.apply(
        [
            Keep(key="sha256:old", info=KeyInfo(id="sha256:old", op="o", detail=b'{"Digest":"sha256:aaa"}')),
            Keep(key="k", links=(("sha256:old", Link(0, "op")),), info=KeyInfo(id="k", op="op", name="RUN x", detail=b"{}")),
        ]
    )
    found = Explanation(
        vertex="v",
        name="RUN x",
        outcome="miss",
        reason="input 0 changed",
        changed=(0,),
        nearest=keys.info("k"),
        detail=b"{}",
        inputs=((0, "[1/2] FROM docker.io/library/alpine:3@sha256:bbb", b'{"Digest":"sha256:bbb"}'),),
    )
    said = Explainer(keys, Listings(Db(tmp_path / "x.db")))(found)
    assert said.differences == ("base image docker.io/library/alpine:3: sha256:aaa became sha256:bbb",)
    assert said.reason == "input 0 changed: base image docker.io/library/alpine:3: sha256:aaa became sha256:bbb"
