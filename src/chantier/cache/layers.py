# SPDX-License-Identifier: Apache-2.0
"""The layers of a result as blobs: those that exist are used again, the others are packed, each once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from chantier.errors import IntegrityError, StoreError, UsageError
from chantier.kernel.trace import point
from chantier.layer import WrittenLayer, convert_layer, decompressor, write_layer
from chantier.spec import Descriptor, Digest, to_docker, to_oci
from chantier.spec.media import layer_type
from chantier.store import Writer
from chantier.values import dataclass, replace

from .compose import layer_ids, prepare_inputs, stack_of
from .realise import Trees
from .records import BASE, DIFF, LAYER, MERGE, Blob, Record, blob_id, fold
from .types import LayerBlob
from .work import Work, side_by_side

_WORKERS = 4
COMPRESSIONS = ("gzip", "zstd", "uncompressed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How new layers are packed; with `force` also those packed otherwise before."""

    compression: str = "gzip"
    level: int | None = None
    force: bool = False
    oci: bool = True

    def check(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise UsageError(f"unsupported compression {self.compression!r}", hint="use one of " + ", ".join(COMPRESSIONS))


def layers_of(trees: Trees, id: str, packing: Packing, work: Work) -> tuple[LayerBlob, ...]:
    """All layers of a result, bottom first."""
    packing.check()
    ids = layer_ids(trees.records, id)
    missing = [item for item in dict.fromkeys(ids) if _usable(trees, item, packing) is None]
    if missing:
        side_by_side(work, [lambda inner, item=item: _pack(trees, item, packing, inner) for item in missing], workers=_WORKERS)  # type: ignore[misc]
    note_chains(trees, id)
    return tuple(_described(trees, item, packing) for item in ids)


def known_layers(trees: Trees, id: str, *, oci: bool = True) -> tuple[LayerBlob, ...] | None:
    """The layers if all are packed already, in whatever form."""
    packing = Packing(oci=oci)
    ids = layer_ids(trees.records, id)
    if any(_usable(trees, item, packing) is None for item in ids):
        return None
    return tuple(_described(trees, item, packing) for item in ids)


def _usable(trees: Trees, id: str, packing: Packing) -> Blob | None:
    """The form to use of a record's layer: of the wanted compression if there is one, else the first (unless forced)."""
    blobs = [blob for blob in trees.records.blobs(id) if _obtainable(trees, blob)]
    for blob in blobs:
        if blob.compression == packing.compression:
            return blob
    return blobs[0] if blobs and not packing.force else None


def _obtainable(trees: Trees, blob: Blob) -> bool:
    digest = blob.descriptor.digest
    return trees.blobs.store.exists(digest) or bool(trees.records.sources(digest))


def _described(trees: Trees, id: str, packing: Packing) -> LayerBlob:
    blob = _usable(trees, id, packing)
    record = trees.records.get(id)
    if blob is None or record.diff_id is None:
        raise StoreError(f"the layer of cache record {id} is gone")
    convert = to_oci if packing.oci else to_docker
    digest = blob.descriptor.digest
    return LayerBlob(
        descriptor=replace(blob.descriptor, media_type=convert(blob.descriptor.media_type)),
        diff_id=Digest(record.diff_id),
        created_at=record.layer_created if record.layer_created is not None else record.created,
        description=record.description,
        sources=trees.records.sources(digest),
        local=trees.blobs.store.exists(digest),
    )


def _pack(trees: Trees, id: str, packing: Packing, work: Work) -> None:
    """Give a record's layer a form that fits, from another one if there is, else from its tree."""
    with trees.root.lock(f"layer-{id}", cancelled=work.cancelled) as held:
        if _usable(trees, id, packing) is None:
            others = [blob for blob in trees.records.blobs(id) if _obtainable(trees, blob)]
            if others:
                _convert(trees, id, others[0], packing, work)
            else:
                _pack_tree(trees, id, packing, work)
        held.release(remove=True)


def _convert(trees: Trees, id: str, blob: Blob, packing: Packing, work: Work) -> None:
    store = trees.blobs.store
    trees.blobs.bring(blob.descriptor, work)
    media_type = layer_type(packing.compression)
    with (
        store.open(blob.descriptor.digest) as file,
        closing(decompressor(file, blob.descriptor.media_type)) as tar,
        store.writer(media_type=media_type) as writer,
    ):
        made = convert_layer(tar, writer.write, compression=packing.compression, level=packing.level, cancelled=work.cancelled)
        expected = trees.records.get(id).diff_id
        if expected is not None and made.diff_id != expected:
            raise IntegrityError(f"layer {blob.descriptor.digest} unpacks to {made.diff_id}, want {expected}")
        _record(trees, id, writer, media_type, made)


def _record(trees: Trees, id: str, writer: Writer, media_type: str, made: WrittenLayer) -> None:
    # The owner first: at no moment may a GC elsewhere take the blob for nobody's.
    trees.blobs.store.keep(made.digest, f"record:{id}")
    writer.commit(made.digest, made.size)
    trees.records.add_blob(id, Descriptor(media_type=media_type, digest=made.digest, size=made.size), made.diff_id)
    point("layer.recorded")


def _pack_tree(trees: Trees, id: str, packing: Packing, work: Work) -> None:
    prepare_inputs(trees, id, work)
    record = trees.records.get(id)
    lower, upper = _sides(trees, record)
    media_type = layer_type(packing.compression)
    with trees.blobs.store.writer(media_type=media_type) as writer:
        made = write_layer(
            lower,
            upper,
            writer.write,
            compression=packing.compression,
            level=packing.level,
            plain=not trees.snapshots.stacked,
            cancelled=work.cancelled,
        )
        if record.diff_id is not None and record.diff_id != made.diff_id:
            # The tree was unpacked from a blob that is lost, and packs to other bytes: the chain above is of the old ones.
            raise StoreError(f"the layer {record.diff_id} is gone: its tree packs to {made.diff_id}", hint="build without cache")
        point("layer.packed")
        _record(trees, id, writer, media_type, made)


def _sides(trees: Trees, record: Record) -> tuple[Sequence[Path], Sequence[Path]]:
    if record.kind == DIFF:
        lower, upper = record.parents
        return stack_of(trees, lower), stack_of(trees, upper)
    return stack_of(trees, record.parents[0] if record.parents else ""), stack_of(trees, record.id)


def note_chains(trees: Trees, id: str) -> None:
    """Write down by which chains a record and those below it can be found, once their layers are known."""
    record = trees.records.get(id)
    if record.chain is not None or record.kind not in (BASE, LAYER, MERGE):
        return
    chain = blob_chain = None
    todo: list[Record] = [record]
    while todo[-1].kind == LAYER and trees.records.get(todo[-1].parents[0]).chain is None:
        todo.append(trees.records.get(todo[-1].parents[0]))
    below = trees.records.get(todo[-1].parents[0]) if todo[-1].kind == LAYER else None
    if below is not None:
        chain, blob_chain = below.chain, below.blob_chain
    with trees.root.db.write():
        for at in reversed(todo):
            for item in layer_ids(trees.records, at.id) if at.kind in (MERGE, DIFF) else [at.id]:
                diff_id, blobs = trees.records.get(item).diff_id, trees.records.blobs(item)
                if diff_id is None or not blobs:
                    return
                chain = fold(chain, diff_id)
                blob_chain = fold(blob_chain, blob_id(blobs[0].descriptor.digest, diff_id))
            if chain is not None and blob_chain is not None:
                trees.records.set_chains(at.id, chain, blob_chain)


__all__ = ["COMPRESSIONS", "Packing", "known_layers", "layers_of", "note_chains"]
