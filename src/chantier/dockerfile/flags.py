# SPDX-License-Identifier: Apache-2.0
"""Builder flags: the `--name=value` words between an instruction and its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from chantier.errors import DockerfileError
from chantier.values import dataclass, field

from .gotext import SPACE, SPACES
from .names import hint

BOOL: Final = "bool"
TEXT: Final = "text"
TEXTS: Final = "texts"  # may be repeated

FLAGS: Final[Mapping[str, Mapping[str, str]]] = {
    "add": {
        "chown": TEXT,
        "chmod": TEXT,
        "link": BOOL,
        "keep-git-dir": BOOL,
        "checksum": TEXT,
        "unpack": BOOL,
        "exclude": TEXTS,
    },
    "copy": {"chown": TEXT, "from": TEXT, "chmod": TEXT, "link": BOOL, "parents": BOOL, "exclude": TEXTS},
    "from": {"platform": TEXT},
    "healthcheck": {"interval": TEXT, "timeout": TEXT, "start-period": TEXT, "start-interval": TEXT, "retries": TEXT},
    "run": {"mount": TEXTS, "network": TEXT, "security": TEXT, "device": TEXTS},
}
"""Which flags each instruction takes; the others take none."""


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags of one instruction, typed."""

    texts: Mapping[str, str] = field(default_factory=dict)
    bools: Mapping[str, bool] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def text(self, name: str) -> str:
        return self.texts.get(name, "")

    def list(self, name: str) -> tuple[str, ...]:
        return self.lists.get(name, ())


_NONE: Final = Flags()


def parse_flags(words: Sequence[str], known: Mapping[str, str]) -> Flags:
    """Type the flag words; raises DockerfileError on an unknown, repeated or ill-typed one."""
    if not words:
        return _NONE
    texts: dict[str, str] = {}
    bools: dict[str, bool] = {}
    lists: dict[str, tuple[str, ...]] = {}
    for word in words:
        shown, equals, value = word.partition("=")
        name = shown[2:]
        kind = known.get(name)
        if kind is None:
            takes = ", ".join(f"--{flag}" for flag in known) or "none"
            raise DockerfileError(f"unknown flag: {shown}{hint(name, known)}", hint=f"flags of this instruction: {takes}")
        if name in texts or name in bools:
            raise DockerfileError(f"duplicate flag specified: {shown}")
        if kind == BOOL:
            bools[name] = _bool(shown, value, given=bool(equals))
        elif not equals:
            raise DockerfileError(f"missing a value on flag: {shown}")
        elif kind == TEXT:
            texts[name] = value
        else:
            lists[name] = (*lists.get(name, ()), value)
    return Flags(texts, bools, lists)


def _bool(shown: str, value: str, *, given: bool) -> bool:
    if given and not value:
        raise DockerfileError(f"missing a value on flag: {shown}")
    if value.lower() in ("", "true", "false"):
        return value.lower() != "false"
    raise DockerfileError(f"expecting boolean value for flag {shown}, not: {value}")


def split_flags(line: str, escape: str) -> tuple[tuple[str, ...], str]:
    """Take the flag words off the front of a line; gives them, quotes removed, and the rest, trimmed."""
    words: list[str] = []
    i, n = 0, len(line)
    while True:
        while i < n and line[i] in SPACES:
            i += 1
        if not line.startswith("--", i):
            return tuple(words), line[i:].strip(SPACE)
        word, i = _flag_word(line, i, escape)
        if word == "--":
            return tuple(words), line[i:].strip(SPACE)
        words.append(word)


def _flag_word(line: str, i: int, escape: str) -> tuple[str, int]:
    """One word from i up to a blank outside quotes: quotes go, the escape token goes and shields what follows."""
    out: list[str] = []
    quote, n = "", len(line)
    while i < n:
        char = line[i]
        i += 1
        if char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        elif char == escape:
            out.append(line[i : i + 1])
            i += 1
        elif not quote and char in SPACES:
            break
        else:
            out.append(char)
    return "".join(out), i


__all__ = ["FLAGS", "Flags", "parse_flags", "split_flags"]
