# SPDX-License-Identifier: Apache-2.0
"""What a request's outputs mean on one engine (builders.md 5.5): the docker driver has exporters and pushes of its own."""

from __future__ import annotations

from collections.abc import Mapping

from chantier.client import Output, Prepared
from chantier.errors import UsageError
from chantier.values import dataclass, replace

from .node import (
    CACHE_EXPORT,
    DIRECT_PUSH,
    DOCKER_EXPORTER,
    MULTI_PLATFORM,
    OCI_EXPORTER,
    Driver,
    unsupported,
)

_TRUE = ("", "1", "t", "T", "true", "True", "TRUE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The request as it is sent. `push` are names that the Docker engine pushes afterwards."""

    prepared: Prepared
    push: tuple[str, ...] = ()


async def plan(driver: Driver, prepared: Prepared, *, engine_takes_oci: bool = False) -> Plan:
    """Raises UsageError for what the engine cannot do. `engine_takes_oci`: --load may send an OCI archive."""
    features = await driver.features()
    call = prepared.call
    platforms = [p for p in call.attrs.get("platform", "").split(",") if p]
    attests = [k for k in call.attrs if k.startswith("attest:")]
    if not features[MULTI_PLATFORM]:
        if len(platforms) > 1:
            raise unsupported(MULTI_PLATFORM, driver.KIND)
        if attests:
            raise unsupported("Attestation", driver.KIND)
    if not features[CACHE_EXPORT] and any(c.type not in ("inline", "") for c in call.cache_exports):
        raise unsupported(CACHE_EXPORT, driver.KIND)
    lists = len(platforms) > 1 or bool(attests)
    outputs: list[Output] = []
    push: list[str] = []
    for output in prepared.offer.outputs:
        one = _checked(output, features, driver.KIND, lists=lists, engine_takes_oci=engine_takes_oci)
        if driver.KIND == "docker" and one.type in ("image", "docker") and not one.dest:
            one, names = _moby(one, direct=features[DIRECT_PUSH])
            push += names
        outputs.append(one)
    if features[MULTI_PLATFORM]:
        call = call.attested()
    return Plan(
        prepared=replace(
            prepared,
            call=replace(call, exporters=tuple((o.type, o.attrs) for o in outputs)),
            offer=replace(prepared.offer, outputs=tuple(outputs)),
        ),
        push=tuple(push),
    )


def _checked(output: Output, features: Mapping[str, bool], kind: str, *, lists: bool, engine_takes_oci: bool) -> Output:
    if output.type == "oci" and not features[OCI_EXPORTER]:
        raise unsupported(OCI_EXPORTER, kind)
    if output.type != "docker":
        return output
    if output.load and engine_takes_oci and kind != "docker":
        return replace(output, type="oci", attrs={**output.attrs, "prefer-image-digest": "true"})
    if lists and not (output.load and engine_takes_oci):
        raise UsageError(
            "docker exporter does not currently support exporting manifest lists"
            if output.load
            else "docker exporter does not support exporting manifest lists, use the oci exporter instead"
        )
    if not output.load and not features[DOCKER_EXPORTER]:
        raise unsupported(DOCKER_EXPORTER, kind)
    return output


def _moby(output: Output, *, direct: bool) -> tuple[Output, list[str]]:
    """The engine's own exporter. Without direct push the engine pushes the names that it then has."""
    attrs = dict(output.attrs)
    wanted = "push" in attrs and attrs["push"] in _TRUE
    if wanted and attrs.get("push-by-digest", "false") in _TRUE:
        raise UsageError("push-by-digest is currently not implemented for docker driver, please create a new builder instance")
    names = []
    if wanted and not direct:
        names = [n for n in attrs.get("name", "").split(",") if n]
        del attrs["push"]
    return replace(output, type="moby", attrs=attrs, load=False), names


__all__ = ["Plan", "plan"]
