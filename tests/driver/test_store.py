# SPDX-License-Identifier: Apache-2.0
"""The store of builders: files as docker buildx has them, and which builder is chosen."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from chantier.driver.group import Group, Node, decode, encode, valid_name
from chantier.driver.store import Store
from chantier.errors import ChantierError, NotFoundError, UsageError
from chantier.spec import Platform

KEY = "unix:///run/lab/docker.sock"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "buildx", env={})


def group(name: str = "Box", **more: object) -> Group:
    node = Node(name="box0", endpoint="tcp://h:1", **more)  # type: ignore[arg-type]
    return Group(name=name, driver="remote", nodes=(node,))


def test_instance_is_buildx_json(store: Store) -> None:
    one = Node(
        name="box0",
        endpoint="unix:///a?b&c",
        platforms=(Platform("linux", "arm", "v7"),),
        driver_opts={"image": "x"},
        flags=("--debug",),
        files={"buildkitd.toml": b"debug = true\n"},
    )
    store.save(Group(name="Box", driver="docker-container", nodes=(one,)))
    path = store.directory / "instances/box"
    assert json.loads(path.read_text()) == {
        "Name": "Box",
        "Driver": "docker-container",
        "Nodes": [
            {
                "Name": "box0",
                "Endpoint": "unix:///a?b&c",
                "Platforms": [{"architecture": "arm", "os": "linux", "variant": "v7"}],
                "DriverOpts": {"image": "x"},
                "Flags": ["--debug"],
                "Files": {"buildkitd.toml": "ZGVidWcgPSB0cnVlCg=="},
            }
        ],
        "Dynamic": False,
    }
    assert b"\\u0026" in path.read_bytes()  # as Go writes &
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    assert store.group("BOX").nodes[0] == one
    assert (store.directory / "activity/Box").read_text().endswith("Z")


def test_nothing_set_is_null() -> None:
    found = json.loads(encode(group()))["Nodes"][0]
    assert found["Platforms"] is None and found["DriverOpts"] is None and found["Flags"] is None and found["Files"] is None
    assert decode(encode(group()), "x") == group()


def test_a_null_file_is_empty() -> None:
    raw = json.loads(encode(group()))
    raw["Nodes"][0]["Files"] = {"buildkitd.toml": None}
    assert decode(json.dumps(raw).encode(), "x").nodes[0].files == {"buildkitd.toml": b""}


@pytest.mark.parametrize("text", [b"", b"[]", b'{"Name":"x"}', b'{"Name":"x","Driver":"remote","Nodes":[{}]}'])
def test_what_is_no_builder_is_named(text: bytes) -> None:
    with pytest.raises(ChantierError, match="failed to read the builder in /x"):
        decode(text, "/x")


@pytest.mark.parametrize("name", ["0abc", "a/b", "", "-a", "a b"])
def test_invalid_names(name: str) -> None:
    with pytest.raises(UsageError, match="name needs to start with a letter"):
        valid_name(name)


def test_choice_is_kept_for_the_endpoint(store: Store) -> None:
    store.save(group())
    assert store.current(KEY) is None
    store.choose(KEY, "Box")
    assert store.current(KEY) == group()
    assert store.current("other") is None
    assert store.current(KEY) is None  # the other endpoint took its place, as with buildx


def test_default_choice_comes_back(store: Store) -> None:
    store.save(group())
    store.choose(KEY, "Box", default=True)
    assert (store.directory / "defaults/6cfba86c7037d24f11af").read_text() == "Box"  # as docker buildx names it
    assert store.current("other") is None
    assert store.current(KEY) == group()


def test_global_choice_is_for_all(store: Store) -> None:
    store.save(group())
    store.choose(KEY, "Box", everywhere=True)
    assert store.current("other") == group()


def test_a_chosen_builder_that_is_gone_is_none(store: Store) -> None:
    store.save(group())
    store.choose(KEY, "Box")
    store.remove("box")
    assert store.current(KEY) is None
    assert not (store.directory / "activity/Box").exists()
    with pytest.raises(NotFoundError, match=r'failed to find instance "box": open .*instances/box: no such file'):
        store.group("box")


def test_removal_forgets_builds(store: Store) -> None:
    store.save(group())
    store.remember_build("Box", "box0", "ref1", context="/c", dockerfile="/c/Dockerfile")
    path = store.directory / "refs/Box/box0/ref1"
    assert json.loads(path.read_text()) == {"Target": "default", "LocalPath": "/c", "DockerfilePath": "/c/Dockerfile"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    store.remove("Box")
    assert not path.exists()


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    store = Store(tmp_path / "none", env={})
    assert store.groups() == [] and store.current(KEY) is None
    assert not (tmp_path / "none").exists()
