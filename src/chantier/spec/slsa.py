# SPDX-License-Identifier: Apache-2.0
"""Provenance predicates (slsa.dev/provenance): the two versions of BuildKit's, and what of them goes into metadata files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROVENANCE = "https://slsa.dev/provenance/"
_BUILD_TYPE_V02 = "https://mobyproject.org/buildkit@v1"
_METADATA_V02 = "https://mobyproject.org/buildkit@v1#metadata"
_HERMETIC_V02 = "https://mobyproject.org/buildkit@v1#hermetic"


def is_v02(predicate: Mapping[str, Any]) -> bool:
    return "buildDefinition" not in predicate


def to_v02(made: Mapping[str, Any]) -> dict[str, Any]:
    """A v1 predicate in the older form."""
    definition, run = made["buildDefinition"], made["runDetails"]
    external, internal = definition["externalParameters"], dict(definition["internalParameters"])
    source, metadata = dict(external["configSource"]), run["metadata"]
    if "path" in source:
        source["entryPoint"] = source.pop("path")
    config = internal.pop("buildConfig", None)
    out: dict[str, Any] = {"builder": run["builder"], "buildType": _BUILD_TYPE_V02}
    if dependencies := definition.get("resolvedDependencies"):
        out["materials"] = dependencies
    environment = {"platform": internal.pop("builderPlatform")} | internal
    out["invocation"] = {"configSource": source, "parameters": external["request"], "environment": environment}
    if config is not None:
        out["buildConfig"] = config
    complete = metadata["buildkit_completeness"]
    out["metadata"] = {
        "buildInvocationID": metadata["invocationID"],
        "buildStartedOn": metadata["startedOn"],
        "buildFinishedOn": metadata["finishedOn"],
        "completeness": {
            "parameters": complete["request"],
            "environment": True,
            "materials": complete["resolvedDependencies"],
        },
        "reproducible": metadata.get("buildkit_reproducible", False),
        _METADATA_V02: metadata["buildkit_metadata"],
    }
    if metadata.get("buildkit_hermetic"):
        out["metadata"][_HERMETIC_V02] = True
    return out


def brief(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """A v0.2 predicate without its graph and its metadata: what metadata files hold unless more is asked for."""
    return {key: value for key, value in predicate.items() if key not in ("buildConfig", "metadata")}


__all__ = ["PROVENANCE", "brief", "is_v02", "to_v02"]
