# SPDX-License-Identifier: Apache-2.0
"""A Dockerfile to a build graph: text, instructions, stages, LLB. No I/O at all.

Promises: the language of stock frontend 1.26, with its exact error texts and build checks; errors point at lines.
Refuses: anything that needs bytes from elsewhere; base images and files are asked of a Resolver. Names to know:
`parse` (bytes to `Program`; `to_text` is the way back), `Linter` (the build checks), `to_llb` (bytes to a graph and an
image config). The whole frontend, with contexts and subrequests, is `frontend.frontend`. The converting half is loaded
when it is first named: who only reads Dockerfiles does not pay for protobuf.
"""

from typing import TYPE_CHECKING, Any

from .instructions import Program, Stage
from .lint import Linter, LintWarning
from .parser import parse, parse_trigger
from .shell import Lex

if TYPE_CHECKING:
    from .bridge import Bridge, Resolver
    from .convert import Converted, to_llb
    from .options import Options
    from .printer import to_text

LANGUAGE_VERSION = "1.26.0"
"""The version of docker/dockerfile whose language this is."""

_LAZY = {
    "Bridge": "bridge",
    "Converted": "convert",
    "Options": "options",
    "Resolver": "bridge",
    "to_llb": "convert",
    "to_text": "printer",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


__all__ = [
    "LANGUAGE_VERSION",
    "Bridge",
    "Converted",
    "Lex",
    "LintWarning",
    "Linter",
    "Options",
    "Program",
    "Resolver",
    "Stage",
    "parse",
    "parse_trigger",
    "to_llb",
    "to_text",
]
