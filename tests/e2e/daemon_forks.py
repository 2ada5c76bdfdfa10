# SPDX-License-Identifier: Apache-2.0
"""Daemons that start in a moment: a process that has everything imported forks one for each line it reads.

A line is JSON: `args` of chantierd, the file `log`, and `crash_at` as CHANTIER_CRASH_AT has it. The answer is the pid. The
server starts no thread and opens nothing, so its forks are clean; what has died is reaped by the kernel.
"""

from __future__ import annotations

import json
import os
import signal
import sys


def serve() -> None:
    import chantier.cache.keys
    import chantier.daemon.daemon
    import chantier.daemon.watch
    import chantier.dockerfile.frontend
    import chantier.op.layout
    import chantier.runtime.native.native  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        wanted = json.loads(line)
        child = os.fork()
        if child == 0:
            become(wanted)
        print(child, flush=True)


def become(wanted: dict[str, str]) -> None:
    from chantier.daemon import main
    from chantier.kernel.trace import crash_at, install

    code = 70
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if wanted["crash_at"]:
            install(crash_at(wanted["crash_at"]))
        code = main(wanted["args"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
