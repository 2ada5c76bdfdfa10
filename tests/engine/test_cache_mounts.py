# SPDX-License-Identifier: Apache-2.0
"""What an export of a cache mount says of itself: anybody may have written it."""

from __future__ import annotations

import json

import pytest

from chantier.engine.cache_mounts import _Described
from chantier.errors import IntegrityError


def test_what_exports_say() -> None:
    good = {"id": "/x", "files": 2, "bytes": 7, "mode": "4711", "directories": {"a/b": [0o700, 1, 2, -5]}}
    found = _Described.of(json.dumps(good).encode())
    assert (found.id, found.files, found.size, found.mode, found.directories) == ("/x", 2, 7, 0o4711, {"a/b": [0o700, 1, 2, -5]})
    assert _Described.of(b"{}").mode == 0o755  # of an early version


@pytest.mark.parametrize(
    "raw",
    [
        [], 7, None, {"mode": "9"}, {"mode": 493}, {"files": "many"}, {"files": [1]}, {"directories": [1]}, {"directories": {"a": 1}},
        {"directories": {"a": [1, 2, 3]}}, {"directories": {"a": [1, 2, 3, 4, 5]}}, {"directories": {"a\0b": [1, 2, 3, 4]}},
        {"directories": {"a": [1, -1, 3, 4]}}, {"directories": {"a": [1, 2, (1 << 32) - 1, 4]}},
        {"directories": {"a": [1, 2, 3, 1 << 63]}}, {"directories": {"a": [-1, 2, 3, 4]}}, {"directories": {"a": [1, None, 3, 4]}},
    ],
)  # fmt: skip
def test_damaged_ones(raw: object) -> None:
    with pytest.raises(IntegrityError, match="the export of a cache mount is damaged"):
        _Described.of(json.dumps(raw).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="the export of a cache mount is damaged"):
        _Described.of(data)
