# SPDX-License-Identifier: Apache-2.0
"""A Dockerfile to a build graph: text, instructions, stages, LLB. No I/O at all.

Promises: the language of stock frontend 1.26, with its exact error texts and build checks; errors point at lines.
Refuses: anything that needs bytes from elsewhere; base images and files are asked of a Resolver. Names to know:
`parse` (bytes to `Program`), `Linter` (the build checks), `Lex` (variables and quotes in a word).
"""

from .instructions import Program, Stage
from .lint import Linter, LintWarning
from .parser import parse, parse_trigger
from .shell import Lex

__all__ = ["Lex", "LintWarning", "Linter", "Program", "Stage", "parse", "parse_trigger"]
