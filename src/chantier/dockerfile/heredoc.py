# SPDX-License-Identifier: Apache-2.0
"""Heredocs: which words of a line open one, and what belongs to it."""

from __future__ import annotations

import re
from typing import Final

from chantier.errors import DockerfileError

from .instructions import Heredoc
from .shell import Lex

_WORD: Final = re.compile(r"([0-9]*)<<(-?)[\t\n\f\r ]*([^<]*)\Z")
_LINE: Final = Lex(raw_quotes=True, raw_escapes=True, skip_unset=True)
_NAME: Final = Lex(skip_unset=True)
_RAW_NAME: Final = Lex(skip_unset=True, raw_quotes=True)


def parse_word(word: str) -> Heredoc | None:
    """The heredoc that a word such as `<<EOF`, `<<-"EOF"` or `3<<EOF` opens, without content; None if it opens none."""
    found = _WORD.match(word)
    if found is None or not found[3]:
        return None
    try:
        words = _NAME.process_words(found[3], {})
        if len(words) != 1:
            return None
        raw = _RAW_NAME.process_words(found[3], {})
    except DockerfileError:  # an unclosed quote: not a heredoc, the shell will complain
        return None
    expand = len(raw) == 1 and _quotes(words[0]) == _quotes(raw[0])
    return Heredoc(name=words[0], content="", expand=expand, chomp=bool(found[2]), fd=int(found[1] or 0))


def opened_by(line: str) -> list[Heredoc]:
    """The heredocs that a logical line opens, in order, without their contents."""
    try:
        words = _LINE.process_words(line, {})
    except DockerfileError:  # an unclosed quote makes the line one for the shell
        return []
    return [doc for doc in map(parse_word, words) if doc is not None]


def chomp(content: str) -> str:
    """The content with the leading tabs of each line gone, as `<<-` asks."""
    return re.sub(r"(?m)^\t+", "", content)


def _quotes(text: str) -> int:
    return text.count("'") + text.count('"')


__all__ = ["chomp", "opened_by", "parse_word"]
