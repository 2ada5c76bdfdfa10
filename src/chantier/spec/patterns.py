# SPDX-License-Identifier: Apache-2.0
"""Path patterns as `.dockerignore`, COPY --exclude, COPY --parents and LLB include/exclude lists use them.

Promises: the same answers as the matcher stock clients and BuildKit use, odd corners included (a class passes through to
the regular expression, `**foo` is a suffix test, `dir**` a prefix test). Refuses: nothing but malformed patterns, with
`syntax error in pattern` as stock tools say. Names to know: `Patterns`, `read_ignore`, `Filter`.

Paths are slash-separated, relative and clean (`a/b`, no leading `./`).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from chantier.errors import ChantierError
from chantier.values import dataclass, field

from .machine import Accepts, Item, Machine, Many, One, Upto

_BAD: Final = "syntax error in pattern"
_META: Final = frozenset("*[]?^\\")  # what makes a pattern more than a literal prefix, for walks
_CLASS_ESCAPES: Final = {
    "d": "[0-9]",
    "D": "[^0-9]",
    "s": r"[\t\n\f\r ]",
    "S": r"[^\t\n\f\r ]",
    "w": "[0-9A-Za-z_]",
    "W": "[^0-9A-Za-z_]",
    "a": r"\x07",
    "f": r"\f",
    "n": r"\n",
    "r": r"\r",
    "t": r"\t",
    "v": r"\v",
    "A": r"\A",
    "z": r"\Z",
    "b": r"(?a:\b)",
    "B": r"(?a:\B)",
}
_IN_CLASS_ESCAPES: Final = {
    "d": "0-9",
    "s": r"\t\n\f\r ",
    "w": "0-9A-Za-z_",
    "a": r"\x07",
    "f": r"\f",
    "n": r"\n",
    "r": r"\r",
    "t": r"\t",
    "v": r"\v",
}

_ZERO_WIDTH: Final = frozenset({"\\A", "\\Z", "(?a:\\b)", "(?a:\\B)"})
_MAX_REPEATS: Final = 3  # backtracking over a path of a few hundred characters then still takes milliseconds at worst


def _not_newline(char: str) -> bool:
    return char != "\n"


_REPEATS: Final[dict[str, Item]] = {
    "[^/]*": Many("/".__ne__),
    ".*": Many(_not_newline),
    "(.*/)?": Upto(_not_newline, "/".__eq__),
}

Parents: TypeAlias = "tuple[bool, ...]"
"""What each pattern said about a directory: pass it on when its children are asked about. () is the root."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One compiled pattern. `text` is the cleaned pattern without `!`."""

    text: str
    negated: bool
    kind: str  # exact, prefix, suffix or regex
    regex: re.Pattern[str] | None = field(default=None, compare=False)
    machine: Machine | None = field(default=None, compare=False, repr=False)

    def hits(self, path: str) -> bool:
        """Whether the pattern matches this very path; parents are not looked at."""
        if self.machine is not None:
            return self.machine.covers(path)
        if self.regex is not None:
            return self.regex.match(path) is not None
        if self.kind == "exact":
            return path == self.text
        if self.kind == "prefix":
            return path.startswith(self.text[:-2])
        suffix = self.text[2:]
        return path.endswith(suffix) or (suffix.startswith("/") and path == suffix[1:])

    @property
    def literal_head(self) -> str:
        """The text without a trailing `/**` or `/*`."""
        return self.text.removesuffix("/**").removesuffix("/*")

    @property
    def is_literal(self) -> bool:
        """Whether nothing but a trailing glob is special."""
        return _META.isdisjoint(self.literal_head)


class Patterns:
    """An ordered list of patterns; the last one that applies decides. Immutable and safe to share between threads."""

    __slots__ = ("_literal_negations", "all", "negations")

    def __init__(self, patterns: Iterable[str]) -> None:
        """Compile; raises ChantierError on a malformed pattern."""
        self.all: tuple[Pattern, ...] = tuple(p for p in map(_compile, patterns) if p is not None)
        self.negations: tuple[Pattern, ...] = tuple(p for p in self.all if p.negated)
        self._literal_negations = all(p.is_literal for p in self.negations)

    def __bool__(self) -> bool:
        return bool(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def matches(self, path: str) -> bool:
        """Whether the list selects path: a pattern hits when it matches the path or any directory above it."""
        matched = False
        chain: list[str] | None = None
        for pattern in self.all:
            if pattern.negated != matched:
                continue
            if not pattern.hits(path):
                if chain is None:
                    chain = _ancestors(path)
                if not any(map(pattern.hits, chain)):
                    continue
            matched = not pattern.negated
        return matched

    def matches_exact(self, path: str) -> bool:
        """As matches, but directories above the path are not looked at."""
        matched = False
        for pattern in self.all:
            if pattern.negated == matched and pattern.hits(path):
                matched = not pattern.negated
        return matched

    def matches_in_walk(self, path: str, parents: Parents = ()) -> tuple[bool, Parents]:
        """The answer a walk gives, cheaper than matches: `parents` is what this returned for the directory above.

        Stock clients walk this way, so contexts are filtered so. A pattern that could change nothing for a directory
        is not remembered for what lies below: for lists such as `** !a/b a` the answer may differ from matches.
        """
        matched = False
        hits = []
        for i, pattern in enumerate(self.all):
            hit = bool(parents) and parents[i]
            if not hit:
                if pattern.negated != matched:
                    hits.append(False)
                    continue
                hit = pattern.hits(path) or (not parents and any(map(pattern.hits, _ancestors(path))))
            hits.append(hit)
            if hit:
                matched = not pattern.negated
        return matched, tuple(hits)

    def may_return_below(self, directory: str) -> bool:
        """Whether a negated pattern could still match something below a directory that the list matches.

        False means a walk may skip an excluded directory entirely.
        """
        if not self._literal_negations:
            return True
        below = directory + "/"
        return any((p.literal_head + "/").startswith(below) for p in self.negations)

    def may_match_below(self, directory: str) -> bool:
        """Whether a pattern could match something below a directory that the list does not match (include lists)."""
        plain = [p for p in self.all if not p.negated]
        if not all(p.is_literal for p in plain):
            return True
        below = directory + "/"
        return any((p.literal_head + "/").startswith(below) for p in plain)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What Filter says of one path."""

    keep: bool  # send it; a kept child makes its directories kept as well
    descend: bool  # for a directory: something below may be kept
    state: tuple[Parents, Parents]  # give it to Filter.look for what lies below


class Filter:
    """Includes and excludes together, for a walk from the top: a path is kept when included and not excluded."""

    __slots__ = ("excludes", "includes")

    def __init__(self, *, includes: Sequence[str] = (), excludes: Sequence[str] = ()) -> None:
        """No includes means everything is included. Raises ChantierError on a malformed pattern."""
        self.includes = _named(includes, "include")
        self.excludes = _named(excludes, "exclude")

    def look(self, path: str, *, directory: bool, state: tuple[Parents, Parents] = ((), ())) -> Verdict:
        """Judge one path; `state` is that of the directory above (the default for entries at the top)."""
        keep = descend = True
        included: Parents = ()
        excluded: Parents = ()
        if self.includes:
            keep, included = self.includes.matches_in_walk(path, state[0])
            descend = keep or (directory and self.includes.may_match_below(path))
        if self.excludes:
            out, excluded = self.excludes.matches_in_walk(path, state[1])
            if out:
                keep = False
                descend = descend and directory and self.excludes.may_return_below(path)
        return Verdict(keep, descend and directory, (included, excluded))


def _named(patterns: Sequence[str], which: str) -> Patterns:
    try:
        return Patterns(patterns)
    except ChantierError as err:
        shown = " ".join(patterns)
        raise ChantierError(f"invalid {which}patterns: [{shown}]: {err.brief}") from err


def read_ignore(data: bytes) -> list[str]:
    """The patterns of a `.dockerignore` file: comments and blanks gone, each cleaned, `!` kept in front."""
    patterns = []
    for line in data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape").split("\n"):
        if line.startswith("#"):  # an indented `#` is a pattern
            continue
        text = line.strip()
        if not text:
            continue
        bang = text.startswith("!")
        if bang:
            text = text[1:].strip()
        if text:
            text = clean(text)
            if len(text) > 1 and text.startswith("/"):
                text = text[1:]
        patterns.append("!" + text if bang else text)
    return patterns


def clean(path: str) -> str:
    """Go's path.Clean: as posixpath.normpath, and two leading slashes become one."""
    cleaned = posixpath.normpath(path) if path else "."
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def check_syntax(pattern: str) -> None:
    """Raise ChantierError where Go's path.Match would report a bad pattern."""
    i, n = 0, len(pattern)
    while i < n:
        if pattern[i] == "\\":
            i += 2
            if i > n:
                raise ChantierError(_BAD)
        elif pattern[i] == "[":
            i = _skip_class(pattern, i + 1)
        else:
            i += 1


def _skip_class(pattern: str, i: int) -> int:
    """The index after a `[...]` whose inside starts at i."""
    if pattern[i : i + 1] == "^":
        i += 1
    first = True
    while first or pattern[i : i + 1] != "]":
        i = _skip_class_char(pattern, i)
        if pattern[i] == "-":
            i = _skip_class_char(pattern, i + 1)
        first = False
    return i + 1


def _skip_class_char(pattern: str, i: int) -> int:
    if pattern[i : i + 1] in ("", "-", "]"):
        raise ChantierError(_BAD)
    i += 2 if pattern[i] == "\\" else 1
    if i >= len(pattern):
        raise ChantierError(_BAD)
    return i


def _ancestors(path: str) -> list[str]:
    """Every directory above path, outermost first; nothing for a path at the top."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _compile(text: str) -> Pattern | None:
    text = text.strip()
    if not text:
        return None
    text = clean(text)
    negated = text.startswith("!")
    if negated:
        text = text[1:]
        if not text:
            raise ChantierError('illegal exclusion pattern: "!"')
    check_syntax(text)
    kind, expression = _translate(text)
    if kind != "regex":
        return Pattern(text, negated, kind)
    parts = _to_python(expression)
    try:
        regex = re.compile("".join(["\\A", *parts, "\\Z"]), re.NOFLAG)
    except (re.error, OverflowError) as err:
        raise ChantierError(_BAD) from err
    return Pattern(text, negated, kind, regex, _machine(parts))


def _machine(parts: list[str]) -> Machine | None:
    """A machine for an expression whose backtracking could take long; None where the expression itself will do."""
    if sum(map(_is_repeated, parts)) <= _MAX_REPEATS or not _ZERO_WIDTH.isdisjoint(parts):
        return None
    items: list[Item] = []
    for part in parts:
        if part in _REPEATS:
            items.append(_REPEATS[part])
        elif _is_repeated(part):
            items.append(Many(_accepts(part[:-1])))
        else:
            items.append(One(_accepts(part)))
    return Machine(items)


def _is_repeated(part: str) -> bool:
    return part in _REPEATS or (part.startswith("[") and part.endswith("]*"))


def _accepts(part: str) -> Accepts:
    expression = re.compile(part)
    return lambda char: expression.fullmatch(char) is not None


def _translate(pattern: str) -> tuple[str, list[str]]:
    """The kind of a pattern and its regular expression as tokens: `\\c` escapes, `[`, `]`, or expression text."""
    kind, out = "exact", []
    i, n, first = 0, len(pattern), True
    while i < n:
        char = pattern[i]
        i += 1
        if char == "*" and pattern[i : i + 1] == "*":
            i += 1
            if pattern[i : i + 1] == "/":
                i += 1
            if i < n:
                out.append("(.*/)?")
                kind = "regex"
            elif kind == "exact":
                kind = "prefix"
            else:
                out.append(".*")
                kind = "regex"
            if first:
                kind = "suffix"
        elif char == "*":
            out.append("[^/]*")
            kind = "regex"
        elif char == "?":
            out.append("[^/]")
            kind = "regex"
        elif char == "\\":
            out.append("\\" + pattern[i : i + 1])  # check_syntax saw to it that a character follows
            i += 1
            kind = "regex"
        elif char in "[]":
            out.append(char)
            kind = "regex"
        elif char in ".+()|{}$":
            out.append("\\" + char)
        else:
            out.append(char)
        first = False
    return kind, out


def _to_python(tokens: list[str]) -> list[str]:
    """Rewrite an RE2 expression of the shape _translate makes, part by part, so that `re` reads it the same way.

    In a class, the expressions for `*`, `?` and `**` stand as plain characters, as they do for the peer: there they
    are spliced into the class as text. So a class may end inside such an expression, and a `*` may follow it.
    """
    text = "".join(tokens)
    out: list[str] = []
    i, n = 0, len(text)
    while i < n:
        char = text[i]
        repeat = next((r for r in _REPEATS if text.startswith(r, i)), None)
        if repeat is not None:
            out.append(repeat)
            i += len(repeat)
        elif char == "[":
            part, i = _class_to_python(text, i + 1)
            if text[i : i + 1] == "*":
                part, i = part + "*", i + 1
            out.append(part)
        elif char == "\\":
            out.append(_escape_to_python(text[i + 1 : i + 2]))
            i += 2
        else:
            out.append("\\A" if char == "^" else re.escape(char))
            i += 1
    return out


def _escape_to_python(char: str) -> str:
    if char.isascii() and char.isalnum():
        if char not in _CLASS_ESCAPES:
            raise ChantierError(_BAD)
        return _CLASS_ESCAPES[char]
    if not char.isascii() or not char:
        raise ChantierError(_BAD)
    return re.escape(char)


def _class_to_python(text: str, i: int) -> tuple[str, int]:
    """One RE2 class whose inside starts at text[i], and the index after its `]`."""
    out = ["["]
    if text[i : i + 1] == "^":
        out.append("^")
        i += 1
    first = True
    while first or text[i : i + 1] != "]":
        if text.startswith("[:", i) and ":]" in text[i + 2 :]:
            raise ChantierError(_BAD)  # named classes: nobody writes them, and path.Match reads them differently
        low, i = _class_char(text, i)
        if text[i : i + 1] == "-" and text[i + 1 : i + 2] != "]":
            high, i = _class_char(text, i + 1)
            out.append(f"{low}-{high}")
        else:
            out.append(low)
        first = False
    return "".join([*out, "]"]), i + 1


def _class_char(text: str, i: int) -> tuple[str, int]:
    char = text[i : i + 1]
    if not char:
        raise ChantierError(_BAD)
    if char != "\\":
        return re.escape(char), i + 1
    char = text[i + 1 : i + 2]
    if char.isascii() and char.isalnum():
        if char not in _IN_CLASS_ESCAPES:
            raise ChantierError(_BAD)
        return _IN_CLASS_ESCAPES[char], i + 2
    if not char or not char.isascii():
        raise ChantierError(_BAD)
    return re.escape(char), i + 2


__all__ = ["Filter", "Parents", "Pattern", "Patterns", "Verdict", "check_syntax", "clean", "read_ignore"]
