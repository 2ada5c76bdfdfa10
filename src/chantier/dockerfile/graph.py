# SPDX-License-Identifier: Apache-2.0
"""The stages of a file as a graph: which comes from which, which copies from which, what a target needs.

A reference that is no stage (`COPY --from=alpine`) becomes a node of its own at the end of the list, so it has an index
too; a RUN --mount without `from` counts as such a reference to `scratch`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from chantier.errors import ChantierError, DockerfileError
from chantier.spec import Platform
from chantier.values import dataclass, field

from .config import Image
from .contexts import NamedContext
from .instructions import Command, Copy, Instruction, Program, Run, Stage
from .mounts import mount_froms
from .names import hint
from .outline import Outline
from .scope import Built, Ranges
from .shell import Lex

SCRATCH = "scratch"
_NUMBER = re.compile(r"[+-]?[0-9]+\Z")


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """An instruction and the nodes it reads from: one for COPY --from, one a mount for RUN."""

    command: Command
    sources: tuple[Node, ...] = ()
    on_build: bool = False


@dataclass(slots=True, eq=False)
class Node:
    """A stage on its way. Its fields are filled by the steps of the pipeline, each once."""

    stage: Stage | None  # None for a reference that is no stage
    base_name: str  # expanded
    name: str = ""  # shown; `stage-N` where the file gives none
    ranges: Ranges = ()
    base: Node | None = None
    context: NamedContext | None = None  # replaces the whole stage
    platform: Platform | None = None  # of --platform, then of the resolved base
    deps: dict[Node, Instruction] = field(default_factory=dict)
    commands: list[Planned] = field(default_factory=list)
    total: int = 0
    ignore_cache: bool = False
    outline: Outline = field(default_factory=Outline)
    paths: set[str] = field(default_factory=set)  # read from this stage's tree; shared with the stages made from it
    context_paths: set[str] = field(default_factory=set)  # read from the main context
    start: Built | None = None  # before the first instruction
    built: Built | None = None
    base_image: Image | None = None
    resolved: bool = False
    dispatched: bool = False
    triggers_read: bool = False

    @property
    def external(self) -> bool:
        return self.stage is None

    @property
    def after(self) -> Built:
        """What the stage is now; there once its base has been resolved."""
        made = self.built or self.start
        assert made is not None
        return made


@dataclass(slots=True)
class Stages:
    nodes: list[Node] = field(default_factory=list)
    by_name: dict[str, Node] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        base = self.by_name.get(node.base_name)
        if base is not None:
            node.base = base
            node.outline = base.outline.copy()
            node.paths = base.paths
        self.nodes.append(node)
        if node.stage is not None and node.stage.stage_name:
            self.by_name[node.stage.stage_name.lower()] = node

    @property
    def names(self) -> list[str]:
        return [n.name for n in self.nodes if n.name]

    def target(self, name: str) -> Node:
        if not name:
            return self.nodes[-1]
        found = self.by_name.get(name.lower())
        if found is None:
            raise DockerfileError(f'target stage "{name}" could not be found' + hint(name, self.names))
        return found

    def number(self, index: int) -> Node:
        if not 0 <= index < len(self.nodes):
            raise DockerfileError(f"invalid stage index {index}")
        return self.nodes[index]

    def plan(self, command: Command, lex: Lex, *, on_build: bool = False) -> Planned:
        """Find what an instruction reads from; new nodes are made for names that are no stage, but not added."""
        if isinstance(command, Copy) and command.from_:
            if lex.expand(command.from_, {}).text != command.from_:
                raise DockerfileError(
                    "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope"
                    " as a workaround"
                )
            if _NUMBER.match(command.from_):
                return Planned(command, (self.number(int(command.from_)),), on_build)
            return Planned(command, (self._find_or_make(command.from_, command.ranges),), on_build)
        if isinstance(command, Run):
            froms = mount_froms(command)
            return Planned(command, tuple(self._find_or_make(name or SCRATCH, ()) for name in froms), on_build)
        return Planned(command, (), on_build)

    def _find_or_make(self, name: str, ranges: Ranges) -> Node:
        return self.by_name.get(name.lower()) or Node(stage=None, base_name=name, ranges=ranges)

    def link(self, node: Node, planned: Planned) -> None:
        """Note the dependencies of one instruction."""
        for source in planned.sources:
            node.deps[source] = planned.command
            if source.external:
                self.add(source)

    def connect(self, program: Program, lex: Lex) -> None:
        """Plan every instruction of every stage. Raises for a reference that cannot be and for a cycle."""
        for node in list(self.nodes):
            for command in node.stage.commands if node.stage is not None else ():
                planned = self.plan(command, lex)
                node.commands.append(planned)
                self.link(node, planned)
        self.refuse_cycles(program)
        if len(self.nodes) == 1:
            self.nodes[0].name = ""

    def refuse_cycles(self, program: Program) -> None:
        visited: set[int] = set()
        for node in self.nodes:
            cycle = _cycle(node, visited)
            if cycle:
                error = DockerfileError(f"circular dependency detected on stage: {node.name}")
                raise error.at(*(program.source(*instruction.ranges) for instruction in cycle))

    def reachable(self, target: Node) -> set[Node]:
        found: set[Node] = set()
        todo = [target]
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo.extend(node.deps)
                if node.base is not None:
                    todo.append(node.base)
        return found


def _cycle(root: Node, visited: set[int]) -> list[Instruction]:
    """The instructions that lead from `root` into a circle of copies, if there is one. Bases cannot make one: they are earlier."""
    if id(root) in visited:
        return []
    visited.add(id(root))
    path: dict[int, None] = {id(root): None}
    stack: list[tuple[Node, Iterable[tuple[Node, Instruction]], list[Instruction]]] = [(root, iter(list(root.deps.items())), [])]
    while stack:
        node, edges, trail = stack[-1]
        for dep, instruction in edges:
            if id(dep) in path:
                return [*trail, instruction]
            if id(dep) not in visited:
                visited.add(id(dep))
                path[id(dep)] = None
                stack.append((dep, iter(list(dep.deps.items())), [*trail, instruction]))
                break
        else:
            stack.pop()
            path.pop(id(node), None)
    return []


def count_steps(commands: Sequence[Command], *, base_is_shown: bool) -> int:
    """How many numbered steps a stage has."""
    return int(base_is_shown) + sum(c.name in ("add", "copy", "run", "workdir") for c in commands)


def placed(error: ChantierError, program: Program, ranges: Ranges) -> ChantierError:
    """Say where in the file an error comes from, unless it says so already."""
    if not error.sources and ranges:
        error.at(program.source(*ranges))
    return error


__all__ = ["SCRATCH", "Node", "Planned", "Stages", "count_steps", "placed"]
