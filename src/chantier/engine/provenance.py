# SPDX-License-Identifier: Apache-2.0
"""How a build's result came about, as an SLSA predicate (slsa.dev/provenance/v1 and v0.2; protocol.md 8.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chantier.errors import UsageError
from chantier.export import parse_bool
from chantier.spec import host_platform
from chantier.spec.times import rfc3339
from chantier.values import dataclass, field

from .asked import Asked
from .materials import Materials

V1, V02 = "v1", "v0.2"
_BUILD_TYPE = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
_LEVEL = 30  # of BuildKit's compatibility: what the exporters write
_PRIVATE = ("build-arg:", "label:")
BUILT_IN = frozenset({"buildConfig", "builderPlatform", "platform", "dockerfileVersion"})


def predicate_type(version: str) -> str:
    return f"https://slsa.dev/provenance/{version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenanceOptions:
    """What `attest:provenance` asks for. `complete` makes a build fail whose materials cannot all be listed."""

    version: str = V1
    all: bool = True
    builder_id: str = ""
    reproducible: bool = False
    inline_only: bool = False
    complete: bool = False
    filename: str = "provenance.json"

    @classmethod
    def parse(cls, attrs: Mapping[str, str]) -> ProvenanceOptions:
        """Raises UsageError."""
        mode = attrs.get("mode", "max")
        if mode not in ("min", "max", "full"):
            raise UsageError(f'invalid mode "{mode}"', hint="modes of provenance are min and max")
        version = attrs.get("version", V1)
        if version not in (V1, V02):
            raise UsageError(f"invalid provenance SLSA version: {version}", hint=f"versions are {V1} and {V02}")
        return cls(
            version=version,
            all=mode != "min",
            builder_id=attrs.get("builder-id", ""),
            reproducible=parse_bool("reproducible", attrs.get("reproducible", "false"), bare=False),
            inline_only=attrs.get("inline-only", "").lower() in ("1", "t", "true"),
            complete=parse_bool("complete-materials", attrs.get("complete-materials", "false"), bare=False),
            filename=attrs.get("filename", "provenance.json"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Times are nanoseconds since the epoch. `custom` is what the daemon's owner adds to the environment."""

    ref: str
    started: int
    completed: int
    dockerfile_version: str = ""
    custom: Mapping[str, Any] = field(default_factory=dict)


def predicate(asked: Asked, materials: Materials, options: ProvenanceOptions, facts: Facts) -> dict[str, Any]:
    """The v1 form, without what only `mode=max` adds of the graph (`with_graph`)."""
    external = asked.request(materials)
    request = external["request"]
    vcs = _take_vcs(request)
    if materials.secrets:
        request["secrets"] = _named(materials.secrets)
    if materials.ssh:
        request["ssh"] = _named(materials.ssh)
    if materials.locals:
        request["locals"] = [{"name": name} for name in sorted(materials.locals)]
    complete = {"request": bool(request.get("frontend")), "resolvedDependencies": materials.complete}
    if not options.all and scrub(request):
        complete["request"] = False
    request["compatibilityVersion"] = _LEVEL
    definition: dict[str, Any] = {"buildType": _BUILD_TYPE}
    if listed := materials.listed():
        definition["resolvedDependencies"] = listed
    internal: dict[str, Any] = {"builderPlatform": str(host_platform().normalise())}
    if request.get("frontend") == "dockerfile.v0" and facts.dockerfile_version:
        internal["dockerfileVersion"] = facts.dockerfile_version
    metadata: dict[str, Any] = {
        "invocationID": facts.ref,
        "startedOn": rfc3339(facts.started),
        "finishedOn": rfc3339(facts.completed),
        "buildkit_metadata": {"vcs": vcs} if vcs else {},
    }
    if materials.complete and not materials.network:
        metadata["buildkit_hermetic"] = True
    metadata["buildkit_completeness"] = complete
    if options.reproducible:
        metadata["buildkit_reproducible"] = True
    return {
        "buildDefinition": definition
        | {"externalParameters": external, "internalParameters": internal | dict(sorted(facts.custom.items()))},
        "runDetails": {"builder": {"id": options.builder_id}, "metadata": metadata},
    }


def with_graph(
    made: dict[str, Any], config: Mapping[str, Any], source: Mapping[str, Any] | None, layers: Mapping[str, Any]
) -> dict[str, Any]:
    """What `mode=max` adds: the steps, the lines of the user's files, the layers by step."""
    internal = made["buildDefinition"]["internalParameters"]
    details = made["runDetails"]["metadata"]["buildkit_metadata"]
    if config:
        made["buildDefinition"]["internalParameters"] = {"buildConfig": config, **internal}
    if source is not None:
        details["source"] = source
    if layers:
        details["layers"] = dict(sorted(layers.items()))
    return made


def scrub(request: dict[str, Any]) -> bool:
    """Take out of a request what `mode=min` does not tell; whether something of the arguments went."""
    args = request.get("args") or {}
    kept = {key: value for key, value in args.items() if not key.startswith(_PRIVATE)}
    taken = len(kept) != len(args)
    if kept:
        request["args"] = kept
    else:
        request.pop("args", None)
    request.pop("secrets", None)
    request.pop("ssh", None)
    for other in (*(request.get("inputs") or {}).values(), *([request["root"]] if "root" in request else [])):
        taken |= scrub(other["request"])
    return taken


def _take_vcs(request: dict[str, Any]) -> dict[str, str]:
    """`vcs:source` and its kin describe the user's checkout: they stand elsewhere."""
    args = request.get("args") or {}
    vcs = {key.removeprefix("vcs:"): args.pop(key) for key in [key for key in args if key.startswith("vcs:")]}
    if "args" in request and not args:
        del request["args"]
    return {key: value for key, value in sorted(vcs.items()) if value}


def _named(ids: Mapping[str, bool]) -> list[dict[str, Any]]:
    return [{"id": id} | ({"optional": True} if ids[id] else {}) for id in sorted(ids)]


__all__ = [
    "BUILT_IN",
    "V02",
    "V1",
    "Facts",
    "ProvenanceOptions",
    "predicate",
    "predicate_type",
    "scrub",
    "with_graph",
]
