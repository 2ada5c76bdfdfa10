# SPDX-License-Identifier: Apache-2.0
"""Links, addresses and routes by rtnetlink(7): the few requests that a container's network takes.

A socket belongs to the network namespace of the thread that opened it, and goes on acting there whoever uses it. One socket,
one thread at a time.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from chantier.values import dataclass

# linux/netlink.h, linux/rtnetlink.h
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLM_F_DUMP_INTR = 0x10  # of an answer: something has changed while it was made (netlink(7), linux/netlink.h)
_NLM_F_EXCL, _NLM_F_CREATE = 0x200, 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 17, 18, 19
_RTM_NEWADDR, _RTM_GETADDR, _RTM_NEWROUTE = 20, 22, 24
_RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_UNIVERSE, _RTN_UNICAST = 254, 3, 0, 1
_RTA_GATEWAY = 5
# linux/if_link.h, linux/if_addr.h, linux/veth.h, linux/if.h
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_IFALIAS, _IFLA_NET_NS_FD = 20, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFF_UP = 1

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network interface. `master` is the index of the bridge it is a port of, 0 for none; `alias` a free text."""

    index: int
    name: str
    mtu: int = 0
    master: int = 0
    alias: str = ""
    up: bool = False


class Rtnetlink:
    """A connection to the kernel, for the namespace of the thread that makes it. Errors are OSError; `filename` says of what."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def link(self, name: str) -> Link | None:
        """One interface, or None if there is none of that name."""
        body = _LINK.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name)
        try:
            return _read_link(self._ask(_RTM_GETLINK, 0, body, name)[0])
        except OSError as err:
            if err.errno == errno.ENODEV:
                return None
            raise

    def links(self) -> list[Link]:
        """All interfaces."""
        return [_read_link(body) for body in self._ask(_RTM_GETLINK, _NLM_F_DUMP, _LINK.pack(0, 0, 0, 0, 0), "links")]

    def add_bridge(self, name: str, *, mac: bytes, mtu: int = 0) -> int:
        """A bridge; its index. EEXIST if the name is taken. A MAC that is given stays whatever ports come and go."""
        kind = _attribute(_IFLA_LINKINFO, _text(_IFLA_INFO_KIND, "bridge"))
        self._new_link(name, kind + _attribute(_IFLA_ADDRESS, mac) + (_number(_IFLA_MTU, mtu) if mtu else b""), 0)
        made = self.link(name)
        if made is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
        return made.index

    def add_veth(self, name: str, *, master: int, peer: str, peer_namespace: int, peer_mac: bytes, mtu: int = 0) -> None:
        """A pair: `name` here, up, a port of `master`; `peer` in the namespace of a descriptor. EEXIST if `name` is taken."""
        size = _number(_IFLA_MTU, mtu) if mtu else b""
        far = _LINK.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, peer) + size
        far += _attribute(_IFLA_ADDRESS, peer_mac) + _number(_IFLA_NET_NS_FD, peer_namespace)
        pair = _text(_IFLA_INFO_KIND, "veth") + _attribute(_IFLA_INFO_DATA, _attribute(_VETH_INFO_PEER, far))
        self._new_link(name, size + _number(_IFLA_MASTER, master) + _attribute(_IFLA_LINKINFO, pair), _IFF_UP)

    def _new_link(self, name: str, attributes: bytes, flags: int) -> None:
        body = _LINK.pack(0, 0, 0, flags, flags) + _text(_IFLA_IFNAME, name) + attributes
        self._ask(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, body, name)

    def set_up(self, index: int) -> None:
        self._ask(_RTM_NEWLINK, 0, _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP), f"link {index}")

    def set_alias(self, index: int, text: str) -> None:
        self._ask(_RTM_SETLINK, 0, _LINK.pack(0, 0, index, 0, 0) + _attribute(_IFLA_IFALIAS, text.encode()), f"link {index}")

    def delete_link(self, index: int) -> None:
        """ENODEV if it is gone. Of a pair both ends go."""
        self._ask(_RTM_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0), f"link {index}")

    def add_address(self, index: int, address: ipaddress.IPv4Interface) -> None:
        """EEXIST if the interface has it."""
        body = struct.pack("=BBBBi", socket.AF_INET, address.network.prefixlen, 0, _RT_SCOPE_UNIVERSE, index)
        body += _attribute(_IFA_LOCAL, address.ip.packed) + _attribute(_IFA_ADDRESS, address.ip.packed)
        self._ask(_RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_EXCL, body, str(address))

    def addresses(self) -> list[tuple[int, ipaddress.IPv4Interface]]:
        """IPv4 addresses, with the indices of their interfaces."""
        found = []
        for body in self._ask(_RTM_GETADDR, _NLM_F_DUMP, struct.pack("=BBBBi", socket.AF_INET, 0, 0, 0, 0), "addresses"):
            family, prefix, _flags, _scope, index = struct.unpack_from("=BBBBi", body)
            parts = dict(_attributes(body[8:]))
            packed = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS)
            if family == socket.AF_INET and packed:
                found.append((index, ipaddress.IPv4Interface((packed, prefix))))
        return found

    def add_default_route(self, gateway: ipaddress.IPv4Address) -> None:
        body = struct.pack(
            "=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_UNIVERSE, _RTN_UNICAST, 0
        )
        body += _attribute(_RTA_GATEWAY, gateway.packed)
        self._ask(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_EXCL, body, f"default via {gateway}")

    def _ask(self, kind: int, flags: int, body: bytes, what: str) -> list[bytes]:
        """One request and the bodies of what is answered: until the acknowledgement, or the end of a dump.

        A dump during which others changed something may lack what was there all the time, and is asked for again.
        """
        while True:
            answers, whole = self._ask_once(kind, flags, body, what)
            if whole:
                return answers

    def _ask_once(self, kind: int, flags: int, body: bytes, what: str) -> tuple[list[bytes], bool]:
        self._sequence += 1
        flags |= _NLM_F_REQUEST | (0 if flags & _NLM_F_DUMP == _NLM_F_DUMP else _NLM_F_ACK)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        answers: list[bytes] = []
        whole = True
        while True:
            data = self._socket.recv(_BUFFER)
            while data:
                length, said, told, sequence, _port = _HEADER.unpack_from(data)
                message, data = data[_HEADER.size : length], data[_align(length) :]
                if sequence != self._sequence:  # of a request that was given up
                    continue
                whole = whole and not told & _NLM_F_DUMP_INTR
                if said == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", message)[0]
                    if code:
                        raise OSError(code, os.strerror(code), what)
                    return answers, True
                if said == _NLMSG_DONE:
                    return answers, whole
                answers.append(message)


def _read_link(body: bytes) -> Link:
    _family, _type, index, flags, _change = _LINK.unpack_from(body)
    parts = dict(_attributes(body[_LINK.size :]))
    return Link(
        index=index,
        name=_string(parts.get(_IFLA_IFNAME, b"")),
        mtu=int.from_bytes(parts.get(_IFLA_MTU, b""), sys.byteorder),
        master=int.from_bytes(parts.get(_IFLA_MASTER, b""), sys.byteorder),
        alias=_string(parts.get(_IFLA_IFALIAS, b"")),
        up=bool(flags & _IFF_UP),
    )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]  # the upper bits say how it is encoded
        data = data[_align(length) :]


def _attribute(kind: int, data: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + bytes(_align(length) - length)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _string(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _align(length: int) -> int:
    return (length + 3) & ~3


__all__ = ["Link", "Rtnetlink"]
