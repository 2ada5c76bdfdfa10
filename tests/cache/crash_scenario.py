# SPDX-License-Identifier: Apache-2.0
"""What is killed. Run as a program it is a fork server: reads `PATH SPEC` lines, answers each with how the child ended.

The server itself starts no thread and opens nothing, so its forks are clean; a child costs milliseconds.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cache_parts import FakeFetcher, Home, write

from chantier.cache.keys import SqliteKeyStore
from chantier.kernel.trace import crash_at, install
from chantier.solver.keys import Keep
from chantier.solver.types import CacheRecord
from chantier.store import Policy

WANT = {"base": "1", "etc/b": "2", "step": "3", "etc/c": "4", "copied": "5", "context": "6"}


FETCHER = FakeFetcher()


def scenario(path: Path) -> dict[str, object]:
    """One of everything that writes. Ends with an empty cache."""
    home = Home(path, fetcher=FETCHER)
    base = home.image({"base": "1", "etc/a": "1"}, {"etc/b": "2"})
    first = home.step(base, {"step": "3"})
    unfinished = home.cache.new(first)
    write(unfinished, {"x": "y"})
    unfinished.release()
    second = home.step(first, {"etc/c": "4"}, remove=["etc/a"])
    ids = home.cache.find("local:context")
    local = home.cache.get_mutable(ids[0]) if ids else None
    if local is None:
        local = home.cache.new(None, index="local:context", record_type="source.local")
    write(local, {"context": "6"})
    view = local.freeze()
    copied = home.step(None, {"copied": "5"})
    merged = home.cache.merge([second, copied, view], description="merge")
    mount = home.cache.mutable("cache-dir:x")
    write(mount, {"cached": "1"})
    mount.release()
    tree = dict(home.tree(merged))
    layers = merged.layers()
    merged.layers(compression="zstd", force=True)
    assert len(layers) == 6
    home.root.settler.now()
    keys = SqliteKeyStore(home.cache.db)
    keys.apply([Keep(key=f"key:{n}", record=CacheRecord(key=f"key:{n}", result=second.id, created_at=n)) for n in range(3)])
    for ref in (base, first, second, copied, merged, view):
        ref.release()
    home.cache.prune(Policy(all=True))
    keys.sweep(home.cache.exists)
    home.close()
    return tree


def serve() -> None:
    for line in sys.stdin:
        path, spec = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            try:
                if spec.startswith("after:"):  # killed by the server after so many seconds
                    install(None)
                else:
                    install(crash_at(spec))
                scenario(Path(path))
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        if spec.startswith("after:"):
            time.sleep(float(spec[6:]))
            os.kill(child, 9)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
