# SPDX-License-Identifier: Apache-2.0
"""`chantier completion SHELL`: a script that asks `chantier __complete` what may come next."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence

from .args import LIST, Parser

_EXAMPLE = """source <(chantier completion bash)
chantier completion zsh > "${fpath[1]}/_chantier"
chantier completion fish > ~/.config/fish/completions/chantier.fish"""
_BASH = """_chantier() {
  local IFS=$'\\n'
  COMPREPLY=($(chantier __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
  [[ ${#COMPREPLY[@]} -eq 0 ]] && compopt -o default 2>/dev/null
}
complete -F _chantier chantier
"""
_ZSH = """#compdef chantier
_chantier() {
  local -a found
  found=("${(@f)$(chantier __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if (( ${#found} )) && [[ -n ${found[1]} ]]; then compadd -- $found; else _files; fi
}
compdef _chantier chantier
"""
_FISH = """function __chantier
  set -l words (commandline -opc) (commandline -ct)
  chantier __complete $words[2..-1] 2>/dev/null
end
complete -c chantier -a '(__chantier)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_BUILDER_COMMANDS = ("inspect", "rm", "stop", "update", "use")


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier completion", "Print a shell's completion script.", _EXAMPLE)
    parser.add_argument("shell", choices=sorted(_SCRIPTS))
    sys.stdout.write(_SCRIPTS[parser.parse(args).shell])
    return 0


def complete(words: Sequence[str]) -> int:
    """Print what may stand for the last word, a line each."""
    from .main import COMMANDS

    last = words[-1] if words else ""
    if len(words) <= 1:
        found = list(COMMANDS)
    else:
        name = words[0]
        if name not in COMMANDS:
            return 0
        if words[-2] == "--builder" or (name in _BUILDER_COMMANDS and not last.startswith("-")):
            found = builders()
        elif last.startswith("-"):
            found = [word for word in _words(name) if word.startswith("-")]
        else:
            found = [word for word in _words(name) if not word.startswith("-")]
    sys.stdout.write("".join(word + "\n" for word in found if word.startswith(last)))
    return 0


def _words(name: str) -> list[str]:
    """The options and choices of a command, as its parser has them."""
    from .main import load

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        load(name)([LIST], False)
    return out.getvalue().split()


def builders() -> list[str]:
    from chantier.driver.context import Contexts
    from chantier.driver.select import EMBEDDED
    from chantier.driver.store import Store

    names = [g.name for g in Store.open(os.environ).groups()]
    return [EMBEDDED, *names, *Contexts(os.environ).names()]


__all__ = ["complete", "run"]
