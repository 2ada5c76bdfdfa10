# SPDX-License-Identifier: Apache-2.0
"""Rules for one bridge: its steps may speak to the outside by the machine's address, and the outside may only answer.

By iptables where it is there (what refuses to forward, as Docker's default does, speaks it too, and an `accept` elsewhere
would not overrule it), else by nft, in a table of our own. Both are idempotent.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from chantier.errors import UnsupportedError

_LIMIT_S = 60.0
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def open(bridge: str, subnet: ipaddress.IPv4Network) -> None:
    """Raises UnsupportedError that names what was tried."""
    failed = [f"{name}: not found" for name in _MAKERS if name not in programs()]
    for program, path in programs().items():
        said = _MAKERS[program](path, bridge, subnet)
        if not said:
            return
        failed.append(f"{program}: {said}")
    raise UnsupportedError(
        f"steps on the bridge {bridge} would not reach the outside: " + "; ".join(failed),
        hint="install iptables or nftables beside the builder, and give it CAP_NET_ADMIN",
    )


def programs() -> dict[str, str]:
    """What can make rules here, the better first: name and path."""
    found = {name: shutil.which(name, path=_PATH) for name in ("iptables", "nft")}
    return {name: path for name, path in found.items() if path}


def close(bridge: str, subnet: ipaddress.IPv4Network) -> None:
    """Remove the rules; those that are not there are no failure."""
    if path := programs().get("iptables"):
        for table, chain, rule in _rules(bridge, subnet):
            _run([path, "-w", "-t", table, "-D", chain, *rule])
    if path := programs().get("nft"):
        _run([path, "delete", "table", "ip", _table(bridge)])


def _rules(bridge: str, subnet: ipaddress.IPv4Network) -> Sequence[tuple[str, str, tuple[str, ...]]]:
    """Table, chain, rule; of one chain the last stands first."""
    ours = ("-m", "comment", "--comment", f"chantier: {bridge}")
    net = str(subnet)
    return (
        ("nat", "POSTROUTING", ("-s", net, "!", "-d", net, *ours, "-j", "MASQUERADE")),
        ("filter", "FORWARD", ("-o", bridge, *ours, "-j", "DROP")),
        ("filter", "FORWARD", ("-o", bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", *ours, "-j", "ACCEPT")),
        ("filter", "FORWARD", ("-i", bridge, *ours, "-j", "ACCEPT")),
    )


def _iptables(path: str, bridge: str, subnet: ipaddress.IPv4Network) -> str:
    """What went wrong, "" if nothing."""
    for table, chain, rule in _rules(bridge, subnet):
        if _run([path, "-w", "-t", table, "-C", chain, *rule]):
            said = _run([path, "-w", "-t", table, "-I", chain, "1", *rule])
            if said:
                return said
    return ""


def _nft(path: str, bridge: str, subnet: ipaddress.IPv4Network) -> str:
    table = f"table ip {_table(bridge)}"
    return _run(
        [path, "-f", "-"],
        f"""
{table}
delete {table}
{table} {{
  chain postrouting {{
    type nat hook postrouting priority 100;
    ip saddr {subnet} ip daddr != {subnet} masquerade
  }}
  chain forward {{
    type filter hook forward priority 0;
    iifname "{bridge}" accept
    oifname "{bridge}" ct state related,established accept
    oifname "{bridge}" drop
  }}
}}
""",
    )


_MAKERS = {"iptables": _iptables, "nft": _nft}


def _table(bridge: str) -> str:
    return "chantier_" + re.sub("[^A-Za-z0-9_]", "_", bridge)


def _run(argv: list[str], stdin: str = "") -> str:
    """What a command that failed said, "" if it did not."""
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=_LIMIT_S, check=False, env={"PATH": _PATH, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        return str(err)
    return "" if done.returncode == 0 else " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"


__all__ = ["close", "open"]
