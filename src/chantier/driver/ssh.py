# SPDX-License-Identifier: Apache-2.0
"""Agents for `--ssh`: the user's own socket, or an agent started for the build that holds the keys that were named."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chantier.errors import UsageError
from chantier.kernel.temporary import TemporaryDirectory

_LIMIT_S = 20.0
_UNTIL_WE_END = "read _; kill $SSH_AGENT_PID"
"""What the agent serves: the end of its standard input is ours, however we end, and then no key stays in memory."""


@contextmanager
def agent_for(id: str, paths: Sequence[str]) -> Iterator[Path]:
    """The socket of the agent. Raises UsageError for a path that is neither a socket nor an unencrypted key."""
    kinds = [_is_socket(id, path) for path in paths]
    if any(kinds):
        if len(paths) > 1:
            raise UsageError(f"invalid ssh agent {id}: a socket cannot be combined with other sockets or keys")
        yield Path(paths[0])
        return
    with TemporaryDirectory("ssh") as directory:
        socket = Path(directory) / "agent"
        try:
            agent = subprocess.Popen(
                ["ssh-agent", "-a", str(socket), "sh", "-c", _UNTIL_WE_END],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process alone
            )
        except FileNotFoundError as err:
            raise UsageError("keys were given with --ssh, but ssh-agent is not installed", hint="install openssh-client") from err
        try:
            _wait_for(socket, agent)
            for path in paths:
                _add(path, socket)
            yield socket
        finally:
            assert agent.stdin is not None
            agent.stdin.close()
            agent.wait()


def _is_socket(id: str, path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError as err:
        raise UsageError(f"failed to read ssh agent or key of {id}: {path}: {(err.strerror or '').lower()}") from err


def _wait_for(socket: Path, agent: subprocess.Popen[bytes]) -> None:
    import time

    end = time.monotonic() + _LIMIT_S
    while not socket.exists():
        if agent.poll() is not None or time.monotonic() > end:
            raise UsageError("ssh-agent did not start")
        time.sleep(0.01)


def _add(path: str, socket: Path) -> None:
    # Without a terminal and a helper an encrypted key fails instead of asking.
    env = {**os.environ, "SSH_AUTH_SOCK": str(socket), "SSH_ASKPASS": "false", "SSH_ASKPASS_REQUIRE": "force"}
    done = subprocess.run(
        ["ssh-add", "-q", path], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    if done.returncode != 0:
        raise UsageError(
            f"failed to add the key {path}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'ssh-add failed'}",
            hint="keys must not be encrypted",
        )
