# SPDX-License-Identifier: Apache-2.0
"""Random histories of a store: steps, images, merges, packing, prunes, imports, and processes that die in the middle.

After each: what was kept is there with the right content, what is held was not taken, and nothing disagrees.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cache_parts import Home, Tree
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from chantier.cache import Ref
from chantier.cache.check import check
from chantier.cache.keys import SqliteKeyStore
from chantier.cache.remote import CacheConfig, read_config, write_config
from chantier.cache.remote.write import Result
from chantier.solver import ExportKey, Keep, Link
from chantier.solver.types import CacheRecord
from chantier.spec import Digest
from chantier.store import Policy

pytestmark = [pytest.mark.root]

EXAMPLES = int(os.environ.get("CHANTIER_HISTORIES", "12"))
"""Histories to try: 300 in the nightly run."""

names = st.sampled_from(["a", "b", "c", "d/e", "d/f"])
trees = st.dictionaries(names, st.text("xyz", min_size=1, max_size=40), min_size=1, max_size=3)


class Histories(RuleBasedStateMachine):
    refs: Bundle[Any] = Bundle("refs")  # handles: (ref, its tree)

    @initialize()
    def begin(self) -> None:
        self.where = Path(
            tempfile.mkdtemp(prefix="chantier-histories-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        )
        self.home = Home(self.where / "root")
        self.keys = SqliteKeyStore(self.home.cache.db)
        self.kept: dict[str, Tree] = {}  # records that no prune or crash may have taken
        self.held: dict[int, tuple[Ref, Tree]] = {}
        self.count = 0

    def teardown(self) -> None:
        if hasattr(self, "home"):
            for ref, _ in self.held.values():
                ref.release()
            self.home.close()
            Home(self.where / "root").close()
            shutil.rmtree(self.where, ignore_errors=True)

    def hold(self, ref: Ref, tree: Tree) -> int:
        self.count += 1
        self.held[self.count] = (ref, tree)
        self.kept[ref.id] = tree
        return self.count

    @rule(target=refs, files=trees)
    def first_step(self, files: Tree) -> int:
        return self.hold(self.home.step(None, files), dict(files))

    @rule(target=refs, parent=refs, files=trees)
    def step(self, parent: int, files: Tree) -> Any:
        if parent not in self.held:
            return multiple()
        ref, tree = self.held[parent]
        return self.hold(self.home.step(ref, files), tree | files)

    @rule(target=refs, layers=st.lists(trees, min_size=1, max_size=3))
    def image(self, layers: list[Tree]) -> int:
        tree: Tree = {}
        for files in layers:
            tree |= files
        return self.hold(self.home.image(*layers), tree)

    @rule(target=refs, one=refs, other=refs)
    def merge(self, one: int, other: int) -> Any:
        if one not in self.held or other not in self.held:
            return multiple()
        (first, below), (second, above) = self.held[one], self.held[other]
        return self.hold(self.home.cache.merge([first, second], description="merge"), below | above)

    @rule(ref=refs)
    def pack(self, ref: int) -> None:
        if ref in self.held:
            self.held[ref][0].layers()

    @rule(ref=refs)
    def mount(self, ref: int) -> None:
        if ref in self.held:
            made, tree = self.held[ref]
            assert files_of(self.home.tree(made)) == files_of(tree)

    @rule(ref=consumes(refs))
    def release(self, ref: int) -> None:
        if ref in self.held:
            self.held.pop(ref)[0].release()

    @rule(most=st.integers(0, 60_000), everything=st.booleans())
    def prune(self, most: int, everything: bool) -> None:
        removed = {record.id for record in self.home.cache.prune(Policy(all=everything, max_used_space=most))}
        assert not removed & {ref.id for ref, _ in self.held.values()}
        for id in removed:
            self.kept.pop(id, None)
        self.keys.sweep(self.home.cache.exists)

    @rule()
    def die(self) -> None:
        """The process is gone from one moment to the next: only the kernel lets go of what it held."""
        self.held.clear()
        root = self.home.root
        root.settler.close(settle=False)
        os.close(root._registration)
        root._registration = -1
        root.db.close()
        # A crash may have come before a partial blob or an unfinished tree was cleaned away.
        (root.path / "ingest" / "torn.part").write_bytes(b"half of a blob")
        self.home = Home(root.path, fetcher=self.home.fetcher)
        self.keys = SqliteKeyStore(self.home.cache.db)

    @rule(target=refs, ref=refs)
    def export_and_import(self, ref: int) -> Any:
        """A cache config of one result, read again: the reference it gives has the same layers."""
        if ref not in self.held:
            return multiple()
        made, tree = self.held[ref]
        layers = made.layers()
        made.fetch_blobs()
        for layer in layers:
            self.home.fetcher.blobs[str(layer.descriptor.digest)] = self.home.cache.blobs.read(layer.descriptor.digest)
            self.home.cache.add_source(layer.descriptor.digest, "registry:test")
        at = self.home.cache.clock()
        nodes = [
            ExportKey(id="sha256:root", op="sha256:root"),
            ExportKey(
                id=made.id,
                op="sha256:op",
                inputs=((("sha256:root", ""),),),
                records=(CacheRecord(key=made.id, result=made.id, created_at=at),),
            ),
        ]
        written = write_config(nodes, {made.id: Result(layers=layers, created_at=at)})
        sources = {str(layer.descriptor.digest): self.source(layer) for layer in written.layers}
        imported = read_config(CacheConfig.parse(written.config.dump()), sources)
        (key,) = imported.keys.children(["sha256:root"], Link(0, "sha256:op"))
        (record,) = imported.keys.records([key])
        again = imported.results(self.home.cache, available=lambda _layers: True).load(record.result)
        assert again is not None
        self.keys.apply([Keep(key=key, links=(("sha256:root", Link(0, "sha256:op")),), record=record)])
        return self.hold(again, tree)

    @staticmethod
    def source(layer: Any) -> Any:
        from chantier.cache import LayerSource

        return LayerSource(descriptor=layer.descriptor, diff_id=Digest(layer.diff_id), sources=("registry:test",))

    @invariant()
    def nothing_disagrees(self) -> None:
        if hasattr(self, "home"):
            assert check(self.home.root, self.home.snapshots) == []

    @invariant()
    def what_was_kept_is_there(self) -> None:
        if hasattr(self, "home"):
            for id, tree in list(self.kept.items()):
                if not self.home.cache.exists(id):
                    # Only what nobody holds may go without a prune: lost with the process that was making it.
                    raise AssertionError(f"{id} is gone: {sorted(tree)}")


def files_of(tree: Tree) -> dict[str, object]:
    return {
        name: content if not isinstance(content, str) else content.encode()
        for name, content in tree.items()
        if content is not None
    }


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
