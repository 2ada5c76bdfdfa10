# SPDX-License-Identifier: Apache-2.0
"""argparse with this command's manners: errors are UsageErrors, unknown options suggest the nearest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from chantier.errors import UsageError

LIST = "--__list"
"""In place of arguments: print what there is to complete, and end."""


class Parser(argparse.ArgumentParser):
    def __init__(self, prog: str, about: str, example: str) -> None:
        super().__init__(
            prog=prog,
            description=about,
            epilog="example:\n" + "\n".join("  " + line for line in example.splitlines()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        if "unrecognized arguments" in message:
            flag = message.split(": ", 1)[1].split(maxsplit=1)[0]
            message = f"unknown flag: {flag}" if flag.startswith("-") else f"unexpected argument: {flag}"
            raise UsageError(message, hint=self._nearest(flag))
        raise UsageError(message, hint=f"run `{self.prog} --help`")

    def _nearest(self, flag: str) -> str:
        known = [o for action in self._actions for o in action.option_strings]
        import difflib

        near = difflib.get_close_matches(flag.split("=", maxsplit=1)[0], known, n=1)
        return f"did you mean {near[0]}?" if near else f"run `{self.prog} --help`"

    def parse(self, args: Sequence[str]) -> argparse.Namespace:
        if list(args) == [LIST]:
            words = [o for action in self._actions for o in action.option_strings if action.help != argparse.SUPPRESS]
            choices = [str(c) for action in self._actions if not action.option_strings for c in action.choices or ()]
            sys.stdout.write("".join(word + "\n" for word in (*words, *choices)))
            raise SystemExit(0)
        return self.parse_intermixed_args(self._ready(args))

    def _ready(self, args: Sequence[str]) -> list[str]:
        """An option's value may begin with a dash (`--buildkitd-flags --debug`); an unknown option is said before anything else."""
        ready: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            action = self._option_string_actions.get(word)
            if word == "--":
                return [*ready, word, *rest]
            if action is not None and action.nargs is None and rest:
                value = rest.pop(0)
                dash = value.startswith("-") and value != "-"
                ready += [f"{word}={value}" if word.startswith("--") else f"{word}{value}"] if dash else [word, value]
                continue
            if word.startswith("--") and word.split("=", maxsplit=1)[0] not in self._option_string_actions:
                self.error(f"unrecognized arguments: {word}")
            ready.append(word)
        return ready
