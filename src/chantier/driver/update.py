# SPDX-License-Identifier: Apache-2.0
"""A new config for builders that exist: checked, compared, delivered; what a running daemon can take over it takes over."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping

from chantier.config import Config, parse
from chantier.config.restart import changes_that_need_a_restart
from chantier.errors import ChantierError, UsageError
from chantier.values import dataclass, replace

from .builder import Builder
from .delivery import files_of, text_of
from .group import Group, Node
from .node import RUNNING, Driver
from .store import CONFIG_NAME, Store

_OURS = "chantier"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of one node. `diff` is empty if nothing changes; `restart` names keys that a daemon reads once."""

    node: Node
    diff: str
    files: tuple[str, ...]  # certificates that are new or other
    restart: tuple[str, ...]


def plan_update(group: Group, config: str) -> list[Change]:
    """Nothing is written. Raises ConfigError, UsageError."""
    if group.driver == "remote":
        raise UsageError("setting config file is not supported for remote driver", hint="change the file of the daemon itself")
    files = files_of(config)
    return [_change(node, files) for node in group.nodes]


def _change(node: Node, files: Mapping[str, bytes]) -> Change:
    before, after = text_of(node.files), text_of(files)
    diff = "".join(
        difflib.unified_diff(
            before.splitlines(keepends=True), after.splitlines(keepends=True), f"{node.name}: before", f"{node.name}: after"
        )
    )
    old = node.files or {}
    others = tuple(name for name, data in sorted(files.items()) if name != CONFIG_NAME and old.get(name) != data)
    restart = changes_that_need_a_restart(_parsed(before), _parsed(after))
    return Change(node=replace(node, files=dict(files)), diff=diff, files=others, restart=restart)


def _parsed(text: str) -> Config:
    try:
        return parse(text, CONFIG_NAME) if text else Config()
    except ChantierError:
        return Config()  # one that other tools made; whatever differs is said to need a restart


async def apply(group: Group, changes: list[Change], store: Store, env: Mapping[str, str] = os.environ) -> list[str]:
    """Store and deliver. What a person should know of each node, as lines."""
    changed = replace(group, nodes=tuple(c.node for c in changes))
    store.save(changed)
    builder = Builder(changed, env=env)
    try:
        return [await _deliver(driver, change) for driver, change in zip(builder.drivers, changes, strict=True)]
    finally:
        await builder.aclose()


async def _deliver(driver: Driver, change: Change) -> str:
    name = change.node.name
    if not change.diff and not change.files:
        return f"{name}: nothing changes"
    if await driver.status() != RUNNING:
        return f"{name}: takes it when it starts"
    async with await driver.client() as client:
        version = await client.version()
    live = version is not None and version.package == _OURS
    await driver.deliver(change.node, reload=live)
    again = f"chantier stop {driver.builder}; the next build starts it"
    if not live:
        return f"{name}: delivered; this daemon reads its config when it starts: {again}"
    if change.restart:
        return f"{name}: applied; {', '.join(change.restart)} only after a restart: {again}"
    return f"{name}: applied; builds that run keep what they started with"


__all__ = ["Change", "apply", "plan_update"]
