# SPDX-License-Identifier: Apache-2.0
"""What a kubernetes builder is made of: ConfigMaps for its files, a Deployment or a StatefulSet for its pods (builders.md 2.9)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from chantier.errors import UsageError
from chantier.values import dataclass, field

from .container_spec import CONFIG_DIR, STATE, check_path
from .group import Node
from .node import as_bool, check_opts

IMAGE = "moby/buildkit:buildx-stable-1"
PLATFORM_NOTE = "buildx.docker.com/platform"
OPTS = (
    "annotations", "buildkit-root-volume-memory", "default-load", "image", "labels", "limits.cpu", "limits.ephemeral-storage",
    "limits.memory", "loadbalance", "namespace", "nodeselector", "persistent-volume-claim.requests.storage", "privileged",
    "qemu.image", "qemu.install", "replicas", "requests.cpu", "requests.ephemeral-storage", "requests.memory", "rootless",
    "schedulername", "serviceaccount", "timeout", "tolerations",
)  # fmt: skip
_QEMU = "tonistiigi/binfmt:latest"
_ROOTLESS_STATE = "/home/user/.local/share/buildkit"
_QUANTITY = re.compile(r"[+-]?[0-9.]+(?:[numkKMGTPE]i?|[eE][0-9]+)?\Z")
_DURATION = re.compile(r"(\d+(?:\.\d*)?)(ms|h|m|s)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The driver options, read."""

    image: str = IMAGE
    namespace: str = ""
    replicas: int = 1
    requests: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    claim: str = ""  # size of a persistent volume: a StatefulSet then
    memory: str = ""  # size of the state if it lies in memory
    rootless: bool = False
    privileged: bool = True
    scheduler: str = ""
    account: str = ""
    selector: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    loadbalance: str = "sticky"
    qemu: str = ""
    timeout_s: float = 120.0
    env: Mapping[str, str] = field(default_factory=dict)


def options_of(node: Node) -> Options:
    """Raises UsageError."""
    opts = node.opts
    check_opts("kubernetes", opts, OPTS, prefixes=("env.",), message="invalid driver option {} for driver kubernetes")
    rootless = as_bool("rootless", opts["rootless"]) if "rootless" in opts else False
    image = IMAGE + ("-rootless" if "rootless" in opts else "")
    requests = {
        k: _quantity(f"requests.{k}", opts[f"requests.{k}"])
        for k in ("cpu", "memory", "ephemeral-storage")
        if opts.get(f"requests.{k}")
    }
    limits = {
        k: _quantity(f"limits.{k}", opts[f"limits.{k}"])
        for k in ("cpu", "memory", "ephemeral-storage")
        if opts.get(f"limits.{k}")
    }
    balance = opts.get("loadbalance", "sticky")
    if balance not in ("sticky", "random"):
        raise UsageError(f'invalid loadbalance "{balance}"', hint="sticky or random")
    qemu = as_bool("qemu.install", opts["qemu.install"]) if "qemu.install" in opts else False
    replicas = opts.get("replicas", "1")
    if not replicas.isdigit() or int(replicas) < 1:
        raise UsageError(f"invalid value {replicas!r} of replicas: expected a number above 0")
    annotations, labels = _pairs("annotations", opts), _pairs("labels", opts)
    if PLATFORM_NOTE in annotations:
        raise UsageError(f'the annotation "{PLATFORM_NOTE}" is reserved and cannot be customized')
    if "app" in labels:
        raise UsageError('the label "app" is reserved and cannot be customized')
    for name in ("buildkit-root-volume-memory", "persistent-volume-claim.requests.storage"):
        if opts.get(name):
            _quantity(name, opts[name])
    return Options(
        image=opts.get("image") or image,
        namespace=opts.get("namespace", ""),
        replicas=int(replicas),
        requests=requests,
        limits=limits,
        claim=opts.get("persistent-volume-claim.requests.storage", ""),
        memory=opts.get("buildkit-root-volume-memory", ""),
        rootless=rootless,
        privileged=as_bool("privileged", opts.get("privileged", "true")),
        scheduler=opts.get("schedulername", ""),
        account=opts.get("serviceaccount", ""),
        selector=_pairs("nodeselector", opts),
        annotations=annotations,
        labels=labels,
        tolerations=_tolerations(opts.get("tolerations", "")),
        loadbalance=balance,
        qemu=(opts.get("qemu.image") or _QEMU) if qemu else "",
        timeout_s=_seconds(opts.get("timeout", "120s")),
        env={k.removeprefix("env."): v for k, v in opts.items() if k.startswith("env.")},
    )


def _quantity(name: str, text: str) -> str:
    if not _QUANTITY.match(text):
        raise UsageError(f"invalid value {text!r} of {name}: no quantity", hint="quantities look like 500m, 2 or 4Gi")
    return text


def _pairs(name: str, opts: Mapping[str, str]) -> dict[str, str]:
    text = opts.get(name, "").strip('"')
    found = {}
    for part in text.split(",") if text else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"invalid value {part!r} of {name}: expected key=value,key=value")
        found[key.strip()] = value.strip()
    return found


def _tolerations(text: str) -> tuple[Mapping[str, Any], ...]:
    found = []
    for one in text.strip('"').split(";") if text else ():
        toleration: dict[str, Any] = {}
        for part in one.split(","):
            key, equals, value = part.partition("=")
            if not equals:
                raise UsageError(f"invalid value {part!r} of tolerations: expected key=value")
            if key == "tolerationSeconds":
                if not value.isdigit():
                    raise UsageError(f"invalid value {value!r} of tolerationSeconds: no number")
                toleration[key] = int(value)
            elif key in ("key", "operator", "value", "effect"):
                toleration[key] = value
            else:
                raise UsageError(f'invalid tolaration "{part}"')  # upstream's spelling: scripts look for it
        found.append(toleration)
    return tuple(found)


def _seconds(text: str) -> float:
    parts = _DURATION.findall(text)
    if "".join(a + b for a, b in parts) != text or not parts:
        raise UsageError(f"invalid value {text!r} of timeout: no duration", hint="durations look like 90s or 2m")
    factors = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    return sum(float(number) * factors[unit] for number, unit in parts)


def name_of(node: Node) -> str:
    """Of every object of a node: underscores are none of Kubernetes' letters."""
    return node.name.replace("_", "-")


def labels_of(node: Node, options: Options) -> dict[str, str]:
    return {"app": name_of(node), **options.labels}


def config_maps(node: Node, options: Options) -> list[dict[str, Any]]:
    """One for each directory of the node's files."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "labels": labels_of(node, options), "annotations": _annotations(node, options)},
            **_data(files),
        }
        for name, _, files in _folders(node)
    ]


def _data(files: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
    texts: dict[str, str] = {}
    others: dict[str, str] = {}
    for name, data in files.items():
        try:
            texts[name] = data.decode()
        except UnicodeDecodeError:
            others[name] = base64.b64encode(data).decode()
    return {"data": texts} | ({"binaryData": others} if others else {})


def _folders(node: Node) -> list[tuple[str, str, dict[str, bytes]]]:
    """(ConfigMap, mount point, files) of each directory; the first is that of the config itself."""
    folders: dict[str, dict[str, bytes]] = {}
    for path, data in sorted((node.files or {}).items()):
        check_path(path)
        parent = str(PurePosixPath(path).parent)
        folders.setdefault("" if parent == "." else parent, {})[PurePosixPath(path).name] = data
    found = []
    for number, folder in enumerate(sorted(folders)):
        suffix = "config" if not folder else f"config-{number if '' in folders else number + 1}"
        place = f"{CONFIG_DIR}/{folder}" if folder else CONFIG_DIR
        found.append((f"{name_of(node)}-{suffix}", place, folders[folder]))
    return found


def _annotations(node: Node, options: Options) -> dict[str, str]:
    fixed = {PLATFORM_NOTE: ",".join(str(p) for p in node.platforms)} if node.platforms else {}
    return {**fixed, **options.annotations}


def workload(node: Node, options: Options) -> dict[str, Any]:
    """The Deployment, or with a persistent volume the StatefulSet."""
    name, labels, notes = name_of(node), labels_of(node, options), _annotations(node, options)
    if options.rootless:
        notes = {**notes, "container.apparmor.security.beta.kubernetes.io/buildkitd": "unconfined"}
    spec: dict[str, Any] = {
        "replicas": options.replicas,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels, "annotations": notes}, "spec": _pod(node, options)},
    }
    kind = "Deployment"
    if options.claim:
        kind = "StatefulSet"
        claim = {
            "metadata": {"name": "buildkitd"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": options.claim}}},
        }
        spec |= {"serviceName": "buildkitd", "podManagementPolicy": "Parallel", "volumeClaimTemplates": [claim]}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "labels": labels, "annotations": notes},
        "spec": spec,
    }


def _pod(node: Node, options: Options) -> dict[str, Any]:
    args = list(node.flags or ())
    container: dict[str, Any] = {
        "name": "buildkitd",
        "image": options.image,
        "args": args,
        "readinessProbe": _probe(),
        "livenessProbe": _probe(),
        "securityContext": _security(options),
        "resources": {k: v for k, v in (("requests", dict(options.requests)), ("limits", dict(options.limits))) if v},
    }
    if options.env:
        container["env"] = [{"name": k, "value": v} for k, v in sorted(options.env.items())]
    mounts, volumes = _volumes(node, options)
    if mounts:
        container["volumeMounts"] = mounts
    if options.rootless:
        args.append("--oci-worker-no-process-sandbox")
    pod: dict[str, Any] = {"containers": [container]}
    if volumes:
        pod["volumes"] = volumes
    if options.qemu:
        qemu = {"name": "qemu", "image": options.qemu, "args": ["--install", "all"], "securityContext": {"privileged": True}}
        pod["initContainers"] = [qemu]
    if options.scheduler:
        pod["schedulerName"] = options.scheduler
    if options.account:
        pod["serviceAccountName"] = options.account
    if options.selector:
        pod["nodeSelector"] = dict(options.selector)
    if options.tolerations:
        pod["tolerations"] = [dict(t) for t in options.tolerations]
    return pod


def _security(options: Options) -> dict[str, Any]:
    if options.rootless:
        return {"seccompProfile": {"type": "Unconfined"}}
    if options.privileged:
        return {"privileged": True}
    from .container_spec import CAPABILITIES

    return {"capabilities": {"add": list(CAPABILITIES)}, "seccompProfile": {"type": "Unconfined"}}


def _probe() -> dict[str, Any]:
    return {
        "exec": {"command": ["buildctl", "debug", "workers"]},
        "initialDelaySeconds": 5,
        "periodSeconds": 30,
        "timeoutSeconds": 60,
        "successThreshold": 1,
        "failureThreshold": 3,
    }


def _volumes(node: Node, options: Options) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Mounts and volumes. Unlike upstream a StatefulSet keeps the mounts of the config."""
    mounts: list[dict[str, Any]] = []
    volumes: list[dict[str, Any]] = []
    for name, place, _ in _folders(node):
        volume = name.removeprefix(f"{name_of(node)}-")
        mounts.append({"name": volume, "mountPath": place})
        volumes.append({"name": volume, "configMap": {"name": name}})
    state = _ROOTLESS_STATE if options.rootless else STATE
    memory = {"medium": "Memory", "sizeLimit": options.memory}
    if options.claim:
        mounts.append({"name": "buildkitd", "mountPath": state})
    elif options.rootless:
        mounts.append({"name": "buildkitd", "mountPath": state})
        volumes.append({"name": "buildkitd", "emptyDir": memory if options.memory else {}})
    elif options.memory:
        mounts.append({"name": "buildkit-memory", "mountPath": state})
        volumes.append({"name": "buildkit-memory", "emptyDir": memory})
    return mounts, volumes


__all__ = ["IMAGE", "OPTS", "Options", "config_maps", "labels_of", "name_of", "options_of", "workload"]
