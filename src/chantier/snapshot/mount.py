# SPDX-License-Identifier: Apache-2.0
"""How to mount a directory tree, as values: the triple of mount(2)."""

from __future__ import annotations

from chantier.values import dataclass


@dataclass(frozen=True, slots=True)
class Mount:
    """`type` is bind, overlay or tmpfs; options are as in mount(8) (`ro`, `rbind`, `lowerdir=…`)."""

    type: str
    source: str
    options: tuple[str, ...] = ()

    @property
    def readonly(self) -> bool:
        return "ro" in self.options
