# SPDX-License-Identifier: Apache-2.0
"""What a policy may ask of an image and of a file: its attestations and who signed them, digests that signatures are made of."""

from __future__ import annotations

import asyncio
import hashlib
import json
import urllib.request
from typing import Any

import pytest

from chantier.llb import image
from chantier.pb import control_pb2, gateway_pb2, ops_pb2
from chantier.spec import new_id
from chantier.wire import GrpcError, Stub

from ..conftest import RealRegistry
from .conftest import CONTROL, Chantierd, driven

pytestmark = [pytest.mark.root, pytest.mark.registry]
SLSA = "https://slsa.dev/provenance/v1"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
OCI = "application/vnd.oci.image.manifest.v1+json"


def put(registry: RealRegistry, path: str, data: bytes, media_type: str) -> str:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    base = f"http://{registry.host}/v2/me/signed/"
    if path == "blobs":
        with urllib.request.urlopen(urllib.request.Request(base + "blobs/uploads/", method="POST")) as answer:
            url = f"{answer.headers['location']}&digest={digest}"
    else:
        url = f"{base}manifests/{path}"
    request = urllib.request.Request(url, data, {"content-type": media_type}, method="PUT")
    urllib.request.urlopen(request).close()
    return digest


def sign(registry: RealRegistry, subject: str) -> tuple[str, str]:
    """A bundle that refers to a manifest, found by the fallback tag: digests of its manifest and of its layer."""
    layer = put(registry, "blobs", b'{"bundle": 1}', "application/octet-stream")
    config = put(registry, "blobs", b"{}", "application/octet-stream")
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI,
        "artifactType": BUNDLE,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
        "layers": [{"mediaType": BUNDLE, "digest": layer, "size": 13}],
    }
    data = json.dumps(manifest).encode()
    digest = put(registry, "sig", data, OCI)
    entry = {"mediaType": OCI, "artifactType": BUNDLE, "digest": digest, "size": len(data)}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    put(registry, subject.replace(":", "-"), json.dumps(index).encode(), index["mediaType"])  # type: ignore[arg-type]
    return digest, layer


def test_attestations_and_their_signature(daemon: Chantierd, registry: RealRegistry) -> None:
    name = f"{registry.host}/me/signed:1"

    async def ask(build: Any, **image: Any) -> Any:
        source = ops_pb2.SourceOp(identifier=f"docker-image://{name}")
        asked = gateway_pb2.ResolveSourceMetaRequest(Source=source, ResolveMode="pull")
        asked.Image.CopyFrom(gateway_pb2.ResolveSourceImageRequest(NoConfig=True, **image))
        return (await build.bridge.unary("ResolveSourceMeta", asked)).Image

    async def run() -> None:
        async with daemon.client() as channel:
            request = control_pb2.SolveRequest(
                Ref=new_id(), Definition=image("alpine").marshal(), FrontendAttrs={"attest:provenance": "mode=max"}
            )
            request.Exporters.add(Type="image", Attrs={"name": name, "push": "true"})
            await Stub(channel, CONTROL).unary("Solve", request, timeout_s=60)
        async with driven(daemon) as build:
            assert not (await ask(build)).HasField("AttestationChain")
            chain = (await ask(build, AttestationChain=True)).AttestationChain
            assert {chain.Root, chain.AttestationManifest} == set(chain.Blobs)
            assert not chain.SignatureManifests
            signature, layer = sign(registry, chain.AttestationManifest)
            found = await ask(build, ResolveAttestations=[SLSA])
            chain = found.AttestationChain
            assert found.Digest == chain.Root
            assert list(chain.SignatureManifests) == [signature]
            attestation = json.loads(chain.Blobs[chain.AttestationManifest].data)
            (provenance,) = (one["digest"] for one in attestation["layers"])
            assert set(chain.Blobs) == {chain.Root, chain.AttestationManifest, signature, layer, provenance}
            assert json.loads(chain.Blobs[provenance].data)["subject"][0]["digest"]["sha256"] == chain.ImageManifest[7:]
            assert chain.Blobs[layer].descriptor.media_type == BUNDLE
            for digest, blob in chain.Blobs.items():
                assert digest == "sha256:" + hashlib.sha256(blob.data).hexdigest()
                assert blob.descriptor.size == len(blob.data)
            await build.returns()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("algorithm", "suffix", "said"),
    [(0, b"x" * 4097, "suffix exceeds max size 4096"), (99, b"x", "unsupported checksum algorithm 99")],
)
def test_digests_that_cannot_be_asked_for(daemon: Chantierd, algorithm: int, suffix: bytes, said: str) -> None:
    async def run() -> None:
        async with driven(daemon) as build:
            source = ops_pb2.SourceOp(identifier="https://x.test/f")
            asked = gateway_pb2.ResolveSourceMetaRequest(Source=source)
            asked.HTTP.ChecksumRequest.Algo = algorithm  # type: ignore[assignment]
            asked.HTTP.ChecksumRequest.Suffix = suffix
            with pytest.raises(GrpcError, match=said):
                await build.bridge.unary("ResolveSourceMeta", asked)
            await build.returns()

    asyncio.run(run())
