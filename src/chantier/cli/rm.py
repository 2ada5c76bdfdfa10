# SPDX-License-Identifier: Apache-2.0
"""`chantier rm`: builders go, with what they run and keep."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

from .args import Parser
from .builders import add_builder, add_timeout, confirm, run_async, seconds

_EXAMPLE = """chantier rm box
chantier rm --all-inactive --force
chantier rm --keep-state box    # the cache stays, for a builder of that name"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier rm", "Remove builders.", _EXAMPLE)
    parser.add_argument("names", nargs="*", metavar="NAME", help="builders (default: the one in use)")
    parser.add_argument("--all-inactive", action="store_true", help="all that do not run")
    parser.add_argument("-f", "--force", action="store_true", help="do not ask")
    parser.add_argument("--keep-daemon", action="store_true", help="forget it, but leave it running")
    parser.add_argument("--keep-state", action="store_true", help="keep its cache")
    add_builder(parser)
    add_timeout(parser)
    given = parser.parse(args)
    from chantier.driver.context import Contexts
    from chantier.driver.store import Store
    from chantier.errors import UsageError

    store = Store.open(os.environ)
    if given.all_inactive:
        if given.names:
            raise UsageError("cannot specify builder name when --all-inactive is set")
        if not given.force and not confirm("WARNING! This will remove all builders that are not in running state."):
            return 0
        names = run_async(_inactive(store, seconds(given.timeout)))
    else:
        chosen = given.builder or os.environ.get("BUILDX_BUILDER", "")
        if not given.names and not chosen:
            current = store.current(Contexts(os.environ).key())
            if current is None:
                raise UsageError("no builder is in use", hint="name one: chantier rm NAME")
            chosen = current.name
        names = given.names or [chosen]
    failed = run_async(_remove_all(store, names, keep_daemon=given.keep_daemon, keep_state=given.keep_state))
    if failed:
        raise UsageError("failed to remove one or more builders")
    return 0


async def _inactive(store: Any, timeout_s: float) -> list[str]:
    from chantier.driver.builder import Builder

    from .ls import facts_of

    found = []
    for group in store.groups():
        facts = await facts_of(Builder(group, env=os.environ), timeout_s)
        if not group.dynamic and not any(f.status == "running" for f in facts):
            found.append(group.name)
    return found


async def _remove_all(store: Any, names: Sequence[str], *, keep_daemon: bool, keep_state: bool) -> bool:
    from chantier.errors import ChantierError

    async def one(name: str) -> bool:
        try:
            await _remove(store, name, keep_daemon=keep_daemon, keep_state=keep_state)
        except ChantierError as err:
            sys.stderr.write(f"failed to remove {name}: {err}\n")
            return True
        sys.stderr.write(f"{name} removed\n")
        return False

    return any(await asyncio.gather(*(one(name) for name in names)))


async def _remove(store: Any, name: str, *, keep_daemon: bool, keep_state: bool) -> None:
    from chantier.driver.builder import Builder
    from chantier.driver.context import Contexts
    from chantier.driver.select import EMBEDDED
    from chantier.errors import NotFoundError, UsageError

    if name == EMBEDDED:
        raise UsageError("the embedded engine cannot be removed", hint="chantier prune --all empties its cache")
    try:
        group = store.group(name)
    except NotFoundError as err:
        if Contexts(os.environ).exists(name):
            raise UsageError(f"context builder cannot be removed, run `docker context rm {name}` to remove this context") from err
        raise NotFoundError(f'no builder "{name}" found') from err
    try:
        if not keep_daemon:
            builder = Builder(group, env=os.environ)
            try:
                for driver in builder.drivers:
                    await driver.stop()
                    await driver.remove(keep_state=keep_state)
            finally:
                await builder.aclose()
    finally:
        store.remove(name)  # whatever became of its nodes
