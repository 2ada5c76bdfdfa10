# SPDX-License-Identifier: Apache-2.0
"""The environment of a step: what it says itself, a PATH, proxies, what devices add, and the values of secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chantier.errors import NotFoundError
from chantier.llb import DEFAULT_PATH
from chantier.pb import ops_pb2 as pb
from chantier.runtime.cdi import Edits

from .trust import network_of, step_environment
from .worker import Worker, ask

if TYPE_CHECKING:
    from chantier.solver.types import JobContext

# Where Windows has its programs, for a process that is to find them there (the LLB of BuildKit gives it this PATH).
_WINDOWS_PATH = "c:\\Windows\\System32;c:\\Windows;C:\\Windows\\System32\\WindowsPowerShell\\v1.0"

_PROXIES = (
    ("http_proxy", "HTTP_PROXY"),
    ("https_proxy", "HTTPS_PROXY"),
    ("ftp_proxy", "FTP_PROXY"),
    ("no_proxy", "NO_PROXY"),
    ("all_proxy", "ALL_PROXY"),
)
NO_EDITS = Edits()


async def environment_of(
    exec: pb.ExecOp, worker: Worker, job: JobContext, *, os: str = "linux", edits: Edits = NO_EDITS
) -> tuple[str, ...]:
    """`NAME=value`, of which the last counts; `os` decides what PATH is if nothing sets it. Raises NotFoundError for a secret."""
    meta = exec.meta
    added = {entry.partition("=")[0] for entry in edits.env}
    environment = [*(entry for entry in meta.env if entry.partition("=")[0] not in added), *edits.env]
    if not any(entry.startswith("PATH=") for entry in environment):
        environment.append(f"PATH={_WINDOWS_PATH if os == 'windows' else DEFAULT_PATH}")
    for field, name in _PROXIES:
        value = getattr(meta.proxy_env, field)
        if value:
            environment += [f"{name}={value}", f"{field}={value}"]
    for secret in exec.secretenv:
        given = await secret_of(job, secret.ID, optional=secret.optional)
        environment.append(f"{secret.name}={(given or b'').decode('utf-8', 'surrogateescape')}")
    return (*environment, *step_environment(network_of(worker, job.sessions), environment))


async def secret_of(job: JobContext, id: str, *, optional: bool) -> bytes | None:
    """The secret of one of the job's clients; None if none has it and it is `optional`. Raises NotFoundError."""
    value = await ask(job, lambda session: session.secret(id))
    if value is None and not optional:
        raise NotFoundError(f"secret {id}: not found", hint=f"give it with --secret id={id},src=FILE or id={id},env=NAME")
    return value


__all__ = ["NO_EDITS", "environment_of", "secret_of"]
