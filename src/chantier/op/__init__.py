# SPDX-License-Identifier: Apache-2.0
"""One file per kind of vertex: what an operation of the graph does, and what its result depends on.

A source is an operation without inputs. Each class here implements `solver.types.Op` for `cache.Ref` results, is made by
`XOp(vertex, worker)` from a `llb.definition.LoadedVertex` and the one `Worker` of the engine, and keeps no state between
calls: `cache_map` may be asked twice and has no effect, `run` is called once per vertex at a time.

What it promises: a result is committed whole or not at all; whatever is mounted, running or held is gone when a call ends,
however it ends. What it refuses: to know who asked (that is the job's business) and to schedule (that is the solver's).

Names to know: `Worker` (the bag of things every operation gets), `threaded` (how an operation calls the synchronous rooms),
`ask` (how an operation asks the client's machine).
"""

from __future__ import annotations

from .worker import Worker, ask, threaded

__all__ = ["Worker", "ask", "threaded"]
