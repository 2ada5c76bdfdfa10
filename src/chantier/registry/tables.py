# SPDX-License-Identifier: Apache-2.0
"""What the config says of a host: its own tables, and under them, key by key, those with a star that mean it too."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from chantier.config import RegistryConfig, RegistryExtra, is_pattern, matching
from chantier.values import dataclass, field, fields

from .network import Network

T = TypeVar("T")
HUB = "docker.io"
HUB_HOSTS = frozenset(["registry-1.docker.io", "index.docker.io"])
_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Of one host. `names` are the tables that had a say, the most specific first."""

    config: RegistryConfig = field(default_factory=RegistryConfig)
    extra: RegistryExtra = field(default_factory=RegistryExtra)
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The registry part of one config."""

    registries: Mapping[str, RegistryConfig] = field(default_factory=lambda: _NONE)
    extras: Mapping[str, RegistryExtra] = field(default_factory=lambda: _NONE)
    network: Network = field(default_factory=Network)

    def of(self, host: str) -> Table:
        """By HOST[:PORT], as a reference or the config writes it; Docker Hub's servers are `docker.io`."""
        host = HUB if host in HUB_HOSTS else host
        names = matching(host, {**self.registries, **self.extras})
        own = self.extras.get(host)
        if own is not None and own.inherit is False:
            names = tuple(name for name in names if not is_pattern(name))
        return Table(
            config=_merged(RegistryConfig(), [self.registries[n] for n in names if n in self.registries]),
            extra=_merged(RegistryExtra(), [self.extras[n] for n in names if n in self.extras]),
            names=names,
        )


def _merged(default: T, tables: list[T]) -> T:
    """Each key from the first table that sets it."""
    values: dict[str, Any] = {}
    for each in fields(default):  # type: ignore[arg-type]
        unset = getattr(default, each.name)
        values[each.name] = next((v for t in tables if (v := getattr(t, each.name)) != unset), unset)
    return type(default)(**values)
