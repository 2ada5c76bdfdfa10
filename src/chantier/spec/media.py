# SPDX-License-Identifier: Apache-2.0
"""Media types of image-spec 1.1 and of Docker's schema 2, and what can be read off them."""

from __future__ import annotations

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_TAR = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
CACHE_CONFIG = "application/vnd.buildkit.cacheconfig.v0"
IN_TOTO = "application/vnd.in-toto+json"

_OCI_NONDIST = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"

_LAYERS = {
    OCI_LAYER_TAR: "uncompressed",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    _OCI_NONDIST: "uncompressed",
    _OCI_NONDIST + "+gzip": "gzip",
    _OCI_NONDIST + "+zstd": "zstd",
    DOCKER_LAYER_TAR: "uncompressed",
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER_ZSTD: "zstd",
    _DOCKER_FOREIGN: "uncompressed",
    _DOCKER_FOREIGN + ".gzip": "gzip",
}
_DOCKER_FORM = {
    OCI_MANIFEST: DOCKER_MANIFEST,
    OCI_INDEX: DOCKER_INDEX,
    OCI_CONFIG: DOCKER_CONFIG,
    OCI_LAYER_TAR: DOCKER_LAYER_TAR,
    OCI_LAYER_GZIP: DOCKER_LAYER_GZIP,
    OCI_LAYER_ZSTD: DOCKER_LAYER_ZSTD,
    _OCI_NONDIST: _DOCKER_FOREIGN,
    _OCI_NONDIST + "+gzip": _DOCKER_FOREIGN + ".gzip",
}
_OCI_FORM = {docker: oci for oci, docker in _DOCKER_FORM.items()}


def is_index(media_type: str) -> bool:
    return media_type in (OCI_INDEX, DOCKER_INDEX)


def is_manifest(media_type: str) -> bool:
    return media_type in (OCI_MANIFEST, DOCKER_MANIFEST)


def is_config(media_type: str) -> bool:
    return media_type in (OCI_CONFIG, DOCKER_CONFIG)


def is_layer(media_type: str) -> bool:
    return media_type in _LAYERS


def is_non_distributable(media_type: str) -> bool:
    return media_type.startswith((_OCI_NONDIST, _DOCKER_FOREIGN))


def compression_of(media_type: str) -> str:
    """`uncompressed`, `gzip` or `zstd` of a layer's media type; KeyError for anything that is no layer."""
    return _LAYERS[media_type]


def layer_type(compression: str, *, oci: bool = True) -> str:
    """The media type of a layer of that compression. KeyError if there is none."""
    kind = {"uncompressed": OCI_LAYER_TAR, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}[compression]
    return kind if oci else _DOCKER_FORM[kind]


def to_docker(media_type: str) -> str:
    return _DOCKER_FORM.get(media_type, media_type)


def to_oci(media_type: str) -> str:
    return _OCI_FORM.get(media_type, media_type)
