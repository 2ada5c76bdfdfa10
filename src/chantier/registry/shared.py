# SPDX-License-Identifier: Apache-2.0
"""What all builds of a process share: connections, places, tokens, and the config of the hosts."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import MappingProxyType

from chantier import __version__
from chantier.config import Config, is_pattern
from chantier.values import asdict, dataclass, field

from .auth import Authoriser, TokenCache
from .breaker import Breakers, HostState
from .caller import Caller, PlainHosts
from .client import Registry
from .hosts import Host, Peer, hosts_of, peer_for, peer_of, web_peer
from .limits import Limiter, Limits, Traffic
from .logins import Logins
from .network import Network, read_pem
from .retry import RetryPolicy
from .tables import HUB, Tables
from .tls import context_for
from .trace import Trace
from .transport import Transport
from .types import CredentialsFor, Served, TokenFor, anonymous
from .web import Web

_NONE: Mapping[str, object] = MappingProxyType({})


def user_agent() -> str:
    return f"chantier/{__version__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a daemon can tell of its registries."""

    hosts: tuple[HostState, ...]
    traffic: tuple[Traffic, ...]

    def plain(self, now: float | None = None) -> dict[str, list[dict[str, object]]]:
        """As values that JSON knows: requests under way and waiting by registry, and hosts with the state of their breaker."""
        at = time.time() if now is None else now
        return {
            "traffic": [
                {
                    "registry": one.registry,
                    "pulls": one.pulls,
                    "pushes": one.pushes,
                    "metadata": one.metadata,
                    "waiting": one.waiting,
                    "limits": asdict(one.limits),
                }
                for one in self.traffic
            ],
            "hosts": [
                {
                    "host": one.authority,
                    "breaker": one.name(at),
                    "open_for_s": round(max(0.0, one.open_until - at), 1),
                    "failures": one.failures,
                    "error": one.error,
                }
                for one in self.hosts
            ],
        }


@dataclass(eq=False)
class _View:
    """What one build began with, and what it was served."""

    settings: Settings
    offline: bool = False
    served: list[Served] = field(default_factory=list)
    users: int = 1


class Registries:
    """One per engine, closed by `close`. A build calls `begin` and keeps the config of that moment: a later `reload` does not
    touch it."""

    def __init__(self, config: Config | None = None, *, retry: RetryPolicy | None = None, agent: str = "") -> None:
        self.limiter = Limiter()
        self.tokens = TokenCache()
        self.breakers = Breakers()
        self.transport = Transport(user_agent=agent or user_agent())
        self.retry = retry or RetryPolicy()
        self._plain = PlainHosts()
        self._mutex = threading.Lock()
        self._views: dict[str, _View] = {}
        self._use(config or Config())

    def reload(self, config: Config) -> None:
        """Use other registries, trust and limits from the next build on; hosts that failed are tried anew.

        Raises ConfigError where a file that the config names cannot be used: then all stays as it was.
        """
        Settings.of(config).check()
        self._use(config)
        self.breakers.reset()

    def _use(self, config: Config) -> None:
        settings = Settings.of(config)
        with self._mutex:
            self._settings = settings
        self.limiter.configure(
            lambda domain: Limits.of(settings.tables.of(domain).extra, settings.concurrency),
            everywhere=config.chantier.network.max_requests,
        )

    # One build.

    def begin(self, owner: str, *, offline: bool = False) -> None:
        """From now on `owner` (a build's session) sees the config as it is now, and what it is served is written down.

        `offline`: nothing is pulled for it. Ended by `end`; several builds of one session count as one.
        """
        with self._mutex:
            view = self._views.get(owner)
            if view is not None:
                view.users += 1
            else:
                self._views[owner] = _View(self._settings, offline)

    def end(self, owner: str) -> None:
        with self._mutex:
            view = self._views.get(owner)
            if view is not None:
                view.users -= 1
                if not view.users:
                    del self._views[owner]

    def served(self, owner: str) -> tuple[Served, ...]:
        """What was served to a build that has begun and not ended, in order."""
        with self._mutex:
            view = self._views.get(owner)
            return tuple(view.served) if view is not None else ()

    def settings(self, owner: str = "") -> Settings:
        with self._mutex:
            view = self._views.get(owner) if owner else None
            return view.settings if view is not None else self._settings

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
            view = self._views.get(owner) if owner else None
            settings = view.settings if view is not None else self._settings
        return Registry(
            self,
            settings,
            credentials=credentials,
            token=token,
            owner=owner,
            insecure=insecure,
            offline=view is not None and view.offline,
            fields=fields,
        )

    def network(self, owner: str = "") -> Network:
        """Trust and proxies, for git and for steps."""
        return self.settings(owner).tables.network

    def web(self, owner: str = "") -> Web:
        """A client for other servers than registries, with the same trust, proxies and patience."""
        settings = self.settings(owner)
        return Web(self.transport, self.retry, settings.web_peer)

    # For the rooms above.

    def note_served(self, owner: str, served: Served) -> None:
        with self._mutex:
            view = self._views.get(owner)
            if view is not None:
                view.served.append(served)

    def status(self) -> Status:
        return Status(hosts=self.breakers.states(), traffic=self.limiter.traffic())

    def caller(
        self, settings: Settings, credentials: CredentialsFor, token: TokenFor | None, owner: str, fields: Mapping[str, object]
    ) -> Caller:
        logins = settings.logins
        authoriser = Authoriser(
            self.tokens,
            logins.asking(credentials),
            logins.delegating(token),
            holder=owner,
            token_servers=logins.token_servers,
        )
        return Caller(
            self.transport,
            authoriser,
            policy=self.retry,
            plain=self._plain,
            breakers=self.breakers,
            peer_for=settings.peer_for,
            trace=Trace(fields),
        )

    def close(self) -> None:
        self.transport.close()


class Settings:
    """The registry part of one config."""

    def __init__(self, tables: Tables, *, concurrency: int = 4) -> None:
        self.tables = tables
        self.logins = Logins(tables)
        self.concurrency = concurrency  # where a registry has no number of its own

    @classmethod
    def of(cls, config: Config) -> Settings:
        ours = config.chantier
        tables = Tables(registries=config.registries, extras=ours.registries, network=Network.of(ours.network))
        return cls(tables, concurrency=config.system.max_registry_concurrency)

    def hosts(self, domain: str, *, insecure: bool = False) -> tuple[Host, ...]:
        return hosts_of(domain, self.tables, insecure=insecure)

    def peer_for(self, authority: str) -> Peer | None:
        """How the config wants a host spoken to that no reference named (a redirect, a token server); None: it says nothing."""
        return peer_for(authority, self.tables)

    def web_peer(self, authority: str) -> Peer:
        return web_peer(authority, self.tables)

    def check(self) -> None:
        """Raises ConfigError where a file of certificates cannot be used."""
        for path in self.tables.network.ca:
            read_pem(path)
        for name in {**self.tables.registries, **self.tables.extras}:
            table = self.tables.of(HUB if name == HUB else name.replace("*", "star", 1) if is_pattern(name) else name)
            context_for(peer_of(table, self.tables.network))
