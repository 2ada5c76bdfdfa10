# SPDX-License-Identifier: Apache-2.0
"""What a user may meet, one scenario a line of the table: which hosts are asked, in which order, what comes of it, what is said.

`O` is the registry of the reference, `A` and `B` are its mirrors, `T` is a token server of its own, `C` another host that blobs
are redirected to. A step such as `A.HEAD` is one request; its status follows where it is not 200: `A.HEAD.404`, `-` for none.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from chantier.config import parse
from chantier.errors import (
    ChantierError,
    ConfigError,
    IntegrityError,
    NotFoundError,
    RateLimitedError,
    RegistryError,
    UnauthorizedError,
)
from chantier.registry import Login, MemoryWriter, Registries, Registry, RetryPolicy
from chantier.spec import Descriptor, Reference, descriptor_from_json, digest_of
from chantier.testing.registry import FakeRegistry

LAYER = bytes(range(256)) * 800  # 204,800 bytes
SMALL = b"a small layer"
HUGE = 40 << 20
QUICK = RetryPolicy(base_s=0.005, cap_s=0.02)


class Steps(logging.Handler):
    """Every request of the client, whether it was answered or not."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.names: dict[str, str] = {}
        self.found: list[list[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, str] = getattr(record, "fields", {})
        host = self.names.get(str(fields.get("host")), str(fields.get("host")))
        if record.getMessage() == "do request":
            self.found.append([host, fields["request.method"], "-"])
        elif record.getMessage() == "fetch response received":
            open_steps = [step for step in self.found if step[0] == host and step[2] == "-"]
            open_steps[-1][2] = fields["response.status"].split()[0]

    def text(self) -> str:
        return " ".join(f"{h}.{m}" + ("" if s == "200" else f".{s}") for h, m, s in self.found)


@dataclass
class World:
    """Made anew for each scenario. All hosts hold `app:1` with one layer unless the scenario empties them."""

    folder: Path
    certificates: Any
    stack: ExitStack
    hosts: dict[str, FakeRegistry] = field(default_factory=dict)
    config: list[str] = field(default_factory=list)
    logins: dict[str, Login] = field(default_factory=dict)
    steps: Steps = field(default_factory=Steps)
    asked_for_login: list[str] = field(default_factory=list)
    registries: Registries | None = None

    def host(self, name: str, **options: Any) -> FakeRegistry:
        """Start a host, or get the one there is."""
        if name not in self.hosts:
            made = self.stack.enter_context(FakeRegistry(**options))
            self.hosts[name] = made
            self.steps.names[made.authority] = name
            made.add_image("app", "1", [LAYER])
            made.add_blob("app", LAYER)
        return self.hosts[name]

    @property
    def o(self) -> FakeRegistry:
        return self.host("O")

    @property
    def a(self) -> FakeRegistry:
        return self.host("A")

    @property
    def b(self) -> FakeRegistry:
        return self.host("B")

    def mirrors(self, *names: str) -> None:
        listed = ", ".join(f'"{self.host(n).authority if n in "AB" else n}"' for n in names)
        self.config.append(f'[registry."{self.o.authority}"]\nmirrors = [{listed}]')

    def extra(self, name: str, *lines: str) -> None:
        authority = self.hosts[name].authority if name in self.hosts else name
        self.config.append(f'[chantier.registry."{authority}"]\n' + "\n".join(lines))

    def login(self, name: str, *lines: str) -> None:
        self.config.append(f'[chantier.registry."{self.host(name).authority}".credentials]\n' + "\n".join(lines))

    def table(self, name: str, *lines: str) -> None:
        self.config.append(f'[registry."{self.hosts[name].authority}"]\n' + "\n".join(lines))

    def file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def dead(self) -> str:
        """The address of nobody."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            found = f"127.0.0.1:{probe.getsockname()[1]}"
        self.steps.names[found] = "D"
        return found

    def black_hole(self) -> str:
        """An address that takes no connection and refuses none: its queue is full."""
        listener = self.stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(8):
            filler = self.stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        found = f"127.0.0.1:{address[1]}"
        self.steps.names[found] = "H"
        return found

    def ref(self, text: str = "app:1") -> Reference:
        return Reference.parse(f"{self.o.authority}/{text}")

    def layer(self) -> Descriptor:
        return self.o.add_blob("app", LAYER)

    def open(self) -> Registry:
        if self.registries is None:
            self.registries = Registries(parse("\n".join(self.config)), retry=QUICK)
            self.stack.callback(self.registries.close)

        def credentials(host: str) -> Login | None:
            self.asked_for_login.append(self.steps.names.get(host, host))
            return self.logins.get(self.steps.names.get(host, host))

        return self.registries.open(credentials=credentials)

    # What a scenario may do. Each returns who served, for the table.

    def resolve(self) -> str:
        return self._name(self.open().resolve(self.ref()).host)

    def manifest(self) -> str:
        digest = self.o.repository("app").tags["1"]
        data, _ = self.open().manifest(self.ref(), digest)
        assert digest_of(data) == digest
        return "ok"

    def blob(self) -> str:
        writer = MemoryWriter()
        done = self.open().fetch_blob(self.ref(), self.layer(), writer)
        assert bytes(writer.data) == LAYER
        return self._name(done.host)

    def pull(self) -> str:
        registry = self.open()
        found = registry.resolve(self.ref())
        data, _ = registry.manifest(self.ref(), found.descriptor)
        served = [found.host]
        for raw in [json.loads(data)["config"], *json.loads(data)["layers"]]:
            described = descriptor_from_json(raw)
            writer = MemoryWriter()
            served.append(registry.fetch_blob(self.ref(), described, writer).host)
        return "".join(dict.fromkeys(self._name(s) for s in served))

    def push(self, data: bytes = SMALL) -> str:
        described = Descriptor(media_type="application/vnd.oci.image.layer.v1.tar", digest=digest_of(data), size=len(data))
        done = self.open().push_blob(self.ref("new:1"), described, lambda: BytesIO(data))
        assert self.o.repository("new").blobs[described.digest] == data
        return done

    def push_huge(self) -> str:
        return self.push(os.urandom(1 << 20) * (HUGE >> 20))

    def referrers(self) -> str:
        return str(len(self.open().referrers(self.ref(), self.o.repository("app").tags["1"])))

    def twice(self, what: Callable[[], str]) -> str:
        first = what()
        self.steps.found.append(["|", "", "200"])
        return first + what()

    def _name(self, host: str) -> str:
        return self.steps.names.get(host.partition("/")[0], host)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """`result` is what the call gives or the error's class; `said` must stand in the error's text, hint or detail."""

    name: str
    prepare: Callable[[World], object]
    does: Callable[[World], str] = World.resolve
    steps: str
    result: str | type[ChantierError]
    said: tuple[str, ...] = ()
    code: int = 1
    check: Callable[[World], object] = lambda w: None


SCENARIOS: list[Scenario] = []


def scenario(
    name: str,
    steps: str,
    result: str | type[ChantierError],
    *said: str,
    does: Callable[[World], str] = World.resolve,
    code: int = 1,
    check: Callable[[World], object] = lambda w: None,
) -> Callable[[Callable[[World], object]], Callable[[World], object]]:
    def add(prepare: Callable[[World], object]) -> Callable[[World], object]:
        SCENARIOS.append(
            Scenario(name=name, prepare=prepare, does=does, steps=steps, result=result, said=said, code=code, check=check)
        )
        return prepare

    return add


# One registry.

scenario("the registry answers", "O.HEAD", "O")(lambda w: w.o)
scenario("a whole pull", "O.HEAD O.GET O.GET O.GET", "O", does=World.pull)(lambda w: w.o)


@scenario("no such tag", "O.HEAD.404", NotFoundError, "/app:1: not found")
def _(w: World) -> None:
    w.o.repositories.clear()


@scenario("two 500s, then well", "O.HEAD.500 O.HEAD.500 O.HEAD", "O")
def _(w: World) -> None:
    w.o.fail("status", status=500, times=2)


@scenario("nothing but 500s", "O.HEAD.500 " * 3 + "O.HEAD.500", RegistryError, "500 Internal Server Error", code=75)
def _(w: World) -> None:
    w.o.fail("status", status=500, times=-1)


@scenario("busy, with a time to wait", "O.HEAD.503 O.HEAD", "O")
def _(w: World) -> None:
    w.o.fail("status", status=503, headers={"Retry-After": "0.01"})


@scenario("a rate limit that ends soon", "O.HEAD.429 O.HEAD", "O")
def _(w: World) -> None:
    w.o.fail("status", status=429, headers={"Retry-After": "0.01"})


@scenario(
    "a rate limit for hours",
    "O.HEAD.429",
    RateLimitedError,
    "429 Too Many Requests",
    "100 per 6h, 0 left",
    "try again in 2h, at 2",
    code=75,
)
def _(w: World) -> None:
    limits = {"Retry-After": "7200", "ratelimit-limit": "100;w=21600", "ratelimit-remaining": "0;w=21600"}
    w.o.fail("status", status=429, headers=limits, times=-1)


@scenario(
    "a rate limit told by its reset", "O.HEAD.429", RateLimitedError, "limits how much may be pulled", "try again in ", code=75
)
def _(w: World) -> None:
    w.o.fail("status", status=429, headers={"X-RateLimit-Reset": "99999999999"}, times=-1)


@scenario("forbidden", "O.HEAD.403 O.GET.403", UnauthorizedError, "403 Forbidden: denied: not for you", "check that your login")
def _(w: World) -> None:
    w.o.fail("status", status=403, body=b'{"errors":[{"code":"DENIED","message":"not for you"}]}', times=-1)


@scenario("a digest that is not told", "O.HEAD O.GET", "O")
def _(w: World) -> None:
    w.o.fail("no-digest", times=-1)


@scenario("HEAD is not known", "O.HEAD.405 O.GET", "O")
def _(w: World) -> None:
    w.o.fail("status", method="HEAD", status=405, times=-1)


@scenario("schema 1", "O.HEAD", IntegrityError, "unsupported manifest: Docker schema 1", "push the image again")
def _(w: World) -> None:
    w.o.add_manifest("app", b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws", "1")


@scenario("a reset before the answer", "O.HEAD.- O.HEAD", "O")
def _(w: World) -> None:
    w.o.fail("reset")


@scenario("nobody listens", "O.HEAD.- O.HEAD.-", RegistryError, "connect: connection refused", "nothing listens at", code=75)
def _(w: World) -> None:
    w.o.close()
    w.host("O")._server = None
    dead = w.dead()
    w.steps.names[dead] = "O"
    w.hosts["O"] = FakeRegistry(name=dead.partition(":")[0])
    w.ref = lambda text="app:1": Reference.parse(f"{dead}/{text}")  # type: ignore[method-assign,misc]


@scenario("silent for its whole limit", "O.HEAD.- " * 3 + "O.HEAD.-", RegistryError, "i/o timeout: no answer in time", code=75)
def _(w: World) -> None:
    w.o.fail("hang", seconds=600, times=-1)
    w.extra("O", 'responseTimeout = "200ms"')


@scenario("a manifest with a wrong byte, once", "O.GET O.GET", "ok", does=World.manifest)
def _(w: World) -> None:
    w.o.fail("wrong", method="GET")


@scenario("a manifest with a wrong byte, always", "O.GET " * 5, IntegrityError, "has digest sha256:", does=World.manifest)
def _(w: World) -> None:
    w.o.fail("wrong", method="GET", times=-1)


@scenario("a manifest that breaks off", "O.GET O.GET", "ok", does=World.manifest)
def _(w: World) -> None:
    w.o.fail("eof", method="GET", after=40)


# Blobs.


@scenario("reset in the middle of a blob", "O.GET O.GET.206", "O", does=World.blob)
def _(w: World) -> None:
    w.o.fail("eof", method="GET", after=100_000)


@scenario("a short body", "O.GET O.GET.206", "O", does=World.blob)
def _(w: World) -> None:
    w.o.fail("short", method="GET")


@scenario("a long body, always", "O.GET " * 5, IntegrityError, "is longer than 204800 bytes", does=World.blob)
def _(w: World) -> None:
    w.o.fail("long", method="GET", times=-1)


@scenario("wrong bytes, once", "O.GET O.GET", "O", does=World.blob)
def _(w: World) -> None:
    w.o.fail("wrong", method="GET")


@scenario("wrong bytes, always", "O.GET " * 5, IntegrityError, "unexpected commit digest sha256:", does=World.blob)
def _(w: World) -> None:
    w.o.fail("wrong", method="GET", times=-1)


@scenario("a slow drip", "O.GET", "O", does=World.blob)
def _(w: World) -> None:
    w.o.fail("slow", method="GET", seconds=0.001)


@scenario("a body that hangs", "O.GET O.GET.206", "O", does=World.blob)
def _(w: World) -> None:
    w.o.fail("slow", method="GET", seconds=600)
    w.extra("O", 'responseTimeout = "2s"')


@scenario("a server without ranges", "O.GET O.GET", "O", does=World.blob)
def _(w: World) -> None:
    w.o.fail("eof", method="GET", after=100_000)
    w.o.fail("ignore-range", method="GET")


@scenario("a blob from another host", "O.GET.307 C.GET", "O", does=World.blob, check=lambda w: nobody_told(w, "C"))
def _(w: World) -> None:
    w.host("O", users={"u": "p"}, auth="token", public=True, cdn=w.host("C"))
    w.steps.found.clear()
    w.o.auth = ""


@scenario("another host that breaks off", "O.GET.307 C.GET O.GET.307 C.GET.206", "O", does=World.blob)
def _(w: World) -> None:
    w.host("O", cdn=w.host("C"))
    w.host("C").fail("eof", method="GET", after=50_000)


@scenario(
    "a redirect to nowhere", "O.GET.307", RegistryError, "redirects to file:///etc/passwd: not an http address", does=World.blob
)
def _(w: World) -> None:
    w.o.fail("redirect", location="file:///etc/passwd", times=-1)


# Mirrors.

scenario("a mirror serves", "A.HEAD A.GET A.GET A.GET", "A", does=World.pull)(lambda w: w.mirrors("A"))


@scenario("a mirror without the image", "A.HEAD.404 O.HEAD", "O")
def _(w: World) -> None:
    w.mirrors("A")
    w.a.repositories.clear()


@scenario("a mirror with a 500 is not waited for", "A.HEAD.500 O.HEAD", "O")
def _(w: World) -> None:
    w.mirrors("A")
    w.a.fail("status", status=500, times=-1)


@scenario("a mirror whose limit is used up", "A.HEAD.429 O.HEAD | O.HEAD", "OO", does=lambda w: w.twice(w.resolve))
def _(w: World) -> None:
    w.mirrors("A")
    w.a.fail("status", status=429, headers={"Retry-After": "600"}, times=-1)


@scenario("a mirror that wants a login", "A.HEAD.401 O.HEAD", "O")
def _(w: World) -> None:
    w.host("A", users={"u": "p"})
    w.mirrors("A")


@scenario("a mirror that resets", "A.HEAD.- A.HEAD.- O.HEAD", "O")
def _(w: World) -> None:
    w.mirrors("A")
    w.a.fail("reset", times=-1)


@scenario("a mirror that is not there", "D.HEAD.- O.HEAD O.GET O.GET O.GET", "O", does=World.pull)
def _(w: World) -> None:
    w.mirrors(w.dead())


@scenario(
    "a mirror in a black hole costs its limit once",
    "H.HEAD.- O.HEAD O.GET O.GET O.GET | O.HEAD O.GET O.GET O.GET",
    "OO",
    does=lambda w: w.twice(w.pull),
)
def _(w: World) -> None:
    hole = w.black_hole()
    w.mirrors(hole)
    w.extra(hole, 'connectTimeout = "150ms"')


@scenario("a mirror that hangs", "A.HEAD.- O.HEAD | O.HEAD", "OO", does=lambda w: w.twice(w.resolve))
def _(w: World) -> None:
    w.mirrors("A")
    w.a.fail("hang", seconds=600, times=-1)
    w.extra("A", 'responseTimeout = "200ms"')


@scenario(
    "a mirror without a breaker is asked each time", "D.HEAD.- O.HEAD | D.HEAD.- O.HEAD", "OO", does=lambda w: w.twice(w.resolve)
)
def _(w: World) -> None:
    dead = w.dead()
    w.mirrors(dead)
    w.extra(dead, "breaker = false")


@scenario("two mirrors, the second one has it", "A.HEAD.404 B.HEAD", "B")
def _(w: World) -> None:
    w.mirrors("A", "B")
    w.a.repositories.clear()


@scenario("nobody has it", "A.HEAD.404 B.HEAD.404 O.HEAD.404", NotFoundError, "/app:1: not found", "127.0.0.1")
def _(w: World) -> None:
    w.mirrors("A", "B")
    for name in "ABO":
        w.host(name).repositories.clear()


@scenario(
    "a mirror's 500 tells more than a registry that is gone",
    "A.HEAD.500 O.HEAD.404",
    RegistryError,
    "500 Internal Server Error",
    code=75,
)
def _(w: World) -> None:
    w.mirrors("A")
    w.a.fail("status", status=500, times=-1)
    w.o.repositories.clear()


@scenario("a mirror's wrong bytes", "A.GET O.GET", "O", does=World.blob)
def _(w: World) -> None:
    w.mirrors("A")
    w.a.fail("wrong", method="GET", times=-1)


@scenario("a mirror's wrong manifest", "A.GET O.GET", "ok", does=World.manifest)
def _(w: World) -> None:
    w.mirrors("A")
    w.a.fail("wrong", method="GET", times=-1)


@scenario("a mirror that stalls in the middle", "A.GET A.GET.206 O.GET.206", "O", does=World.blob)
def _(w: World) -> None:
    w.mirrors("A")
    w.a.fail("eof", method="GET", after=100_000)
    w.a.fail("eof", method="GET", after=0, times=-1)


@scenario("only the mirror, which has nothing", "A.HEAD.404", NotFoundError, "/app:1: not found", check=lambda w: unasked(w, "O"))
def _(w: World) -> None:
    w.mirrors("A")
    w.extra("O", "only = true")
    w.a.repositories.clear()


@scenario("only the mirror, which is in trouble", "A.HEAD.503 A.HEAD.503 A.HEAD", "A")
def _(w: World) -> None:
    w.mirrors("A")
    w.extra("O", "only = true")
    w.a.fail("status", status=503, times=2)


@scenario(
    "only mirrors, and none is named", "", RegistryError, "the config leaves no host to ask", "see `only` and `capabilities`"
)
def _(w: World) -> None:
    w.host("O")
    w.extra("O", "only = true")


@scenario("a mirror for blobs alone", "O.HEAD A.GET A.GET A.GET", "OA", does=World.pull)
def _(w: World) -> None:
    w.mirrors("A")
    w.extra("A", 'capabilities = ["pull"]')


@scenario("a mirror for tags alone", "A.HEAD O.GET O.GET O.GET", "AO", does=World.pull)
def _(w: World) -> None:
    w.mirrors("A")
    w.extra("A", 'capabilities = ["resolve"]')


@scenario("a mirror for all registries", "A.HEAD", "A")
def _(w: World) -> None:
    w.host("O")
    w.config.append(f'[registry."*"]\nmirrors = ["{w.a.authority}"]')


@scenario("a registry that inherits nothing", "O.HEAD", "O", check=lambda w: unasked(w, "A"))
def _(w: World) -> None:
    w.host("O")
    w.config.append(f'[registry."*"]\nmirrors = ["{w.a.authority}"]')
    w.extra("O", "inherit = false")


# Logins.

U = Login(username="u", secret="p")


def nobody_told(w: World, name: str) -> None:
    assert all("authorization" not in r.headers for r in w.hosts[name].seen())


def unasked(w: World, name: str) -> None:
    assert w.hosts[name].count() == 0


@scenario("the client's login, basic", "O.HEAD.401 O.HEAD", "O", check=lambda w: w.asked_for_login == ["O"])
def _(w: World) -> None:
    w.host("O", users={"u": "p"})
    w.logins["O"] = U


@scenario("the client's login, by token", "O.HEAD.401 O.GET O.HEAD", "O")
def _(w: World) -> None:
    w.host("O", users={"u": "p"}, auth="token", public=False)
    w.logins["O"] = U


@scenario("a wrong password", "O.HEAD.401 O.GET.401 O.POST.401", UnauthorizedError, "failed to fetch oauth token", "were refused")
def _(w: World) -> None:
    w.host("O", users={"u": "p"}, auth="token", public=False)
    w.logins["O"] = Login(username="u", secret="wrong")


def expire_and_resolve(w: World) -> str:
    w.resolve()
    w.o.expire_tokens()
    w.steps.found.clear()
    return w.resolve()


@scenario("an expired token", "O.HEAD.401 O.GET O.HEAD", "O", does=expire_and_resolve)
def _(w: World) -> None:
    w.host("O", users={"u": "p"}, auth="token", public=False)
    w.logins["O"] = U


def with_token_server(w: World) -> None:
    tokens = w.host("T", users={"u": "p"}, auth="token")
    w.host("O", users={"u": "p"}, auth="token", public=False, realm=f"{tokens.url}/token")
    w.o.tokens = tokens.tokens


@scenario(
    "a token server that stumbles",
    "O.HEAD.401 T.GET.503 O.HEAD.401 T.GET O.HEAD",
    "O",
    check=lambda w: nobody_told(w, "T") is None,
)
def _(w: World) -> None:
    with_token_server(w)
    w.host("T").fail("status", status=503)


@scenario(
    "a token server that is not one of the host's",
    "O.HEAD.401",
    UnauthorizedError,
    "refusing to send credentials of",
    "tokenServers",
    check=lambda w: unasked(w, "T"),
)
def _(w: World) -> None:
    with_token_server(w)
    w.logins["O"] = U
    w.extra("O", 'tokenServers = ["tokens.example"]')


def each_its_own(w: World) -> None:
    sent = {name: {r.headers["authorization"] for r in w.hosts[name].seen() if "authorization" in r.headers} for name in "ABO"}
    assert len(sent["A"]) == len(sent["B"]) == len(sent["O"]) == 1
    assert len(sent["A"] | sent["B"] | sent["O"]) == 3
    assert w.asked_for_login == ["O"]  # the client is not asked for what the config has


@scenario(
    "two mirrors and a registry, each with its login",
    "A.HEAD.401 A.HEAD.404 B.HEAD.401 B.HEAD.404 O.HEAD.401 O.HEAD",
    "O",
    check=each_its_own,
)
def _(w: World) -> None:
    w.host("A", users={"a": "aa"})
    w.host("B", users={"b": "bb"})
    w.host("O", users={"u": "p"})
    w.a.repositories.clear()
    w.b.repositories.clear()
    w.mirrors("A", "B")
    w.login("A", 'username = "a"', f'passwordFile = "{w.file("pw", "aa")}"')
    w.login(
        "B", f'authFile = "{w.file("auth.json", json.dumps({"auths": {w.b.authority: {"username": "b", "password": "bb"}}}))}"'
    )
    w.logins["O"] = U


@scenario(
    "a login that the config names and that is not there",
    "O.HEAD.401",
    ConfigError,
    "no login for 127.0.0.1",
    "cannot read /nowhere/pw: no such file",
)
def _(w: World) -> None:
    w.host("O", users={"u": "p"})
    w.login("O", 'username = "u"', 'passwordFile = "/nowhere/pw"')


@scenario(
    "a host that is to be used without a login",
    "O.HEAD.401",
    UnauthorizedError,
    "no basic auth credentials",
    check=lambda w: w.asked_for_login == [],
)
def _(w: World) -> None:
    w.host("O", users={"u": "p"})
    w.login("O", "client = false")
    w.logins["O"] = U


def apart(w: World) -> None:
    there = {r.headers.get("authorization") for r in w.hosts["C"].seen()}
    here = {r.headers.get("authorization") for r in w.o.seen()}
    assert there & here == {None}


@scenario(
    "a redirect to a host with a login of its own",
    "O.GET.401 O.GET.307 C.GET.401 C.GET",
    "O",
    does=World.blob,
    check=apart,
)
def _(w: World) -> None:
    other = w.host("C", users={"c": "cc"})
    w.host("O", users={"u": "p"}, cdn=other)
    w.logins |= {"O": U, "C": Login(username="c", secret="cc")}


# TLS.


def secured(w: World, name: str = "O", *, clients: bool = False) -> None:
    w.host(name, tls=w.certificates.context(clients=clients))


@scenario(
    "an authority that nobody named",
    "O.HEAD.-",
    RegistryError,
    "tls: failed to verify certificate",
    "name the certificate authority",
)
def _(w: World) -> None:
    secured(w)
    w.table("O", "http = false")


@scenario("an authority of the network setting", "O.HEAD", "O")
def _(w: World) -> None:
    secured(w)
    w.table("O", "http = false")
    w.config.append(f'[chantier.network]\nca = ["{w.certificates.ca}"]')


@scenario("a client certificate", "O.HEAD", "O")
def _(w: World) -> None:
    secured(w, clients=True)
    w.table("O", "http = false", f'ca = ["{w.certificates.ca}"]')
    w.config.append(
        f'[[registry."{w.o.authority}".keypair]]\ncert = "{w.certificates.client_cert}"\nkey = "{w.certificates.client_key}"'
    )


@scenario("a mirror that cannot be trusted", "A.HEAD.- O.HEAD", "O")
def _(w: World) -> None:
    secured(w, "A")
    w.mirrors("A")
    w.table("A", "http = false")


@scenario(
    "TLS with a host that has none", "O.HEAD.-", RegistryError, "server gave HTTP response to HTTPS client", "set http = true"
)
def _(w: World) -> None:
    w.host("O")
    w.table("O", "http = false")


def rotated(w: World) -> str:
    with pytest.raises(RegistryError):
        w.resolve()
    w.file("ca.pem", Path(w.certificates.ca).read_text())
    return w.resolve()


@scenario("an authority that is replaced in its file", "O.HEAD.- O.HEAD", "O", does=rotated)
def _(w: World) -> None:
    import trustme

    secured(w)
    trustme.CA().cert_pem.write_to_path(str(w.folder / "ca.pem"))
    w.table("O", "http = false", f'ca = ["{w.folder / "ca.pem"}"]')


# Pushes.

scenario("a push", "O.HEAD.404 O.POST.202 O.PUT.201", "pushed", does=World.push)(lambda w: w.o)


@scenario("a push past a mirror", "O.HEAD.404 O.POST.202 O.PUT.201", "pushed", does=World.push, check=lambda w: unasked(w, "A"))
def _(w: World) -> None:
    w.mirrors("A")
    w.extra("O", "only = true")


@scenario("a push that meets a 500", "O.HEAD.404 O.POST.202 O.PUT.500 O.HEAD.404 O.POST.202 O.PUT.201", "pushed", does=World.push)
def _(w: World) -> None:
    w.o.fail("status", method="PUT", status=500)


@scenario("a push whose answer is lost", "O.HEAD.404 O.POST.202 O.PUT.- O.HEAD", "pushed", does=World.push)
def _(w: World) -> None:
    w.o.fail("lost", method="PUT")


@scenario(
    "an upload that the registry forgets",
    "O.HEAD.404 O.POST.202 O.PUT.404 O.POST.202 O.PATCH.202 O.PUT.201",
    "pushed",
    does=World.push,
)
def _(w: World) -> None:
    w.o.fail("status", method="PUT", status=404)


@scenario(
    "a proxy that bounds bodies",
    "O.HEAD.404 O.POST.202 O.PUT.413 O.POST.202 " + "O.PATCH.202 " * 3 + "O.PUT.201",
    "pushed",
    does=World.push_huge,
)
def _(w: World) -> None:
    w.host("O", most_body=16 << 20)


@scenario(
    "a chunk that breaks off",
    "O.HEAD.404 O.POST.202 O.PUT.405 O.POST.202 O.PATCH.202 O.PATCH.- O.GET.204 O.PATCH.202 O.PATCH.202 O.PUT.201",
    "pushed",
    does=World.push_huge,
)
def _(w: World) -> None:
    w.host("O", uploads="chunks")
    w.o.fail("slow", method="PATCH")
    w.o.fail("eof", method="PATCH")


def forget_uploads(w: World) -> str:
    """A registry that is restarted between two chunks."""
    real, forgotten = w.o.upload, iter([False, False, True, True])

    def upload(key: str) -> Any:
        return None if next(forgotten, False) else real(key)

    w.o.upload = upload  # type: ignore[method-assign]
    return w.push_huge()


@scenario(
    "an upload that is forgotten between chunks",
    "O.HEAD.404 O.POST.202 O.PUT.405 O.POST.202 O.PATCH.202 O.PATCH.404 O.GET.404 O.HEAD.404"
    " O.POST.202 O.PUT.405 O.POST.202 O.PATCH.202 O.PATCH.202 O.PATCH.202 O.PUT.201",
    "pushed",
    does=forget_uploads,
)
def _(w: World) -> None:
    w.host("O", uploads="chunks")


@scenario("a push that may not be", "O.HEAD.404 O.POST.403", UnauthorizedError, "403 Forbidden", does=World.push)
def _(w: World) -> None:
    w.o.fail("status", method="POST", status=403)


# Referrers.

scenario("no referrers", "O.GET", "0", does=World.referrers)(lambda w: w.o)


@scenario("referrers that meet a 500", "O.GET.500 O.GET.500 O.GET", "0", does=World.referrers)
def _(w: World) -> None:
    w.o.fail("status", status=500, times=2)


# The table is done.


def test_there_are_enough() -> None:
    assert len(SCENARIOS) >= 60
    assert len({s.name for s in SCENARIOS}) == len(SCENARIOS)


@pytest.fixture
def world(tmp_path: Path, certificates: Any) -> Iterator[World]:
    with ExitStack() as stack:
        made = World(tmp_path, certificates, stack)
        logger = logging.getLogger("chantier.registry")
        before = logger.level
        logger.setLevel(logging.DEBUG)
        logger.addHandler(made.steps)
        yield made
        logger.removeHandler(made.steps)
        logger.setLevel(before)


@pytest.mark.parametrize("case", SCENARIOS, ids=lambda s: s.name.replace(" ", "-"))
def test_scenario(case: Scenario, world: World) -> None:
    case.prepare(world)
    if isinstance(case.result, str):
        assert case.does(world) == case.result
    else:
        with pytest.raises(case.result) as caught:
            case.does(world)
        err = caught.value
        whole = "\n".join(text for text in (err.brief, err.hint, err.detail) if text)
        for said in case.said:
            assert said in whole
        assert err.exit_code == case.code
        assert "\n" not in err.brief
    assert world.steps.text().replace("|.", "|") == " ".join(case.steps.split())
    assert case.check(world) is not False
