# SPDX-License-Identifier: Apache-2.0
"""Hooks of a container that run where the engine does (runtime-spec config.md, "POSIX-platform Hooks"), for the native sandbox.

Those that run in the container's own namespaces are the helper's to run; runc runs all of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from chantier.errors import UnsupportedError

from .types import Hook

INSIDE = ("createContainer", "startContainer")  # run by the helper
_VERSION = "1.0.2"


def state(id: str, bundle: Path, status: str) -> tuple[str, str]:
    """What a hook reads (runtime-spec runtime.md, "State"): the halves of it that the container's PID stands between."""
    known = json.dumps({"ociVersion": _VERSION, "id": id, "status": status, "bundle": str(bundle)})
    return f'{known[:-1]}, "pid": ', "}"


async def run(hooks: Sequence[Hook], name: str, *, id: str, bundle: Path, status: str, pid: int) -> None:
    """All hooks of a name, in order. Raises UnsupportedError for the first that fails, with what it said."""
    given = str(pid).join(state(id, bundle, status)).encode()
    for number, hook in enumerate(one for one in hooks if one.name == name):
        wrong = await _run(hook, bundle, given)
        if wrong:
            raise UnsupportedError(f"error running {name} hook #{number}: {wrong}")


async def _run(hook: Hook, bundle: Path, given: bytes) -> str:
    """How it failed, or ""."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(hook.args or (hook.path,)),
            executable=hook.path,
            env=dict(entry.partition("=")[::2] for entry in hook.env),
            cwd=bundle,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as err:  # or a NUL byte among its words
        return f"{hook.path}: {(getattr(err, 'strerror', None) or str(err)).lower()}"
    try:
        async with asyncio.timeout(hook.timeout_s):
            said, _ = await process.communicate(given)
    except TimeoutError:
        return f"it ran past its timeout of {float(hook.timeout_s or 0):.1f} s"
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if not process.returncode:
        return ""
    how = f"exit status {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
    return f"{how}, output: {said.decode(errors='replace')}"


__all__ = ["INSIDE", "run", "state"]
