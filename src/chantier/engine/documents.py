# SPDX-License-Identifier: Apache-2.0
"""What is kept with a build's record of the images it exported: indexes, manifests, configs, and what is attested of them.

Where the image itself goes nothing of it may stay here; these are small, and are what people ask a build for later.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

from chantier.errors import ChantierError
from chantier.record import ATTESTATION_TYPE, OF_IMAGE, PLATFORM, PREDICATE
from chantier.spec import Descriptor, Index, parse_manifest

_log = logging.getLogger(__name__)
_MOST_BYTES = 16 << 20
Document = tuple[str, bytes, Mapping[str, str]]
"""Media type, bytes, annotations of the attachment."""


class Documents:
    """Those of one build; an image that several exporters make is there once."""

    def __init__(self) -> None:
        self._found: dict[str, Document] = {}

    def of(self, answers: Iterable[Mapping[str, str]]) -> tuple[Document, ...]:
        """Of the images that exporters answered with: one that failed was made anew."""
        roots = {answer.get("containerimage.digest") for answer in answers}
        return tuple(one for one in self._found.values() if one[2][OF_IMAGE] in roots)

    def take(self, root: Descriptor, documents: Mapping[str, bytes]) -> None:
        """An image: its index or manifest, and all documents by digest."""
        try:
            for digest, document in _below(root, root, documents):
                if len(document[1]) <= _MOST_BYTES:
                    self._found.setdefault(digest, document)
        except (ChantierError, KeyError, ValueError) as err:  # the build is not to fail for its record
            _log.warning("documents of image %s are not kept: %s", root.digest, err)


def _below(descriptor: Descriptor, root: Descriptor, documents: Mapping[str, bytes]) -> Iterator[tuple[str, Document]]:
    digest = str(descriptor.digest)
    data = documents[digest]
    document = parse_manifest(data, descriptor.media_type)
    notes = {OF_IMAGE: str(root.digest)}
    if descriptor.platform is not None and descriptor.platform.os != "unknown":
        notes[PLATFORM] = str(descriptor.platform)
    yield digest, (descriptor.media_type, data, notes)
    if isinstance(document, Index):
        for child in document.manifests:
            yield from _below(child, root, documents)
        return
    for one in (document.config, *document.layers):
        said = str(one.digest)
        if one.media_type == ATTESTATION_TYPE and said in documents:
            yield said, (one.media_type, documents[said], notes | {PREDICATE: one.annotations.get(PREDICATE, "")})
        elif one is document.config and said in documents and (PLATFORM in notes or descriptor is root):
            yield said, (one.media_type, documents[said], notes)


__all__ = ["Document", "Documents"]
