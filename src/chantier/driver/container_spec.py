# SPDX-License-Identifier: Apache-2.0
"""What a builder's container is made of: the body of the create request, and the files put into it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from chantier.client.parse import parse_size
from chantier.errors import UsageError

from .group import Node
from .node import as_bool
from .store import CONFIG_NAME

OPTS = (
    "allow-untrusted-image", "cgroup-parent", "cpu-period", "cpu-quota", "cpu-shares", "cpuset-cpus", "cpuset-mems",
    "default-load", "image", "memory", "memory-swap", "network", "privileged", "provenance-add-gha", "restart-policy",
)  # fmt: skip
PREFIXES = ("env.",)
STATE = "/var/lib/buildkit"
CONFIG_DIR = "/etc/buildkit"
CAPABILITIES = (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_ADMIN",
    "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE",
)  # fmt: skip
"""What mounting, namespaces, networks of steps and the capabilities of steps take; no modules, devices, clocks or reboots."""
_INSECURE = "security.insecure"
_CGROUP_PARENT = "/docker/buildx"


def checked(node: Node) -> None:
    """Raises UsageError for options whose values cannot be."""
    for name in ("cpu-period", "cpu-quota", "cpu-shares"):
        value = node.opts.get(name, "0")
        if not value.lstrip("-").isdigit():
            raise UsageError(f"invalid value {value!r} of {name}: expected a number")
    for name in ("default-load", "privileged", "provenance-add-gha"):
        if name in node.opts:
            as_bool(name, node.opts[name])
    for name in ("memory", "memory-swap"):
        _size(node, name)
    _restart(node)


def body(node: Node, image: str, info: Mapping[str, Any], *, volume: str) -> dict[str, Any]:
    """`POST /containers/create`. `info` is the engine's."""
    command = list(node.flags or ())
    if CONFIG_NAME in (node.files or {}):
        command = ["--config", f"{CONFIG_DIR}/{CONFIG_NAME}", *command]
    opts = node.opts
    host: dict[str, Any] = {
        "Init": True,
        "RestartPolicy": _restart(node),
        "Mounts": [{"Type": "volume", "Source": volume, "Target": STATE}],
        "Memory": _size(node, "memory"),
        "MemorySwap": _size(node, "memory-swap"),
        "CpuQuota": int(opts.get("cpu-quota", "0")),
        "CpuPeriod": int(opts.get("cpu-period", "0")),
        "CpuShares": int(opts.get("cpu-shares", "0")),
        "CpusetCpus": opts.get("cpuset-cpus", ""),
        "CpusetMems": opts.get("cpuset-mems", ""),
        **_privileges(node),
    }
    if opts.get("network"):
        host["NetworkMode"] = opts["network"]
    if info.get("CgroupDriver") == "cgroupfs":
        host["CgroupParent"] = opts.get("cgroup-parent") or _CGROUP_PARENT
    if any("name=userns" in option for option in info.get("SecurityOptions") or ()):
        host["UsernsMode"] = "host"
    if "nvidia" in (info.get("Runtimes") or {}):
        host["DeviceRequests"] = [{"Count": -1, "Capabilities": [["gpu"]]}]
    env = [f"{name.removeprefix('env.')}={value}" for name, value in opts.items() if name.startswith("env.")]
    return {"Image": image, "Env": env, "Cmd": command, "HostConfig": host}


def _privileges(node: Node) -> dict[str, Any]:
    """A list of capabilities is enough, unless steps may have them all."""
    asked = node.opts.get("privileged")
    insecure = any(_INSECURE in flag for flag in node.flags or ()) or _INSECURE.encode() in (node.files or {}).get(
        CONFIG_NAME, b""
    )
    if as_bool("privileged", asked) if asked is not None else insecure:
        return {"Privileged": True}
    return {
        "CapAdd": list(CAPABILITIES),
        "SecurityOpt": ["seccomp=unconfined", "apparmor=unconfined", "label=disable"],
        "MaskedPaths": [],
        "ReadonlyPaths": [],
        # The cgroups of steps are made by the daemon; engines mount these read-only unless told so.
        "Binds": ["/sys/fs/cgroup:/sys/fs/cgroup:rw"],
        "CgroupnsMode": "host",
    }


def _restart(node: Node) -> dict[str, Any]:
    name, _, count = node.opts.get("restart-policy", "unless-stopped").partition(":")
    if count and not count.isdigit():
        raise UsageError(f"invalid value {count!r} of restart-policy: the count is no number")
    return {"Name": name, "MaximumRetryCount": int(count or 0)}


def _size(node: Node, name: str) -> int:
    text = node.opts.get(name, "0")
    return -1 if text == "-1" and name == "memory-swap" else parse_size(text)


def archive(node: Node, env: Mapping[str, str]) -> bytes:
    """The files of a node as a tar for /etc: directories first, then files, all of root (builders.md 3.6)."""
    files = dict(node.files or {})
    context = _github(env)
    if context and as_bool("provenance-add-gha", node.opts.get("provenance-add-gha", "true")):
        files["provenance.d/github_actions_context.json"] = context
    folders: set[str] = set()
    for name in files:
        check_path(name)
        folders |= {str(p) for p in PurePosixPath("buildkit", name).parents if str(p) != "."}
    for name in files:
        if f"buildkit/{name}" in folders:
            raise UsageError(f'config file path "{name}" conflicts with directory')
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name in sorted(files):
            entry = tarfile.TarInfo(f"buildkit/{name}")
            entry.size, entry.mode = len(files[name]), 0o644
            tar.addfile(entry, io.BytesIO(files[name]))
    return out.getvalue()


def check_path(name: str) -> None:
    """Raises UsageError for a path that would leave /etc/buildkit."""
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or name.startswith("/") or ".." in parts or "" in parts or "." in parts:
        raise UsageError(f'invalid config file path "{name}"')


_GITHUB = {
    "github_actor": ("GITHUB_ACTOR", "GITHUB_ACTOR_ID"),
    "github_ref": ("GITHUB_REF", "GITHUB_REF_NAME", "GITHUB_REF_PROTECTED", "GITHUB_REF_TYPE"),
    "github_repository": ("GITHUB_REPOSITORY", "GITHUB_REPOSITORY_ID", "GITHUB_REPOSITORY_OWNER", "GITHUB_REPOSITORY_OWNER_ID"),
    "github_workflow": (
        "GITHUB_WORKFLOW", "GITHUB_WORKFLOW_REF", "GITHUB_WORKFLOW_SHA", "GITHUB_JOB", "GITHUB_RUN_ID", "GITHUB_RUN_NUMBER",
        "GITHUB_RUN_ATTEMPT",
    ),
    "github_runner": ("RUNNER_ARCH", "RUNNER_OS", "RUNNER_ENVIRONMENT"),
}  # fmt: skip


def _github(env: Mapping[str, str]) -> bytes:
    """What GitHub Actions says of the run, for provenance; b"" elsewhere."""
    if env.get("GITHUB_ACTIONS") != "true" or not env.get("GITHUB_EVENT_NAME") or not env.get("GITHUB_EVENT_PATH"):
        return b""
    try:
        with open(env["GITHUB_EVENT_PATH"]) as file:
            payload = json.load(file)
    except (OSError, ValueError):
        return b""
    known: dict[str, Any] = {"github_event_name": env["GITHUB_EVENT_NAME"], "github_event_payload": payload}
    for names in _GITHUB.values():
        if all(env.get(n) for n in names):
            known |= {f"github_{n.lower()}" if n.startswith("RUNNER_") else n.lower(): env[n] for n in names}
    return json.dumps(known, separators=(",", ":")).encode()


__all__ = ["CAPABILITIES", "CONFIG_DIR", "OPTS", "PREFIXES", "STATE", "archive", "body", "check_path", "checked"]
