# SPDX-License-Identifier: Apache-2.0
"""What is said of the engine: one worker, its labels, platforms, limits; versions; what it is capable of (protocol.md 5)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from chantier import __version__
from chantier.config import gc_rules
from chantier.engine import DOCKERFILE_VERSION
from chantier.kernel.temporary import write_whole
from chantier.pb import caps_pb2, ops_pb2, worker_pb2
from chantier.spec import Platform, new_id

if TYPE_CHECKING:
    from pathlib import Path

    from chantier.engine import Engine

_LABEL = "org.mobyproject.buildkit.worker."

# What a frontend may ask of the gateway (protocol.md 5.3): each of these works.
GATEWAY_CAPS = (
    "frontend.caps",
    "frontend.inputs",
    "gateway.evaluate",
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.filesystem",
    "gateway.exec.secretenv",
    "gateway.exec.signals",
    "gateway.solve.evaluate",
    "gateway.solve.metadata",
    "gateway.warnings",
    "importcaches",
    "proto.refarray",
    "readdir",
    "readfile",
    "reference.attestations",
    "reference.output",
    "resolveimage",
    "resolveimage.resolvemode",
    "return",
    "returnmap",
    "solve.base",
    "solve.inlinereturn",
    "source.metaresolver",
    "source.metaresolver.http.checksumrequest",
    "source.metaresolver.image.attestations",
    "statfile",
)
# What the daemon adds to the engine's own list: exporters and history.
_OWN_CAPS = (
    "exporter.multiple",
    "exporter.sourcedateepoch",
    "gc.freespacefilter",
    "history.filter",
    "exporter.image.annotations",
    "exporter.image.attestations",
)


def version() -> worker_pb2.BuildkitVersion:
    return worker_pb2.BuildkitVersion(
        package="chantier", version=f"v{__version__}", revision="", dockerfileVersion=DOCKERFILE_VERSION
    )


def worker_id(root: Path) -> str:
    """The same for one state directory always."""
    path = root / "workerid"
    try:
        found = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        found = ""
    if not found:
        found = new_id()
        write_whole(path, found.encode())
    return found


def worker_record(engine: Engine, *, brief: bool = False) -> worker_pb2.WorkerRecord:
    """`brief` is what frontends are told: id, labels, platforms."""
    record = worker_pb2.WorkerRecord(ID=worker_id(engine.path), Labels=labels(engine))
    record.platforms.extend(to_pb(platform) for platform in engine.platforms)
    if brief:
        return record
    record.BuildkitVersion.CopyFrom(version())
    if engine.devices is not None:
        for device in engine.devices.every():
            allowed = engine.devices.auto_allowed(device)
            record.CDIDevices.add(Name=device.name, AutoAllow=allowed, Annotations=dict(device.annotations))
    for rule in gc_rules(engine.config.worker_oci, engine.disk().total):
        record.GCPolicy.add(
            all=rule.all,
            filters=list(rule.filters),
            keepDuration=int(rule.keep_duration_s * 1e9),
            reservedSpace=rule.reserved_bytes,
            maxUsedSpace=rule.max_used_bytes,
            minFreeSpace=rule.min_free_bytes,
        )
    return record


def labels(engine: Engine) -> dict[str, str]:
    oci = engine.config.worker_oci
    found = {
        "executor": "oci",
        "snapshotter": engine.snapshotter_name,
        "hostname": socket.gethostname(),
        "network": engine.networks.mode,
        "oci.process-mode": "no-sandbox" if oci.no_process_sandbox else "sandbox",
        "selinux.enabled": "true" if oci.selinux else "false",
    }
    if oci.apparmor_profile:
        found["apparmor.profile"] = oci.apparmor_profile
    return {_LABEL + name: value for name, value in found.items()} | dict(oci.labels)


def llb_caps(engine: Engine) -> list[caps_pb2.APICap]:
    return caps([*engine.caps, *_OWN_CAPS])


def caps(names: Sequence[str]) -> list[caps_pb2.APICap]:
    return [caps_pb2.APICap(ID=name, Enabled=True, Deprecated=name == "solve.inlinereturn") for name in sorted(set(names))]


def to_pb(platform: Platform) -> ops_pb2.Platform:
    return ops_pb2.Platform(
        OS=platform.os,
        Architecture=platform.architecture,
        Variant=platform.variant,
        OSVersion=platform.os_version,
        OSFeatures=list(platform.os_features),
    )


def from_pb(platform: ops_pb2.Platform) -> Platform:
    return Platform(
        os=platform.OS,
        architecture=platform.Architecture,
        variant=platform.Variant,
        os_version=platform.OSVersion,
        os_features=tuple(platform.OSFeatures),
    ).normalise()


__all__ = ["DOCKERFILE_VERSION", "GATEWAY_CAPS", "caps", "from_pb", "llb_caps", "to_pb", "version", "worker_id", "worker_record"]
