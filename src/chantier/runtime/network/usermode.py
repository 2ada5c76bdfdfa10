# SPDX-License-Identifier: Apache-2.0
"""Networks without privilege: pasta(1) or slirp4netns(1), a process a namespace that speaks to the outside by ordinary sockets.

For those who may make namespaces but not touch the machine's network: an ordinary user, a container without CAP_NET_ADMIN. Both
programs are told to give the same: an address, a gateway, and a server of names that asks those of the machine, loopback
included. What listens on the machine's loopback stays out of reach.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from chantier.errors import NotFoundError, UnsupportedError
from chantier.kernel import in_user_namespace

from .leases import Lease, inside

NAMESERVER = "10.0.2.3"
_ADDRESS, _PREFIX, _GATEWAY, _INTERFACE = "10.0.2.100", "24", "10.0.2.2", "eth0"
_LIMIT_S = 60.0
_PAUSE_S = 0.005
_PACKAGES = {"pasta": "passt", "slirp4netns": "slirp4netns"}
_children: dict[str, subprocess.Popen[bytes]] = {}  # by lease: who started a process has to wait for it


class UserMode:
    """Implements `Provider`; `kind` is the program's name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        found = shutil.which(kind)
        if found is None:
            raise NotFoundError(
                f"{kind} not found in PATH",
                hint=f"install it (Debian: {_PACKAGES[kind]}), or set another networkMode in [worker.oci]",
            )
        self._program = found
        # slirp4netns ends when the other end is closed: when we do, however we do.
        self._alive, self._held = os.pipe()

    def attach(self, lease: Lease, hostname: str) -> None:
        """Start the program and wait until there is a default route, which it adds last."""
        lease.write(self.kind, {})
        with tempfile.TemporaryFile() as said:
            try:
                child = subprocess.Popen(
                    self._command(lease),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    pass_fds=(self._alive,),
                    start_new_session=True,
                    env={"PATH": os.environ.get("PATH", os.defpath)},
                )
            except OSError as err:
                raise UnsupportedError(f"failed to start {self._program}: {err.strerror}") from err
            _children[lease.id] = child
            lease.write(self.kind, {"pid": child.pid, "start": _start_of(child.pid)})
            end = time.monotonic() + _LIMIT_S
            while not inside(str(lease.path), _has_route):
                if child.poll() is not None or time.monotonic() > end:
                    said.seek(0)
                    text = " ".join(said.read().decode(errors="replace").split())[-500:]
                    why = (
                        f"it ended with {child.returncode}"
                        if child.returncode is not None
                        else f"no route within {_LIMIT_S:.0f} s"
                    )
                    raise UnsupportedError(
                        f"{self.kind} could not connect a step: {why}" + (f": {text}" if text else ""),
                        hint="it needs to open /dev/net/tun for reading and writing",
                    )
                time.sleep(_PAUSE_S)

    def _command(self, lease: Lease) -> list[str]:
        if self.kind == "slirp4netns":
            options = ["--configure", "--mtu=65520", "--disable-host-loopback", f"--exit-fd={self._alive}", "--netns-type=path"]
            return [self._program, *options, str(lease.path), _INTERFACE]
        nothing = [word for option in ("-t", "-u", "-T", "-U") for word in (option, "none")]  # no ports are forwarded
        place = ["--ipv4-only", "-a", _ADDRESS, "-n", _PREFIX, "-g", _GATEWAY, "--dns-forward", NAMESERVER, "--no-map-gw"]
        named = ["--config-net", "--ns-ifname", _INTERFACE, "--netns", str(lease.path)]
        # As root of the machine it would become nobody, who may not enter the namespace.
        owner = [] if in_user_namespace() else ["--runas", "0:0"]
        return [self._program, "--foreground", "--quiet", *owner, *place, *nothing, *named]

    def check(self, lease: Lease) -> None:
        child = _children.get(lease.id)
        if child is None or child.poll() is not None:
            raise UnsupportedError(f"{self.kind} has ended")

    def close(self) -> None:
        os.close(self._alive)
        os.close(self._held)


def detach(lease: Lease, state: Mapping[str, Any]) -> None:
    """End the process of a namespace."""
    child = _children.pop(lease.id, None)
    if child is not None:
        child.kill()
        child.wait()
    elif "pid" in state and _start_of(int(state["pid"])) == state.get("start"):
        with suppress(OSError):  # it has just ended
            os.kill(int(state["pid"]), signal.SIGKILL)


def _start_of(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc_pid_stat(5)); 0 if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def _has_route() -> bool:
    rows = Path("/proc/thread-self/net/route").read_text(encoding="ascii").splitlines()[1:]
    return any(row.split()[1] == "00000000" for row in rows)


__all__ = ["NAMESERVER", "UserMode", "detach"]
