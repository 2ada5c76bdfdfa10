# SPDX-License-Identifier: Apache-2.0
"""The project's own cases: what BuildKit was recorded to give, we give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import Command, RealRegistry, write_config
from .cases import CASES, Case
from .run import build
from .servers import Servers, serving

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.slow]
EXPECTED = Path(__file__).parent / "expected"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with serving(tmp_path_factory.mktemp("servers")) as found:
        yield found


@pytest.fixture(scope="module")
def command(registry: RealRegistry, base: str, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """One root for all: what one case leaves in the cache must not change what the next one gives."""
    work = tmp_path_factory.mktemp("corpus")
    return Command(root=work / "state", config=write_config(work / "chantierd.toml", registry))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_case(case: Case, servers: Servers, command: Command, tmp_path: Path) -> None:
    if "ssh" in case.needs and servers.key is None:
        pytest.skip("no sshd here")
    recorded = (EXPECTED / f"{case.name}.json").read_text()
    for old, new in case.newer.items():
        old, new = json.dumps(old)[1:-1], json.dumps(new)[1:-1]
        assert old in recorded, f"{case.name}: nothing to replace"
        recorded = recorded.replace(old, new)
    expected = json.loads(recorded)
    found = build(case, command.argv("build"), servers, tmp_path / "work", env=command.environment())
    assert found == expected
