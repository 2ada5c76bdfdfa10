# SPDX-License-Identifier: Apache-2.0
"""buildkitd's command line onto a Config (protocol.md 7.1-7.3): flags override the file only where they are given."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from chantier import __version__
from chantier.config import Config, Size, TlsConfig, find, load
from chantier.errors import UsageError
from chantier.values import dataclass, replace

_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))
# Accepted so that a command line written for buildkitd works; what they ask for does not exist here. Flag: what is said.
_IGNORED = {
    "containerd-worker-addr": "",
    "containerd-worker-labels": "",
    "containerd-worker-platform": "",
    "containerd-worker-namespace": "",
    "containerd-worker-runtime": "",
    "containerd-worker-net": "",
    "containerd-worker-snapshotter": "",
    "containerd-worker-apparmor-profile": "",
    "containerd-worker-selinux": "",
    "containerd-worker-rootless": "",
    "containerd-worker-gc": "",
    "containerd-worker-gc-keepstorage": "",
    "containerd-cni-config-path": "",
    "containerd-cni-binary-dir": "",
    "containerd-cni-pool-size": "",
    "containerd-max-parallelism": "",
    "otel-socket-path": "traces are taken on the daemon's own socket",
    "oci-worker-proxy-snapshotter-path": "there are no proxy snapshotters here",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a daemon starts with. `config` is the file with the flags laid over it; `overlay` does the same to a newer file."""

    config: Config
    file: Path | None
    overlay: argparse.Namespace
    env: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def again(self) -> Config:
        """The file as it is now, under the same flags. Raises ConfigError."""
        found = load(self.file) if self.file is not None and self.file.exists() else Config()
        return _overlay(found, self.overlay, self.env)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint="chantierd --help lists what it takes")


def parse(argv: Sequence[str], env: Mapping[str, str] = os.environ) -> Settings:
    """Raises UsageError, ConfigError."""
    flags = _parser().parse_args(list(argv))
    file = Path(flags.config) if flags.config else find(env)
    if file is not None and flags.config is None and not file.exists():
        file = None
    if flags.config and not file_or_default(flags.config):
        raise UsageError(f"config file not found: {flags.config}")
    found = load(file) if file is not None and file.exists() else Config()
    if flags.root:  # a flag counts for more than the environment
        env = {key: value for key, value in env.items() if key != "CHANTIER_ROOT"}
    return Settings(config=_overlay(found, flags, env), file=file, overlay=flags, env=env, warnings=tuple(_said(flags, found)))


def file_or_default(path: str) -> bool:
    """The default file may be missing, even if it is named."""
    return os.path.exists(path) or path == "/etc/buildkit/buildkitd.toml"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "chantierd",
        description="BuildKit's daemon: builds for docker buildx, buildctl and chantier over a socket.",
        epilog="Example: chantierd --addr unix:///run/chantier/chantierd.sock --root /var/lib/chantier",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="config file (default: /etc/chantier/chantierd.toml, then /etc/buildkit/buildkitd.toml)")
    add("--root", metavar="DIR", help="state directory")
    add("--addr", action="append", metavar="ADDR", help="unix://PATH, tcp://HOST:PORT, fd:// (may be repeated)")
    add("--group", metavar="GROUP", help="group (name or number) of unix sockets")
    _bool(parser, "debug", "log at level debug")
    _bool(parser, "trace", "log at level trace")
    add("--log-level", metavar="LEVEL", help="panic, fatal, error, warn, info, debug, trace")
    add("--log-format", choices=("text", "json"))
    add("--debugaddr", metavar="ADDR", help="unix://PATH or HOST:PORT with debug endpoints")
    add("--tlscert", metavar="FILE")
    add("--tlskey", metavar="FILE")
    add("--tlscacert", metavar="FILE", help="clients must have a certificate that it signed")
    add("--allow-insecure-entitlement", action="append", metavar="NAME", help="network.host, security.insecure, device")
    _bool(parser, "rootless", "keep state in the user's directories")
    _bool(parser, "proxy-network", argparse.SUPPRESS)
    _bool(parser, "cdi-disabled", "give no devices to steps")
    add("--cdi-spec-dir", action="append", metavar="DIR", help="where devices are described (CDI; may be repeated)")
    _bool(parser, "save-cache-debug", argparse.SUPPRESS)
    add("--version", action="version", version=f"chantierd chantier v{__version__}")
    _worker_flags(parser)
    for name in _IGNORED:
        add(f"--{name}", action="append", nargs="?", const="true", help=argparse.SUPPRESS)
    _bool(parser, "containerd-worker", argparse.SUPPRESS)
    return parser


def _worker_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    group = parser.add_argument_group("worker")
    _bool(parser, "oci-worker", argparse.SUPPRESS)
    group.add_argument("--oci-worker-labels", action="append", metavar="K=V")
    group.add_argument("--oci-worker-snapshotter", metavar="NAME", help="auto, overlayfs, fuse-overlayfs, native")
    group.add_argument("--oci-worker-platform", action="append", metavar="PLATFORM")
    group.add_argument("--oci-worker-net", metavar="MODE", help="auto, host, none, cni, bridge, pasta, slirp4netns")
    add("--oci-cni-config-path", help=argparse.SUPPRESS)
    add("--oci-cni-binary-dir", help=argparse.SUPPRESS)
    add("--oci-cni-pool-size", type=int, help=argparse.SUPPRESS)
    group.add_argument(
        "--oci-worker-binary",
        metavar="PATH",
        help="OCI runtime, or native (default: native, buildkit-runc, runc, crun: the first that works)",
    )
    group.add_argument("--oci-worker-apparmor-profile", metavar="NAME")
    _bool(group, "oci-worker-selinux", argparse.SUPPRESS)
    group.add_argument("--oci-max-parallelism", metavar="N", help="steps at once; 0 for no limit, num-cpu for one a processor")
    _bool(group, "oci-worker-rootless", argparse.SUPPRESS)
    _bool(group, "oci-worker-no-process-sandbox", argparse.SUPPRESS)
    _bool(group, "oci-worker-gc", "delete what has not been used for long (default: true)")
    group.add_argument("--oci-worker-gc-keepstorage", metavar="RESERVED[,FREE[,MAX]]", help="in MB")


def _bool(parser: Any, name: str, about: str) -> None:
    """`--name`, `--name=true`, `--name=false`, as Go's flags."""
    parser.add_argument(f"--{name}", nargs="?", const=True, type=_truth, metavar="BOOL", help=about)


def _truth(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f"want true or false, got {text!r}")


def _overlay(config: Config, flags: argparse.Namespace, env: Mapping[str, str]) -> Config:
    given = {key: value for key, value in vars(flags).items() if value is not None}
    level = given.get("log_level") or env.get("BUILDKITD_LOG_LEVEL", "")
    if not level:
        level = "trace" if given.get("trace") else "debug" if given.get("debug") else ""
    log = replace(
        config.log,
        level=level or config.log.level,
        format=given.get("log_format", config.log.format),
    )
    tls = TlsConfig(
        cert=given.get("tlscert", config.grpc.tls.cert),
        key=given.get("tlskey", config.grpc.tls.key),
        ca=given.get("tlscacert", config.grpc.tls.ca),
    )
    grpc = replace(
        config.grpc,
        address=tuple(given.get("addr", ())) or config.grpc.address,
        debug_address=given.get("debugaddr") or env.get("BUILDKITD_DEBUGADDR") or config.grpc.debug_address,
        gid=_group(given["group"]) if "group" in given else config.grpc.gid,
        tls=tls,
    )
    cdi = replace(
        config.cdi,
        disabled=given.get("cdi_disabled", config.cdi.disabled),
        spec_dirs=tuple(given.get("cdi_spec_dir", ())) or config.cdi.spec_dirs,
    )
    return replace(
        config,
        root=given.get("root", config.root),
        entitlements=tuple(dict.fromkeys((*config.entitlements, *given.get("allow_insecure_entitlement", ())))),
        proxy_network=given.get("proxy_network", config.proxy_network),
        log=log,
        grpc=grpc,
        cdi=cdi,
        workers=replace(config.workers, oci=_oci(config, given)),
    )


def _oci(config: Config, given: Mapping[str, Any]) -> Any:
    oci = config.worker_oci
    fields = {
        "oci_worker": "enabled",
        "oci_worker_snapshotter": "snapshotter",
        "oci_worker_net": "network_mode",
        "oci_cni_config_path": "cni_config_path",
        "oci_cni_binary_dir": "cni_binary_path",
        "oci_cni_pool_size": "cni_pool_size",
        "oci_worker_binary": "binary",
        "oci_worker_apparmor_profile": "apparmor_profile",
        "oci_worker_selinux": "selinux",
        "oci_worker_rootless": "rootless",
        "oci_worker_no_process_sandbox": "no_process_sandbox",
        "oci_worker_gc": "gc",
    }
    changed: dict[str, Any] = {field: given[flag] for flag, field in fields.items() if flag in given}
    if "oci_worker_labels" in given:
        changed["labels"] = {**oci.labels, **dict(_pair(text) for text in given["oci_worker_labels"])}
    if "oci_worker_platform" in given:
        changed["platforms"] = tuple(p for text in given["oci_worker_platform"] for p in text.split(","))
    if "oci_max_parallelism" in given:
        changed["max_parallelism"] = _parallelism(given["oci_max_parallelism"])
    if "oci_worker_gc_keepstorage" in given:
        sizes = [Size(bytes=_megabytes(text)) for text in given["oci_worker_gc_keepstorage"].split(",")]
        changed |= dict(zip(("reserved_space", "min_free_space", "max_used_space"), sizes, strict=False))
    return replace(oci, **changed)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"invalid label {text!r}: want KEY=VALUE")
    return key, value


def _parallelism(text: str) -> int:
    if text == "num-cpu":
        return len(os.sched_getaffinity(0))
    if not text.isdecimal():
        raise UsageError(f"invalid --oci-max-parallelism {text!r}: want a number or num-cpu")
    return int(text)


def _megabytes(text: str) -> int:
    if not text.strip().isdecimal():
        raise UsageError(f"invalid --oci-worker-gc-keepstorage: {text!r} is no number of megabytes")
    return int(text) * 1_000_000


def _group(text: str) -> int:
    import grp

    if text.isdecimal():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError as err:
        raise UsageError(f"no group {text!r} on this machine") from err


def _said(flags: argparse.Namespace, config: Config) -> list[str]:
    """One line for each thing that is asked for and does not exist here."""
    found = [f"--{name} has no effect: {why}" for name, why in _IGNORED.items() if why and getattr(flags, name.replace("-", "_"))]
    if flags.containerd_worker:
        found.append("--containerd-worker has no effect: there is no containerd worker, the OCI worker is used")
    if flags.oci_worker is False:
        found.append("--oci-worker=false has no effect: it is the only worker")
    if flags.save_cache_debug:
        found.append("--save-cache-debug has no effect")
    return [*config.warnings, *found]


__all__ = ["Settings", "parse"]
