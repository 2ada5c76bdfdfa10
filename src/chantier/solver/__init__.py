# SPDX-License-Identifier: Apache-2.0
"""A graph of work, solved: what was done before is found, what is left is done once, side by side.

The solver knows no containers. It is given vertices (what to do, of which inputs), an `Op` for each (its cache key, its
run), a `KeyStore` (how results were made) and a `ResultStore` (the results). A vertex is active for the whole process
under its digest; jobs share it.

It promises: equal work (one digest, or different digests whose keys turn out equal) happens once at a time; an operation
ends when the last job that waits for it has gone, and not before; a job that has ended left nothing running and no handle
unreleased; cost in time and memory is linear in the graph, and no depth is too deep; every decision has a reason.

It refuses: to know what a result is, to retry (an error stands as long as its vertex is active), to delete results.

Three names to know: `Solver`, its `Job` (`async with solver.job(id, reporter) as job: built = await job.build(edge)`),
and `KeyStore`.

    solver.py   active vertices by digest, jobs         keys.py      names of keys, links, the store's protocol
    job.py      one build's view; `Built`               combined.py  several key stores as one (imported caches)
    vertex.py   what is done once, and its progress     index.py     keys of what is active: merging
    edge.py     definition key, content key, run        keeping.py   results under keys, and links to them
    probe.py    what is known by one input              writer.py    writes behind the builds' back
    flight.py   shared work and who waits for it        export.py    from a result back to all its keys
    slots.py    how many run at once                    explain.py, status.py   why, and what for
"""

from .combined import CombinedKeyStore, KeySource
from .explain import Explanation
from .export import ExportKey, walk_keys
from .job import Built, Job
from .keys import Change, Drop, Keep, KeyInfo, KeyStore, Link, Swept, content_key_id, fresh_key_id, is_volatile, key_id
from .slots import Slots
from .solver import Solver
from .status import VertexStatus, render
from .types import CacheMap, CacheRecord, ContentKey, Dep, Edge, JobContext, Op, Resolve, Result, ResultStore, Vertex

__all__ = [
    "Built",
    "CacheMap",
    "CacheRecord",
    "Change",
    "CombinedKeyStore",
    "ContentKey",
    "Dep",
    "Drop",
    "Edge",
    "Explanation",
    "ExportKey",
    "Job",
    "JobContext",
    "Keep",
    "KeyInfo",
    "KeySource",
    "KeyStore",
    "Link",
    "Op",
    "Resolve",
    "Result",
    "ResultStore",
    "Slots",
    "Solver",
    "Swept",
    "Vertex",
    "VertexStatus",
    "content_key_id",
    "fresh_key_id",
    "is_volatile",
    "key_id",
    "render",
    "walk_keys",
]
