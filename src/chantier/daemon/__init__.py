# SPDX-License-Identifier: Apache-2.0
"""`chantierd`: the engine behind BuildKit's gRPC API, so that stock `docker buildx` and `buildctl` drive it as they are.

It promises: a build's whole log is kept, whatever a stream was clipped to; errors carry the details that stock clients
print excerpts from; what it says of itself (workers, platforms, capabilities, limits) is what works; on SIGTERM running
builds may end, on SIGHUP a changed config takes effect without touching them, and a bad one changes nothing.

It refuses: to be driven before it can build (calls wait for the engine instead), to hang silently.

Three names to know: `main`, `Daemon`, `Settings`.

    main.py      flags, config file, signals           control.py   moby.buildkit.v1.Control
    flags.py     buildkitd's flags onto a Config       gateway.py   …frontend.LLBBridge, for one build
    listen.py    unix, tcp, fd:// sockets              containers.py  containers that a client runs
    daemon.py    what lives as long as the process     content.py   read-only Content
    builds.py    the table of running builds           extras.py    our own status
    progress.py  events to a file that is followed     history.py   what was built
    workers.py   what is said of the worker            watch.py     stalls; changed config files
    traces.py    spans of clients, to a collector
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `chantierd`. Returns the exit code."""
    from .main import run

    return run(argv)


__all__ = ["main"]
