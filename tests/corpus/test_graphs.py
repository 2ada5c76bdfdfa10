# SPDX-License-Identifier: Apache-2.0
"""Merges and diffs: the layers and the trees that BuildKit was recorded to give, we give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .graphs import CASES, build

pytestmark = [pytest.mark.root, pytest.mark.slow]
EXPECTED = Path(__file__).parent / "expected/graphs"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: what one case leaves in the cache must not change what the next one gives."""
    return tmp_path_factory.mktemp("graphs") / "state"


@pytest.mark.parametrize("name", CASES)
def test_graph(name: str, root: Path, tmp_path: Path) -> None:
    expected: dict[str, Any] = json.loads((EXPECTED / f"{name}.json").read_text())
    assert build(name, tmp_path, {"root": root}) == expected
