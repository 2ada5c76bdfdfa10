# SPDX-License-Identifier: Apache-2.0
"""--attest, --provenance and --sbom as docker buildx takes them (builders.md 5.7, 5.11)."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from chantier.client import BuildRequest, parse_output, prepare
from chantier.client.attest import attest_attrs
from chantier.client.provenance import metadata_mode, metadata_values
from chantier.errors import UsageError


@pytest.mark.parametrize(
    ("attest", "provenance", "sbom", "expected"),
    [
        ([], None, None, {}),
        ([], "mode=max", None, {"provenance": "type=provenance,mode=max"}),
        ([], True, "true", {"provenance": "type=provenance", "sbom": "type=sbom"}),
        ([], "false", "0", {"provenance": None, "sbom": None}),
        (["type=sbom,generator=me/scan,b=2,a=1"], None, None, {"sbom": "type=sbom,a=1,b=2,generator=me/scan"}),
        (["type=provenance,mode=min"], "mode=max", None, {"provenance": "type=provenance,mode=min"}),
        (["type=provenance,disabled=true"], "mode=max", None, {"provenance": None}),
        (['type=sbom,"x=a,b"'], None, None, {"sbom": 'type=sbom,"x=a,b"'}),
    ],
)
def test_values(
    attest: list[str], provenance: bool | str | None, sbom: bool | str | None, expected: dict[str, str | None]
) -> None:
    assert attest_attrs(attest, provenance=provenance, sbom=sbom) == expected


@pytest.mark.parametrize(
    ("attest", "provenance", "message"),
    [
        ([], "max", "invalid value max"),
        (["mode=max"], None, "attestation type not specified"),
        (["type=sbom,disabled=perhaps"], None, "invalid value disabled=perhaps"),
    ],
)
def test_what_cannot_be_meant(attest: list[str], provenance: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attest_attrs(attest, provenance=provenance)


def attrs(tmp_path: Path, env: dict[str, str] | None = None, **more: object) -> dict[str, str]:
    request = BuildRequest(context=str(tmp_path), tags=("r.test/x",), **more)  # type: ignore[arg-type]
    call = prepare(request, env=env or {}).call.attested()
    return {key: value for key, value in call.attrs.items() if key.startswith("attest:")}


def test_provenance_is_attested_by_default(tmp_path: Path) -> None:
    default = {"attest:provenance": "mode=min,inline-only=true"}
    assert attrs(tmp_path) == default
    assert attrs(tmp_path, push=True) == default
    assert attrs(tmp_path, sbom=True) == {**default, "attest:sbom": "type=sbom"}
    assert attrs(tmp_path, provenance=False) == {}
    assert attrs(tmp_path, {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}) == {}
    assert attrs(tmp_path, {"BUILDX_NO_DEFAULT_ATTESTATIONS": "0"}) == default
    assert attrs(tmp_path, provenance="mode=max") == {"attest:provenance": "type=provenance,mode=max"}
    assert attrs(tmp_path, call="check") == {}
    with pytest.raises(UsageError, match="BUILDX_NO_DEFAULT_ATTESTATIONS"):
        attrs(tmp_path, {"BUILDX_NO_DEFAULT_ATTESTATIONS": "x"})


def test_the_default_is_nothing_that_an_output_cannot_carry(tmp_path: Path) -> None:
    outputs = (parse_output("type=image,push=true,oci-mediatypes=false"),)
    assert attrs(tmp_path, outputs=outputs) == {}


V1 = {
    "buildDefinition": {
        "buildType": "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md",
        "externalParameters": {
            "configSource": {"uri": "https://h.test/a.git#v1", "digest": {"sha1": "c"}, "path": "D"},
            "request": {"frontend": "dockerfile.v0", "args": {"target": "t"}},
        },
        "internalParameters": {
            "buildConfig": {"llbDefinition": []}, "builderPlatform": "linux/amd64", "dockerfileVersion": "1.26", "own": 1,
        },
        "resolvedDependencies": [{"uri": "u", "digest": {"sha256": "d"}}],
    },
    "runDetails": {
        "builder": {"id": "me"},
        "metadata": {
            "invocationID": "i", "startedOn": "s", "finishedOn": "f", "buildkit_metadata": {"vcs": {"revision": "r"}},
            "buildkit_hermetic": True, "buildkit_completeness": {"request": True, "resolvedDependencies": False},
        },
    },
}  # fmt: skip


def test_metadata_files_have_the_old_form() -> None:
    """The mapping is the table "v0.2 mapping" of protocol.md 8.3."""
    ((key, value),) = metadata_values({"": V1}, "max").items()
    assert key == "buildx.build.provenance"
    assert json.loads(base64.b64decode(value)) == {
        "builder": {"id": "me"},
        "buildType": "https://mobyproject.org/buildkit@v1",
        "materials": [{"uri": "u", "digest": {"sha256": "d"}}],
        "invocation": {
            "configSource": {"uri": "https://h.test/a.git#v1", "digest": {"sha1": "c"}, "entryPoint": "D"},
            "parameters": {"frontend": "dockerfile.v0", "args": {"target": "t"}},
            "environment": {"platform": "linux/amd64", "dockerfileVersion": "1.26", "own": 1},
        },
        "buildConfig": {"llbDefinition": []},
        "metadata": {
            "buildInvocationID": "i",
            "buildStartedOn": "s",
            "buildFinishedOn": "f",
            "completeness": {"parameters": True, "environment": True, "materials": False},
            "reproducible": False,
            "https://mobyproject.org/buildkit@v1#metadata": {"vcs": {"revision": "r"}},
            "https://mobyproject.org/buildkit@v1#hermetic": True,
        },
    }
    assert "buildConfig" in V1["buildDefinition"]["internalParameters"]  # type: ignore[operator]


def test_how_much_goes_into_metadata_files() -> None:
    brief = metadata_values({"linux/arm64": V1}, "min")["buildx.build.provenance/linux/arm64"]
    assert set(json.loads(base64.b64decode(brief))) == {"builder", "buildType", "materials", "invocation"}
    assert metadata_values({"": V1}, "disabled") == {}
    modes = [metadata_mode({"BUILDX_METADATA_PROVENANCE": text}) for text in ("", "max", "min", "disabled", "false", "0", "else")]
    assert modes == ["min", "max", "min", "disabled", "disabled", "disabled", "min"]
    assert metadata_mode({}) == "min"
