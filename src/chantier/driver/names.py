# SPDX-License-Identifier: Apache-2.0
"""Names for builders that were given none: a quality and a building."""

from __future__ import annotations

import random
from collections.abc import Callable

from chantier.errors import ChantierError

_FIRST = (
    "airy bold brave bright calm clever deft eager early fair fast fine fresh gentle glad grand great handy happy keen "
    "kind light lively lucky merry mighty neat nimble noble plain proud quick quiet ready sharp smooth sound steady "
    "still stout strong sturdy sunny swift tidy true upright warm wise young"
)
_SECOND = (
    "abbey arcade arch attic barn basilica beacon belfry bridge cabin canal castle chapel cloister column cottage crane "
    "crypt dome dyke farm forge fort gable garden gate granary hall harbour house keep lighthouse lock loft manor mill "
    "nave oven pavilion pier pillar quay scaffold spire stable tower tunnel vault viaduct villa wharf windmill yard"
)


def new_name(taken: Callable[[str], bool]) -> str:
    """A name that is not taken. Raises ChantierError if chance finds none."""
    for attempt in range(6):
        name = f"{random.choice(_FIRST.split())}_{random.choice(_SECOND.split())}"
        if attempt:
            name += str(random.randrange(10))
        if not taken(name):
            return name
    raise ChantierError("failed to generate random name")


__all__ = ["new_name"]
