# SPDX-License-Identifier: Apache-2.0
"""What is in effect, key by key, and where each value came from: a line of the file, a variable, or a default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chantier.values import dataclass

from .gc import gc_rules
from .lines import Path, line_map
from .load import state_root
from .read import dotted
from .schema import Table, keys_of
from .units import write_duration
from .values import Config, GcPolicyConfig
from .write import write_pair

DEFAULT = "default"
_VARIABLES: dict[Path, tuple[str, ...]] = {
    ("chantier", "network", "httpProxy"): ("HTTP_PROXY", "http_proxy"),
    ("chantier", "network", "httpsProxy"): ("HTTPS_PROXY", "https_proxy"),
    ("chantier", "network", "noProxy"): ("NO_PROXY", "no_proxy"),
}
"""Read by the engine where the file sets neither the key nor `proxy`."""
_MEANT: dict[Path, Any] = {
    ("log", "format"): "text",
    ("log", "level"): "info",
    ("worker", "oci", "gc"): True,
    ("worker", "oci", "networkMode"): "auto",
    ("worker", "oci", "bridgeName"): "buildkit0",
    ("worker", "oci", "bridgeSubnet"): "10.10.0.0/16",
    ("worker", "oci", "snapshotter"): "auto",
    ("worker", "oci", "max-parallelism"): 0,
    ("history", "maxAge"): 48 * 3600,
    ("history", "maxEntries"): 50,
}
"""What an engine does where a key is not set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """`value` as TOML has it (text, number, list); `origin` is FILE:LINE, a variable's name, or `default`."""

    path: Path
    value: Any
    origin: str

    @property
    def key(self) -> str:
        return dotted(self.path)


def settings(
    config: Config, text: str, *, env: Mapping[str, str], disk_bytes: int = 0, defaults: Mapping[Path, Any] | None = None
) -> list[Setting]:
    """Every value that is set or has a default that means something, in the order of the schema.

    `text` is what `config` was parsed from, `disk_bytes` the size of the disk under root; `defaults` are more of what is meant
    by keys that are not set.
    """
    return list(_Walk(config, line_map(text), env, disk_bytes, {**_MEANT, **(defaults or {})}).run())


@dataclass(frozen=True, slots=True)
class _Walk:
    config: Config
    lines: Mapping[Path, int]
    env: Mapping[str, str]
    disk_bytes: int
    meant: Mapping[Path, Any]

    def run(self) -> Iterator[Setting]:
        yield from self._table(self.config, ())

    def _table(self, value: Any, path: Path) -> Iterator[Setting]:
        tables: list[tuple[Path, Any, Table]] = []
        for name, (target, key) in keys_of(type(value)).items():
            here = (*path, name)
            mine = getattr(value, target.name)
            if isinstance(key.kind, Table):
                tables.append((here, mine, key.kind))
            else:
                yield from self._scalar(here, None if mine is None else key.kind.write(mine))
        for here, mine, kind in tables:
            yield from self._inner(here, mine, kind)

    def _inner(self, path: Path, value: Any, kind: Table) -> Iterator[Setting]:
        if kind.many:
            if not value and kind.cls is GcPolicyConfig and path[:2] == ("worker", "oci"):
                yield from self._policies(path)
            for index, item in enumerate(value):
                yield from self._table(item, (*path, index))
        elif kind.named:
            for name, item in value.items():
                yield from self._table(item, (*path, name))
        elif path != ("worker", "containerd") or self._line(path):
            yield from self._table(value, path)

    def _scalar(self, path: Path, value: Any) -> Iterator[Setting]:
        line = self._line(path)
        if path == ("root",):
            yield self._root(line)
        elif line:
            yield Setting(path=path, value=value, origin=f"{self.config.file}:{line}")
        elif found := self._variable(path):
            name, text = found
            yield Setting(path=path, value=[v for v in text.split(",") if v] if path[-1] == "noProxy" else text, origin=name)
        elif path in self.meant:
            meant = self.config.log_level if path == ("log", "level") else self.meant[path]
            yield Setting(path=path, value=meant, origin=self._older_level(path))
        elif value not in (None, "", 0, [], {}, False):
            yield Setting(path=path, value=value, origin=DEFAULT)

    def _root(self, line: int) -> Setting:
        origin = "CHANTIER_ROOT" if self.env.get("CHANTIER_ROOT") else f"{self.config.file}:{line}" if line else DEFAULT
        return Setting(path=("root",), value=str(state_root(self.config, self.env)), origin=origin)

    def _older_level(self, path: Path) -> str:
        """`debug` and `trace` set the level too."""
        by = ("trace",) if self.config.trace else ("debug",) if self.config.debug else None
        return f"{self.config.file}:{self._line(by)}" if by and path == ("log", "level") else DEFAULT

    def _variable(self, path: Path) -> tuple[str, str] | None:
        if self.config.chantier.network.proxy:
            return None
        return next(((name, self.env[name]) for name in _VARIABLES.get(path, ()) if self.env.get(name)), None)

    def _policies(self, path: Path) -> Iterator[Setting]:
        """The rules that no `gcpolicy` means: from `reservedSpace` and the like, else from the size of the disk."""
        for index, rule in enumerate(gc_rules(self.config.worker_oci, self.disk_bytes)):
            for name, value in (
                ("all", rule.all),
                ("filters", list(rule.filters)),
                ("keepDuration", write_duration(rule.keep_duration_s) if rule.keep_duration_s else ""),
                ("reservedSpace", rule.reserved_bytes),
                ("maxUsedSpace", rule.max_used_bytes),
                ("minFreeSpace", rule.min_free_bytes),
            ):
                if value:
                    yield Setting(path=(*path, index, name), value=value, origin=DEFAULT)

    def _line(self, path: Path) -> int:
        """Key names match without regard to case, as they are read."""
        if path in self.lines:
            return self.lines[path]
        folded = [str(p).lower() for p in path]
        return next((line for found, line in self.lines.items() if [str(p).lower() for p in found] == folded), 0)


def show(found: list[Setting]) -> str:
    """As a TOML file that means the same, with the origin of each value as a comment."""
    out: list[str] = []
    table: Path | None = None
    for one in found:
        if one.path[:-1] != table:
            table = one.path[:-1]
            if table:
                out.append(f"\n{_header(table)}")
        out.append(f"{write_pair(str(one.path[-1]), one.value)}  # {one.origin}")
    return "\n".join(out) + "\n"


def _header(table: Path) -> str:
    name = dotted(tuple(p for p in table if isinstance(p, str)))
    return f"[[{name}]]" if isinstance(table[-1], int) else f"[{name}]"


__all__ = ["DEFAULT", "Setting", "settings", "show"]
