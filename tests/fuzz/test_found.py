# SPDX-License-Identifier: Apache-2.0
"""Every input that the fuzzer ever found goes through its target again; and the seeds do, which must be no findings."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from .mutate import Mutator
from .targets import Target, found, targets

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=list(targets()))
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    made = targets()[request.param]()
    yield made
    made.close()


def test_found(target: Target) -> None:
    for path in found(target.name):
        try:
            target.check(path.read_bytes())
        except Exception as err:
            raise AssertionError(f"{path} shows a fault again") from err


def test_seeds(target: Target) -> None:
    for seed in target.seeds():
        target.check(seed)


def test_some_mutations(target: Target) -> None:
    """A fixed handful, so that a change that breaks a target itself is seen before somebody fuzzes for long."""
    chance = random.Random(7)
    mutate = Mutator(chance, target.tokens)
    seeds = target.seeds()
    for _ in range(150):
        data = chance.choice(seeds)
        target.check(mutate(data, chance.choice(seeds)))
        if target.mutate is not None:
            target.check(target.mutate(chance, data))
