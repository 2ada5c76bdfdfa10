# SPDX-License-Identifier: Apache-2.0
"""Tars with changed headers: times clamped to an epoch (semantics.md 6.9), trees moved below a prefix (6.12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO

from chantier.cache import LayerBlob
from chantier.errors import CancelledError_
from chantier.layer import Entry, LayerWriter, TarReader, decompressor, encode
from chantier.spec import Descriptor
from chantier.spec.media import layer_type
from chantier.values import replace

from .options import Compression

if TYPE_CHECKING:
    from .types import ExportContext

_BLOCK = 512
_CHUNK = 1 << 20
_SECOND = 1_000_000_000
TRAILER = bytes(2 * _BLOCK)


def rewrite_tar(
    source: Callable[[], bytes],
    out: Callable[[bytes], object],
    change: Callable[[Entry], Entry],
    *,
    cancelled: Callable[[], bool],
) -> None:
    """Copy a tar, each header through `change`; the end marker is left to the caller. The data stays as it is."""
    reader = TarReader(source)
    for entry in reader:
        if cancelled():
            raise CancelledError_
        out(encode(change(entry)))
        for piece in reader.data():
            out(bytes(piece))
        if entry.size % _BLOCK:
            out(bytes(-entry.size % _BLOCK))


def rewrite_layers(
    layers: Sequence[LayerBlob],
    epoch: int,
    base_diff_ids: Sequence[str],
    compression: Compression,
    context: ExportContext,
    cancelled: Callable[[], bool],
) -> list[LayerBlob]:
    """Each layer that is not the base image's, with every time later than `epoch` (seconds) set to it."""
    done = []
    in_base = True
    for number, layer in enumerate(layers):
        in_base = in_base and number < len(base_diff_ids) and base_diff_ids[number] == layer.diff_id
        done.append(layer if in_base else _rewrite_layer(layer, epoch, compression, context, cancelled))
    return done


def _rewrite_layer(
    layer: LayerBlob, epoch: int, compression: Compression, context: ExportContext, cancelled: Callable[[], bool]
) -> LayerBlob:
    limit = epoch * _SECOND
    with context.blobs.open(layer.descriptor.digest) as blob, context.blobs.writer() as writer:
        tar: BinaryIO = decompressor(blob)
        with LayerWriter(writer.write, compression=compression.kind, level=compression.level) as packed:
            rewrite_tar(
                lambda: tar.read(_CHUNK),
                packed.write,
                lambda entry: entry._replace(mtime_ns=min(entry.mtime_ns, limit)),
                cancelled=cancelled,
            )
            packed.write(TRAILER)
            written = packed.finish()
        writer.commit(written.digest, written.size)
    descriptor = Descriptor(
        media_type=layer_type(compression.kind),
        digest=written.digest,
        size=written.size,
        annotations={**layer.descriptor.annotations, "buildkit/rewritten-timestamp": str(epoch)},
    )
    return replace(layer, descriptor=descriptor, diff_id=written.diff_id, sources=(), local=True)
