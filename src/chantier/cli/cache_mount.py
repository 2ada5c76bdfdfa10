# SPDX-License-Identifier: Apache-2.0
"""`chantier cache-mount`: the content of cache mounts goes to a registry or a directory, and comes back."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from chantier.client.parse import parse_csv_fields, parse_size
from chantier.display.human import human_size
from chantier.driver.cache_mounts import CacheMount, CacheMounts, cache_mounts_of
from chantier.driver.embedded import Embedded
from chantier.driver.select import EMBEDDED, find_builder
from chantier.errors import UsageError

from .args import Parser
from .builders import add_builder, run_async

_EXAMPLE = """chantier cache-mount ls
chantier cache-mount export go-build --to type=registry,ref=reg.test/cache:go --limit 2g
chantier cache-mount import go-build --from type=local,src=./go-cache"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier cache-mount", "Cache mounts that outlive the machine.", _EXAMPLE)
    add = parser.add_argument
    add("what", choices=("ls", "export", "import"))
    add("id", nargs="?", default="", help="the mount: its id, or its target")
    add_builder(parser)
    add("--config", default=None, metavar="FILE", help="the config file to use instead of the one found")
    add("--from", dest="source", default="", metavar="PLACE", help="where to import from: type=registry|local,…")
    add("--limit", default="0", metavar="SIZE", help="export at most so much, the files changed last first")
    add("--root", default=None, metavar="DIR", help="where the engine keeps its state")
    add("--to", default="", metavar="PLACE", help="where to export to: type=registry,ref=NAME or type=local,dest=DIR")
    given = parser.parse(args)
    where = given.to if given.what == "export" else given.source
    if given.what != "ls" and not (given.id and where):
        flag = "--to" if given.what == "export" else "--from"
        raise UsageError(f"cache-mount {given.what} requires an id and {flag}", hint="run `chantier cache-mount --help`")

    attrs = parse_csv_fields(where) if "=" in where else {"type": "registry", "ref": where}

    async def main() -> str:
        async with opened(given) as mounts:
            if given.what == "ls":
                return _table(await mounts.list())
            if given.what == "import":
                moved = await mounts.import_(given.id, attrs)
                return f"imported {moved.files} files, {human_size(moved.bytes)}, from {moved.blobs} blobs\n"
            moved = await mounts.export(given.id, attrs, limit=parse_size(given.limit))
            more = f", {moved.left_out} left out by the limit" if moved.left_out else ""
            return f"exported {moved.files} files, {human_size(moved.bytes)}, {human_size(moved.sent)} sent{more}\n"

    sys.stdout.write(run_async(main()))
    return 0


@asynccontextmanager
async def opened(given: Any) -> AsyncIterator[CacheMounts]:
    """Those of a builder, or of a root on this machine."""
    if given.root is None and given.config is None and (builder := find_builder(given.builder)) is not None:
        try:
            yield cache_mounts_of(builder)
        finally:
            await builder.aclose()
        return
    if given.builder not in (None, EMBEDDED):
        raise UsageError("--root and --config are for the embedded engine", hint="add --builder embedded")
    driver = Embedded(root=given.root, config=given.config)
    try:
        yield CacheMounts([driver])
    finally:
        await driver.aclose()


def _table(found: Sequence[CacheMount]) -> str:
    from .rows import table
    from .usage import ago

    rows = [(mount.id, human_size(mount.size), ago(mount.last_used)) for mount in found]
    return table(("ID", "SIZE", "LAST ACCESSED"), rows)
