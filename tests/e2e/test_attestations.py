# SPDX-License-Identifier: Apache-2.0
"""Attestations beside images: what is pushed and archived, read back by other programs; a stock BuildKit says the same."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Command, RealRegistry, run_ok
from .peers import Engine, start_engine

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]

TEXT = """FROM {base} AS build
ARG WHO=nobody
RUN --mount=type=secret,id=tok --network=none echo "hello $WHO" > /greeting
FROM scratch
COPY --from=build /greeting /
COPY f /
"""
_ACCEPT = "application/vnd.oci.image.index.v1+json,application/vnd.oci.image.manifest.v1+json"


@dataclass
class Pushed:
    """An index in a registry: its images and what is attested of each."""

    host: str
    name: str
    index: dict[str, Any] = field(default_factory=dict)

    def get(self, path: str) -> Any:
        request = urllib.request.Request(f"http://{self.host}/v2/{self.name}/{path}", headers={"Accept": _ACCEPT})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def of(self, digest: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The attestation manifest of an image, and its statements."""
        (entry,) = [
            one for one in self.index["manifests"] if (one.get("annotations") or {}).get("vnd.docker.reference.digest") == digest
        ]
        assert entry["annotations"]["vnd.docker.reference.type"] == "attestation-manifest"
        assert entry["platform"] == {"architecture": "unknown", "os": "unknown"}
        manifest = self.get(f"manifests/{entry['digest']}")
        return manifest, [self.get(f"blobs/{layer['digest']}") for layer in manifest["layers"]]

    def images(self) -> list[dict[str, Any]]:
        return [one for one in self.index["manifests"] if one["platform"]["os"] != "unknown"]


def pushed(registry: RealRegistry, name: str, tag: str) -> Pushed:
    found = Pushed(registry.host, name)
    found.index = found.get(f"manifests/{tag}")
    assert found.index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    return found


@pytest.fixture
def context(tmp_path: Path) -> Path:
    where = tmp_path / "ctx"
    where.mkdir()
    (where / "f").write_text("file")
    (where / "Dockerfile").write_text(TEXT.format(base="alpine"))
    (tmp_path / "secret").write_text("hunter2")
    return where


def check_statement(statement: dict[str, Any], image: dict[str, Any], name: str) -> dict[str, Any]:
    """in-toto Statement v1; the predicate."""
    assert list(statement) == ["_type", "predicateType", "subject", "predicate"]
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    (subject,) = statement["subject"]
    host, _, rest = name.partition("/")
    platform = f"{image['platform']['os']}%2F{image['platform']['architecture']}"
    assert subject == {
        "name": f"pkg:docker/{host.replace(':', '%3A')}/{rest.replace(':', '@')}?platform={platform}",
        "digest": {"sha256": image["digest"].removeprefix("sha256:")},
    }
    found: dict[str, Any] = statement["predicate"]
    return found


def test_max(chantier: Command, registry: RealRegistry, context: Path, tmp_path: Path) -> None:
    """Shapes and values of protocol.md 8.1 to 8.3."""
    name = f"{registry.host}/attest/max:1"
    chantier(
        "build", "--progress=plain", "-t", name, "--push", "--provenance=mode=max,builder-id=https://me.test/b", "--build-arg=WHO=me",
        "--secret", f"id=tok,src={tmp_path}/secret", "--metadata-file", str(tmp_path / "md"), str(context),
    ).ok()  # fmt: skip
    found = pushed(registry, "attest/max", "1")
    (image,) = found.images()
    manifest, (statement,) = found.of(image["digest"])
    assert manifest["artifactType"] == "application/vnd.docker.attestation.manifest.v1+json"
    assert manifest["subject"] == {key: image[key] for key in ("mediaType", "digest", "size")}
    assert manifest["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json", "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}", "size": 2,
        "data": base64.b64encode(b"{}").decode(),
    }  # fmt: skip
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.in-toto+json"
    assert layer["annotations"] == {"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"}
    predicate = check_statement(statement, image, name)
    assert set(predicate) == {"buildDefinition", "runDetails"}
    definition, run = predicate["buildDefinition"], predicate["runDetails"]
    (base,) = definition["resolvedDependencies"]
    assert base["uri"] == "pkg:docker/alpine@latest?platform=linux%2Famd64"
    assert re.fullmatch("[0-9a-f]{64}", base["digest"]["sha256"])
    request = definition["externalParameters"]["request"]
    assert request["args"] == {"build-arg:WHO": "me"}
    assert request["secrets"] == [{"id": "tok", "optional": True}]
    assert request["locals"] == [{"name": "context"}, {"name": "dockerfile"}]
    steps = definition["internalParameters"]["buildConfig"]
    assert sorted(steps["digestMapping"].values()) == sorted(step["id"] for step in steps["llbDefinition"])
    assert run["builder"] == {"id": "https://me.test/b"}
    assert run["metadata"]["startedOn"] < run["metadata"]["finishedOn"]
    source = run["metadata"]["buildkit_metadata"]["source"]
    assert base64.b64decode(source["infos"][0]["data"]).decode() == TEXT.format(base="alpine")
    layers = run["metadata"]["buildkit_metadata"]["layers"]
    last = steps["llbDefinition"][-2]["id"]
    own = found.get(f"manifests/{image['digest']}")["layers"]
    assert [one["digest"] for one in layers[f"{last}:0"][0]] == [one["digest"] for one in own]
    assert "hunter2" not in json.dumps(statement)
    metadata = json.loads((tmp_path / "md").read_text())
    assert "containerimage.config.digest" not in metadata
    assert metadata["containerimage.descriptor"]["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert set(metadata["buildx.build.provenance"]) == {"builder", "buildType", "materials", "invocation"}
    again = chantier(
        "build", "-q", "-t", f"{registry.host}/attest/max:2", "--push", "--provenance=mode=max", "--build-arg=WHO=me",
        "--secret", f"id=tok,src={tmp_path}/secret", str(context),
    ).ok()  # fmt: skip
    cached = pushed(registry, "attest/max", "2")
    assert again.out.strip().startswith("sha256:")
    (same,) = cached.images()
    assert same["digest"] == image["digest"]
    layers_now = cached.of(same["digest"])[1][0]["predicate"]["runDetails"]["metadata"]["buildkit_metadata"]["layers"]
    assert layers_now == layers  # also where nothing ran


def test_by_default_the_least_is_told_and_only_to_registries(chantier: Command, registry: RealRegistry, context: Path) -> None:
    name = f"{registry.host}/attest/min:1"
    out, docker = context.parent / "oci.tar", context.parent / "docker.tar"
    chantier(
        "build", "-t", name, "--push", "-o", f"type=oci,dest={out}", "-o", f"type=docker,dest={docker}", "-o", str(context.parent / "tree"),
        "--build-arg=WHO=me", str(context),
    ).ok()  # fmt: skip
    found = pushed(registry, "attest/min", "1")
    (image,) = found.images()
    request = check_statement(found.of(image["digest"])[1][0], image, name)["buildDefinition"]["externalParameters"]["request"]
    assert "args" not in request and "secrets" not in request
    for archive in (out, docker):
        with tarfile.open(archive) as tar:
            member = tar.extractfile("index.json")
            assert member is not None
            (entry,) = json.load(member)["manifests"]
        assert entry["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        assert entry["digest"] == image["digest"]
    assert sorted(os.listdir(context.parent / "tree")) == ["f", "greeting"]
    off = chantier("build", "-t", f"{registry.host}/attest/off:1", "--push", "--provenance=false", str(context)).ok()
    raw = run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry.host}/attest/off:1")
    assert json.loads(raw)["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert off.out.strip() == "sha256:" + hashlib.sha256(raw.encode()).hexdigest()


def test_two_platforms_and_the_older_manifest(chantier: Command, registry: RealRegistry, context: Path) -> None:
    name = f"{registry.host}/attest/two:1"
    (context / "Dockerfile").write_text("FROM scratch\nCOPY f /\n")
    chantier(
        "build", "-o", f"type=image,push=true,name={name},oci-artifact=false", "--platform=linux/amd64,linux/arm64",
        "--provenance=mode=max,version=v0.2", str(context),
    ).ok()  # fmt: skip
    found = pushed(registry, "attest/two", "1")
    kinds = [one["platform"]["os"] for one in found.index["manifests"]]
    assert kinds == ["linux", "linux", "unknown", "unknown"]
    for image in found.images():
        manifest, (statement,) = found.of(image["digest"])
        assert "artifactType" not in manifest and "subject" not in manifest
        (layer,) = manifest["layers"]
        assert found.get(f"blobs/{manifest['config']['digest']}") == {
            "architecture": "unknown", "os": "unknown", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        }  # fmt: skip
        predicate = check_statement(statement, image, name)
        assert statement["predicateType"] == "https://slsa.dev/provenance/v0.2"
        assert predicate["invocation"]["environment"]["platform"] == "linux/amd64"


def test_other_programs_take_the_images(chantier: Command, registry: RealRegistry, context: Path, tmp_path: Path) -> None:
    name, out = f"{registry.host}/attest/read:1", tmp_path / "oci.tar"
    chantier("build", "-t", name, "--push", "-o", f"type=oci,dest={out}", "--provenance=mode=max", str(context)).ok()
    run_ok("skopeo", "copy", "--all", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/all:a")
    run_ok("skopeo", "copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/one:a")
    run_ok("skopeo", "copy", f"oci-archive:{out}", f"oci:{tmp_path}/archive:a")
    for layout in ("one", "archive"):
        run_ok("umoci", "unpack", "--image", f"{tmp_path}/{layout}:a", f"{tmp_path}/{layout}-bundle")
        assert (tmp_path / f"{layout}-bundle/rootfs/f").read_text() == "file"


def test_attestations_need_oci_documents(chantier: Command, registry: RealRegistry, context: Path) -> None:
    output = f"type=image,push=true,name={registry.host}/attest/docker:1,oci-mediatypes=false"
    refused = chantier("build", "-o", output, "--provenance=mode=max", str(context))
    assert refused.code == 1
    assert 'cannot export attestations with "oci-mediatypes=false"' in refused.err
    chantier("build", "-o", output, str(context)).ok()
    raw = json.loads(run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry.host}/attest/docker:1"))
    assert raw["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"


def test_complete_materials_are_demanded(chantier: Command, registry: RealRegistry, context: Path) -> None:
    refused = chantier(
        "build", "-t", f"{registry.host}/attest/no:1", "--push", "--provenance=mode=max,complete-materials=true", str(context)
    )
    assert refused.code == 1
    assert "provenance materials are incomplete" in refused.err
    assert "  - context\n" in refused.err


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, registry: RealRegistry) -> Iterator[Engine]:
    """BuildKit in a dockerd with containerd's image store: without that it attests nothing."""
    directory = tmp_path_factory.mktemp("peer")
    config = {"features": {"containerd-snapshotter": True}, "storage-driver": "overlayfs"}
    with start_engine(directory, config) as started:
        plugins = directory / "config/cli-plugins"
        plugins.mkdir(parents=True)
        shutil.copy(started.programs / "usr/libexec/docker/cli-plugins/docker-buildx", plugins)
        yield started


def normal(predicate: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between two builds, and between that version of BuildKit and the one we speak as."""
    found: dict[str, Any] = json.loads(json.dumps(predicate))
    del found["invocation"]["parameters"]["compatibilityVersion"]
    del found["invocation"]["environment"]["dockerfileVersion"]
    return normal_of_peer(found)


def normal_of_peer(found: dict[str, Any]) -> dict[str, Any]:
    metadata = found["metadata"]
    for key in ("buildInvocationID", "buildStartedOn", "buildFinishedOn"):
        assert metadata.pop(key)
    details = metadata["https://mobyproject.org/buildkit@v1#metadata"]
    details["layers"] = {step: [len(chain) for chain in chains] for step, chains in details["layers"].items()}
    for config in (found["buildConfig"], *details["source"]["infos"]):
        config["digestMapping"] = sorted(config["digestMapping"].values())
        for step in config["llbDefinition"]:
            step["op"]["Op"] = _bare(step["op"]["Op"] or {})
    return found


def _bare(op: dict[str, Any]) -> dict[str, Any]:
    """Old versions write zero numbers of mounts, and how the engine's own images are resolved."""
    op.get("source", {}).pop("attrs", None)
    for mount in op.get("exec", {}).get("mounts", ()):
        for key in ("input", "output"):
            mount.pop(key, None)
    return op


@pytest.mark.network
@pytest.mark.docker
@pytest.mark.slow
def test_a_stock_buildkit_says_the_same(
    make_command: Callable[..., Command], registry: RealRegistry, context: Path, tmp_path: Path, engine: Engine
) -> None:
    (context / "Dockerfile").write_text(TEXT.format(base=f"{registry.host}/library/alpine"))
    theirs, ours = f"{registry.host}/attest/theirs:1", f"{registry.host}/attest/ours:1"
    args = ["--push", "--build-arg", "WHO=me", "--label", "a=b", "--secret", f"id=tok,src={tmp_path}/secret", str(context)]
    env = {**os.environ, "DOCKER_HOST": engine.address, "DOCKER_CONFIG": str(engine.directory / "config")}
    done = subprocess.run(
        [engine.programs / "usr/bin/docker", "buildx", "build", "--provenance=mode=max", "-t", theirs, *args],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    make_command()("build", "--provenance=mode=max,version=v0.2", "-t", ours, *args).ok()
    predicates = []
    for name in ("attest/theirs", "attest/ours"):
        found = pushed(registry, name, "1")
        (image,) = found.images()
        _, (statement,) = found.of(image["digest"])
        assert statement["predicateType"] == "https://slsa.dev/provenance/v0.2"
        predicates.append(statement["predicate"])
    assert normal(predicates[1]) == normal_of_peer(predicates[0])
    # And that engine runs ours.
    docker = [str(engine.programs / "usr/bin/docker"), "-H", engine.address]
    pulled = subprocess.run([*docker, "pull", "-q", ours], capture_output=True, text=True, timeout=300, check=False)
    assert pulled.returncode == 0, pulled.stderr
    container = run_ok(*docker, "create", ours, "/f").strip()
    run_ok(*docker, "cp", f"{container}:/f", str(tmp_path / "copied"))
    assert (tmp_path / "copied").read_text() == "file"
