# SPDX-License-Identifier: Apache-2.0
"""A builder as it is stored: a driver and its nodes, in docker buildx's JSON (builders.md 1.2)."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from chantier.errors import ChantierError, UsageError
from chantier.spec import Platform, dumps
from chantier.values import dataclass, field

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9.\-_]*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One engine of a builder. `platforms` are those the user fixed; `files` go below /etc/buildkit.

    None for `driver_opts`, `flags` and `files` is "never set", which other tools tell from empty.
    """

    name: str
    endpoint: str = ""
    platforms: tuple[Platform, ...] | None = None
    driver_opts: Mapping[str, str] | None = None
    flags: tuple[str, ...] | None = None
    files: Mapping[str, bytes] | None = field(default=None, repr=False)  # private keys are among them

    @property
    def opts(self) -> Mapping[str, str]:
        return self.driver_opts or {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A builder. `driver` is docker-container, kubernetes or remote."""

    name: str
    driver: str
    nodes: tuple[Node, ...] = ()
    dynamic: bool = False

    def node(self, name: str) -> Node | None:
        return next((n for n in self.nodes if n.name == name), None)


def valid_name(name: str) -> str:
    """The name in lower case. Raises UsageError."""
    if not _NAME.match(name):
        raise UsageError(f"invalid name {name}, name needs to start with a letter and may not contain symbols, except ._-")
    return name.lower()


def encode(group: Group) -> bytes:
    return dumps(
        {
            "Name": group.name,
            "Driver": group.driver,
            "Nodes": [_node(node) for node in group.nodes],
            "Dynamic": group.dynamic,
        }
    )


def _node(node: Node) -> dict[str, Any]:
    files = node.files
    return {
        "Name": node.name,
        "Endpoint": node.endpoint,
        "Platforms": None if node.platforms is None else [p.to_json() for p in node.platforms],
        "DriverOpts": None if node.driver_opts is None else dict(sorted(node.driver_opts.items())),
        "Flags": None if node.flags is None else list(node.flags),
        "Files": None if files is None else {k: base64.b64encode(files[k]).decode() for k in sorted(files)},
    }


def decode(data: bytes, where: str) -> Group:
    """Raises ChantierError for what is no builder's file."""
    try:
        raw = json.loads(data)
        nodes = tuple(_read_node(n) for n in raw.get("Nodes") or ())
        return Group(name=str(raw["Name"]), driver=str(raw["Driver"]), nodes=nodes, dynamic=bool(raw.get("Dynamic")))
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ChantierError(f"failed to read the builder in {where}: {err}", hint="remove the file if it is of no use") from err


def _read_node(raw: dict[str, Any]) -> Node:
    platforms, opts, flags, files = (raw.get(k) for k in ("Platforms", "DriverOpts", "Flags", "Files"))
    return Node(
        name=str(raw["Name"]),
        endpoint=str(raw.get("Endpoint") or ""),
        platforms=None if platforms is None else tuple(Platform.from_json(p) for p in platforms),
        driver_opts=None if opts is None else {str(k): str(v) for k, v in opts.items()},
        flags=None if flags is None else tuple(str(f) for f in flags),
        files=None if files is None else {str(k): base64.b64decode(v or "") for k, v in files.items()},
    )


__all__ = ["Group", "Node", "decode", "encode", "valid_name"]
