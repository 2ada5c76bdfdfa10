# SPDX-License-Identifier: Apache-2.0
"""What a selector with patterns takes of a tree."""

from __future__ import annotations

import os

from chantier.spec.patterns import Parents, Patterns

from .content_node import DIR, Node
from .content_tree import ContentTree, OpenDirectory, Selector


class Walk:
    """Collects what a filtered selector takes below one or more places. Directories count by their headers only, which
    are taken when they are included themselves or something below them is.
    """

    def __init__(self, tree: ContentTree, selector: Selector) -> None:
        self.tree = tree
        self.selector = selector
        self.include = Patterns(selector.include) if selector.include else None
        self.exclude = Patterns(selector.exclude) if selector.exclude else None
        self.rows: list[tuple[bytes, bytes]] = []
        self.headers: list[tuple[bytes, Node, OpenDirectory]] = []  # of directories above that are not taken yet

    def take(
        self,
        node: Node,
        named: bytes,
        rel: str,
        included: Parents,
        excluded: Parents,
        where: OpenDirectory,
        *,
        header: bool = True,
    ) -> None:
        keep = descend = True
        if not rel:  # what the path names is copied whatever the patterns say
            keep = node.kind != DIR or not self.include
        else:
            if self.include:
                keep, included = self.include.matches_in_walk(rel, included)
                descend = keep or self.include.may_match_below(rel)
            if self.exclude:
                out, excluded = self.exclude.matches_in_walk(rel, excluded)
                if out:
                    keep = False
                    descend = descend and self.exclude.may_return_below(rel)
        if node.kind != DIR:
            if keep:
                self.flush()
                self.tree.fill(node, where.fd)
                self.rows.append((named, node.digest))
            return
        if not descend:
            return
        with OpenDirectory(self.tree, node, where if rel else None) as here:
            mark = len(self.headers)
            if header:
                self.headers.append((named, node, here))
            if keep:
                self.flush()
            for name, child in self.tree.children(node, here).items():
                below = f"{rel}/{os.fsdecode(name)}" if rel else os.fsdecode(name)
                self.take(child, named + b"/" + name, below, included, excluded, here)
            del self.headers[mark:]

    def flush(self) -> None:
        for named, node, here in self.headers:
            self.tree.fill(node, here.fd)
            self.rows.append((named, node.digest))
        self.headers.clear()


__all__ = ["Walk"]
