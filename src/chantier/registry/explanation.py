# SPDX-License-Identifier: Apache-2.0
"""Why a reference comes from where it comes: the hosts in order, what became of each, and what is known of the way there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from chantier.errors import ChantierError, IntegrityError, NotFoundError, RegistryError
from chantier.spec import Reference
from chantier.values import dataclass, replace

from .breaker import HostState
from .caller import Caller
from .challenge import Challenge, parse_challenges
from .hosts import Capability, Host
from .limits import Limits
from .manifests import resolve
from .messages import Request
from .ratelimit import RateLimit, rate_limit
from .trace import redact_url
from .transport import Facts, Response
from .types import Cancelled, CredentialsFor, anonymous, never

if TYPE_CHECKING:
    from .shared import Registries, Settings

CHOSEN, TRIED, SKIPPED, NOT_NEEDED = "chosen", "tried", "skipped", "not needed"
_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """How the host wants a login, and which one it got. Never a secret."""

    scheme: str = "none"
    realm: str = ""
    service: str = ""
    source: str = ""  # where a login would come from
    username: str = ""
    given: str = "anonymous"  # `anonymous`, `login` or `token`


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    version: str
    cipher: str
    subject: str
    issuer: str
    expires: str
    verified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReport:
    """One host. `decision` is `chosen`, `tried` (it failed), `skipped` (by config or breaker) or `not needed`."""

    host: str
    role: str  # `mirror` or `registry`
    decision: str
    reason: str
    scheme: str
    capabilities: tuple[str, ...]
    tables: tuple[str, ...] = ()  # of the config that had a say
    breaker: str = "closed"
    breaker_open_s: float = 0.0
    failures: int = 0
    address: str = ""
    proxy: str = ""
    connect_s: float | None = None
    tls_s: float | None = None
    answer_s: float | None = None
    tls: Tls | None = None
    auth: Auth | None = None
    status: str = ""
    limit: RateLimit | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """`served_by` is empty where no host could serve; `error` then is what a build would fail with."""

    reference: str
    hosts: tuple[HostReport, ...]
    limits: Limits
    served_by: str = ""
    digest: str = ""
    media_type: str = ""
    size: int = 0
    error: str = ""
    hint: str = ""


def explain(
    registries: Registries,
    ref: Reference,
    *,
    credentials: CredentialsFor = anonymous,
    source: str = "client",
    everyone: bool = False,
    cancelled: Cancelled = never,
) -> Explanation:
    """Ask the hosts as a build that resolves `ref` would, each once. `everyone`: also those behind the one that serves.

    `source` says in words where `credentials` come from. States of breakers are looked at, not waited for.
    """
    return _Explaining(registries, ref.with_default_tag(), credentials, source, cancelled).run(everyone=everyone)


class _Explaining:
    def __init__(
        self, registries: Registries, ref: Reference, credentials: CredentialsFor, source: str, cancelled: Cancelled
    ) -> None:
        self.registries = registries
        self.ref = ref
        self.settings: Settings = registries.settings()
        self.credentials = self.settings.logins.asking(credentials)
        self.source = source
        self.cancelled = cancelled
        self.caller: Caller = registries.caller(self.settings, credentials, None, "", _NONE)
        self.seen: list[tuple[Request, Response, float]] = []
        self.caller.observer = lambda request, response, seconds: self.seen.append((request, response, seconds))

    def run(self, *, everyone: bool) -> Explanation:
        hosts = self.settings.hosts(self.ref.domain)
        able = [h for h in hosts if Capability.RESOLVE in h.capabilities]
        asked, _ = self.registries.breakers.choose(able)
        found = Explanation(
            reference=str(self.ref),
            hosts=(),
            limits=Limits.of(self.settings.tables.of(self.ref.domain).extra, self.settings.concurrency),
        )
        reports: list[HostReport] = []
        failure: ChantierError | None = None
        for host in hosts:
            report = self._blank(host)
            if host not in able:
                report = replace(report, decision=SKIPPED, reason=self._incapable(host))
            elif host not in asked:
                report = replace(report, decision=SKIPPED, reason=self.registries.breakers.why_not(host))
            elif found.served_by and not everyone:
                report = replace(report, decision=NOT_NEEDED, reason=f"{found.served_by} serves it")
            else:
                report, found, err = self._ask(host, report, found)
                failure = failure or err
            reports.append(report)
        if not found.served_by:
            said = failure.brief if failure is not None else f"cannot resolve {self.ref}: the config leaves no host to ask"
            found = replace(found, error=said, hint=(failure.hint or "") if failure is not None else "")
        return replace(found, hosts=tuple(reports))

    def _blank(self, host: Host) -> HostReport:
        state: HostState = self.registries.breakers.state(host.authority)
        now = time.time()
        return HostReport(
            host=host.name,
            role="mirror" if host.mirror else "registry",
            decision=TRIED,
            reason="",
            scheme=host.scheme,
            capabilities=tuple(c.name.lower() for c in Capability if c in host.capabilities and c.name),
            tables=host.tables,
            breaker=state.name(now) if host.breaker else "off",
            breaker_open_s=max(0.0, state.open_until - now),
            failures=state.failures,
        )

    def _incapable(self, host: Host) -> str:
        extra = self.settings.tables.of(host.authority if host.mirror else self.ref.domain).extra
        if extra.only and not host.mirror:
            return "only its mirrors are asked (only = true)"
        return "it is not asked for tags (capabilities = [" + ", ".join(f'"{c}"' for c in extra.capabilities) + "])"

    def _ask(self, host: Host, report: HostReport, found: Explanation) -> tuple[HostReport, Explanation, ChantierError | None]:
        self.seen.clear()
        # As the last one, but for the retries: these would only hide what is to be shown.
        alone = replace(host, breaker=False)
        try:
            resolved = resolve(self.caller, [alone], self.ref, self.cancelled, persist=False)
        except (RegistryError, NotFoundError, IntegrityError) as err:
            report = replace(report, reason=err.brief, hint=err.hint or "")
            return self._facts(host, report), found, err
        report = self._facts(host, report)
        if found.served_by:
            return replace(report, decision=NOT_NEEDED, reason=f"{found.served_by} serves it"), found, None
        descriptor = resolved.descriptor
        found = replace(
            found,
            served_by=host.name,
            digest=str(descriptor.digest),
            media_type=descriptor.media_type,
            size=descriptor.size,
        )
        return replace(report, decision=CHOSEN, reason="the first host that has it"), found, None

    def _facts(self, host: Host, report: HostReport) -> HostReport:
        """From the exchanges that were seen: those with the host, and those with its token server."""
        at_home = [(r, a, s) for r, a, s in self.seen if _authority(r.url) == host.authority]
        if not at_home:
            return report
        auth = self._auth(host)
        first, last = at_home[0][1], at_home[-1][1]
        facts: Facts = first.facts
        limit = rate_limit(last.headers)
        return replace(
            report,
            address=facts.address,
            proxy=facts.proxy,
            connect_s=facts.connect_s,
            tls_s=facts.tls_s,
            answer_s=at_home[-1][2],
            scheme=at_home[-1][0].url.partition(":")[0],
            tls=_tls(facts, verified=not host.peer.insecure),
            auth=auth,
            status=last.line,
            limit=limit if limit != RateLimit() else None,
        )

    def _auth(self, host: Host) -> Auth:
        logins = self.settings.logins
        source = logins.where(host.authority) if logins.has(host.authority) else self.source
        challenges: list[Challenge] = []
        given = "anonymous"
        for request, response, _ in self.seen:
            if _authority(request.url) != host.authority:
                continue
            if response.status == 401:
                challenges = challenges or parse_challenges(response.headers.getlist("www-authenticate"))
            sent = dict(request.headers).get("authorization", "")
            given = {"basic": "login", "bearer": "token"}.get(sent.partition(" ")[0].lower(), given)
        if not challenges:
            return Auth(source=source, given=given)
        challenge = challenges[0]
        try:
            login = self.credentials(host.authority)
        except ChantierError as err:
            return Auth(scheme=challenge.scheme, source=f"{source}: {err.brief}", realm=challenge.params.get("realm", ""))
        return Auth(
            scheme=challenge.scheme,
            realm=redact_url(challenge.params.get("realm", "")),
            service=challenge.params.get("service", ""),
            source=source if login is not None else f"none ({source})",
            username="" if login is None else login.username or "<token>",
            given=given if login is not None or given == "anonymous" else f"anonymous {given}",
        )


def _authority(url: str) -> str:
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2].lower()


def _tls(facts: Facts, *, verified: bool) -> Tls | None:
    if not facts.tls:
        return None
    certificate = facts.certificate
    return Tls(
        version=facts.tls,
        cipher=facts.cipher,
        subject=_name(certificate.get("subject", ())),
        issuer=_name(certificate.get("issuer", ())),
        expires=str(certificate.get("notAfter", "")),
        verified=verified,
    )


def _name(parts: Any) -> str:
    """A distinguished name, its most telling part."""
    found = {key: value for rdn in parts for key, value in rdn}
    return str(found.get("commonName") or found.get("organizationName") or "")


__all__ = ["Auth", "Explanation", "HostReport", "Tls", "explain"]
