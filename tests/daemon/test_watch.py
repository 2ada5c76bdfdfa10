# SPDX-License-Identifier: Apache-2.0
"""A config file that is being written is read when that is over."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from chantier.daemon import watch


def test_a_file_is_still_when_two_looks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    cut, part, whole = (1, 0, 7), (2, 10, 7), (3, 90, 7)
    looks = iter([part, whole, whole])
    monkeypatch.setattr(watch, "_STILL_S", 0.0)
    monkeypatch.setattr(watch, "_state", lambda _file: next(looks))
    assert asyncio.run(watch._still(Path("c.toml"), cut)) == whole
    assert next(looks, None) is None


def test_a_file_that_is_gone_is_still_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(watch, "_STILL_S", 0.0)
    assert asyncio.run(watch._still(tmp_path / "gone.toml", (1, 2, 3))) is None
