# SPDX-License-Identifier: Apache-2.0
"""From the type and the attributes of a request to an exporter. All are checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping

from chantier.errors import UsageError

from .image import ImageExporter
from .oci import TarExporter as ImageTarExporter
from .options import ImageOptions
from .tree import LocalExporter, TreeTarExporter
from .types import Exporter

TYPES = ("image", "oci", "docker", "local", "tar")


def exporter_for(kind: str, attrs: Mapping[str, str]) -> Exporter:
    """Raises UsageError for an unknown type (BuildKit's text) or attributes that cannot be meant."""
    if kind == "image":
        return ImageExporter(ImageOptions.parse(attrs))
    if kind in ("oci", "docker"):
        return ImageTarExporter(ImageOptions.parse(attrs), docker=kind == "docker")
    if kind == "local":
        return LocalExporter(attrs)
    if kind == "tar":
        return TreeTarExporter(attrs)
    raise UsageError(f'exporter "{kind}" could not be found', hint="types are " + ", ".join(TYPES))
