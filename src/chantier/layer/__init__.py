# SPDX-License-Identifier: Apache-2.0
"""Layers: a tar becomes a tree, what changed in a tree becomes a tar, and either is compressed.

The tars are what BuildKit writes, to the byte, for the same tree (reference: image-spec layer.md, Go's archive/tar); the
same tree always gives the same tar, and the same tar the same blob whatever the number of threads. Everything streams:
digests are taken on the way, a layer is never whole in memory.

What it promises: nothing a tar says makes us write outside the target; numbers and names are checked before use; what is
malformed is an IntegrityError that says where. What it refuses: redirected overlay directories (compared the slow way
instead) and extended attributes that speak to overlayfs.

Stacks of layers are tuples of directories, top first, as `Snapshotter.layers` gives them.

Three names to know: `unpack`, `write_layer`, `decompressor`.
"""

from .compress import Compressor, decompressor, sniff
from .diff import Change, Changes, changes, compare, overlay_changes
from .finish import finish_layer
from .header import Entry, encode
from .pack import pack, pack_diff
from .reader import TarReader
from .unpack import Pending, UnpackResult, unpack
from .view import Node, View
from .write import LayerWriter, WrittenLayer, convert_layer, write_layer

__all__ = [
    "Change",
    "Changes",
    "Compressor",
    "Entry",
    "LayerWriter",
    "Node",
    "Pending",
    "TarReader",
    "UnpackResult",
    "View",
    "WrittenLayer",
    "changes",
    "compare",
    "convert_layer",
    "decompressor",
    "encode",
    "finish_layer",
    "overlay_changes",
    "pack",
    "pack_diff",
    "sniff",
    "unpack",
    "write_layer",
]
