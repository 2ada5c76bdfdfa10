# SPDX-License-Identifier: Apache-2.0
"""Which sources a build may use: rules in the request, and a verifier in the client's session."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chantier.engine import apply_rules
from chantier.errors import PolicyError
from chantier.llb import image
from chantier.pb import control_pb2, gateway_pb2, ops_pb2
from chantier.pb import sourcepolicy_pb2 as sp
from chantier.spec import new_id
from chantier.wire import GrpcError, Stub

from .conftest import CONTROL, Chantierd, driven


def rule(action: int, identifier: str, match: int = 0, to: str = "", **attrs: str) -> sp.Rule:
    made = sp.Rule(action=action, selector=sp.Selector(identifier=identifier, match_type=match))  # type: ignore[arg-type]
    if to or attrs:
        made.updates.CopyFrom(sp.Update(identifier=to, attrs=attrs))
    return made


def policy(*rules: sp.Rule) -> sp.Policy:
    return sp.Policy(version=1, rules=rules)


def source(identifier: str, **attrs: str) -> ops_pb2.SourceOp:
    return ops_pb2.SourceOp(identifier=identifier, attrs=attrs)


ALPINE = "docker-image://docker.io/library/alpine:latest"


def test_the_last_rule_that_matches_decides() -> None:
    rules = policy(rule(sp.DENY, "docker-image://*"), rule(sp.ALLOW, "docker-image://docker.io/library/*"))
    assert apply_rules([rules], source(ALPINE)) == source(ALPINE)
    with pytest.raises(PolicyError, match="denied by policy"):
        apply_rules([rules], source("docker-image://x.test/y:1"))
    assert apply_rules([rules], source("git://x.test/y")) == source("git://x.test/y")


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (rule(sp.CONVERT, ALPINE, sp.EXACT, "docker-image://mirror.test/alpine"), "docker-image://mirror.test/alpine:latest"),
        (rule(sp.CONVERT, "docker-image://docker.io/*", 0, "docker-image://m.test/$1"), "docker-image://m.test/library/alpine:latest"),
        (
            rule(sp.CONVERT, r"^docker-image://docker\.io/library/(?P<n>\w+):(\w+)$", sp.REGEX, "docker-image://m.test/${n}-${2}"),
            "docker-image://m.test/alpine-latest:latest",
        ),
    ],
    ids=["exact", "wildcard", "regex"],
)  # fmt: skip
def test_a_source_becomes_another(made: sp.Rule, wanted: str) -> None:
    assert apply_rules([policy(made)], source(ALPINE)).identifier == wanted


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("git://h.test/u/r.git#main:../abs/path", "git://h.test/u/r.git#main:abs/path"),
        ("git://h.test/u/r.git#main:abs//./path/", "git://h.test/u/r.git#main:abs/path"),
        ("git://h.test/u/../u//r.git", "git://h.test/u/r.git"),
        ("git://h.test/u/r.git#:/", "git://h.test/u/r.git"),
        ("docker-image://alpine", ALPINE),
        ("docker-image://index.docker.io/library/alpine", ALPINE),
        ("docker-image+blob://alpine@sha256:" + "a" * 64, "docker-image+blob://docker.io/library/alpine@sha256:" + "a" * 64),
    ],
)
def test_what_is_denied_cannot_be_written_otherwise(written: str, meant: str) -> None:
    assert apply_rules([], source(written)).identifier == meant
    assert apply_rules([], source(meant)) == source(meant)
    with pytest.raises(PolicyError, match="denied"):
        apply_rules([policy(rule(sp.DENY, meant, sp.EXACT))], source(written))


def test_attributes_are_set_and_asked_for() -> None:
    pinned = apply_rules(
        [policy(rule(sp.CONVERT, "https://*", to="", **{"http.checksum": "sha256:1"}))], source("https://x.test/f")
    )
    assert pinned.attrs["http.checksum"] == "sha256:1"
    only = rule(sp.DENY, "https://*")
    only.selector.constraints.add(key="http.checksum", value="", condition=sp.EQUAL)
    assert apply_rules([policy(only)], pinned) == pinned
    with pytest.raises(PolicyError, match="denied"):
        apply_rules([policy(only)], source("https://x.test/f"))


def test_rules_that_never_end_are_stopped() -> None:
    loop = policy(
        rule(sp.CONVERT, "https://a", sp.EXACT, "https://b"), rule(sp.CONVERT, "https://b", sp.EXACT, "https://a")
    )  # fmt: skip
    with pytest.raises(PolicyError, match="too many operations"):
        apply_rules([loop], source("https://a"))


@pytest.mark.root
@pytest.mark.registry
def test_rules_hold_for_graphs_and_for_questions(daemon: Chantierd) -> None:
    denied = policy(rule(sp.DENY, ALPINE))
    turned = policy(rule(sp.CONVERT, "docker-image://docker.io/library/gone:latest", sp.EXACT, ALPINE))

    async def run() -> None:
        async with daemon.client() as channel:
            request = control_pb2.SolveRequest(Ref=new_id(), Definition=image("alpine").marshal(), SourcePolicy=denied)
            with pytest.raises(GrpcError, match="denied by policy"):
                await Stub(channel, CONTROL).unary("Solve", request)
        async with driven(daemon, SourcePolicy=turned) as build:
            asked = gateway_pb2.ResolveImageConfigRequest(Ref="docker.io/library/gone:latest")
            found = await build.bridge.unary("ResolveImageConfig", asked)
            assert found.Ref == "docker.io/library/alpine:latest"
            assert found.Digest.startswith("sha256:")
            source = ops_pb2.SourceOp(identifier="docker-image://docker.io/library/gone:latest")
            meta = await build.bridge.unary("ResolveSourceMeta", gateway_pb2.ResolveSourceMetaRequest(Source=source))
            assert meta.Source.identifier == ALPINE
            assert meta.Image.Digest == found.Digest
            ref = await build.make(image("gone").marshal())
            read = await build.bridge.unary("ReadFile", gateway_pb2.ReadFileRequest(Ref=ref, FilePath="/etc/passwd"))
            assert read.Data.startswith(b"root:")
            await build.returns()

    asyncio.run(run())


@pytest.mark.root
@pytest.mark.registry
def test_a_frontend_has_policies_of_its_own_for_questions(daemon: Chantierd) -> None:
    turned = policy(
        rule(sp.DENY, "*"),
        rule(sp.ALLOW, ALPINE + "*"),
        rule(sp.CONVERT, "docker-image://docker.io/library/gone:latest", sp.EXACT, ALPINE),
    )

    async def run() -> None:
        async with driven(daemon) as build:
            asked = gateway_pb2.ResolveImageConfigRequest(Ref="docker.io/library/gone:latest", SourcePolicies=[turned])
            found = await build.bridge.unary("ResolveImageConfig", asked)
            assert found.Ref == "docker.io/library/alpine:latest"
            for identifier in ("docker-image://busybox", "https://x.test/f"):
                source = ops_pb2.SourceOp(identifier=identifier)
                with pytest.raises(GrpcError, match="denied by policy"):
                    await build.bridge.unary(
                        "ResolveSourceMeta", gateway_pb2.ResolveSourceMetaRequest(Source=source, SourcePolicies=[turned])
                    )
            await build.returns()

    asyncio.run(run())


def test_an_image_may_become_something_else(daemon: Chantierd) -> None:
    """Whoever asks is told what it became, and has to look at that; what can only be an image says that it is none."""
    became = "local://there"
    rule = sp.Rule(action=sp.CONVERT, selector=sp.Selector(identifier=ALPINE), updates=sp.Update(identifier=became))

    async def run() -> None:
        async with driven(daemon, SourcePolicy=sp.Policy(rules=[rule])) as build:
            source = ops_pb2.SourceOp(identifier=ALPINE)
            meta = await build.bridge.unary("ResolveSourceMeta", gateway_pb2.ResolveSourceMetaRequest(Source=source))
            assert (meta.Source.identifier, meta.Image.Digest) == (became, "")
            with pytest.raises(GrpcError, match=r"turns the image .*alpine.* into local://there, which has no image config"):
                await build.bridge.unary("ResolveImageConfig", gateway_pb2.ResolveImageConfigRequest(Ref="alpine"))
            await build.returns()

    asyncio.run(run())


@pytest.mark.root
@pytest.mark.registry
def test_a_verifier_asks_and_decides(daemon: Chantierd) -> None:
    from chantier.pb import policysession_pb2 as ps
    from chantier.session.remote import ID_KEY, METHOD_KEY
    from chantier.wire import Health, Server, Service, Tunnel

    seen: list[tuple[str, bool]] = []

    async def check(request: ps.CheckPolicyRequest, call: Any) -> ps.CheckPolicyResponse:
        identifier = request.Source.Source.identifier
        seen.append((identifier, bool(request.Source.Image.Digest)))
        if "bad" in identifier:
            deny = ps.DecisionResponse(action=sp.DENY, denyMessages=[ps.DenyMessage(message="not from there")])
            return ps.CheckPolicyResponse(decision=deny)
        if not request.Source.Image.Digest:
            return ps.CheckPolicyResponse(request=gateway_pb2.ResolveSourceMetaRequest(Source=request.Source.Source))
        return ps.CheckPolicyResponse(decision=ps.DecisionResponse())

    async def run() -> None:
        name = "moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier"
        session = new_id()
        async with daemon.client() as channel:
            control = Stub(channel, CONTROL)
            server = Server([Service(name, {"CheckPolicy": check}), Health().service()])
            metadata = [(ID_KEY, session), (METHOD_KEY, f"/{name}/CheckPolicy")]
            async with control.stream("Session", metadata=metadata) as call:
                tunnel = Tunnel(call, server.attach, control_pb2.BytesMessage)
                carrying = asyncio.create_task(tunnel.run())
                good = control_pb2.SolveRequest(Ref=new_id(), Definition=image("alpine").marshal(), SourcePolicySession=session)
                await control.unary("Solve", good, timeout_s=60)
                assert seen == [(ALPINE, False), (ALPINE, True)]
                bad = control_pb2.SolveRequest(Ref=new_id(), Definition=image("bad").marshal(), SourcePolicySession=session)
                with pytest.raises(GrpcError) as caught:
                    await control.unary("Solve", bad, timeout_s=60)
                identifier = "docker-image://docker.io/library/bad:latest"
                assert caught.value.message == f'source "{identifier}" not allowed by policy: action DENY'
                detail = next(d for d in caught.value.details if d.name == "policysession.DecisionResponse")
                assert detail.json() == {"action": "DENY", "denyMessages": [{"message": "not from there"}]}
                carrying.cancel()
                await asyncio.gather(carrying, return_exceptions=True)

    asyncio.run(run())


@pytest.mark.root
@pytest.mark.registry
def test_a_verifier_may_wait_for_one_source_before_another(daemon: Chantierd) -> None:
    """All sources of a definition are asked about at the same time, as the stock daemon does."""
    from chantier.pb import policysession_pb2 as ps
    from chantier.session.remote import ID_KEY, METHOD_KEY
    from chantier.wire import Health, Server, Service, Tunnel

    async def run() -> None:
        second = asyncio.Event()

        async def check(request: ps.CheckPolicyRequest, call: Any) -> ps.CheckPolicyResponse:
            if request.Source.Source.identifier == ALPINE:
                await asyncio.wait_for(second.wait(), 60)
            else:
                second.set()
            return ps.CheckPolicyResponse(decision=ps.DecisionResponse())

        name = "moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier"
        session = new_id()
        definition = image("alpine").copy(image("other"), "/z", "/z").marshal()
        async with daemon.client() as channel:
            control = Stub(channel, CONTROL)
            server = Server([Service(name, {"CheckPolicy": check}), Health().service()])
            metadata = [(ID_KEY, session), (METHOD_KEY, f"/{name}/CheckPolicy")]
            async with control.stream("Session", metadata=metadata) as call:
                tunnel = Tunnel(call, server.attach, control_pb2.BytesMessage)
                carrying = asyncio.create_task(tunnel.run())
                request = control_pb2.SolveRequest(Ref=new_id(), Definition=definition, SourcePolicySession=session)
                with pytest.raises(GrpcError, match="library/other:latest: not found"):
                    await control.unary("Solve", request, timeout_s=60)
                assert second.is_set()
                carrying.cancel()
                await asyncio.gather(carrying, return_exceptions=True)

    asyncio.run(run())
