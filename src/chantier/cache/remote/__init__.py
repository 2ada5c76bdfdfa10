# SPDX-License-Identifier: Apache-2.0
"""Caches that travel: BuildKit's cache config, from and to keys and layers.

A cache elsewhere is a manifest whose config says how results were made (records: the digest of an operation, for each input
the records it may have come from, and the layers of the result) and whose layers are the results' own blobs. Nothing here
talks to anybody: the engine fetches and sends the documents and the blobs.

Promises: what is read is not trusted (records that are circular, dangling or without their layers are left out, the rest is
used); what is written is deterministic, and holds no record that leads to no result. Refuses: keys of sessions.

    config.py    the document as values
    write.py     keys and layers -> document          read.py    document and descriptors -> KeyStore, ResultStore
    inline.py    the same inside an image's config    manifest.py   the manifest or index around it

Three names to know: `CacheConfig`, `write_config`, `Imported`.
"""

from .config import CacheConfig, CacheLayer, CacheRecordEntry, CacheResult, Input
from .inline import inline_config, inline_records
from .manifest import FoundCache, cache_manifest, read_manifest
from .read import Imported, read_config
from .write import Written, write_config

__all__ = [
    "CacheConfig",
    "CacheLayer",
    "CacheRecordEntry",
    "CacheResult",
    "FoundCache",
    "Imported",
    "Input",
    "Written",
    "cache_manifest",
    "inline_config",
    "inline_records",
    "read_config",
    "read_manifest",
    "write_config",
]
