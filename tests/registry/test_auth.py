# SPDX-License-Identifier: Apache-2.0
"""Login as a conversation: no socket here. `talk` plays the registry and the token server."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from urllib3 import HTTPHeaderDict

from chantier.errors import RegistryError, UnauthorizedError
from chantier.registry import Login
from chantier.registry.auth import Authoriser, TokenCache, merge_scopes
from chantier.registry.challenge import Challenge, parse_challenges
from chantier.registry.messages import Request

URL = "https://reg.test/v2/app/manifests/1"
PULL = ("repository:app:pull",)
USER = Login(username="user", secret="secret")
BEARER = 'Bearer realm="https://auth.test/token",service="reg.test",scope="repository:app:pull"'


class Reply:
    def __init__(self, status: int, body: Any = b"", url: str = URL, **headers: str) -> None:
        self.status = status
        self.url = url
        self.headers = HTTPHeaderDict({k.replace("_", "-"): v for k, v in headers.items()})
        self._body = body if isinstance(body, bytes) else json.dumps(body).encode()

    def read(self, limit: int = 65536) -> bytes:
        return self._body[:limit]


def token(value: str, **more: Any) -> Reply:
    return Reply(200, {"token": value, **more})


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def talk(auth: Authoriser, replies: Sequence[Reply], scopes: Sequence[str] = PULL, url: str = URL) -> tuple[list[Request], Reply]:
    """The requests that were made, and the last answer. All replies must be used."""
    flow = auth.flow(Request(method="GET", url=url), "reg.test", scopes)
    requests = [next(flow)]
    left = list(replies)
    while True:
        try:
            requests.append(flow.send(left.pop(0)))
        except StopIteration as end:
            assert not left
            return requests, end.value


def authoriser(
    login: Login | None = None, cache: TokenCache | None = None, fetch: Callable[..., str | None] | None = None
) -> Authoriser:
    return Authoriser(cache or TokenCache(), lambda host: login if host == "reg.test" else None, fetch)


def authorization(requests: Sequence[Request]) -> list[str | None]:
    return [r.headers.get("authorization") for r in requests]


def test_nothing_is_sent_unasked() -> None:
    requests, answer = talk(authoriser(USER), [Reply(200)])
    assert authorization(requests) == [None]
    assert answer.status == 200


def test_basic() -> None:
    auth = authoriser(USER)
    basic = "Basic " + base64.b64encode(b"user:secret").decode()
    requests, _ = talk(auth, [Reply(401, www_authenticate='Basic realm="x"'), Reply(200)])
    assert authorization(requests) == [None, basic]
    requests, _ = talk(auth, [Reply(200)])
    assert authorization(requests) == [basic]  # remembered


def test_basic_without_credentials() -> None:
    requests, answer = talk(authoriser(), [Reply(401, www_authenticate='Basic realm="x"')])
    assert answer.status == 401
    assert len(requests) == 1


def test_refused_credentials_are_sent_once() -> None:
    refused = Reply(401, www_authenticate='Basic realm="x"')
    requests, answer = talk(authoriser(USER), [refused, refused])
    assert answer.status == 401
    assert len(requests) == 2


def test_anonymous_token() -> None:
    auth = authoriser()
    requests, _ = talk(auth, [Reply(401, www_authenticate=BEARER), token("t1"), Reply(200)])
    assert requests[1].url == "https://auth.test/token?service=reg.test&scope=repository:app:pull"
    assert authorization(requests) == [None, None, "Bearer t1"]
    requests, _ = talk(auth, [Reply(200)])
    assert authorization(requests) == ["Bearer t1"]
    requests, _ = talk(auth, [token("t2"), Reply(200)], ["repository:other:pull"])
    assert authorization(requests) == [None, "Bearer t2"]  # another repository, another token, no 401 first


def test_token_with_credentials() -> None:
    requests, _ = talk(authoriser(USER), [Reply(401, www_authenticate=BEARER), Reply(200, {"access_token": "t"}), Reply(200)])
    assert authorization(requests)[1:] == ["Basic dXNlcjpzZWNyZXQ=", "Bearer t"]


@pytest.mark.parametrize("status", [401, 404, 405])
def test_token_server_that_wants_a_post(status: int) -> None:
    requests, _ = talk(authoriser(USER), [Reply(401, www_authenticate=BEARER), Reply(status), token("t"), Reply(200)])
    assert [r.method for r in requests] == ["GET", "GET", "POST", "GET"]
    assert requests[2].body is not None
    form = requests[2].body().read().decode()
    assert "grant_type=password" in form
    assert "password=secret" in form
    assert "scope=repository%3Aapp%3Apull" in form


def test_identity_token() -> None:
    login = Login(username="", secret="refresh")
    requests, _ = talk(authoriser(login), [Reply(401, www_authenticate=BEARER), token("t"), Reply(200)])
    assert requests[1].method == "POST"
    assert requests[1].body is not None
    assert b"grant_type=refresh_token&refresh_token=refresh" in requests[1].body().read()


def test_tokens_expire() -> None:
    clock = Clock()
    cache = TokenCache(clock)
    auth = authoriser(None, cache)
    talk(auth, [Reply(401, www_authenticate=BEARER), token("t1", expires_in=300), Reply(200)])
    clock.now += 269
    assert authorization(talk(auth, [Reply(200)])[0]) == ["Bearer t1"]
    clock.now += 2  # past nine tenths
    assert authorization(talk(auth, [token("t2"), Reply(200)])[0]) == [None, "Bearer t2"]


def test_refused_token_is_fetched_anew() -> None:
    auth = authoriser()
    talk(auth, [Reply(401, www_authenticate=BEARER), token("old"), Reply(200)])
    requests, answer = talk(auth, [Reply(401, www_authenticate=BEARER), token("new"), Reply(200)])
    assert authorization(requests) == ["Bearer old", None, "Bearer new"]
    assert answer.status == 200


def test_insufficient_scope_adds_what_is_missing() -> None:
    more = 'Bearer realm="https://auth.test/token",error="insufficient_scope",scope="repository:app:push"'
    auth = authoriser(USER)
    requests, _ = talk(
        auth, [Reply(401, www_authenticate=BEARER), token("a"), Reply(401, www_authenticate=more), token("b"), Reply(200)]
    )
    assert requests[3].url.endswith("?scope=repository:app:pull,push")


def test_a_401_that_stands() -> None:
    refused = Reply(401, www_authenticate=BEARER)
    requests, answer = talk(authoriser(), [refused, token("a"), refused])
    assert answer.status == 401
    assert len(requests) == 3  # a new token for the same would be refused as well


def test_tokens_are_not_shared_between_credentials() -> None:
    cache = TokenCache()
    talk(authoriser(USER, cache), [Reply(401, www_authenticate=BEARER), token("users"), Reply(200)])
    other = authoriser(Login(username="user", secret="other"), cache)
    assert authorization(talk(other, [token("others"), Reply(200)])[0])[-1] == "Bearer others"
    same = authoriser(Login(username="user", secret="secret"), cache)
    assert authorization(talk(same, [Reply(200)])[0]) == ["Bearer users"]
    assert authorization(talk(authoriser(None, cache), [token("anon"), Reply(200)])[0])[-1] == "Bearer anon"


def test_token_of_the_client() -> None:
    asked: list[tuple[Any, ...]] = []

    def fetch(*question: Any) -> str:
        asked.append(question)
        return "clients"

    cache = TokenCache()
    auth = authoriser(USER, cache, fetch)
    requests, _ = talk(auth, [Reply(401, www_authenticate=BEARER), Reply(200)])
    assert authorization(requests) == [None, "Bearer clients"]
    assert asked == [("reg.test", "https://auth.test/token", "reg.test", PULL)]
    assert authorization(talk(auth, [Reply(200)])[0]) == ["Bearer clients"]
    assert len(asked) == 1
    assert authorization(talk(authoriser(None, cache), [token("own"), Reply(200)])[0])[-1] == "Bearer own"


def test_client_that_leaves_tokens_to_us() -> None:
    requests, _ = talk(authoriser(USER, None, lambda *q: None), [Reply(401, www_authenticate=BEARER), token("t"), Reply(200)])
    assert authorization(requests)[-1] == "Bearer t"


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        (Reply(401, url="https://auth.test/token"), UnauthorizedError, "failed to fetch anonymous token: unexpected status"),
        (Reply(503, url="https://auth.test/token"), RegistryError, "503 Service Unavailable"),
        (Reply(200, b"<html>"), RegistryError, "the token server's answer is not a token"),
        (Reply(200, {}), RegistryError, "did not include a token"),
        (Reply(200, {"token": "a\r\nX: y"}), RegistryError, "did not include a token"),
    ],
)
def test_token_server_fails(reply: Reply, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        talk(authoriser(), [Reply(401, www_authenticate=BEARER), reply])
    assert isinstance(caught.value, RegistryError)
    assert caught.value.transient == (reply.status == 503)


@pytest.mark.parametrize("realm", ["http://auth.test/token", "file:///etc/passwd", "auth.test"])
def test_realms_that_get_no_credentials(realm: str) -> None:
    challenge = f'Bearer realm="{realm}"'
    with pytest.raises(UnauthorizedError, match=r"refusing to send|invalid realm"):
        talk(authoriser(USER), [Reply(401, www_authenticate=challenge)])


def test_no_secret_in_any_text() -> None:
    with pytest.raises(UnauthorizedError) as caught:
        talk(authoriser(USER), [Reply(401, www_authenticate=BEARER), Reply(401), Reply(401)])
    assert "secret" not in f"{caught.value} {caught.value.hint} {caught.value.detail} {USER!r}"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="a b"', [Challenge("basic", {"realm": "a b"})]),
        ("Negotiate, Basic realm=x", [Challenge("basic", {"realm": "x"}), Challenge("negotiate", {})]),
        (
            'Basic realm="r", Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"',
            [
                Challenge("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"}),
                Challenge("basic", {"realm": "r"}),
            ],
        ),
        ('BEARER Realm = "x\\"y"', [Challenge("bearer", {"realm": 'x"y'})]),
        ("NTLM TlRMTVNTUAAB==, Basic realm=x", [Challenge("basic", {"realm": "x"}), Challenge("ntlm", {})]),
        ('Bearer realm="unclosed', [Challenge("bearer", {"realm": ""}), Challenge("unclosed", {})]),
        ("", []),
        (", ,", []),
    ],
)
def test_challenges(header: str, expected: list[Challenge]) -> None:
    assert parse_challenges([header] if header else []) == expected


def test_scopes_are_merged() -> None:
    assert merge_scopes(["repository:b:pull", "repository:a:push", "repository:a:pull", "repository:a:pull,push"]) == (
        "repository:a:pull,push",
        "repository:b:pull",
    )
