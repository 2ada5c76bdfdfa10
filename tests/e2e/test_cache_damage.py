# SPDX-License-Identifier: Apache-2.0
"""Caches whose blobs are damaged or gone: they are left out with a warning, and the steps that need them run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import chantier as library
from chantier.progress import Event, Warning

from ..conftest import Command, RealRegistry, run_ok, start_registry
from .test_cache import cached

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]

TEXT = """FROM alpine AS build
RUN echo built > /built
RUN cat /built > /twice
FROM alpine
COPY --from=build /twice /twice
RUN echo last > /last
"""
RIGHT = {"twice": "built\n", "last": "last\n"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[RealRegistry]:
    """A registry for caches alone: what is damaged here is in no other test's way."""
    found = start_registry(tmp_path / "caches")
    yield found
    found.stop()


@pytest.fixture
def ref(place: RealRegistry, make_command: Callable[..., Command]) -> str:
    name = f"{place.host}/cache:1"
    make_command(name="maker").build(TEXT, "--cache-to", f"type=registry,ref={name},mode=max").ok()
    return name


def layers(ref: str) -> list[dict[str, object]]:
    """All but the base image's, oldest first."""
    raw = json.loads(run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{ref}"))
    found: list[dict[str, object]] = sorted(raw["layers"], key=lambda layer: -layer["size"])[1:]
    assert len(found) == 4
    return found


def damage(place: RealRegistry, digest: object) -> None:
    """Other bytes, as many as before: the registry does not notice."""
    name = str(digest).removeprefix("sha256:")
    file = place.directory / "data/docker/registry/v2/blobs/sha256" / name[:2] / name / "data"
    file.write_bytes(os.urandom(file.stat().st_size))


def damage_all(place: RealRegistry, ref: str) -> None:
    for layer in layers(ref):
        damage(place, layer["digest"])


def warned(err: str) -> bool:
    return "the cached result of this step cannot be used, so that it runs again" in err


def right(root: Path) -> None:
    assert {name: (root / name).read_text() for name in RIGHT} == RIGHT


def test_a_step_that_stands_on_a_damaged_layer(
    place: RealRegistry, ref: str, make_command: Callable[..., Command], tmp_path: Path
) -> None:
    damage_all(place, ref)
    command = make_command(name="user")
    text = TEXT + "RUN cat /twice /last > /both\n"
    done = command.build(text, "--cache-from", ref, "-o", f"type=local,dest={tmp_path}/out").ok()
    assert warned(done.err)
    right(tmp_path / "out")
    assert (tmp_path / "out/both").read_text() == "built\nlast\n"
    again = command.build(text, "--cache-from", ref, "-o", f"type=local,dest={tmp_path}/again").ok()
    assert not warned(again.err), "what was made is not found again"
    assert again.step("RUN cat /twice /last").endswith("CACHED")
    assert command("fsck", "--deep").ok().out == "clean\n"


@pytest.mark.parametrize("number", range(4))
def test_one_damaged_layer(
    place: RealRegistry, ref: str, make_command: Callable[..., Command], tmp_path: Path, number: int
) -> None:
    damage(place, layers(ref)[number]["digest"])
    command = make_command(name="user")
    command.build(TEXT, "--cache-from", ref, "-o", f"type=local,dest={tmp_path}/out").ok()
    right(tmp_path / "out")
    assert command("fsck", "--deep").ok().out == "clean\n"


@pytest.mark.parametrize("kind", ["oci", "docker", "tar", "push", "push elsewhere"])
def test_an_export_that_needs_a_damaged_layer(
    place: RealRegistry, registry: RealRegistry, ref: str, make_command: Callable[..., Command], tmp_path: Path, kind: str
) -> None:
    """Pushed to the same registry, a layer is taken over unseen, as the bytes are never here; to another it must be read."""
    damage_all(place, ref)
    command = make_command(name="user")
    image = f"{registry.host if kind == 'push elsewhere' else place.host}/made:1"
    out = ["-t", image, "--push"] if kind.startswith("push") else ["-o", f"type={kind},dest={tmp_path}/out.tar"]
    done = command.build(TEXT, "--cache-from", ref, *out).ok()
    assert warned(done.err) == (kind != "push")
    if kind == "push elsewhere":
        text = f"FROM {image}\n"
        make_command(name="reader").build(text, "-o", f"type=local,dest={tmp_path}/out").ok()
        right(tmp_path / "out")
    elif kind == "tar":
        run_ok("tar", "-C", str(tmp_path), "-xf", str(tmp_path / "out.tar"), "twice", "last")
        right(tmp_path)
    elif kind == "oci":
        run_ok("skopeo", "copy", f"oci-archive:{tmp_path}/out.tar", f"dir:{tmp_path}/checked")


def test_a_content_key_of_a_damaged_layer(place: RealRegistry, ref: str, make_command: Callable[..., Command]) -> None:
    """COPY asks what the files are, and so what the layer holds, before it runs."""
    damage_all(place, ref)
    command = make_command(name="user")
    text = TEXT.replace("FROM alpine\nCOPY", "FROM alpine\nRUN echo new > /new\nCOPY")
    done = command.build(text, "--cache-from", ref).ok()
    assert warned(done.err)


def test_layers_that_go_after_the_import(
    place: RealRegistry, ref: str, make_command: Callable[..., Command], tmp_path: Path
) -> None:
    """A cache is taken over lazily, and then its registry loses the layers."""
    command = make_command(name="user")
    assert cached(command.build(TEXT, "--cache-from", ref).ok()) == {"CACHED"}
    for digest in {layer["digest"] for layer in layers(ref)}:
        run_ok("curl", "-fsS", "-X", "DELETE", f"http://{place.host}/v2/cache/blobs/{digest}")
    done = command.build(TEXT, "--cache-from", ref, "-o", f"type=local,dest={tmp_path}/out").ok()
    assert cached(done) == {"DONE"}
    right(tmp_path / "out")
    fresh = make_command(name="fresh").build(TEXT, "--cache-from", ref, "-o", f"type=local,dest={tmp_path}/fresh").ok()
    assert "is not in the cache" in fresh.err
    assert cached(fresh) == {"DONE"}
    right(tmp_path / "fresh")


def test_a_registry_that_goes_after_the_import(
    place: RealRegistry, ref: str, make_command: Callable[..., Command], tmp_path: Path
) -> None:
    command = make_command(name="user")
    command.build(TEXT, "--cache-from", ref).ok()
    place.stop()
    done = command.build(TEXT, "--cache-from", ref, "-o", f"type=local,dest={tmp_path}/out").ok()
    assert f"cache from {ref} is not used" in done.err
    assert warned(done.err)
    right(tmp_path / "out")


def test_a_damaged_directory(make_command: Callable[..., Command], tmp_path: Path) -> None:
    where = tmp_path / "cache"
    make_command(name="maker").build(TEXT, "--cache-to", f"type=local,dest={where},mode=max").ok()
    index = json.loads((where / "index.json").read_text())
    manifest = json.loads((where / "blobs" / index["manifests"][0]["digest"].replace(":", "/")).read_text())
    for layer in sorted(manifest["layers"], key=lambda layer: -layer["size"])[1:]:
        file = where / "blobs" / layer["digest"].replace(":", "/")
        file.chmod(0o600)
        file.write_bytes(os.urandom(file.stat().st_size))
    command = make_command(name="user")
    done = command.build(TEXT, "--cache-from", f"type=local,src={where}", "-o", f"type=local,dest={tmp_path}/out").ok()
    assert "cannot be used, so that its step runs again" in done.err
    right(tmp_path / "out")


def test_through_the_library(place: RealRegistry, ref: str, make_command: Callable[..., Command], tmp_path: Path) -> None:
    """The warning names the step that runs again, and the result says that it ran."""
    damage_all(place, ref)
    command = make_command(name="user")
    said: list[Event] = []
    with library.Builder(root=command.root, config=command.config) as builder:
        builder.build(
            dockerfile_text=TEXT.encode(), cache_from=[ref], outputs=[f"type=local,dest={tmp_path}/out"], on_event=said.append
        )
    right(tmp_path / "out")
    assert any(isinstance(event, Warning) and warned(event.short.decode()) for event in said)
