# SPDX-License-Identifier: Apache-2.0
"""What a build was made of, as an SLSA v1 predicate (slsa.dev/spec/v1.0/provenance), for its record in history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from chantier.errors import ReferenceError_
from chantier.pb import ops_pb2 as pb
from chantier.spec import Platform, Reference
from chantier.spec.times import rfc3339

BUILD_TYPE = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"


def predicate(
    ref: str, frontend: str, attrs: Mapping[str, str], sources: Iterable[pb.Op], *, started: int, completed: int, complete: bool
) -> dict[str, Any]:
    """`sources` are the source operations of the graph; `attrs` must hold nothing secret."""
    found = {entry["uri"]: entry for op in sources if (entry := _dependency(op)) is not None}
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "configSource": {"path": attrs.get("filename", "")},
                "request": {"frontend": frontend, "args": dict(attrs)},
            },
            "internalParameters": {},
            "resolvedDependencies": [found[uri] for uri in sorted(found)],
        },
        "runDetails": {
            "builder": {"id": ""},
            "metadata": {
                "invocationId": ref,
                "startedOn": rfc3339(started),
                "finishedOn": rfc3339(completed),
                "buildkit_completeness": {"request": True, "resolvedDependencies": complete},
            },
        },
    }


def _dependency(op: pb.Op) -> dict[str, Any] | None:
    scheme, _, rest = op.source.identifier.partition("://")
    if scheme in ("docker-image", "oci-layout"):
        return _image(rest, op)
    if scheme in ("http", "https"):
        return _with_digest(op.source.identifier, op.source.attrs.get("http.checksum", ""))
    if scheme == "git":
        url = op.source.attrs.get("git.fullurl", "") or f"git://{rest}"
        commit = op.source.attrs.get("git.checksum", "")
        entry: dict[str, Any] = {"uri": url.partition("?")[0]}
        return entry | ({"digest": {"sha1" if len(commit) == 40 else "sha256": commit}} if commit else {})
    return None  # local files have no name that others could use


def _image(text: str, op: pb.Op) -> dict[str, Any] | None:
    try:
        ref = Reference.parse(text)
    except ReferenceError_:
        return None
    platform = Platform(op.platform.OS, op.platform.Architecture, op.platform.Variant)
    name = ref.familiar().partition("@")[0].removesuffix(f":{ref.tag}") if ref.tag else ref.familiar().partition("@")[0]
    version = f"@{ref.tag}" if ref.tag else ""
    uri = f"pkg:docker/{name}{version}?platform={str(platform).replace('/', '%2F')}"
    return _with_digest(uri, ref.digest)


def _with_digest(uri: str, digest: str) -> dict[str, Any]:
    algorithm, _, value = digest.partition(":")
    return {"uri": uri, "digest": {algorithm: value}} if value else {"uri": uri}


__all__ = ["predicate"]
