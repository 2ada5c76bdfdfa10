# SPDX-License-Identifier: Apache-2.0
"""From the configuration to networks: `networkMode` of [worker.oci], and what its modes need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from chantier.config import OciConfig, is_rootless
from chantier.errors import UnsupportedError
from chantier.kernel import in_user_namespace

from . import firewall
from .bridge import Bridge
from .cni import BINARY_DIRS, Cni, load
from .leases import Leases, Provider
from .pool import Networks, Same
from .usermode import NAMESERVER, UserMode

_CONFIG = Path("/etc/buildkit/cni.json")
USER_MODES = ("pasta", "slirp4netns")
_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))


def cni_config(config: OciConfig, env: Mapping[str, str]) -> str:
    """The file of the CNI configuration, which need not be there."""
    if config.cni_config_path:
        return config.cni_config_path
    if not is_rootless(env):
        return str(_CONFIG)
    base = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME", "/"), ".config")
    return os.path.join(base, "buildkit", "cni.json")


def mode_of(config: OciConfig, env: Mapping[str, str] = os.environ) -> str:
    """The mode that holds: host, none, bridge, cni, pasta or slirp4netns. `auto` is CNI if it is configured, else the machine's network.

    Whoever wrote a CNI configuration wanted it: that plugins are missing is an error then, not a reason to use the host's.
    """
    mode = config.network_mode or "auto"
    if mode != "auto":
        return mode
    if env.get("BUILDKIT_NETWORK_BRIDGE_AUTO", "") in _TRUE:
        return "bridge"
    return "cni" if os.path.exists(cni_config(config, env)) else "host"


def modes_here() -> list[str]:
    """The modes whose programs are on this machine; whether they may be used shows when they are."""
    found = ["host", "none"]
    if not in_user_namespace():
        found += ["bridge"] if firewall.programs() else []
        found += ["cni"] if any(os.path.exists(os.path.join(each, "bridge")) for each in BINARY_DIRS) else []
    return found + [name for name in USER_MODES if shutil.which(name)]


def open_networks(config: OciConfig, root: Path, env: Mapping[str, str] = os.environ) -> Networks | Same:
    """Networks for the steps of one engine; `root` is where its namespaces lie (ROOT/net). Raises ConfigError, NotFoundError.

    Nothing is connected yet, but for `cniPoolSize` namespaces that are being made ready.
    """
    mode = mode_of(config, env)
    if mode in ("host", "none"):
        return Same(mode)
    provider: Provider
    if mode == "bridge":
        provider = Bridge(config.bridge_name, config.bridge_subnet)
    elif mode == "cni":
        dirs = config.cni_binary_path.split(os.pathsep) if config.cni_binary_path else BINARY_DIRS
        provider = Cni(load(cni_config(config, env)), dirs)
    elif mode in USER_MODES:
        provider = UserMode(mode)
    else:
        raise UnsupportedError(
            f'invalid network mode: "{mode}"',
            hint="networkMode in [worker.oci] is auto, host, none, bridge, cni, pasta or slirp4netns",
        )
    nameservers = (NAMESERVER,) if mode in USER_MODES else ()
    return Networks(mode, provider, Leases(root), config.cni_pool_size, nameservers=nameservers)


__all__ = ["cni_config", "mode_of", "modes_here", "open_networks"]
