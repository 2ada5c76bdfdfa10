# SPDX-License-Identifier: Apache-2.0
"""Our own network: a Linux bridge, a veth pair and an address a step, and network address translation to the outside.

The kernel is the only register of addresses: the machine's end of a pair is named after the address, names are unique in a
network namespace, and a pair ends with the namespace that holds its other end. So engines that know nothing of each other
share one bridge, and what a killed engine held is free as soon as its namespaces are gone.
"""

from __future__ import annotations

import errno
import ipaddress
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from chantier import kernel
from chantier.errors import ConfigError, UnsupportedError

from . import firewall
from .leases import Lease, inside

NAME = "buildkit0"
SUBNET = "10.10.0.0/16"
_INSIDE = "eth0"
_ALIAS = "chantier"
_PAUSE_S = 0.002
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_NAME_BYTES = 15  # IFNAMSIZ with its end


class Bridge:
    """Implements `Provider`. The bridge is made at the first use, and removed with the last engine that used it in order.

    A bridge that is there already and not ours is used as it is if it was named (`named`), and never removed.
    """

    kind = "bridge"

    def __init__(self, name: str = "", subnet: str = "") -> None:
        self.name = name or NAME
        self._named = bool(name)
        self._subnet = _subnet(subnet or SUBNET)
        self._gateway = self._subnet[1]
        # A new start a process, and on from the last: an address is not given away again while others still have its MAC.
        self._next = random.randrange(self._subnet.num_addresses)
        self._lock = threading.Lock()
        self._opened = False  # whether this process has seen to the rules
        if not 0 < len(self.name.encode()) <= _NAME_BYTES or "/" in self.name or self.name.split() != [self.name]:
            raise ConfigError(f"invalid bridge name {self.name!r}", key="worker.oci.bridgeName", hint="at most 15 bytes")

    def attach(self, lease: Lease, hostname: str) -> None:
        """Connect a namespace, whose loopback is up."""
        try:
            self._attach(lease)
        except OSError as err:
            raise UnsupportedError(
                f"failed to connect a step to the bridge {self.name}: {err.filename or 'netlink'}: {err.strerror}",
                hint="the bridge needs CAP_NET_ADMIN in the network namespace of the builder; networkMode pasta or slirp4netns needs none",
            ) from err

    def _attach(self, lease: Lease) -> None:
        with open(lease.path, "rb") as namespace, kernel.Rtnetlink() as host:
            with self._locked():
                index, mtu = self._ensure(host)
                address = self._add_pair(host, lease, namespace.fileno(), index, mtu)
            inner: kernel.Rtnetlink = inside(str(lease.path), kernel.Rtnetlink)
            with inner:
                link = inner.link(_INSIDE)
                assert link is not None
                inner.add_address(link.index, ipaddress.IPv4Interface((address, self._subnet.prefixlen)))
                inner.set_up(link.index)
                inner.add_default_route(self._gateway)

    def _add_pair(self, host: kernel.Rtnetlink, lease: Lease, namespace: int, master: int, mtu: int) -> ipaddress.IPv4Address:
        taken = {link.name for link in host.links()}
        for _ in range(self._subnet.num_addresses):
            self._next = (self._next + 1) % self._subnet.num_addresses
            address = self._subnet[self._next]
            name = _pair_name(address)
            if address in (self._subnet[0], self._gateway, self._subnet[-1]) or name in taken:
                continue
            lease.write(self.kind, {"link": name})
            with suppress_exists():  # another engine was faster
                host.add_veth(name, master=master, peer=_INSIDE, peer_namespace=namespace, peer_mac=_mac(address), mtu=mtu)
                made = host.link(name)
                if made is not None:
                    host.set_alias(made.index, f"{_ALIAS} {lease.id}")
                return address
        raise UnsupportedError(
            f"every address of {self._subnet} is taken on the bridge {self.name}",
            hint="set a larger bridgeSubnet in [worker.oci], or fewer steps at once with max-parallelism",
        )

    def check(self, lease: Lease) -> None:
        with kernel.Rtnetlink() as host:
            link, bridge = host.link(str(lease.noted().get("state", {}).get("link", ""))), host.link(self.name)
            if link is None or bridge is None or link.master != bridge.index:
                raise UnsupportedError(f"the bridge {self.name} was removed")

    def close(self) -> None:
        """Remove the bridge if it is ours and nobody is connected to it."""
        with self._locked(), kernel.Rtnetlink() as host:
            bridge = host.link(self.name)
            if bridge is None or bridge.alias != _ALIAS or any(link.master == bridge.index for link in host.links()):
                return
            with suppress(OSError):  # somebody else was faster, or has made it his
                host.delete_link(bridge.index)
            firewall.close(self.name, self._subnet)

    def _ensure(self, host: kernel.Rtnetlink) -> tuple[int, int]:
        """Index and MTU of the bridge, which is made if it is not there."""
        found = host.link(self.name)
        if found is not None and found.alias != _ALIAS and not self._named:
            raise UnsupportedError(
                f"there is a network interface {self.name} that chantier did not make",
                hint="set bridgeName and bridgeSubnet in [worker.oci]: a bridge that is named there is used as it is",
            )
        if found is not None and found.up and self._opened:
            return found.index, found.mtu
        self._check_subnet(host)
        if found is None:
            index = host.add_bridge(self.name, mac=_mac(self._gateway), mtu=_outer_mtu(host))
            host.set_alias(index, _ALIAS)
        else:
            index = found.index
        with suppress_exists():
            host.add_address(index, ipaddress.IPv4Interface((self._gateway, self._subnet.prefixlen)))
        _allow_forwarding()
        firewall.open(self.name, self._subnet)
        host.set_up(index)
        self._opened = True
        made = host.link(self.name)
        assert made is not None
        return made.index, made.mtu

    def _check_subnet(self, host: kernel.Rtnetlink) -> None:
        addresses = host.addresses()
        names = {link.index: link.name for link in host.links()}  # of one that is missing the interface has gone meanwhile
        for index, address in addresses:
            if address.network.overlaps(self._subnet) and names.get(index, self.name) != self.name:
                raise UnsupportedError(
                    f"the subnet {self._subnet} of the bridge {self.name} overlaps {address} of {names[index]}",
                    hint="set another bridgeSubnet in [worker.oci]",
                )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Among all processes of this network namespace: names of abstract sockets are the namespace's own (unix(7))."""
        with self._lock, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as held:
            while True:
                try:
                    held.bind(f"\0chantier/bridge/{self.name}")
                    break
                except OSError as err:
                    if err.errno != errno.EADDRINUSE:
                        raise
                time.sleep(_PAUSE_S)
            yield


def detach(lease: Lease, state: Mapping[str, Any]) -> None:
    """Remove the pair now: it would go with its namespace, but another mount namespace may have a copy of that mount."""
    with kernel.Rtnetlink() as host:
        link = host.link(str(state["link"]))
        # The name may be another's by now.
        if link is not None and link.alias == f"{_ALIAS} {lease.id}":
            with suppress(OSError):  # gone meanwhile
                host.delete_link(link.index)


@contextmanager
def suppress_exists() -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno != errno.EEXIST:
            raise


def _pair_name(address: ipaddress.IPv4Address) -> str:
    return f"ch-{int(address):08x}"


def _mac(address: ipaddress.IPv4Address) -> bytes:
    """Locally administered, and the same for one address always: what others remember of it stays right."""
    return b"\x0a\x58" + address.packed


def _subnet(text: str) -> ipaddress.IPv4Network:
    key, hint = "worker.oci.bridgeSubnet", f'a private IPv4 network with at least 8 addresses, as "{SUBNET}"'
    try:
        found = ipaddress.IPv4Network(text)
    except ValueError as err:
        raise ConfigError(f"invalid bridge subnet {text!r}: {err}", key=key, hint=hint) from err
    if found.prefixlen > 29:
        raise ConfigError(f"invalid bridge subnet {text!r}: it is too small", key=key, hint=hint)
    return found


def _outer_mtu(host: kernel.Rtnetlink) -> int:
    """The MTU of the interface of the default route, 0 if there is none: what steps send should not have to be cut."""
    try:
        rows = Path("/proc/thread-self/net/route").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return 0
    for row in rows:
        name, destination, *_rest = row.split()
        if destination == "00000000":
            link = host.link(name)
            return link.mtu if link is not None else 0
    return 0


def _allow_forwarding() -> None:
    if _FORWARD.read_text(encoding="ascii").strip() != "0":
        return
    try:
        _FORWARD.write_text("1\n", encoding="ascii")
    except OSError as err:
        raise UnsupportedError(
            f"{_FORWARD} is 0 and cannot be set: {err.strerror}",
            hint="set it where the builder is started: sysctl net.ipv4.ip_forward=1",
        ) from err


__all__ = ["NAME", "SUBNET", "Bridge", "detach"]
