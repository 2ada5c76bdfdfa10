# SPDX-License-Identifier: Apache-2.0
"""Results of build steps: what is stored, how it is mounted, how it is packed, when it may go.

A record is a tree (a snapshot), the blob of its layer, or both; its parents make up the rest. Image layers come as blobs
that may not be here: they are fetched and unpacked only when something must mount them. Results of steps come as trees:
they are packed only when something must send them.

Promises: a handle keeps its record and all it is made of, against every process on the root; nothing half-made has a name;
a killed process leaves nothing that the next start does not clean. Refuses: to change what is immutable, to guess a digest.

Three names to know: `Cache`, `Ref`, `MutableRef`.
"""

from .cache import Cache
from .ref import MutableRef, Ref
from .types import Fetcher, LayerBlob, LayerSource

__all__ = ["Cache", "Fetcher", "LayerBlob", "LayerSource", "MutableRef", "Ref"]
