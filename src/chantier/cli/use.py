# SPDX-License-Identifier: Apache-2.0
"""`chantier use`: which builder builds from now on."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .args import Parser
from .builders import add_builder

_EXAMPLE = """chantier use box
chantier use --default box     # also when another docker context was used in between
chantier use embedded          # no builder: the engine of this process"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier use", "Choose the builder for the current docker context.", _EXAMPLE)
    parser.add_argument("name", nargs="?", default=None, help="the builder")
    parser.add_argument("--default", action="store_true", help="keep the choice for this docker context")
    parser.add_argument("--global", dest="everywhere", action="store_true", help="for every docker context")
    add_builder(parser)
    given = parser.parse(args)
    from chantier.driver.context import DEFAULT, Contexts
    from chantier.driver.select import EMBEDDED
    from chantier.driver.store import Store
    from chantier.errors import NotFoundError, UsageError

    store, contexts = Store.open(os.environ), Contexts(os.environ)
    name = given.name or given.builder or os.environ.get("BUILDX_BUILDER", "")
    if not name:
        raise UsageError("a name is missing", hint="chantier use NAME; chantier ls lists them")
    key = contexts.key()
    if name == EMBEDDED:
        store.choose(key, "")
        return 0
    try:
        group = store.group(name)
    except NotFoundError as err:
        current = contexts.current()
        if name in (DEFAULT, current) and name == current:
            store.choose(key, "")
            return 0
        if contexts.exists(name):
            raise UsageError(
                f"run `docker context use {name}` to switch to {'default context' if name == DEFAULT else f'context {name}'}"
            ) from err
        raise
    store.choose(key, group.name, everywhere=given.everywhere, default=given.default)
    return 0
