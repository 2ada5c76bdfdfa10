# SPDX-License-Identifier: Apache-2.0
"""Which engine builds: what was named, or what was chosen with `use`, or the one in this process (builders.md 1.4)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from chantier.errors import NotFoundError, UsageError

from .running import Running

if TYPE_CHECKING:
    from chantier.config import Config

    from .builder import Builder
    from .group import Group

EMBEDDED = "embedded"


def open_builder(
    name: str | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | Config | None = None,
    env: Mapping[str, str] = os.environ,
) -> Running:
    """A driver, not connected yet.

    `name` is a builder's, an address, a docker context's (the engine's own BuildKit), or `embedded`; None is BUILDX_BUILDER,
    then what was chosen. Raises UsageError, NotFoundError.
    """
    found = find_builder(name, env=env)
    if found is not None:
        if root is not None or config is not None:
            raise UsageError("--root and --config are for the embedded engine", hint="add --builder embedded")
        return found
    from .embedded import Embedded

    return Embedded(root=root, config=config, env=env)


def find_builder(name: str | None = None, *, env: Mapping[str, str] = os.environ, check: bool = True) -> Builder | None:
    """None is the embedded engine. `check`: a docker context other than the current one is an error."""
    wanted = name if name is not None else env.get("BUILDX_BUILDER", "")
    if wanted == EMBEDDED:
        return None
    from .builder import Builder
    from .context import DEFAULT, Contexts
    from .dial import is_address
    from .group import Group, Node
    from .store import Store

    store, contexts = Store.open(env), Contexts(env)
    if not wanted:
        if not store.directory.is_dir():
            return None
        group = store.current(contexts.key())
        return None if group is None else Builder(group, env=env)
    if is_address(wanted):
        return Builder(
            Group(name=wanted, driver="remote", nodes=(Node(name="remote0", endpoint=wanted),)), env=env, implicit=True
        )
    try:
        return Builder(store.group(wanted), env=env)
    except (NotFoundError, UsageError) as err:
        if isinstance(err, UsageError) and store.find(wanted) is not None:
            raise
    if not contexts.exists(wanted):
        raise NotFoundError(f'no builder "{wanted}" found', hint="`chantier ls` lists builders")
    if check and wanted not in (contexts.current(), DEFAULT):
        raise UsageError(f'use `docker --context={wanted} buildx` to switch to context "{wanted}"')
    return Builder(implicit_group(wanted), env=env, implicit=True)


def implicit_group(context: str) -> Group:
    """The builder that a docker context is."""
    from .group import Group, Node

    return Group(name=context, driver="docker", nodes=(Node(name=context, endpoint=context),))


__all__ = ["EMBEDDED", "find_builder", "implicit_group", "open_builder"]
