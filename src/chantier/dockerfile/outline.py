# SPDX-License-Identifier: Apache-2.0
"""What a stage may be given: its arguments, secrets and agents, noted while it is converted (subrequest outline)."""

from __future__ import annotations

from chantier.values import dataclass, field

from .args import ArgInfo
from .scope import Ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One secret or agent, as it was first seen."""

    required: bool
    ranges: Ranges


@dataclass(slots=True)
class Outline:
    """Grows while its stage is converted; `copy` starts that of a stage made from this one."""

    all_args: dict[str, ArgInfo] = field(default_factory=dict)
    used_args: set[str] = field(default_factory=set)
    secrets: dict[str, Wanted] = field(default_factory=dict)
    ssh: dict[str, Wanted] = field(default_factory=dict)

    def copy(self) -> Outline:
        return Outline(dict(self.all_args), set(self.used_args), dict(self.secrets), dict(self.ssh))

    def want_secret(self, id: str, *, required: bool, ranges: Ranges) -> None:
        self.secrets.setdefault(id, Wanted(required=required, ranges=ranges))

    def want_ssh(self, id: str, *, required: bool, ranges: Ranges) -> None:
        self.ssh.setdefault(id, Wanted(required=required, ranges=ranges))

    def used_with_deps(self) -> list[str]:
        """Used arguments and those their defaults need, each once."""
        found: dict[str, None] = {}
        todo = sorted(self.used_args)
        while todo:
            key = todo.pop()
            if key not in found:
                found[key] = None
                info = self.all_args.get(key)
                if info is not None:
                    todo.extend(sorted(info.deps))
        return list(found)


__all__ = ["Outline", "Wanted"]
