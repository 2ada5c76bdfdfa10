# SPDX-License-Identifier: Apache-2.0
"""Merges and diffs: what their layers are, and how their trees are made.

The layers of a merge are those of its inputs, one after another; a merge is the tree they give. Its tree starts from the first
input's snapshot and gets the changes of each further layer. A diff of one layer is that layer; any other is computed.
"""

from __future__ import annotations

from pathlib import Path

from chantier.kernel.trace import point
from chantier.layer.diff import Changes, changes
from chantier.layer.shared import read_shared, write_shared
from chantier.spec import new_id

from .apply import Target
from .realise import Trees
from .records import BASE, DIFF, LAYER, MERGE, Record, Records
from .work import Work


def layer_ids(records: Records, id: str) -> list[str]:
    """The records whose own layers make up a result, bottom first."""
    found: list[str] = []
    todo = [id]
    while todo:
        record = records.get(todo.pop())
        if record.kind == MERGE:
            todo.extend(record.parents)  # the last one is taken first: `found` is filled from the top
            continue
        found.append(record.reuses or record.id if record.kind == DIFF else record.id)
        if record.kind == LAYER:
            todo.append(record.parents[0])
    found.reverse()
    return found


def flat_inputs(records: Records, ids: list[str]) -> list[str]:
    """A merge of merges is the merge of their inputs."""
    flat: list[str] = []
    for id in ids:
        record = records.get(id)
        flat.extend(record.parents if record.kind == MERGE else (id,))
    return flat


def changes_of(trees: Trees, id: str) -> Changes:
    """What one layer record, or a computed diff, does; its trees must be there."""
    record = trees.records.get(id)
    if record.kind == DIFF:
        lower, upper = (stack_of(trees, parent) for parent in record.parents)
        return changes(lower, upper, plain=not trees.snapshots.stacked)
    lower = stack_of(trees, record.parents[0]) if record.parents else ()
    return changes(lower, stack_of(trees, id), plain=not trees.snapshots.stacked)


def stack_of(trees: Trees, id: str) -> tuple[Path, ...]:
    """The directories of a record's tree, top first; none for "" and for what has no tree."""
    if not id:
        return ()
    snapshot = trees.records.get(id).snapshot
    return trees.snapshots.layers(snapshot) if snapshot is not None else ()


def sources_of(trees: Trees, id: str) -> tuple[Path, ...]:
    """The directories in which the files lie that `changes_of(id)` tells of."""
    record = trees.records.get(id)
    return stack_of(trees, record.parents[1]) if record.kind == DIFF else stack_of(trees, id)[:1]


def prepare_inputs(trees: Trees, id: str, work: Work) -> None:
    """Make the trees that `changes_of(id)` reads."""
    record = trees.records.get(id)
    for parent in record.made_of:
        trees.realise(parent, work)
    if record.kind in (BASE, LAYER):
        trees.realise(id, work)


def compose(trees: Trees, record: Record, work: Work) -> None:
    """Make the tree of a merge or of a diff, and name it."""
    for parent in record.made_of:
        trees.realise(parent, work)
    if record.kind == MERGE:
        base: str | None = trees.records.get(record.parents[0]).snapshot
        items = [item for parent in record.parents[1:] for item in layer_ids(trees.records, parent)]
    else:
        base, items = None, [record.reuses or record.id]
    for item in items:
        if item != record.id:
            prepare_inputs(trees, item, work)
    with trees.new_key() as key:
        trees.snapshots.prepare(key, base)
        below = trees.snapshots.layers(base) if base is not None and trees.snapshots.stacked else ()
        upper = trees.snapshots.upper(key)
        target = Target(upper, below)
        for item in items:
            target.apply(changes_of(trees, item), cancelled=work.cancelled)
            if trees.snapshots.stacked:
                target.taken.add(read_shared(sources_of(trees, item)))
            point("compose.applied")
        if trees.snapshots.stacked and target.taken:
            write_shared(upper, target.taken)
        point("compose.naming")
        with trees.root.db.write():
            name = new_id()
            trees.snapshots.commit(key, name)
            trees.records.set_snapshot(record.id, name)
        point("compose.named")


__all__ = ["changes_of", "compose", "flat_inputs", "layer_ids", "prepare_inputs", "sources_of", "stack_of"]
