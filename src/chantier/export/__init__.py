# SPDX-License-Identifier: Apache-2.0
"""Results become things a person can use: an image in a registry, a tar for `docker load`, an OCI layout, files.

An exporter takes the solved references of a build and either names something whole or names nothing: manifests are
written after the blobs they speak of, tags after manifests, files by their session after the last byte. The exact
documents are those of semantics.md section 6 (BuildKit's exporters), so digests of equal content agree.

Three names to know: `Exporter` (the protocol), `exporter_for` (type and attributes to exporter), `Exportable` (what is
exported: references by platform with their configs and metadata).
"""

from .attest import Attestation, Subject
from .options import ImageOptions, parse_bool
from .types import Exportable, ExportContext, Exporter, Response
from .which import exporter_for

__all__ = [
    "Attestation",
    "ExportContext",
    "Exportable",
    "Exporter",
    "ImageOptions",
    "Response",
    "Subject",
    "exporter_for",
    "parse_bool",
]
