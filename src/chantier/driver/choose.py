# SPDX-License-Identifier: Apache-2.0
"""Which engine builds: what was named, or what was chosen with `use`, or the one in this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from chantier.errors import UsageError

from .running import Running

if TYPE_CHECKING:
    from chantier.config import Config

EMBEDDED = "embedded"


def choose(
    builder: str | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | Config | None = None,
    env: Mapping[str, str] = os.environ,
) -> Running:
    """A driver, not connected yet. `builder` is a name, an address or `embedded`; None looks at BUILDX_BUILDER. Raises UsageError."""
    name = builder if builder is not None else env.get("BUILDX_BUILDER", "")
    if name in ("", EMBEDDED):
        from .embedded import Embedded

        return Embedded(root=root, config=config, env=env)
    from .dial import is_address

    if is_address(name):
        from .remote import Remote

        return Remote(name, env=env)
    from .context import Contexts

    if Contexts(env).exists(name):
        from .docker import Docker

        return Docker(name, env=env)
    raise UsageError(f'no builder "{name}" found')


__all__ = ["EMBEDDED", "choose"]
