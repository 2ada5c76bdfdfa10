# SPDX-License-Identifier: Apache-2.0
"""One instruction at its place: what every `do_*` function is given besides the stage as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chantier.errors import DockerfileError
from chantier.spec import Platform
from chantier.values import dataclass, replace

from . import lint as checks
from .graph import Node, Planned
from .instructions import Instruction
from .names import nearest
from .scope import NON_ENV_ARGS, Built, Ranges, Scope
from .titles import numbered, upper_first


@dataclass(frozen=True, slots=True)
class At:
    scope: Scope
    node: Node
    planned: Planned

    @property
    def instruction(self) -> Instruction:
        return self.planned.command

    @property
    def ranges(self) -> Ranges:
        return self.instruction.ranges

    def warn(self, rule: checks.Rule, *args: str, at: Ranges | None = None) -> None:
        where = self.instruction
        if at is None:
            self.scope.lint.warn(rule, *args, at=where)
        else:
            self.scope.lint.warn(rule, *args, at=at, comments=where.comments)

    def expander(self, built: Built) -> Callable[[str], str]:
        """Expand words with the stage's environment as it was before this instruction; undefined variables are warned of."""
        env = built.env

        def expand(word: str) -> str:
            made = self.scope.lex.expand(word, env)
            self.warn_undefined(built, env, made.unmatched)
            return made.text

        return expand

    def warn_undefined(self, built: Built, env: Mapping[str, str], names: tuple[str, ...]) -> None:
        if not names:
            return
        declared = {pair.key for pair in built.args} | NON_ENV_ARGS
        for name in names:
            if name not in declared:
                self.warn(checks.UNDEFINED_VAR, name, nearest(name, env))

    def display(self, built: Built) -> str:
        """The instruction as people see it: variables filled in, quotes gone, the keyword in capitals."""
        text = self.instruction.code
        try:
            text = self.scope.lex.process_word(text, built.env)
        except DockerfileError:  # a name for people must never fail a build
            pass
        return upper_first(text)

    def step(self, built: Built, text: str, platform: Platform | None) -> tuple[str, Built]:
        """The name of the next numbered step, and the stage with that number used up."""
        if self.node.total == 0:
            return text, built
        after = replace(built, index=built.index + 1)
        return self.titled(after, text, platform), after

    def titled(self, built: Built, text: str, platform: Platform | None) -> str:
        """The name under the number that was used last."""
        return numbered(
            text,
            index=built.index,
            total=self.node.total,
            stage=self.node.name,
            platform=platform if self.scope.options.multi_platform else None,
            env=built.env,
            on_build=self.planned.on_build,
        )


__all__ = ["At"]
