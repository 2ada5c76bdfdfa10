# SPDX-License-Identifier: Apache-2.0
"""Registry credentials of a build: asked of its sessions by the threads that talk to registries."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from chantier.errors import SessionError
from chantier.session.types import Credentials as Pair

T = TypeVar("T")


class Credentials:
    """Bridges from a registry thread to the loop that serves the sessions. The first session that answers is used."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sessions: Sequence[Any]) -> None:
        self._loop = loop
        self._sessions = tuple(sessions)

    def of_host(self, host: str) -> Pair | None:
        for session in self._sessions:
            found: Pair | None = self._ask(session.credentials(host))
            if found is not None:
                return found
        return None

    def token(self, host: str, realm: str, service: str, scopes: Sequence[str]) -> str | None:
        for session in self._sessions:
            found: str | None = self._ask(session.token(host, realm, service, scopes))
            if found is not None:
                return found
        return None

    def _ask(self, question: Coroutine[Any, Any, T]) -> T | None:
        try:
            return asyncio.run_coroutine_threadsafe(question, self._loop).result()
        except SessionError:
            return None  # that client is gone: another session of the same build may know
