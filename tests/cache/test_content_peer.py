# SPDX-License-Identifier: Apache-2.0
"""Content keys of filtered selectors by their older name, compared with one that Docker 26.1 exported."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from chantier.cache.content import ContentTree, Selector, combine

pytestmark = pytest.mark.root


def test_a_wildcard_as_versions_before_0_26_have_it(tmp_path: Path) -> None:
    for name, text in (("src/a.txt", "a\n"), ("data/c.txt", "c\n"), ("data/big.bin", "no")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        os.chmod(path, 0o644)
    wild = Selector(path="/data/*.txt", wildcard=True, follow_links=True)
    plain = Selector(path="/src/a.txt", follow_links=True)
    with ContentTree().reading(tmp_path) as tree:
        digest = combine([tree.digest_before(wild), tree.digest_before(plain)])
        assert tree.digest_before(plain) == tree.digest(plain)
        assert tree.digest_before(wild) != tree.digest(wild)
    key = "sha256:" + hashlib.sha256(f"{digest}@-1".encode()).hexdigest()
    assert key == "sha256:a3131bc22b675811982584937bd92284ff62e10764193e879a49da02b01be8c7"
