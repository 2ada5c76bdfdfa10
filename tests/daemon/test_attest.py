# SPDX-License-Identifier: Apache-2.0
"""What frontends attest of their results, who asked for what, and the provenance in the record of a build."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

import pytest

from chantier.daemon.errors import build_status
from chantier.errors import MaterialsError
from chantier.llb import scratch
from chantier.pb import content_pb2, control_pb2
from chantier.pb import gateway_pb2 as pb
from chantier.wire import GrpcError, Stub

from ..conftest import RealRegistry
from .conftest import CONTENT, Chantierd, driven, read_all

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]

RAW = "sha256:" + "ab" * 32


def pushing(name: str, **attrs: str) -> list[control_pb2.Exporter]:
    return [control_pb2.Exporter(Type="image", Attrs={"name": name, "push": "true", **attrs})]


def statements(registry: RealRegistry, name: str) -> list[dict[str, Any]]:
    accept = "application/vnd.oci.image.index.v1+json,application/vnd.oci.image.manifest.v1+json"

    def get(path: str) -> Any:
        request = urllib.request.Request(f"http://{registry.host}/v2/{name}/{path}", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    entry = get("manifests/latest")["manifests"][-1]
    assert entry["platform"]["os"] == "unknown"
    return [get(f"blobs/{layer['digest']}") for layer in get(f"manifests/{entry['digest']}")["layers"]]


def bundled(kind: str) -> bytes:
    subject = [{"name": "thing", "digest": {"sha256": "ab" * 32}}]
    return json.dumps(
        {"_type": "https://in-toto.io/Statement/v0.1", "predicateType": kind, "subject": subject, "predicate": {"b": 2}}
    ).encode()


def test_a_frontend_attests_with_statements_and_bundles(daemon: Chantierd, registry: RealRegistry) -> None:
    """As the gateway's Attestation says (protocol.md 1.5): a predicate in a file, and a directory of whole statements."""
    name = f"{registry.host}/attest/gateway"

    async def run() -> None:
        async with driven(daemon, Exporters=pushing(name)) as build:
            made = await build.make(scratch().mkfile("/f", b"x").marshal())
            said = scratch().mkfile("/one.json", b'{"a": 1}').mkdir("/more").mkfile("/more/two.json", bundled("https://t.test/b"))
            beside = await build.make(said.marshal())
            result = pb.Result(ref=pb.Ref(id=made))
            listed = result.attestations["linux/amd64"].attestation
            subjects = [
                pb.InTotoSubject(kind=pb.InTotoSubjectKind.Self),
                pb.InTotoSubject(kind=pb.InTotoSubjectKind.Raw, name="raw", digest=[RAW]),
            ]
            listed.add(
                kind=pb.InToto,
                ref=pb.Ref(id=beside),
                path="/one.json",
                inTotoPredicateType="https://t.test/a",
                inTotoSubjects=subjects,
            )
            listed.add(kind=pb.Bundle, ref=pb.Ref(id=beside), path="/more")
            await build.bridge.unary("Return", pb.ReturnRequest(result=result))
            await build.solve

    asyncio.run(run())
    one, two = statements(registry, "attest/gateway")
    assert (one["predicateType"], one["predicate"]) == ("https://t.test/a", {"a": 1})
    assert [subject["name"] for subject in one["subject"]] == [
        f"pkg:docker/{registry.host.replace(':', '%3A')}/attest/gateway@latest?platform=linux%2Famd64", "raw",
    ]  # fmt: skip
    assert one["subject"][1]["digest"] == {"sha256": "ab" * 32}
    assert (two["predicateType"], two["predicate"]) == ("https://t.test/b", {"b": 2})
    assert two["subject"] == [{"name": "thing", "digest": {"sha256": "ab" * 32}}]


@pytest.mark.parametrize("kind", ["in-toto", "bundle"])
def test_provenance_is_the_engines_to_say(daemon: Chantierd, registry: RealRegistry, kind: str) -> None:
    slsa = "https://slsa.dev/provenance/v1"

    async def run() -> str:
        async with driven(daemon, Exporters=pushing(f"{registry.host}/attest/forged")) as build:
            made = await build.make(scratch().mkfile("/f", b"x").marshal())
            beside = await build.make(scratch().mkfile("/p.json", bundled(slsa)).marshal())
            result = pb.Result(ref=pb.Ref(id=made))
            listed = result.attestations["linux/amd64"].attestation
            if kind == "in-toto":
                listed.add(kind=pb.InToto, ref=pb.Ref(id=beside), path="/p.json", inTotoPredicateType=slsa)
            else:
                listed.add(kind=pb.Bundle, ref=pb.Ref(id=beside))
            await build.bridge.unary("Return", pb.ReturnRequest(result=result))
            with pytest.raises(GrpcError) as caught:
                await build.solve
            return caught.value.message

    verb = "set" if kind == "in-toto" else "bundle"
    assert f"frontend may not {verb} provenance attestations" in asyncio.run(run())


async def provenance_of(daemon: Chantierd, ref: str) -> dict[str, Any]:
    """From history, as docker buildx takes it for a metadata file."""
    async with daemon.client() as channel:
        request = control_pb2.BuildHistoryRequest(Ref=ref, EarlyExit=True)
        events = await read_all(Stub(channel, "moby.buildkit.v1.Control"), "ListenBuildHistory", request)
        (descriptor,) = events[-1].record.Result.Attestations
        assert descriptor.media_type == "application/vnd.in-toto+json"
        assert dict(descriptor.annotations) == {"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"}
        pieces = await read_all(Stub(channel, CONTENT), "Read", content_pb2.ReadContentRequest(digest=descriptor.digest))
        found: dict[str, Any] = json.loads(b"".join(piece.data for piece in pieces))
        return found


def test_the_record_of_a_build_has_its_provenance(daemon: Chantierd) -> None:
    async def run() -> None:
        definition = scratch().mkfile("/f", b"x").marshal()
        async with driven(daemon, Definition=definition) as build:
            await build.solve
        found = await provenance_of(daemon, build.ref)
        steps = found["buildDefinition"]["internalParameters"]["buildConfig"]["llbDefinition"]
        assert [next(iter(step["op"]["Op"]), "") for step in steps] == ["file", ""]
        assert found["runDetails"]["metadata"]["buildkit_hermetic"] is True
        assert found["buildDefinition"]["externalParameters"]["request"].get("frontend") is None

    asyncio.run(run())


def test_materials_that_cannot_be_listed_are_told_to_clients() -> None:
    """The detail is protocol.md 1.10's ProvenanceMaterialsIncomplete."""
    status = build_status(MaterialsError("provenance materials are incomplete", locals=("context", "dockerfile")))
    found = {detail.name: detail.json() for detail in status.details}
    assert found["errdefs.ProvenanceMaterialsIncomplete"] == {
        "incomplete": [{"name": "context", "reason": "local_source"}, {"name": "dockerfile", "reason": "local_source"}]
    }


def test_an_input_tells_which_request_made_it(daemon: Chantierd) -> None:
    """The result of one request goes into the next; the client asked something of the whole build too."""

    async def run() -> dict[str, Any]:
        async with driven(daemon, FrontendAttrs={"root-request": "value"}) as build:
            text = b"FROM scratch AS base\nCOPY --from=src /f /f\nFROM scratch\nCOPY --from=linked /f /f\n"
            file = scratch().mkfile("/Dockerfile", text).marshal()
            source = scratch().mkfile("/f", b"x").marshal()
            first = await build.bridge.unary(
                "Solve",
                pb.SolveRequest(
                    Frontend="dockerfile.v0", allowResultReturn=True, allowResultArrayRef=True,
                    FrontendOpt={"target": "base", "build-arg:A": "1", "context:src": "input:src"},
                    FrontendInputs={"src": source, "dockerfile": file},
                ),
            )  # fmt: skip
            made = getattr(first.result.ref, "def")
            second = await build.bridge.unary(
                "Solve",
                pb.SolveRequest(
                    Frontend="dockerfile.v0", allowResultReturn=True, allowResultArrayRef=True,
                    FrontendOpt={"context:linked": "input:base"},
                    FrontendInputs={"base": made, "dockerfile": file},
                ),
            )  # fmt: skip
            await build.bridge.unary("Return", pb.ReturnRequest(result=second.result))
            await build.solve
        return (await provenance_of(daemon, build.ref))["buildDefinition"]["externalParameters"]

    request = asyncio.run(run())["request"]
    assert request["frontend"] == "dockerfile.v0"
    assert request["args"] == {"context:linked": "input:base"}
    assert set(request["inputs"]) == {"base"}
    inner = request["inputs"]["base"]["request"]
    assert (inner["args"]["target"], inner["args"]["build-arg:A"]) == ("base", "1")
    assert "root" not in inner
    assert request["root"]["request"]["args"] == {"root-request": "value"}
