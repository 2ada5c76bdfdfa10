# SPDX-License-Identifier: Apache-2.0
"""Caches go to registries, directories and images, and come back on another machine (another root)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import Command, RealRegistry, free_port, run_ok

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]

DATA = Path(__file__).parent.parent / "cache/data"
RECORDED = """FROM alpine AS build
WORKDIR /work
COPY src ./src
COPY src/a.txt data/c.txt /things/
RUN cat /things/*.txt > /work/out.txt
RUN --mount=type=cache,target=/cache echo hi > /cache/x && cp /cache/x /work/x
RUN --mount=type=bind,source=data,target=/data ls -l /data > /work/list
ENV FOO=bar
RUN echo $FOO > /work/foo
FROM alpine
COPY --from=build /work /app
COPY --chown=app:app data/c.txt /app/c.txt
ADD data/t.tar /unpacked/
RUN mkdir -p /var/x && echo done > /var/x/done
COPY --link data/big.bin /big/
USER app
RUN id > /tmp/id
"""
"""What Docker 26.1 built when it exported the cache config in tests/cache/data."""

MULTI = """FROM alpine AS build
RUN echo built > /built
RUN cat /built > /twice
FROM alpine
COPY --from=build /twice /twice
RUN echo last
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """The context of RECORDED, to the byte."""
    root = tmp_path / "ctx"
    (root / "src/sub").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "src/a.txt").write_text("a\n")
    (root / "src/sub/b.txt").write_text("b\n")
    (root / "data/c.txt").write_text("c\n")
    (root / "src/link").symlink_to("a.txt")
    os.chmod(root / "src/sub/b.txt", 0o755)
    (root / "data/big.bin").write_bytes(bytes(100_000))
    return root


def steps(done: object) -> dict[str, str]:
    """What became of each numbered step: CACHED, DONE or ERROR."""
    text = done.err  # type: ignore[attr-defined]
    names = dict(re.findall(r"^(#\d+) (\[[^\]]*\d+/\d+\] .*)$", text, re.M))
    return {name: "CACHED" if f"\n{number} CACHED" in text else "DONE" for number, name in names.items() if "FROM" not in name}


def cached(done: object) -> set[str]:
    return set(steps(done).values())


def records(command: Command) -> set[str]:
    import sqlite3

    db = sqlite3.connect(command.root / "chantier.db")
    try:
        return {
            *(op for (op,) in db.execute("SELECT DISTINCT op FROM key_link")),
            *(key for (key,) in db.execute("SELECT DISTINCT parent FROM key_link")),
        }
    finally:
        db.close()


def test_keys_are_those_that_docker_computed(chantier: Command, context: Path) -> None:
    # The tar of the recording is left out with its step: it held times of its own.
    text = RECORDED.replace("ADD data/t.tar /unpacked/\n", "")
    chantier.build(text, context=context).ok()
    ours = records(chantier)
    config = json.loads((DATA / "docker-26.1-config.json").read_bytes())
    steps = {record["digest"] for record in config["records"] if record.get("inputs")}
    roots = {record["digest"] for record in config["records"]} - steps
    assert len(steps - ours) == 1  # that of the tar
    # Not the two of another base image, nor the contents of the tar, of a listing with times, of what was made of it.
    assert len(roots & ours) >= 4, roots - ours


@pytest.mark.parametrize(
    "form", ["", ",image-manifest=false", ",oci-mediatypes=false", ",compression=zstd,force-compression=true"]
)
def test_a_registry_cache_serves_another_machine(
    make_command: Callable[..., Command], registry: RealRegistry, context: Path, form: str
) -> None:
    ref = f"{registry.host}/cache/all:{hashlib.sha256(form.encode()).hexdigest()[:8]}"
    text = RECORDED.replace("ADD data/t.tar /unpacked/\n", "")
    one, two = make_command(name="one"), make_command(name="two")
    done = one.build(text, "--cache-to", f"type=registry,ref={ref},mode=max{form}", context=context).ok()
    shown = done.step("exporting cache to registry")
    assert "preparing build cache for export" in shown
    assert "writing layer sha256:" in shown
    assert f"writing cache {'' if 'false' in form else 'image '}manifest sha256:" in shown
    done = two.build(text, "--cache-from", ref, context=context).ok()
    assert cached(done) == {"CACHED"}, done.err
    assert "inferred cache manifest type" in done.step(f"importing cache manifest from {ref}")
    # Nothing was fetched but documents: no step needed a layer. Now one does.
    assert "extracting" not in done.err
    done = two.build(text + "RUN cat /app/out.txt /tmp/id\n", context=context).ok()
    assert re.search(r"^#\d+ [\d.]+ uid=1000", done.err, re.M), done.err
    assert list(steps(done).values()).count("DONE") == 1


def test_mode_min_has_the_result_and_max_has_all(make_command: Callable[..., Command], registry: RealRegistry) -> None:
    one = make_command(name="one")
    for mode in ("min", "max"):
        one.build(MULTI, "--cache-to", f"type=registry,ref={registry.host}/cache/{mode}:1,mode={mode}").ok()
    changed = MULTI.replace("RUN echo last", "RUN echo other")
    for mode in ("min", "max"):
        other = make_command(name=f"root-{mode}")
        ref = f"{registry.host}/cache/{mode}:1"
        assert cached(other.build(MULTI, "--cache-from", ref).ok()) == {"CACHED"}
        fresh = make_command(name=f"fresh-{mode}")
        done = fresh.build(changed + "COPY --from=build /built /built\n", "--cache-from", ref).ok()
        found = steps(done)
        assert found["[stage-1 2/4] COPY --from=build /twice /twice"] == "CACHED"
        assert found["[build 2/3] RUN echo built > /built"] == ("CACHED" if mode == "max" else "DONE"), done.err


def test_an_imported_cache_is_exported_again(make_command: Callable[..., Command], registry: RealRegistry) -> None:
    refs = [f"{registry.host}/cache/again:{n}" for n in (1, 2)]
    make_command(name="one").build(MULTI, "--cache-to", f"type=registry,ref={refs[0]},mode=max").ok()
    make_command(name="two").build(MULTI, "--cache-from", refs[0], "--cache-to", f"type=registry,ref={refs[1]},mode=max").ok()
    assert cached(make_command(name="three").build(MULTI, "--cache-from", refs[1]).ok()) == {"CACHED"}
    configs = [json.loads(run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{ref}")) for ref in refs]
    assert {one["digest"] for one in configs[0]["layers"]} == {one["digest"] for one in configs[1]["layers"]}


def test_a_cache_in_a_directory(make_command: Callable[..., Command], tmp_path: Path) -> None:
    where = tmp_path / "cache"
    one = make_command(name="one")
    one.build(MULTI, "--cache-to", f"type=local,dest={where},mode=max").ok()
    index = json.loads((where / "index.json").read_text())
    assert [m["annotations"]["org.opencontainers.image.ref.name"] for m in index["manifests"]] == ["latest"]
    for blob in (where / "blobs/sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    assert not (where / "ingest").exists()
    one.build(MULTI + "RUN true\n", "--cache-to", f"type=local,dest={where},mode=max,tag=other").ok()
    assert len(json.loads((where / "index.json").read_text())["manifests"]) == 2
    two = make_command(name="two")
    done = two.build(MULTI, "--cache-from", f"type=local,src={where}").ok()
    assert cached(done) == {"CACHED"}, done.err
    # The directory may be gone later: what was taken from it is here.
    where.rename(tmp_path / "gone")
    done = two.build(MULTI + "RUN cat /twice\n").ok()
    assert "built" in done.step("RUN cat /twice")


def test_a_cache_inside_the_image(make_command: Callable[..., Command], registry: RealRegistry) -> None:
    image = f"{registry.host}/cache/inline:1"
    text = "FROM alpine\nRUN echo one > /one\nRUN echo two > /two\n"
    done = make_command(name="one").build(text, "-t", image, "--push", "--cache-to", "type=inline").ok()
    assert "preparing layers for inline cache" in done.err
    config = json.loads(run_ok("skopeo", "inspect", "--config", "--raw", "--tls-verify=false", f"docker://{image}"))
    assert config["moby.buildkit.cache.v0"]
    other = make_command(name="two")
    assert cached(other.build(text, "--cache-from", image).ok()) == {"CACHED"}
    done = make_command(name="three").build(text.replace("echo two", "echo 2"), "--cache-from", image).ok()
    assert list(steps(done).values()) == ["CACHED", "DONE"], done.err
    again = make_command(name="four").build(
        text, "-t", f"{image}b", "--push", "--build-arg", "BUILDKIT_INLINE_CACHE=1", "--cache-from", image
    )
    again.ok()
    raw = [run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}") for name in (image, f"{image}b")]
    first, second = (json.loads(text)["manifests"][0]["digest"] for text in raw)  # what is attested of it has other times
    assert first == second


def test_trouble_with_a_cache_is_a_warning_unless_asked_otherwise(
    make_command: Callable[..., Command], registry: RealRegistry
) -> None:
    nowhere = f"127.0.0.1:{free_port()}/no/cache"
    command = make_command()
    done = command.build(MULTI, "--cache-from", nowhere, "--cache-from", f"{registry.host}/no/such:1").ok()
    assert f"importing cache manifest from {nowhere}" in done.err
    assert f"cache from {registry.host}/no/such:1 is not used" in done.err
    image = f"{registry.host}/cache/warn:1"
    done = command.build(MULTI, "--cache-to", f"type=registry,ref={nowhere}", "-t", image, "--push").ok()
    assert "failed to export the cache, the build goes on without" in done.err
    assert done.out.startswith("sha256:")
    strict = command.build(MULTI, "--cache-to", f"type=registry,ref={nowhere},ignore-error=false", "-t", f"{image}b", "--push")
    assert strict.code != 0
    run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{image}b")  # the image went before
    for bad in ("type=nonsense", "type=registry", "type=local", "type=registry,ref=x/y,image-manifest=true,oci-mediatypes=false"):
        assert command.build(MULTI, "--cache-to", bad).code != 0


def test_an_import_whose_layers_are_gone_is_not_used(make_command: Callable[..., Command], registry: RealRegistry) -> None:
    ref = f"{registry.host}/cache/gone:1"
    make_command(name="one").build(MULTI, "--cache-to", f"type=registry,ref={ref},mode=max").ok()
    lazy = make_command(name="lazy")
    assert cached(lazy.build(MULTI, "--cache-from", ref).ok()) == {"CACHED"}
    raw = json.loads(run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{ref}"))
    for digest in {one["digest"] for one in raw["layers"]}:
        subprocess.run(["curl", "-fsS", "-X", "DELETE", f"http://{registry.host}/v2/cache/gone/blobs/{digest}"], check=True)
    done = make_command(name="two").build(MULTI, "--cache-from", ref).ok()
    assert "DONE" in cached(done)
    # Who took the cache over and has not its bytes yet runs the steps again when they are needed.
    done = lazy.build(MULTI + "RUN cat /twice\n").ok()
    assert "built" in done.step("RUN cat /twice")


def test_a_damaged_blob_is_left_out_of_the_cache(make_command: Callable[..., Command], registry: RealRegistry) -> None:
    one = make_command(name="one")
    one.build(MULTI, "--cache-to", f"type=registry,ref={registry.host}/cache/whole:1,mode=max").ok()
    whole = json.loads(run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry.host}/cache/whole:1"))
    victim = min(whole["layers"], key=lambda one: one["size"])["digest"]
    blob = one.root / "blobs/sha256" / victim[7:9] / victim[7:]
    size = blob.stat().st_size
    blob.chmod(0o600)
    blob.write_bytes(os.urandom(size))
    ref = f"{registry.host}/elsewhere/part:1"
    done = one.build(MULTI, "--cache-to", f"type=registry,ref={ref},mode=max").ok()
    part = json.loads(run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{ref}"))
    named = {layer["digest"] for layer in part["layers"]}
    assert victim not in named or "mounted" in done.err
    done = make_command(name="two").build(MULTI, "--cache-from", ref).ok()
    assert "CACHED" in cached(done)  # the rest of the cache is as good as before


def test_a_miss_names_what_changed(chantier: Command, tmp_path: Path) -> None:
    context = tmp_path / "ctx"
    (context / "src").mkdir(parents=True)
    for name in ("a", "b"):
        (context / "src" / name).write_text(name)
    text = "FROM alpine\nARG V=1\nCOPY src /s/\nRUN echo $V\n"
    chantier.build(text, "--explain", context=context).ok()
    (context / "src/a").write_text("changed")
    os.chmod(context / "src/b", 0o600)
    done = chantier.build(text, "--explain", context=context).ok()
    assert "src/a: content changed; src/b: mode 644 became 600" in done.err
    done = chantier.build(text, "--explain", "--build-arg", "V=2", context=context).ok()
    assert 'variable V: "1" became "2"' in done.err
