# SPDX-License-Identifier: Apache-2.0
"""From a Dockerfile to a State: what the frontend of an engine makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from chantier.client import Prepared
from chantier.errors import UsageError
from chantier.llb import State, from_definition, rewritten
from chantier.pb import ops_pb2 as pb
from chantier.progress import Reporter
from chantier.values import dataclass, field

from .running import Running

_CONFIG = "containerimage.config"


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A build as a value: the tree that is built, the config of its image, and the directories its local sources stand for."""

    state: State
    image_config: bytes
    locals: Mapping[str, Path] = field(default_factory=dict)
    platform: str | None = None

    def draw(self, form: str = "svg") -> str:
        """As `svg`, `dot` or `json`."""
        from chantier.llb import load
        from chantier.llb.picture import draw

        return draw(load(self.state.marshal()), form)


def convert(driver: Running, prepared: Prepared, reporter: Reporter) -> Graph:
    """Blocks. Raises UsageError for a build of several platforms: each is a graph of its own."""
    made = driver.run(driver.aconvert(prepared, reporter))
    if len(made.definitions) != 1:
        raise UsageError("several platforms are several graphs", hint="convert for one platform at a time")
    ((platform, definition),) = made.definitions.items()
    directories = prepared.offer.context.directories
    used: dict[str, Path] = {}

    def detach(op: pb.Op) -> None:
        """A local source of the session that asked becomes one of whatever session solves the graph."""
        name = op.source.identifier.removeprefix("local://")
        if op.WhichOneof("op") == "source" and name != op.source.identifier:
            op.source.attrs.pop("local.session", None)
            if name in directories:
                used[name] = directories[name]

    state = from_definition(rewritten(definition, detach))
    config = made.metadata.get(f"{_CONFIG}/{platform}" if platform else _CONFIG, b"")
    return Graph(state=state, image_config=config, locals=used, platform=platform or None)


__all__ = ["Graph", "convert"]
