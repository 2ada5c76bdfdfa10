# SPDX-License-Identifier: Apache-2.0
"""The gateway's results as the engine's and back; warnings; errors as statuses with all that stock clients read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from chantier.engine import Attestation, AttestationChain, EngineRef, FrontendResult, ReadableRef, Subject
from chantier.errors import Source, SourceRange, UsageError
from chantier.pb import gateway_pb2 as pb
from chantier.pb import ops_pb2
from chantier.progress import Warning

_KINDS = {"in-toto": pb.InToto, "bundle": pb.Bundle}
NameOf = Callable[[Any], str]
"""From a ref of the engine to the id that the client knows it by; "" for an empty tree."""
RefOf = Callable[[str], ReadableRef | None]


def result_message(result: FrontendResult, name_of: NameOf, *, array: bool) -> pb.Result:
    """`array` is whether the client takes Ref messages (`allowResultArrayRef`); else it gets ids alone."""
    message = pb.Result(metadata=dict(result.metadata))
    if not result.refs:
        return message
    if "" in result.refs:
        ref = result.refs[""]
        if array:
            message.ref.CopyFrom(_ref(ref, name_of))
        else:
            message.refDeprecated = name_of(ref)
    elif array:
        message.refs.SetInParent()
        for key, ref in result.refs.items():
            message.refs.refs[key].CopyFrom(_ref(ref, name_of))
    else:
        message.refsDeprecated.SetInParent()
        for key, ref in result.refs.items():
            message.refsDeprecated.refs[key] = name_of(ref)
    for key, attestations in result.attestations.items():
        message.attestations[key].attestation.extend(_attestation(a, name_of) for a in attestations)
    return message


def chain_message(chain: AttestationChain) -> pb.AttestationChain:
    made = pb.AttestationChain(
        Root=chain.root,
        ImageManifest=chain.image_manifest,
        AttestationManifest=chain.attestation_manifest,
        SignatureManifests=chain.signature_manifests,
    )
    for blob in chain.blobs:
        what = blob.descriptor
        made.Blobs[what.digest].data = blob.data
        made.Blobs[what.digest].descriptor.CopyFrom(
            pb.Descriptor(media_type=what.media_type, digest=what.digest, size=len(blob.data), annotations=dict(what.annotations))
        )
    return made


def _ref(ref: Any, name_of: NameOf) -> pb.Ref:
    made = pb.Ref(id=name_of(ref))
    if isinstance(ref, EngineRef):
        getattr(made, "def").CopyFrom(ref.definition)
    return made


def _attestation(attestation: Attestation, name_of: NameOf) -> pb.Attestation:
    made = pb.Attestation(
        kind=_KINDS.get(attestation.kind, pb.InToto),
        metadata=dict(attestation.metadata),
        path=attestation.path,
        inTotoPredicateType=attestation.predicate_type,
    )
    if attestation.ref is not None:
        made.ref.CopyFrom(_ref(attestation.ref, name_of))
    for subject in attestation.subjects:
        kind = pb.InTotoSubjectKind.Raw if subject.raw else pb.InTotoSubjectKind.Self
        made.inTotoSubjects.add(kind=kind, name=subject.name, digest=subject.digests)
    return made


def read_result(message: pb.Result, ref_of: RefOf) -> FrontendResult:
    """What a client returned. Raises UsageError for a ref that is not of this build."""
    which = message.WhichOneof("result")
    refs: dict[str, Any] = {}
    if which == "refDeprecated":
        refs[""] = ref_of(message.refDeprecated)
    elif which == "ref":
        refs[""] = ref_of(message.ref.id)
    elif which == "refsDeprecated":
        refs = {key: ref_of(id) for key, id in message.refsDeprecated.refs.items()}
    elif which == "refs":
        refs = {key: ref_of(ref.id) for key, ref in message.refs.refs.items()}
    attestations = {
        key: tuple(
            Attestation(
                kind="bundle" if a.kind else "in-toto",
                ref=ref_of(a.ref.id) if a.HasField("ref") else None,
                path=a.path,
                predicate_type=a.inTotoPredicateType,
                subjects=tuple(
                    Subject(raw=s.kind == pb.InTotoSubjectKind.Raw, name=s.name, digests=tuple(s.digest))
                    for s in a.inTotoSubjects
                ),
                metadata=dict(a.metadata),
            )
            for a in listed.attestation
        )
        for key, listed in message.attestations.items()
    }
    return FrontendResult(refs=refs, metadata=dict(message.metadata), attestations=attestations)


def read_warning(message: pb.WarnRequest) -> Warning:
    source = None
    if message.HasField("info"):
        source = Source(message.info.filename, message.info.data, _ranges(message.ranges), message.info.language)
    return Warning(
        vertex=message.digest,
        level=message.level,
        short=message.short,
        detail=tuple(message.detail),
        url=message.url,
        source=source,
    )


def _ranges(ranges: Iterable[ops_pb2.Range]) -> tuple[SourceRange, ...]:
    found = []
    for place in ranges:
        if not place.HasField("start") and not place.HasField("end"):
            raise UsageError("invalid nil range in warning")
        found.append(SourceRange(place.start.line, place.end.line, place.start.character, place.end.character))
    return tuple(found)


__all__ = ["read_result", "read_warning", "result_message"]
