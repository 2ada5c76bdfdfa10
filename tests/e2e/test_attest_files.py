# SPDX-License-Identifier: Apache-2.0
"""SBOMs by a scanner image, and attestations as files beside plain results (protocol.md 8.4, 8.5)."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Command, RealRegistry
from ..daemon.conftest import Start, start_daemon
from .test_attestations import check_statement, context, pushed

__all__ = ["context", "start_daemon"]
pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]

# A scanner as sbom-protocol has them: a statement for the result, and one for each tree beside it.
SCAN = r"""
set -e
one() {  # name, tree
  files=; for f in $(cd "$2" && find . -type f | sort); do files="$files${files:+,}{\"fileName\":\"${f#.}\"}"; done
  printf '{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":
    {"spdxVersion":"SPDX-2.3","name":"%s","comment":"%s","creationInfo":{"creators":["Tool: test"]},"files":[%s]}}' \
    "$1" "$BUILDKIT_SCAN_DEPTH" "$files" >"$BUILDKIT_SCAN_DESTINATION/$1.spdx.json"
}
if touch "$BUILDKIT_SCAN_SOURCE/x" 2>/dev/null; then exit 1; fi
one sbom "$BUILDKIT_SCAN_SOURCE"
for extra in ${BUILDKIT_SCAN_SOURCE_EXTRAS:+"$BUILDKIT_SCAN_SOURCE_EXTRAS"/*}; do one "${extra##*/}" "$extra"; done
"""
TEXT = """ARG BUILDKIT_SBOM_SCAN_CONTEXT=true
FROM alpine AS base
ARG BUILDKIT_SBOM_SCAN_STAGE=true
RUN echo built > /built
FROM scratch
COPY --from=base /built /built
COPY f /f
"""


@pytest.fixture
def scanner(chantier: Command, registry: RealRegistry, tmp_path: Path) -> str:
    where = tmp_path / "scanner"
    where.mkdir()
    (where / "scan.sh").write_text(SCAN)
    name = f"{registry.host}/attest/scanner:1"
    text = 'FROM alpine\nCOPY scan.sh /scan.sh\nENTRYPOINT ["/bin/sh", "/scan.sh"]\n'
    chantier.build(text, "-t", name, "--push", "--provenance=false", context=where).ok()
    return name


def test_a_scanner_describes_the_image_and_what_it_was_built_from(
    chantier: Command, registry: RealRegistry, context: Path, scanner: str
) -> None:
    (context / "Dockerfile").write_text(TEXT)
    name = f"{registry.host}/attest/sbom:1"
    done = chantier(
        "build", "--progress=plain", "-t", name, "--push", f"--attest=type=sbom,generator={scanner},DEPTH=7", str(context)
    ).ok()
    assert f"[linux/amd64] generating sbom using {scanner}" in done.err
    found = pushed(registry, "attest/sbom", "1")
    (image,) = found.images()
    manifest, statements = found.of(image["digest"])
    kinds = [layer["annotations"]["in-toto.io/predicate-type"] for layer in manifest["layers"]]
    assert kinds == ["https://spdx.dev/Document"] * 3 + ["https://slsa.dev/provenance/v1"]
    core, *extras = [check_statement(one, image, name) for one in statements[:3]]
    assert [one["name"] for one in (core, *extras)] == ["sbom", "sbom-base", "sbom-context"]
    assert core["comment"] == "7"
    layers = [layer["digest"] for layer in found.get(f"manifests/{image['digest']}")["layers"]]
    assert {one["fileName"]: one["comment"] for one in core["files"]} == {
        "/built": f"layerID: {layers[0]}", "/f": f"layerID: {layers[1]}",
    }  # fmt: skip
    assert [creator.partition("-")[0] for creator in core["creationInfo"]["creators"]] == ["Tool: test", "Tool: chantier"]
    assert "/built" in [one["fileName"] for one in extras[0]["files"]]
    assert {one["fileName"] for one in extras[1]["files"]} >= {"/f"}
    assert all("comment" not in one for one in extras[0]["files"])
    dependencies = statements[3]["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert any("attest/scanner" in one["uri"] for one in dependencies)
    again = chantier(
        "build", "--progress=plain", "-t", name, "--push", f"--attest=type=sbom,generator={scanner},DEPTH=7", str(context)
    ).ok()
    assert again.step("generating sbom").endswith("CACHED")


def test_a_graph_without_a_frontend_is_scanned_by_the_engine(
    chantier: Command, registry: RealRegistry, scanner: str, tmp_path: Path
) -> None:
    from chantier import Builder
    from chantier.llb import scratch

    with Builder(root=chantier.root, config=chantier.config) as builder:
        graph = scratch().mkfile("/made", b"made")
        builder.solve(graph, outputs=[f"type=local,dest={tmp_path}/out"], sbom=f"generator={scanner}", provenance="mode=max")
    sbom = json.loads((tmp_path / "out/sbom.spdx.json").read_text())
    assert [one["fileName"] for one in sbom["predicate"]["files"]] == ["/made"]
    made = json.loads((tmp_path / "out/provenance.json").read_text())
    assert "frontend" not in made["predicate"]["buildDefinition"]["externalParameters"]["request"]
    assert made["predicate"]["runDetails"]["metadata"]["buildkit_completeness"]["request"] is False


def test_images_that_are_no_scanners(chantier: Command, context: Path, registry: RealRegistry) -> None:
    refused = chantier("build", "-t", f"{registry.host}/attest/x:1", "--push", "--sbom=generator=", str(context))
    assert "sbom generator cannot be empty" in refused.err
    (context / "Dockerfile").write_text("FROM scratch\nCOPY f /\n")
    name = f"{registry.host}/attest/dumb:1"
    chantier("build", "-t", name, "--push", "--provenance=false", str(context)).ok()
    refused = chantier("build", "-o", str(context.parent / "o"), f"--sbom=generator={name}", str(context))
    assert f"scanner {name} does not have cmd" in refused.err


def subjects(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [{"name": name, "digest": {"sha256": hashlib.sha256(data).hexdigest()}} for name, data in files.items()]


def files_of(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.isfile()]
        assert all(member.mode == 0o600 for member in members if member.name.endswith(".json"))
        return {member.name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]


@pytest.mark.parametrize("remote", [False, True], ids=["embedded", "daemon"])
def test_files_beside_the_result(chantier: Command, start_daemon: Start, context: Path, tmp_path: Path, remote: bool) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /d/\nCOPY f /zz\n")
    (context / "Dockerfile.dockerignore").write_text("Dockerfile*\n")
    builder = ["--builder", start_daemon().address] if remote else []

    def build(*args: str) -> None:
        done = chantier("build", *builder, *args, "--provenance=mode=max", str(context))
        assert done.code == 0, done.err

    build("-o", f"{tmp_path}/out", "-o", f"type=tar,dest={tmp_path}/out.tar")
    assert sorted(os.listdir(tmp_path / "out")) == ["d", "provenance.json", "zz"]
    place = tmp_path / "out/provenance.json"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    statement = json.loads(place.read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == subjects({"d/f": b"file", "zz": b"file"})
    packed = files_of(tmp_path / "out.tar")
    assert set(packed) == {"d/f", "zz", "provenance.json"}
    assert json.loads(packed["provenance.json"])["subject"] == statement["subject"]

    two = "--platform=linux/amd64,linux/arm64"
    build("-o", f"type=local,dest={tmp_path}/two,attestation-prefix=a-", "-o", f"type=tar,dest={tmp_path}/two.tar", two)
    for platform in ("linux_amd64", "linux_arm64"):
        assert sorted(os.listdir(tmp_path / "two" / platform)) == ["a-provenance.json", "d", "zz"]
    assert f"{platform}/provenance.json" in files_of(tmp_path / "two.tar")


@pytest.mark.parametrize("remote", [False, True], ids=["embedded", "daemon"])
def test_platforms_in_one_folder(chantier: Command, start_daemon: Start, context: Path, tmp_path: Path, remote: bool) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nARG TARGETARCH\nCOPY f /all/$TARGETARCH\n")
    builder = ["--builder", start_daemon().address] if remote else []
    output = f"type=local,dest={tmp_path}/one,platform-split=false"
    chantier("build", *builder, "-o", output, "--platform=linux/amd64,linux/arm64", "--provenance=mode=min", str(context)).ok()
    assert sorted(os.listdir(tmp_path / "one")) == ["all", "provenance.linux_amd64.json", "provenance.linux_arm64.json"]
    assert sorted(os.listdir(tmp_path / "one/all")) == ["amd64", "arm64"]
    statement = json.loads((tmp_path / "one/provenance.linux_arm64.json").read_text())
    assert statement["subject"] == subjects({"all/arm64": b"file"})


def test_the_name_of_a_file_that_is_taken(make_command: Callable[..., Command], context: Path, tmp_path: Path) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY f /provenance.json\n")
    command = make_command()
    refused = command("build", "-o", f"{tmp_path}/out", "--provenance=mode=min", str(context))
    assert refused.code == 1
    assert "cannot write attestation provenance.json" in refused.err
    command("build", "-o", f"type=local,dest={tmp_path}/out,attestation-prefix=x-", "--provenance=mode=min", str(context)).ok()
    assert sorted(os.listdir(tmp_path / "out")) == ["provenance.json", "x-provenance.json"]
