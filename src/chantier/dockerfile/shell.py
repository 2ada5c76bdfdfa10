# SPDX-License-Identifier: Apache-2.0
"""Variables and quotes in a word: what a Dockerfile means by `${name:-w}`, and how words are cut.

`Lex` is a small value; make one per escape token and use it from any thread. What it promises: the same result, the
same error texts and the same list of unset names as stock frontends, for every operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from chantier.errors import DockerfileError
from chantier.values import dataclass, field, replace

from . import glob
from .gotext import SPACES, quote

_SPECIAL_PARAMETERS: Final = frozenset("@*#?-$!0")  # POSIX XCU 2.5.2
_EOF_RUNE: Final = "\ufffd"  # how the end of the text prints where an operator was expected
_MISSING_BRACE: Final = "syntax error: missing '}'"


@dataclass(frozen=True, slots=True)
class Expansion:
    """What came of one word."""

    text: str
    words: tuple[str, ...]  # the text cut at blanks that were not quoted
    matched: tuple[str, ...] = ()  # names found, in order of first use
    unmatched: tuple[str, ...] = ()  # names not set, in order of first use (also those with a default)


@dataclass(frozen=True, slots=True)
class Lex:
    """How to read words. The default reads and removes quotes and escapes, and puts "" for unset variables."""

    escape: str = "\\"
    raw_quotes: bool = False  # keep quote characters in the result
    raw_escapes: bool = False  # keep the escape token in the result
    skip_quotes: bool = False  # quotes mean nothing (bodies of heredocs)
    skip_unset: bool = False  # leave references to unset variables as they are written

    def expand(self, word: str, env: Mapping[str, str]) -> Expansion:
        """Expand one word; raises DockerfileError `failed to process "<word>": ...`."""
        scan = _Scan(word, env, self)
        try:
            text, words = scan.until("", self.raw_escapes)
        except (_Bad, glob.BadPattern) as bad:
            raise DockerfileError(f"failed to process {quote(word)}: {bad}") from None
        except RecursionError:
            raise DockerfileError(f"failed to process {quote(word[:40] + '...')}: substitutions nested too deeply") from None
        return Expansion(text, tuple(words), tuple(scan.matched), tuple(scan.unmatched))

    def process_word(self, word: str, env: Mapping[str, str]) -> str:
        """The expanded word; blanks do not cut it."""
        if self._is_plain(word):
            return word
        return self.expand(word, env).text

    def process_words(self, word: str, env: Mapping[str, str]) -> tuple[str, ...]:
        """The expanded word cut at unquoted blanks, also those that came out of variables."""
        return self.expand(word, env).words

    def display(self, text: str, env: Mapping[str, str]) -> str:
        """Text for people: set variables expanded, quotes kept, unset ones left as written; the text itself on error."""
        if self._is_plain(text):
            return text
        try:
            return replace(self, raw_quotes=True, skip_unset=True).expand(text, env).text
        except DockerfileError:  # a name for people must never fail a build
            return text

    def body(self, text: str, env: Mapping[str, str]) -> str:
        """The body of a COPY heredoc: variables only, no quotes, and the escape token is a backslash always."""
        return Lex(skip_quotes=True).process_word(text, env)

    def _is_plain(self, word: str) -> bool:
        return not ("$" in word or "'" in word or '"' in word or self.escape in word)


class _Bad(Exception):
    pass


@dataclass(slots=True)
class _Words:
    """Cuts text at blanks while it is being made."""

    done: list[str] = field(default_factory=list)
    word: str = ""
    inside: bool = False

    def add(self, char: str) -> None:
        if char not in SPACES:
            self.word += char
            self.inside = True
        elif self.inside and self.word:
            self.done.append(self.word)
            self.word, self.inside = "", False

    def add_raw(self, text: str) -> None:
        self.word += text
        self.inside = True

    def finish(self) -> list[str]:
        if self.word:
            self.done.append(self.word)
            self.word, self.inside = "", False
        return self.done


class _Scan:
    """One pass over one word, a character at a time."""

    __slots__ = ("_at", "_env", "_lex", "_raw_escapes", "_text", "matched", "unmatched")

    def __init__(self, text: str, env: Mapping[str, str], lex: Lex) -> None:
        self._text = text
        self._at = 0
        self._env = env
        self._lex = lex
        self._raw_escapes = lex.raw_escapes
        self.matched: dict[str, None] = {}
        self.unmatched: dict[str, None] = {}

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._text[self._at : self._at + 1]
        self._at += 1
        return char

    def _ended(self) -> bool:
        return self._at >= len(self._text)

    def until(self, stop: str, raw_escapes: bool) -> tuple[str, list[str]]:
        """Read to the `stop` character and past it, or to the end when stop is empty."""
        outer, self._raw_escapes = self._raw_escapes, raw_escapes
        try:
            return self._until(stop)
        finally:
            self._raw_escapes = outer

    def _until(self, stop: str) -> tuple[str, list[str]]:
        out: list[str] = []
        words = _Words()
        escape = self._lex.escape
        special = self._special()
        while not self._ended():
            char = self._peek()
            if stop and char == stop:
                self._at += 1
                return "".join(out), words.finish()
            if char in special:
                part = special[char]()
                out.append(part)
                if char == "$":
                    for c in part:
                        words.add(c)
                else:
                    words.add_raw(part)
                continue
            self._at += 1
            if char == escape:
                if self._raw_escapes:
                    words.add_raw(char)
                    out.append(char)
                char = self._next()
                if not char:
                    break  # an escape at the very end is dropped
                words.add_raw(char)
            else:
                words.add(char)
            out.append(char)
        if stop:
            raise _Bad(f"unexpected end of statement while looking for matching {stop}")
        return "".join(out), words.finish()

    def _special(self) -> dict[str, Callable[[], str]]:
        special: dict[str, Callable[[], str]] = {"$": self._dollar, "<": self._heredoc_mark}
        if not self._lex.skip_quotes:
            special["'"] = self._single
            special['"'] = self._double
        return special

    def _heredoc_mark(self) -> str:
        """`<<` takes the blanks behind it along, so that `<<  NAME` stays one word."""
        start = self._at
        self._at += 1
        if self._peek() == "<":
            self._at += 1
            while self._peek() and self._peek() in SPACES:
                self._at += 1
        return self._text[start : self._at]

    def _single(self) -> str:
        start = self._at + 1
        end = self._text.find("'", start)
        if end < 0:
            raise _Bad("unexpected end of statement while looking for matching single-quote")
        self._at = end + 1
        inside = self._text[start:end]
        return f"'{inside}'" if self._lex.raw_quotes else inside

    def _double(self) -> str:
        out: list[str] = []
        mark = '"' if self._lex.raw_quotes else ""
        escape = self._lex.escape
        self._at += 1
        while not self._ended():
            char = self._peek()
            if char == "$":
                out.append(self._dollar())
                continue
            self._at += 1
            if char == '"':
                return mark + "".join(out) + mark
            if char == escape:
                if self._raw_escapes:
                    out.append(char)
                following = self._peek()
                if not following:
                    break
                if following in ('"', "$", escape):
                    char = self._next()
            out.append(char)
        raise _Bad("unexpected end of statement while looking for matching double-quote")

    def _dollar(self) -> str:
        self._at += 1
        if self._peek() == "{":
            self._at += 1
            return self._braces()
        name = self._name()
        if not name:
            return "$"
        value = self._value(name)
        if value is None:
            return f"${name}" if self._lex.skip_unset else ""
        return value

    def _braces(self) -> str:
        first = self._peek()
        if not first:
            raise _Bad(_MISSING_BRACE)
        if first in "{}:":
            raise _Bad("syntax error: bad substitution")
        name = self._name()
        operator = self._next()
        if operator == "}":
            value = self._value(name)
            if value is None:
                return f"${{{name}}}" if self._lex.skip_unset else ""
            return value
        if operator == "/":
            return self._replace(name)
        shown = operator
        if operator == ":":
            operator = self._next()
            shown += operator or _EOF_RUNE
            if operator in ("#", "%"):
                _unsupported(shown)
        elif not operator or operator not in "+-?#%":
            _unsupported(shown or _EOF_RUNE)
        return self._operate(name, operator, shown)

    def _operate(self, name: str, operator: str, shown: str) -> str:
        word = self._argument("}", raw_escapes=operator in ("#", "%"), missing=_MISSING_BRACE)
        value = self._value(name)
        if value is None and self._lex.skip_unset:
            return f"${{{name}{shown}{word}}}"
        absent = value is None or (shown.startswith(":") and not value)
        if operator == "-":
            return word if absent else value or ""
        if operator == "+":
            return "" if absent else word
        if operator == "?":
            if absent:
                raise _Bad(f"{name}: {word or 'is not allowed to be ' + ('unset' if value is None else 'empty')}")
            return value or ""
        if operator not in ("#", "%"):
            _unsupported(shown)
        return _strip(operator, word, value or "")

    def _replace(self, name: str) -> str:
        everywhere = self._peek() == "/"
        if everywhere:
            self._at += 1
        pattern = self._argument("/", raw_escapes=True, missing="syntax error: missing '/' in ${}")
        replacement = self._argument("}", raw_escapes=True, missing=_MISSING_BRACE)
        value = self._value(name)
        if value is None:
            if self._lex.skip_unset:
                return f"${{{name}/{pattern}/{replacement}}}"
            value = ""
        put = glob.replace_all if everywhere else glob.replace_first
        return put(pattern, replacement, value)

    def _argument(self, stop: str, *, raw_escapes: bool, missing: str) -> str:
        try:
            return self.until(stop, raw_escapes)[0]
        except _Bad:
            if self._ended():
                raise _Bad(missing) from None
            raise

    def _name(self) -> str:
        start, text = self._at, self._text
        first = self._peek()
        if first and first.isdecimal():
            while self._peek().isdecimal():
                self._at += 1
        elif first in _SPECIAL_PARAMETERS:
            self._at += 1
        else:
            while (c := self._peek()) and (c == "_" or c.isalpha() or c.isdecimal()):
                self._at += 1
        return text[start : self._at]

    def _value(self, name: str) -> str | None:
        value = self._env.get(name)
        (self.unmatched if value is None else self.matched)[name] = None
        return value


def _unsupported(shown: str) -> NoReturn:
    raise _Bad(f"unsupported modifier ({shown}) in substitution")


def _strip(operator: str, word: str, value: str) -> str:
    longest = word.startswith(operator)
    strip = glob.strip_prefix if operator == "#" else glob.strip_suffix
    return strip(word[1:] if longest else word, value, longest=longest)


__all__ = ["Expansion", "Lex"]
