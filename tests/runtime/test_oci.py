# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chantier.runtime import Bind, Container, Process, Resources, Rlimit
from chantier.runtime.capabilities import DEFAULT, mask_of, names_of
from chantier.runtime.host import Host
from chantier.runtime.oci import build
from chantier.runtime.seccomp import profile
from chantier.snapshot.mount import Mount

HOST = Host(
    machine="x86_64",
    kernel="6.1",
    cgroups="v2",
    cgroup_namespace=True,
    seccomp=True,
    capabilities=("CAP_CHOWN", "CAP_SYS_ADMIN"),
)
PLAIN = Container(id="abc", rootfs=Path("/r"), process=Process(args=("true",)))


def types(spec: dict[str, Any]) -> list[str]:
    return [namespace["type"] for namespace in spec["linux"]["namespaces"]]


def destinations(spec: dict[str, Any]) -> list[str]:
    return [mount["destination"] for mount in spec["mounts"]]


def test_capabilities_are_the_known_mask() -> None:
    assert mask_of(DEFAULT) == 0xA80425FB
    assert names_of(0xA80425FB) == tuple(sorted(DEFAULT, key=lambda name: mask_of((name,))))
    held = build(PLAIN, HOST)["process"]["capabilities"]
    assert held == {kind: list(DEFAULT) for kind in ("bounding", "permitted", "effective")}


def test_namespaces_follow_the_network() -> None:
    assert types(build(PLAIN, HOST)) == ["pid", "ipc", "uts", "mount", "cgroup"]
    assert "network" in types(build(replace(PLAIN, network="none"), HOST))
    named = build(replace(PLAIN, network="/run/ns"), replace(HOST, cgroup_namespace=False))
    assert named["linux"]["namespaces"][-1] == {"type": "network", "path": "/run/ns"}


def test_mounts_are_in_order_and_a_later_one_takes_the_place_of_an_earlier() -> None:
    binds = tuple(
        Bind(target=target, mount=Mount("bind", "/x", ("ro",)))
        for target in ("/z", "/a/b", "/etc/resolv.conf", "/etc/hosts", "/a", "/dev/shm")
    )
    spec = build(replace(PLAIN, binds=binds), HOST)
    assert destinations(spec) == [
        *("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys"),
        *("/etc/resolv.conf", "/etc/hosts", "/sys/fs/cgroup", "/a", "/a/b", "/z"),
    ]
    assert spec["mounts"][3] == {"destination": "/dev/shm", "type": "bind", "source": "/x", "options": ["rbind", "ro"]}


@pytest.mark.parametrize(
    ("parent", "path"),
    [("", "/buildkit/abc"), ("p", "/p/buildkit/abc"), ("/p/q", "/p/q/buildkit/abc"), ("x.slice:b:", "x.slice:b:abc")],
)
def test_cgroup_path(parent: str, path: str) -> None:
    assert build(replace(PLAIN, cgroup_parent=parent), HOST)["linux"]["cgroupsPath"] == path


def test_limits() -> None:
    limits = Resources(memory=1 << 20, memory_swap=-1, cpu_quota=50, cpuset_cpus="0-1")
    spec = build(replace(PLAIN, resources=limits), HOST)["linux"]["resources"]
    assert spec["memory"] == {"limit": 1 << 20, "swap": -1}
    assert spec["cpu"] == {"quota": 50, "cpus": "0-1"}
    assert spec["devices"] == [{"allow": False, "access": "rwm"}]


def test_process() -> None:
    process = Process(args=("a",), uid=5, gid=6, groups=(7, 6), rlimits=(Rlimit(name="nofile", soft=1, hard=2),))
    spec = build(replace(PLAIN, process=process), HOST)["process"]
    assert spec["user"] == {"uid": 5, "gid": 6, "additionalGids": [6, 7]}
    assert spec["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]
    assert spec["noNewPrivileges"] is False


def test_insecure() -> None:
    spec = build(replace(PLAIN, insecure=True), HOST, apparmor="p")
    assert "seccomp" not in spec["linux"]
    assert "apparmorProfile" not in spec["process"]
    assert spec["linux"]["maskedPaths"] == spec["linux"]["readonlyPaths"] == []
    assert {"allow": True, "type": "b", "access": "rwm"} in spec["linux"]["resources"]["devices"]
    assert set(spec["process"]["capabilities"]) == {"bounding", "permitted", "effective", "inheritable", "ambient"}
    assert "CAP_SYS_ADMIN" in spec["process"]["capabilities"]["ambient"]
    assert next(m for m in spec["mounts"] if m["destination"] == "/sys")["options"][-1] == "rw"


def test_in_a_user_namespace(tmp_path: Path) -> None:
    spec = build(replace(PLAIN, resources=Resources(memory=5)), replace(HOST, user_namespace=True), process_sandbox=False)
    assert not [place for place in destinations(spec) if place.startswith("/sys")]
    assert "cgroupsPath" not in spec["linux"]
    assert "memory" not in spec["linux"]["resources"]
    assert "pid" not in types(spec)
    assert not [path for path in spec["linux"]["maskedPaths"] if path.startswith("/proc")]
    assert spec["mounts"][0]["type"] == "bind"


def allowed(capabilities: tuple[str, ...], machine: str = "x86_64") -> set[str]:
    rules = profile(capabilities, machine)["syscalls"]
    return {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule for name in rule["names"]}


def test_seccomp_follows_capabilities_and_machine() -> None:
    default = allowed(DEFAULT)
    assert {"chroot", "openat2", "ptrace", "arch_prctl"} <= default
    assert not {"mount", "setns", "unshare", "clone3", "bpf", "keyctl", "reboot", "io_uring_setup"} & default
    assert {"mount", "setns", "clone3"} <= allowed((*DEFAULT, "CAP_SYS_ADMIN"))
    assert "chroot" not in allowed(())
    assert "arch_prctl" not in allowed(DEFAULT, "aarch64")
    assert "architectures" not in profile(DEFAULT, "unheard-of")


def test_seccomp_lets_threads_but_no_namespaces_be_cloned() -> None:
    rules = profile(DEFAULT, "x86_64")["syscalls"]
    clone = next(rule for rule in rules if rule["names"] == ["clone"])
    assert clone["args"] == [{"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    assert next(rule for rule in rules if rule["names"] == ["clone3"])["errnoRet"] == 38
    assert next(rule for rule in profile(DEFAULT, "s390x")["syscalls"] if rule["names"] == ["clone"])["args"][0]["index"] == 1
