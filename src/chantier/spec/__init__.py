# SPDX-License-Identifier: Apache-2.0
"""What the OCI documents say, and nothing else: digests, references, platforms, descriptors, manifests, image configs.

Pure values and pure functions; no I/O. Sources: OCI image-spec 1.1, distribution-spec 1.1, the reference grammar of
distribution/reference, and the platform rules of containerd/platforms. Three names to know: `Digest`, `Reference`,
`Descriptor`.
"""

from .digest import EMPTY_LAYER, Digest, digest_of, new_id
from .gojson import dumps, dumps_indent
from .media import (
    CACHE_CONFIG,
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_TAR,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_LAYER_TAR,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    compression_of,
    is_config,
    is_index,
    is_layer,
    is_manifest,
    to_docker,
    to_oci,
)
from .oci import Descriptor, Index, Manifest, descriptor_from_json, descriptor_to_json, parse_manifest
from .platform import Platform, host_platform
from .reference import Reference

__all__ = [
    "CACHE_CONFIG",
    "DOCKER_CONFIG",
    "DOCKER_INDEX",
    "DOCKER_LAYER_GZIP",
    "DOCKER_LAYER_TAR",
    "DOCKER_MANIFEST",
    "EMPTY_LAYER",
    "OCI_CONFIG",
    "OCI_EMPTY",
    "OCI_INDEX",
    "OCI_LAYER_GZIP",
    "OCI_LAYER_TAR",
    "OCI_LAYER_ZSTD",
    "OCI_MANIFEST",
    "Descriptor",
    "Digest",
    "Index",
    "Manifest",
    "Platform",
    "Reference",
    "compression_of",
    "descriptor_from_json",
    "descriptor_to_json",
    "digest_of",
    "dumps",
    "dumps_indent",
    "host_platform",
    "is_config",
    "is_index",
    "is_layer",
    "is_manifest",
    "new_id",
    "parse_manifest",
    "to_docker",
    "to_oci",
]
