# SPDX-License-Identifier: Apache-2.0
"""What all builds of a process share: connections, places, tokens, and the config of the hosts."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

from chantier.config import Config, RegistryConfig, RegistryExtra

from .auth import Authoriser, TokenCache
from .caller import Caller, PlainHosts
from .client import Registry
from .hosts import Host, Peer, hosts_for
from .limits import Limiter, Limits
from .retry import RetryPolicy
from .trace import Trace
from .transport import Transport
from .types import CredentialsFor, TokenFor, anonymous

_NONE: Mapping[str, object] = MappingProxyType({})


def user_agent() -> str:
    try:
        return f"chantier/{version('chantier')}"
    except PackageNotFoundError:  # run from a tree that was never installed
        return "chantier/dev"


class Registries:
    """One per engine, closed by `close`. A build calls `open` and keeps that view: a later `reload` does not touch it."""

    def __init__(self, config: Config | None = None, *, retry: RetryPolicy | None = None, agent: str = "") -> None:
        self.limiter = Limiter()
        self.tokens = TokenCache()
        self.transport = Transport(user_agent=agent or user_agent())
        self._plain = PlainHosts()
        self._retry = retry or RetryPolicy()
        self._mutex = threading.Lock()
        self.reload(config or Config())

    def reload(self, config: Config) -> None:
        """Use other registries and limits from the next build on."""
        limits = Limits(blobs=config.system.max_registry_concurrency)
        with self._mutex:
            self._settings = Settings(config.registries, config.chantier.registries)
        self.limiter.configure(limits)

    def open(
        self,
        *,
        credentials: CredentialsFor = anonymous,
        token: TokenFor | None = None,
        owner: str = "",
        insecure: bool = False,
        fields: Mapping[str, object] = _NONE,
    ) -> Registry:
        """The registries as one build sees them.

        `owner` names the build: places are shared out by it, and a token the build's client fetched serves it alone.
        `fields` go to its log.
        """
        with self._mutex:
            settings = self._settings
        return Registry(self, settings, credentials=credentials, token=token, owner=owner, insecure=insecure, fields=fields)

    def caller(
        self, settings: Settings, credentials: CredentialsFor, token: TokenFor | None, owner: str, fields: Mapping[str, object]
    ) -> Caller:
        return Caller(
            self.transport,
            Authoriser(self.tokens, credentials, token, holder=owner),
            policy=self._retry,
            plain=self._plain,
            peer_for=settings.peer_for,
            trace=Trace(fields),
        )

    def close(self) -> None:
        self.transport.close()


class Settings:
    """The registry tables of one config."""

    def __init__(self, registries: Mapping[str, RegistryConfig], extras: Mapping[str, RegistryExtra]) -> None:
        self._registries = registries
        self._extras = extras

    def hosts(self, domain: str, *, insecure: bool = False) -> tuple[Host, ...]:
        return hosts_for(domain, self._registries, self._extras, insecure=insecure)

    def peer_for(self, authority: str) -> Peer | None:
        """How the config wants a host spoken to that no reference named (a redirect, a token server); None: it says nothing."""
        if authority not in self._registries and authority not in self._extras:
            return None
        return self.hosts(authority)[-1].peer
