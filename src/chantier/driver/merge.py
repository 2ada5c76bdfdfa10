# SPDX-License-Identifier: Apache-2.0
"""Builds of several nodes as one: each pushes by digest, then one index names them all (builders.md 5.14)."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chantier.client import BuildResult, Output, Prepared
from chantier.errors import ChantierError, UsageError
from chantier.progress import Reporter, step
from chantier.session.types import Credentials
from chantier.spec import Reference, new_id
from chantier.spec.gojson import dumps_indent
from chantier.values import replace

from .delivery import unpacked
from .logins import credentials_of
from .node import Driver
from .store import CONFIG_NAME

if TYPE_CHECKING:
    from chantier.config import Config
    from chantier.registry import Registry

    from .builder import Builder

_TRUE = ("", "1", "t", "T", "true", "True", "TRUE")
_OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


def split(prepared: Prepared, shares: Sequence[tuple[Driver, Sequence[str]]]) -> list[Prepared]:
    """The request of each node. Raises UsageError for outputs that several nodes cannot write."""
    return [_share(prepared, driver, platforms) for driver, platforms in shares]


def _share(prepared: Prepared, driver: Driver, platforms: Sequence[str]) -> Prepared:
    attrs = {**prepared.call.attrs, "platform": ",".join(platforms), "multi-platform": "true"}
    outputs = tuple(_output(o, driver) for o in prepared.offer.outputs)
    call = replace(prepared.call, ref=new_id(), attrs=attrs, exporters=tuple((o.type, o.attrs) for o in outputs))
    return replace(prepared, call=call, offer=replace(prepared.offer, outputs=outputs))


def _output(output: Output, driver: Driver) -> Output:
    if output.type in ("oci", "tar", "docker"):
        raise UsageError(f"{output.type} for multi-node builds currently not supported")
    if output.type != "image" or not _pushed(output):
        return output
    if driver.KIND == "docker":
        raise UsageError(
            "multi-node push can't currently be performed with the docker driver, please switch to a different driver"
        )
    names = [Reference.parse(n) for n in output.attrs.get("name", "").split(",") if n]
    repositories = dict.fromkeys(f"{n.domain}/{n.path}" for n in names)
    attrs = {k: v for k, v in output.attrs.items() if not k.startswith(("annotation-index.", "annotation-manifest-descriptor"))}
    return replace(output, attrs={**attrs, "name": ",".join(repositories), "push-by-digest": "true"})


def _pushed(output: Output) -> bool:
    return "push" in output.attrs and output.attrs["push"] in _TRUE


async def join(prepared: Prepared, results: Sequence[BuildResult], reporter: Reporter, builder: Builder) -> BuildResult:
    """One result: the merged index where something was pushed, else the first node's."""
    pushed = next((o for o in prepared.offer.outputs if o.type == "image" and _pushed(o)), None)
    if pushed is None:
        return replace(results[0], ref=prepared.call.ref, digest="", config_digest="", response={})
    names = [n for n in pushed.attrs.get("name", "").split(",") if n]
    with step(reporter, f"merging manifest list {','.join(names)}"):
        digest = await asyncio.to_thread(_merge, names, results, pushed.attrs, builder, prepared.offer.logins)
    return replace(results[0], ref=prepared.call.ref, digest=digest, config_digest="", response={"containerimage.digest": digest})


def _merge(
    names: Sequence[str],
    results: Sequence[BuildResult],
    attrs: Mapping[str, str],
    builder: Builder,
    logins: Mapping[str, Credentials],
) -> str:
    from chantier.registry import Registries

    with _config(names, attrs, builder) as config:
        registries = Registries(config)
        try:
            registry = registries.open(credentials=credentials_of(builder.env, logins))
            digest = ""
            for name in names:
                reference = Reference.parse(name)
                entries: dict[str, dict[str, Any]] = {}
                for result in results:
                    for entry in _entries(registry, reference, result):
                        entries.setdefault(entry["digest"], entry)
                index = _index(list(entries.values()), attrs)
                data = dumps_indent(index)
                tagged = reference if reference.tag else replace(reference, tag="latest")
                digest = str(registry.push_manifest(tagged, data, index["mediaType"]))
            return digest
        finally:
            registries.close()


@contextmanager
def _config(names: Sequence[str], attrs: Mapping[str, str], builder: Builder) -> Iterator[Config]:
    """How to reach the registries from here: what the nodes were given (builders.md 3.7), else this machine's own config."""
    from chantier.config import discover, parse

    if attrs.get("registry.insecure", "false") in _TRUE:
        hosts = {Reference.parse(n).domain for n in names}
        yield parse("".join(f'[registry."{h}"]\nhttp = true\ninsecure = true\n' for h in hosts), "registry.insecure")
    elif files := builder.group.nodes[0].files:
        with unpacked(files) as text:
            yield parse(text, CONFIG_NAME)
    else:
        yield discover(builder.env)


def _entries(registry: Registry, reference: Reference, result: BuildResult) -> list[dict[str, Any]]:
    """The manifests that a node pushed: an index is taken apart."""
    sent = result.response.get("containerimage.descriptor", "")
    if not sent:
        raise ChantierError(f"failed to merge: node of build {result.ref} gave no descriptor")
    descriptor = json.loads(base64.b64decode(sent))
    if descriptor["mediaType"] not in (_OCI_INDEX, _DOCKER_LIST):
        return [{k: v for k, v in descriptor.items() if k != "annotations"}]
    data, _ = registry.manifest(reference, str(descriptor["digest"]))
    return list(json.loads(data)["manifests"])


def _index(entries: Sequence[dict[str, Any]], attrs: Mapping[str, str]) -> dict[str, Any]:
    docker = all(str(e["mediaType"]).startswith("application/vnd.docker.") for e in entries)
    index: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": _DOCKER_LIST if docker else _OCI_INDEX,
        "manifests": [_annotated(e, attrs) for e in entries],
    }
    notes = {k.removeprefix("annotation-index."): v for k, v in attrs.items() if k.startswith("annotation-index.")}
    if notes and not docker:
        index["annotations"] = notes
    return index


def _annotated(entry: dict[str, Any], attrs: Mapping[str, str]) -> dict[str, Any]:
    platform = entry.get("platform") or {}
    id = "/".join(str(platform[k]) for k in ("os", "architecture", "variant") if platform.get(k))
    notes = dict(entry.get("annotations") or {})
    for key, value in attrs.items():
        for prefix in ("annotation-manifest-descriptor.", f"annotation-manifest-descriptor[{id}]."):
            if key.startswith(prefix):
                notes[key.removeprefix(prefix)] = value
    return {**entry, "annotations": notes} if notes else entry


__all__ = ["join", "split"]
