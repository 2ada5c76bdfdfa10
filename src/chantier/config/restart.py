# SPDX-License-Identifier: Apache-2.0
"""Which changes of a config file cannot take effect while a daemon runs with it."""

from __future__ import annotations

from .values import Config

_FIXED_WORKER = (
    ("snapshotter", "worker.oci.snapshotter"),
    ("platforms", "worker.oci.platforms"),
    ("rootless", "worker.oci.rootless"),
    ("network_mode", "worker.oci.networkMode"),
    ("cni_config_path", "worker.oci.cniConfigPath"),
    ("cni_binary_path", "worker.oci.cniBinaryPath"),
    ("bridge_name", "worker.oci.bridgeName"),
    ("bridge_subnet", "worker.oci.bridgeSubnet"),
    ("apparmor_profile", "worker.oci.apparmor-profile"),
    ("selinux", "worker.oci.selinux"),
    ("no_process_sandbox", "worker.oci.noProcessSandbox"),
    ("binary", "worker.oci.binary"),
)


def changes_that_need_a_restart(started: Config, now: Config) -> tuple[str, ...]:
    """Keys whose values differ from those the daemon was started with and are read at the start only."""
    found = []
    if started.root != now.root:
        found.append("root")
    for field, key in (
        ("address", "grpc.address"),
        ("debug_address", "grpc.debugAddress"),
        ("uid", "grpc.uid"),
        ("gid", "grpc.gid"),
    ):
        if getattr(started.grpc, field) != getattr(now.grpc, field):
            found.append(key)
    if bool(started.grpc.tls.cert) != bool(now.grpc.tls.cert) or started.grpc.tls.ca != now.grpc.tls.ca:
        found.append("grpc.tls")
    for field, key in _FIXED_WORKER:
        if getattr(started.worker_oci, field) != getattr(now.worker_oci, field):
            found.append(key)
    if started.dns != now.dns:
        found.append("dns")
    return tuple(found)


__all__ = ["changes_that_need_a_restart"]
