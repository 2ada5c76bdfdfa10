# SPDX-License-Identifier: Apache-2.0
"""What is said of a build's results: the frontend's statements, an SBOM where one is asked for, and the provenance.

Made with the build, so that what cannot be meant fails before anything is built. Provenance is put into words when an
exporter or the history asks for it: only then are its layers known, and when the build was over.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from chantier.cache import Ref
from chantier.dockerfile import LANGUAGE_VERSION
from chantier.dockerfile.attests import Sbom, attestation_options
from chantier.dockerfile.bridge import FrontendResult
from chantier.dockerfile.sbom import SPDX, scanner_of
from chantier.errors import ChantierError, MaterialsError
from chantier.export import Attestation, Subject
from chantier.op.worker import run_all, threaded
from chantier.progress import now
from chantier.spec import Platform, descriptor_to_json, dumps_indent, host_platform
from chantier.spec.slsa import to_v02
from chantier.values import replace

from .bridge import EngineRef
from .llb_json import Steps, source_of, steps_of
from .materials import ImageSource, Materials, materials_of
from .provenance import V1, Facts, ProvenanceOptions, predicate, predicate_type, with_graph
from .secrecy import open_predicate
from .verify import listed

if TYPE_CHECKING:
    from .build import Build

_log = logging.getLogger(__name__)
_INTERNAL = ("containerd.io/uncompressed", "buildkit/createdat", "containerd.io/distribution.source.")


class Attesting:
    """Used while the build's job lives. Keys are those of the result's references."""

    def __init__(self, build: Build) -> None:
        """Raises UsageError for options that cannot be meant."""
        asked = attestation_options(build.request.attrs)
        self._build = build
        self._provenance = ProvenanceOptions.parse(asked["provenance"]) if "provenance" in asked else None
        self._sbom = Sbom.parse(asked["sbom"]) if "sbom" in asked else None
        self._completed = 0

    async def scanned(self, result: FrontendResult) -> FrontendResult:
        """The result with an SBOM of each of its trees, where one is asked for and the frontend gave none."""
        said = [one for some in result.attestations.values() for one in some]
        if self._sbom is None or any(one.predicate_type == SPDX for one in said):
            return result
        build = self._build
        attrs, platform = build.request.attrs, build.engine.platforms[0]
        scanner = await scanner_of(build.bridge, self._sbom, platform, attrs.get("image-resolve-mode") or "default")
        attestations = {key: list(some) for key, some in result.attestations.items()}
        for key, ref in result.refs.items():
            if isinstance(ref, EngineRef):
                id = key or next(iter(_ids(result)))
                bundle = await scanner.scan(build.bridge, id, ref.definition, {}, ignore_cache=attrs.get("no-cache") == "")
                attestations.setdefault(id, []).append(bundle)
        return replace(result, attestations=attestations)

    async def attest(self, result: FrontendResult) -> dict[str, tuple[Attestation, ...]]:
        """All that exporters are to carry. Raises MaterialsError where complete materials were asked for and are not."""
        found = {key: [] for key in result.refs}  # type: dict[str, list[Attestation]]
        await run_all([self._frontends(key, result, found[key]) for key in found])
        options = self._provenance
        if options is not None:
            for key, ref in result.refs.items():
                if isinstance(ref, EngineRef):
                    found[key].append(self._promise(result, key, ref, options))
        return {key: tuple(some) for key, some in found.items() if some}

    async def recorded(self, result: FrontendResult) -> dict[str, dict[str, Any]]:
        """The whole provenance of each result, v1, for the record of the build: without those that cannot be had.

        What was exported is not to fail because it cannot be remembered.
        """
        given = self._provenance
        options = ProvenanceOptions(builder_id=given.builder_id if given is not None else "")
        made = {}
        for key, ref in result.refs.items():
            if isinstance(ref, EngineRef):
                try:
                    made[key] = open_predicate(await self._predicate(result, key, ref, options, stored=False))
                except (ChantierError, OSError) as err:
                    _log.warning("no provenance in the record of build %s: %s", self._build.request.ref, err)
        return made

    def of_failed(self) -> dict[str, Any]:
        """Of a build without a result: what it had come to."""
        build = self._build
        materials = Materials()
        for ref in build.asked.all_refs():
            materials.merge(materials_of(ref.graph.vertices.values(), self._active()))
        top = next(iter(build.asked.below), build.asked)
        return open_predicate(predicate(top, materials, ProvenanceOptions(), self._facts()))

    # What frontends say

    async def _frontends(self, key: str, result: FrontendResult, found: list[Attestation]) -> None:
        for said in _of_key(result, key):
            ref = said.ref
            tree = await ref.result() if isinstance(ref, EngineRef) else None
            found.append(
                Attestation(
                    kind=said.kind,
                    path=said.path,
                    predicate_type=said.predicate_type,
                    subjects=tuple(
                        Subject(kind="raw" if one.raw else "self", name=one.name, digests=one.digests) for one in said.subjects
                    ),
                    metadata=said.metadata,
                    ref=tree,
                )
            )

    # Provenance

    def _promise(self, result: FrontendResult, key: str, ref: EngineRef, options: ProvenanceOptions) -> Attestation:
        if options.complete:
            _check_complete(self._materials(result, key, ref))

        async def content() -> bytes:
            made = await self._predicate(result, key, ref, options)
            return dumps_indent(made if options.version == V1 else to_v02(made))

        inline_only = b"true" if options.inline_only else b"false"
        return Attestation(
            path=options.filename,
            predicate_type=predicate_type(options.version),
            metadata={"reason": b"provenance", "inline-only": inline_only},
            content=content,
        )

    async def _predicate(
        self, result: FrontendResult, key: str, ref: EngineRef, options: ProvenanceOptions, *, stored: bool = True
    ) -> dict[str, Any]:
        """`stored`: layers of earlier steps are looked for in the cache, not only among what this build holds."""
        asked = self._build.asked.find(ref) or self._build.asked
        made = predicate(asked, self._materials(result, key, ref), options, self._facts())
        if not options.all:
            return made
        steps = steps_of(ref.definition)
        layers = await self._layers(ref, steps, stored=stored)
        return with_graph(made, steps.config(), source_of(ref.definition, steps), layers)

    def _facts(self) -> Facts:
        build = self._build
        self._completed = self._completed or now()
        return Facts(
            ref=build.request.ref,
            started=build.started,
            completed=self._completed,
            dockerfile_version=LANGUAGE_VERSION,
            custom=build.engine.environment,
        )

    def _active(self) -> dict[str, Any]:
        return {vertex.vertex.digest: vertex for vertex in self._build.job.vertices}

    def _materials(self, result: FrontendResult, key: str, ref: EngineRef) -> Materials:
        """Of a result, and of all that its frontend solved on the way to it (but for the other results)."""
        active = self._active()
        asked = self._build.asked.find(ref) or self._build.asked
        results = {id(one) for one in result.refs.values()}
        results |= {id(one.ref) for some in result.attestations.values() for one in some}
        found = materials_of(ref.graph.vertices.values(), active)
        for other in asked.all_refs():
            if id(other) not in results and other.made:
                found.merge(materials_of(other.graph.vertices.values(), active))
        for image in _for_platform(list(asked.all_images()), key, listed(result.metadata)):
            found.add_image(image)
        return found

    async def _layers(self, ref: EngineRef, steps: Steps, *, stored: bool) -> dict[str, Any]:
        """The layers of each step's result that are known, as descriptors, by `stepN:OUTPUT`."""
        active = self._active()
        places: list[tuple[str, Any]] = []
        for vertex in ref.graph.vertices.values():
            number, running = steps.numbers.get(vertex.original), active.get(vertex.digest)
            if number is not None and running is not None:
                places += [(f"step{number}:{index}", edge) for index, edge in running.edges.items()]
        return await threaded(lambda _: dict(self._known(places, stored=stored)))

    def _known(self, places: Sequence[tuple[str, Any]], *, stored: bool) -> Iterator[tuple[str, list[list[dict[str, Any]]]]]:
        for name, edge in places:
            layers = _layers_of(edge.result) if edge.result is not None else None
            if layers is None and edge.result is None and stored and edge.lasting_keys:
                layers = self._stored(edge)
            if layers:
                yield name, [layers]

    def _stored(self, edge: Any) -> list[dict[str, Any]] | None:
        store = edge.vertex.store
        for record in store.records(edge.lasting_keys):
            value = store.sources[record.source].results.load(record.result) if record.result else None
            if value is not None:
                try:
                    layers = _layers_of(value)
                finally:
                    value.release()
                if layers is not None:
                    return layers
        return None


def _of_key(result: FrontendResult, key: str) -> Iterable[Any]:
    """Statements come by platform, even where there is one result alone."""
    if key or not result.attestations:
        return result.attestations.get(key, ())
    return [one for id in dict.fromkeys((*_ids(result), "")) for one in result.attestations.get(id, ())]


def _ids(result: FrontendResult) -> list[str]:
    return [id for id, _ in listed(result.metadata)] or [host_platform().format_all()]


def _for_platform(images: Sequence[ImageSource], key: str, platforms: Sequence[tuple[str, Platform]]) -> Iterator[ImageSource]:
    """Images that were looked at for every platform of the result count for their own alone."""
    wanted = dict(platforms).get(key)
    for image in images:
        same = [one.platform for one in images if one.ref == image.ref and one.platform is not None]
        for_all = all(any(platform.matches(one) for one in same) for _, platform in platforms)
        mine = image.platform is None or wanted is None
        if not for_all or mine or (image.platform is not None and wanted is not None and wanted.matches(image.platform)):
            yield image


def _layers_of(ref: Ref) -> list[dict[str, Any]] | None:
    try:
        layers = ref.known_layers()
    except ChantierError:  # gone meanwhile: then it is not known
        return None
    if layers is None:
        return None
    return [
        descriptor_to_json(
            replace(
                layer.descriptor,
                annotations={k: v for k, v in layer.descriptor.annotations.items() if not k.startswith(_INTERNAL)},
            )
        )
        for layer in layers
    ]


def _check_complete(materials: Materials) -> None:
    if materials.complete:
        return
    lines = ["provenance materials are incomplete", ""]
    lines.append("The build requested complete provenance materials, but not all dependencies could be captured.")
    if materials.locals:
        lines += ["", "Uncaptured local sources:"]
        for name in sorted(materials.locals):
            lines += [f"  - {name}", "    reason: local_source"]
    raise MaterialsError(
        "\n".join(lines),
        locals=tuple(sorted(materials.locals)),
        hint="build from git or a URL, or leave out complete-materials",
    )


__all__ = ["Attesting"]
