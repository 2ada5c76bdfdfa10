# SPDX-License-Identifier: Apache-2.0
"""`chantier cache-mount`: the content of cache mounts goes to a registry or a directory, and comes back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from chantier.client.parse import parse_csv_fields, parse_size
from chantier.display.human import human_size
from chantier.driver.embedded import Embedded
from chantier.errors import UsageError

from .args import Parser
from .builders import run_async

_EXAMPLE = """chantier cache-mount ls
chantier cache-mount export go-build --to type=registry,ref=reg.test/cache:go --limit 2g
chantier cache-mount import go-build --from type=local,src=./go-cache"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier cache-mount", "Cache mounts that outlive the machine.", _EXAMPLE)
    add = parser.add_argument
    add("what", choices=("ls", "export", "import"))
    add("id", nargs="?", default="", help="the mount: its id, or its target")
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

    def work(mounts: Any, place: Any) -> str:
        if given.what == "ls":
            return _table(mounts.list())
        attrs = parse_csv_fields(where) if "=" in where else {"type": "registry", "ref": where}
        id = _id(mounts, given.id) if given.what == "export" else given.id
        if given.what == "import":
            moved = mounts.import_(_id(mounts, id), place(attrs))
            return f"imported {moved.files} files, {human_size(moved.bytes)}, from {moved.blobs} blobs\n"
        moved = mounts.export(id, place(attrs), limit=parse_size(given.limit))
        more = f", {moved.left_out} left out by the limit" if moved.left_out else ""
        return f"exported {moved.files} files, {human_size(moved.bytes)}, {human_size(moved.sent)} sent{more}\n"

    async def main() -> str:
        driver = Embedded(root=given.root, config=given.config)
        try:
            said: str = await driver.cache_mounts(work)
        finally:
            await driver.aclose()
        return said

    sys.stdout.write(run_async(main()))
    return 0


def _id(mounts: Any, text: str) -> str:
    """A target without an id is known as `/TARGET` by the frontend: it is found by its target alone."""
    known = [mount.id for mount in mounts.list()]
    for id in (text, f"/{text}"):
        if id in known:
            return str(id)
    return f"/{text}" if text.startswith("/") and not text.startswith("//") else text


def _table(found: Sequence[Any]) -> str:
    from .rows import table
    from .usage import ago

    rows = [(mount.id, human_size(mount.size), ago(mount.last_used)) for mount in found]
    return table(("ID", "SIZE", "LAST ACCESSED"), rows)
