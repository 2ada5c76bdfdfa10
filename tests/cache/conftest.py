# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cache_parts import Home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "root")
    yield made
    made.close()
    Home(made.path).close()  # cleans up after the processes that tests killed


@pytest.fixture
def native(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "root", native=True)
    yield made
    made.close()
