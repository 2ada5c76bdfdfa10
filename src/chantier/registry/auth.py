# SPDX-License-Identifier: Apache-2.0
"""Registry login as a conversation: a generator that yields requests and is sent the answers (semantics.md 7.4).

Nothing is sent before a host has asked for it: the first request goes without credentials, and what the host then wants
is remembered for it. Tokens are kept by host, realm, service, scopes and a fingerprint of the credential, so that two
builds share a token only if they hold the same password; a token that a client fetched serves its own build alone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import quote, urlencode, urlsplit

from chantier.errors import RegistryError, UnauthorizedError
from chantier.values import dataclass, field

from .challenge import Challenge, parse_challenges
from .failures import said_by_server, status_error
from .hosts import is_local
from .messages import Answer, Request, bytes_body
from .types import Credentials, CredentialsFor, TokenFor

_CLIENT_ID = "chantier"
_DEFAULT_LIFETIME_S = 60.0  # distribution's token spec: "if omitted, this defaults to 60 seconds"
_TOKEN_LIMIT = 1 << 20
_KEEP_CREDENTIALS_S = 290.0

Conversation = Generator[Request, Answer, Answer]


@dataclass(frozen=True, slots=True)
class TokenKey:
    host: str
    realm: str
    service: str
    scopes: tuple[str, ...]
    holder: str  # fingerprint of the credential, or the one build it is for


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    refresh_at: float


@dataclass(eq=False)
class _Gate:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class TokenCache:
    """Shared by all builds of a process; thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._tokens: dict[TokenKey, _Token] = {}
        self._gates: dict[TokenKey, _Gate] = {}
        self._challenges: dict[str, Challenge] = {}
        self._salt = secrets.token_bytes(32)

    def get(self, key: TokenKey) -> str | None:
        with self._mutex:
            token = self._tokens.get(key)
            return token.value if token is not None and self._clock() < token.refresh_at else None

    def put(self, key: TokenKey, value: str, lifetime_s: float) -> None:
        now = self._clock()
        with self._mutex:
            for old in [k for k, t in self._tokens.items() if now >= t.refresh_at]:
                del self._tokens[old]
            self._tokens[key] = _Token(value, now + 0.9 * lifetime_s)

    def drop(self, value: str) -> None:
        """Forget a token that a registry refused."""
        with self._mutex:
            for key in [k for k, t in self._tokens.items() if t.value == value]:
                del self._tokens[key]

    @contextmanager
    def fetching(self, key: TokenKey) -> Iterator[None]:
        """Held while a token is fetched: equal requests wait and then find it in the cache."""
        with self._mutex:
            gate = self._gates.setdefault(key, _Gate())
            gate.users += 1
        try:
            with gate.lock:
                yield
        finally:
            with self._mutex:
                gate.users -= 1
                if gate.users == 0:
                    self._gates.pop(key, None)

    def challenge(self, host: str) -> Challenge | None:
        with self._mutex:
            return self._challenges.get(host)

    def remember(self, host: str, challenge: Challenge) -> None:
        with self._mutex:
            self._challenges[host] = challenge

    def fingerprint(self, credentials: Credentials | None) -> str:
        """Says of two credentials whether they are the same, and nothing else."""
        if credentials is None:
            return "anonymous"
        data = f"{len(credentials.username)}:{credentials.username}{credentials.secret}".encode()
        return hmac.new(self._salt, data, hashlib.sha256).hexdigest()


class Authoriser:
    """One build's way of answering challenges."""

    def __init__(
        self,
        tokens: TokenCache,
        credentials: CredentialsFor,
        token: TokenFor | None = None,
        *,
        holder: str = "",
        token_servers: Callable[[str], tuple[str, ...]] = lambda host: (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`token_servers` says to which hosts the login of a host may be sent for tokens; none: to whichever it names."""
        self._tokens = tokens
        self._token_servers = token_servers
        self._ask = credentials
        self._token = token
        self._holder = holder or secrets.token_hex(8)
        self._clock = clock
        self._mutex = threading.Lock()
        self._known: dict[str, tuple[float, Credentials | None]] = {}
        self._not_delegated: set[str] = set()

    def credentials(self, host: str) -> Credentials | None:
        """Asked once per host, then kept for some minutes."""
        with self._mutex:
            if (found := self._known.get(host)) and self._clock() - found[0] < _KEEP_CREDENTIALS_S:
                return found[1]
        fresh = self._ask(host)
        if fresh is not None and not fresh.username and not fresh.secret:
            fresh = None
        with self._mutex:
            self._known[host] = (self._clock(), fresh)
        return fresh

    def flow(self, request: Request, host: str, scopes: Iterable[str] = ()) -> Conversation:
        """Send `request` to `host` authorised; returns the answer to it, a 401 if there is nothing to log in with.

        Raises UnauthorizedError or RegistryError where a token server refuses or fails.
        """
        wanted = merge_scopes(scopes)
        sent: str | None = None
        fresh = False  # the login that was refused was not one from the cache: another like it will not do better
        if challenge := self._tokens.challenge(host):
            sent = yield from self._answer(challenge, host, wanted, request.url)
        answer = yield request.with_headers(authorization=sent)
        for _ in range(2):
            if answer.status != 401:
                return answer
            answer.read()  # keep the server's words, free the connection
            challenges = parse_challenges(answer.headers.getlist("www-authenticate"))
            if sent is not None:
                self._tokens.drop(sent.partition(" ")[2])
            more = merge_scopes([*wanted, *(s for c in challenges for s in c.params.get("scope", "").split())])
            if fresh and more == wanted:
                return answer
            again = None
            for challenge in challenges:
                again = yield from self._answer(challenge, host, more, request.url)
                if again is not None:
                    self._tokens.remember(host, challenge)
                    break
            if again is None or again == sent:
                return answer
            sent, wanted, fresh = again, more, True
            answer = yield request.with_headers(authorization=sent)
        return answer

    def _answer(
        self, challenge: Challenge, host: str, scopes: tuple[str, ...], url: str
    ) -> Generator[Request, Answer, str | None]:
        if challenge.scheme == "basic":
            credentials = self.credentials(host)
            return basic(credentials) if credentials is not None and credentials.username else None
        if challenge.scheme == "bearer" and challenge.params.get("realm"):
            return "Bearer " + (yield from self._bearer(challenge, host, scopes, url))
        return None

    def _bearer(self, challenge: Challenge, host: str, scopes: tuple[str, ...], url: str) -> Generator[Request, Answer, str]:
        realm, service = challenge.params["realm"], challenge.params.get("service", "")
        scopes = scopes or merge_scopes(challenge.params.get("scope", "").split())
        if self._token is not None and host not in self._not_delegated:
            key = TokenKey(host, realm, service, scopes, self._holder)
            with self._tokens.fetching(key):
                if (value := self._tokens.get(key)) is not None:
                    return value
                value = self._token(host, realm, service, scopes)
                if value is not None:
                    self._tokens.put(key, value, _DEFAULT_LIFETIME_S)
                    return value
            self._not_delegated.add(host)
        credentials = self.credentials(host)
        if credentials is not None:
            _check_server(realm, host, self._token_servers(host))
        key = TokenKey(host, realm, service, scopes, self._tokens.fingerprint(credentials))
        with self._tokens.fetching(key):
            if (value := self._tokens.get(key)) is not None:
                return value
            value, lifetime_s = yield from fetch_token(realm, service, scopes, credentials, host=host, registry_url=url)
            self._tokens.put(key, value, lifetime_s)
            return value


def _check_server(realm: str, host: str, allowed: tuple[str, ...]) -> None:
    server = urlsplit(realm).netloc.rpartition("@")[2].lower()
    if allowed and server not in (name.lower() for name in allowed):
        raise UnauthorizedError(
            f"failed to fetch oauth token: refusing to send credentials of {host} to {server}: not one of its tokenServers",
            host=host,
            hint=f'if that server is right, add it to tokenServers in [chantier.registry."{host}"] of the config',
        )


def fetch_token(
    realm: str, service: str, scopes: tuple[str, ...], credentials: Credentials | None, *, host: str, registry_url: str
) -> Generator[Request, Answer, tuple[str, float]]:
    """Ask a token server: GET with basic credentials, the OAuth2 POST where it wants that. Returns token and lifetime."""
    what = "anonymous" if credentials is None else "oauth"
    parts = urlsplit(realm)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UnauthorizedError(f"failed to fetch {what} token: invalid realm {realm!r} in the challenge of {host}", host=host)
    if credentials is not None and parts.scheme == "http" and registry_url.startswith("https:") and not is_local(parts.netloc):
        raise UnauthorizedError(
            f"failed to fetch oauth token: refusing to send credentials of {host} to {realm} over plain http", host=host
        )
    if credentials is not None and not credentials.username:
        request = _oauth(realm, service, scopes, {"grant_type": "refresh_token", "refresh_token": credentials.secret})
        answer = yield request
    else:
        request = _token_get(realm, service, scopes, credentials)
        answer = yield request
        if credentials is not None and answer.status in (401, 404, 405):
            answer.read()
            password = {"grant_type": "password", "username": credentials.username, "password": credentials.secret}
            second = _oauth(realm, service, scopes, password)
            other = yield second
            if other.status not in (404, 405, 501):  # else there is no OAuth2 here, and the first answer tells more
                request, answer = second, other
    if answer.status != 200:
        raise _refused(what, request.method, answer, host, credentials)
    return _token_of(answer, what, host)


def _token_get(realm: str, service: str, scopes: tuple[str, ...], credentials: Credentials | None) -> Request:
    query = [("service", service)] if service else []
    query += [("scope", scope) for scope in scopes]
    joint = "&" if urlsplit(realm).query else "?"
    url = realm + (joint + urlencode(query, quote_via=quote, safe=":/,") if query else "")
    headers = {"authorization": basic(credentials)} if credentials is not None else {}
    return Request(method="GET", url=url, headers=headers)


def _oauth(realm: str, service: str, scopes: tuple[str, ...], grant: dict[str, str]) -> Request:
    form = {**grant, "service": service, "client_id": _CLIENT_ID}
    if scopes:
        form["scope"] = " ".join(scopes)
    data = urlencode(form).encode()
    headers = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
    return Request(method="POST", url=realm, headers=headers, body=bytes_body(data), length=len(data))


def _refused(what: str, method: str, answer: Answer, host: str, credentials: Credentials | None) -> RegistryError:
    err = status_error(method, answer, host=host)
    brief = f"failed to fetch {what} token: {err.brief}"
    if answer.status in (400, 401, 403):
        hint = f"the credentials for {host} were refused" if credentials is not None else f"log in to {host}"
        return UnauthorizedError(brief, host=host, status=answer.status, hint=hint)
    err.brief, err.args = brief, (brief,)
    return err


def _token_of(answer: Answer, what: str, host: str) -> tuple[str, float]:
    try:
        raw = json.loads(answer.read(_TOKEN_LIMIT))
        value = raw.get("token") or raw.get("access_token")
        lifetime_s = float(raw.get("expires_in") or _DEFAULT_LIFETIME_S)
    except (ValueError, AttributeError, TypeError) as err:
        raise RegistryError(f"failed to fetch {what} token: the token server's answer is not a token", host=host) from err
    if not isinstance(value, str) or not value or any(c in value for c in "\r\n"):
        raise RegistryError(
            f"failed to fetch {what} token: authorization server did not include a token in the response", host=host
        )
    return value, max(lifetime_s, _DEFAULT_LIFETIME_S)


def basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{credentials.username}:{credentials.secret}".encode()).decode()


def merge_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Sorted; actions on one resource joined: `repository:a:pull` and `repository:a:push` are `repository:a:pull,push`."""
    actions: dict[str, set[str]] = {}
    for scope in scopes:
        resource, _, verbs = scope.rpartition(":")
        actions.setdefault(resource, set()).update(v for v in verbs.split(",") if v)
    return tuple(f"{resource}:{','.join(sorted(verbs))}" for resource, verbs in sorted(actions.items()))


def denial(answer: Answer, host: str, *, action: str, anonymous: bool) -> UnauthorizedError:
    """BuildKit's text for a 401 that stands."""
    cause = said_by_server(answer)
    if not cause:
        challenges = parse_challenges(answer.headers.getlist("www-authenticate"))
        error = next((c.params["error"] for c in challenges if c.params.get("error")), "")
        if error:
            cause = f"server message: {error}: authorization failed"
        elif anonymous and any(c.scheme == "basic" for c in challenges):
            cause = "authorization failed: no basic auth credentials"
        else:
            cause = "authorization failed"
    return UnauthorizedError(
        f"{action} access denied, repository does not exist or may require authorization: {cause}",
        host=host,
        status=answer.status,
        hint=f"log in to {host}" if anonymous else f"the credentials for {host} were refused",
    )
