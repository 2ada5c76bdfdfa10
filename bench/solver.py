# SPDX-License-Identifier: Apache-2.0
"""What the solver costs for each vertex, by the size and shape of the graph: `python bench/solver.py [--sizes 10,100,...] [--sqlite]`.

Operations add integers, so that nothing but the solver is measured. `first` runs all, `again` is a new solver on the
same key store (all cached), `joined` a second job beside the first.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
import tracemalloc
from pathlib import Path

from chantier.solver import Edge, KeyStore, Solver, Vertex
from chantier.testing.solver import IntOp, MemoryKeyStore, MemoryResultStore, int_vertex, resolve_int


def chain(size: int, results: MemoryResultStore) -> Vertex:
    vertex = int_vertex(IntOp(results=results, digest="sha256:base", value=1))
    for number in range(size - 1):
        vertex = int_vertex(IntOp(results=results, digest=f"sha256:{number}", value=1), vertex)
    return vertex


def fan(size: int, results: MemoryResultStore) -> Vertex:
    base = int_vertex(IntOp(results=results, digest="sha256:base", value=1))
    middle = [int_vertex(IntOp(results=results, digest=f"sha256:{number}", value=1), base) for number in range(max(size - 2, 1))]
    return int_vertex(IntOp(results=results, digest="sha256:top", value=1), *middle)


def content(size: int, results: MemoryResultStore) -> Vertex:
    """A chain in which each second vertex also takes a local source by content, as COPY does."""
    vertex = int_vertex(IntOp(results=results, digest="sha256:base", value=1))
    local = int_vertex(IntOp(results=results, digest="random:local", value=1))
    for number in range(size - 2):
        op = IntOp(results=results, digest=f"sha256:{number}", value=1, contents=frozenset({1}) if number % 2 else frozenset())
        vertex = int_vertex(op, vertex, local) if number % 2 else int_vertex(op, vertex)
    return vertex


def stored(path: Path) -> KeyStore:
    from chantier.cache.keys import SqliteKeyStore
    from chantier.store.db import Db

    return SqliteKeyStore(Db(path))


async def build(solver: Solver, top: Vertex, id: str) -> tuple[float, float]:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    async with solver.job(id) as job:
        (await job.build(Edge(top))).release()
    return time.perf_counter() - wall, time.process_time() - cpu


async def joined(solver: Solver, top: Vertex) -> float:
    async with solver.job("one") as one:
        (await one.build(Edge(top))).release()
        cpu = time.process_time()
        async with solver.job("two") as two:
            (await two.build(Edge(top))).release()
        return time.process_time() - cpu


async def measure(name: str, size: int, keys: KeyStore) -> None:
    results = MemoryResultStore()
    make = {"chain": chain, "fan": fan, "content": content}[name]
    top = make(size, results)
    _, first = await build(Solver(resolve_int, keys, results), top, "first")
    wall, again = await build(Solver(resolve_int, keys, results), make(size, results), "again")
    beside = await joined(Solver(resolve_int, keys, results), top)
    fresh = MemoryResultStore()
    top = make(size, fresh)
    tracemalloc.start()
    await build(Solver(resolve_int, MemoryKeyStore(), fresh), top, "memory")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    each = 1e6 / size
    print(
        f"{name:8} {size:7} {first * each:10.1f} {again * each:10.1f} {beside * each:10.1f} {again * 1e3:12.1f} {wall * 1e3:12.1f}"
        f" {peak / size / 1024:10.1f}"
    )
    if results.handles:
        raise SystemExit(f"{results.handles} handles leaked")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="10,100,200,1000,10000")
    parser.add_argument("--shapes", default="chain,fan,content")
    parser.add_argument("--sqlite", action="store_true", help="keys on disk instead of in memory")
    options = parser.parse_args()
    print(
        f"{'shape':8} {'size':>7} {'first us':>10} {'again us':>10} {'joined us':>10} {'again ms cpu':>12} {'again ms':>12}"
        f" {'peak KiB':>10}   (us of CPU and KiB for each vertex)"
    )
    with tempfile.TemporaryDirectory() as directory:
        for name in options.shapes.split(","):
            for size in map(int, options.sizes.split(",")):
                await measure(name, size, stored(Path(directory) / f"{name}-{size}.db") if options.sqlite else MemoryKeyStore())


if __name__ == "__main__":
    asyncio.run(main())
