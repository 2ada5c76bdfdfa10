# SPDX-License-Identifier: Apache-2.0
"""Bytes to nodes: physical lines, directives, comments, continuations, heredocs, and the shape of the arguments.

A node is one instruction cut into words but not yet understood. Errors found here carry no `dockerfile parse error`
prefix: stock frontends give them none.
"""

from __future__ import annotations

import json
import re
from typing import Final

from chantier.errors import DockerfileError, Source, SourceRange
from chantier.values import dataclass, field, replace

from .directives import DirectiveReader
from .flags import split_flags
from .gotext import SPACE, SPACES, quote
from .heredoc import opened_by
from .instructions import Directive, Heredoc, KeyValue

MAX_LINE: Final = 65535  # bytes
_BLANKS: Final = re.compile(r"[\t\v\f\r ]+")
_HEREDOC_USERS: Final = frozenset({"add", "copy", "run"})
_LONG: Final = MAX_LINE // 4  # a shorter text cannot take more bytes than MAX_LINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One instruction, cut into words."""

    name: str  # lower case
    keyword: str
    original: str  # the logical line
    flags: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    pairs: tuple[KeyValue, ...] = ()  # ENV and LABEL
    is_json: bool = False
    start: int = 0
    end: int = 0
    comments: tuple[str, ...] = ()
    heredocs: tuple[Heredoc, ...] = ()
    child: Node | None = None  # the trigger of ONBUILD

    @property
    def ranges(self) -> tuple[SourceRange, ...]:
        return line_ranges(self.start, self.end)


@dataclass(slots=True)
class Tree:
    """What reading a file gave."""

    nodes: list[Node] = field(default_factory=list)
    directives: list[Directive] = field(default_factory=list)
    escape: str = "\\"
    empty_continuations: list[int] = field(default_factory=list)


def line_ranges(start: int, end: int) -> tuple[SourceRange, ...]:
    """One range a line, at least one."""
    return tuple(SourceRange(n, n) for n in range(start, max(start, end) + 1))


def read(data: bytes, filename: str = "Dockerfile") -> Tree:
    """Cut a file into nodes; raises DockerfileError with its place."""
    return _Reader(data, filename).read()


class _Reader:
    def __init__(self, data: bytes, filename: str) -> None:
        text = data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
        self._lines = text.split("\n")
        if not self._lines[-1]:
            self._lines.pop()
            self._terminated = True
        else:
            self._terminated = False
        self._at = 0  # lines taken so far, so also the 1-based number of the last one taken
        self._data = data
        self._filename = filename
        self._tree = Tree()
        self._directives = DirectiveReader()
        self._comments: list[str] = []

    def read(self) -> Tree:
        while self._at < len(self._lines):
            line = self._start_line()
            if line:
                self._instruction(line)
        if not self._tree.nodes:
            raise self._error("file with no instructions", self._at, self._at)
        return self._tree

    def _error(self, brief: str, start: int, end: int) -> DockerfileError:
        err = DockerfileError(brief)
        err.at(Source(self._filename, self._data, line_ranges(max(start, 1), end)))
        return err

    def _take(self) -> str:
        """The next physical line without its newline."""
        line = self._lines[self._at]
        self._at += 1
        if len(line) > _LONG and len(line.encode(errors="surrogateescape")) > MAX_LINE:
            raise self._error(f"dockerfile line greater than max allowed size of {MAX_LINE}", self._at, self._at)
        return line

    def _start_line(self) -> str:
        """The next line with comments, directives and blanks gone: "" where nothing starts."""
        raw = self._take().rstrip("\r")
        line = raw.lstrip(SPACE)
        if not self._directives.done:
            self._directive(line)
            if not self._directives.done:
                return ""
        if line.startswith("#"):
            comment = raw[1:].strip(SPACE)
            if comment:
                self._comments.append(comment)
            else:
                self._comments.clear()
            return ""
        if not line:
            self._comments.clear()
        return line

    def _directive(self, line: str) -> None:
        try:
            directive = self._directives.read(line)
            if directive is None:
                return
            if directive.name == "escape":
                if directive.value not in ("`", "\\"):
                    raise DockerfileError(f"invalid escape token '{directive.value}' does not match ` or \\")
                self._tree.escape = directive.value
        except DockerfileError as err:
            raise err.at(Source(self._filename, self._data, line_ranges(self._at, self._at))) from None
        self._tree.directives.append(directive)

    def _instruction(self, line: str) -> None:
        start = self._at
        text = self._join(line)
        comments, self._comments = tuple(self._comments), []
        try:
            node = make_node(text, self._tree.escape)
        except DockerfileError as err:
            raise err.at(Source(self._filename, self._data, line_ranges(start, self._at))) from None
        heredocs = tuple(self._heredoc(doc, start) for doc in opened_by(text)) if _may_hold_heredoc(node, text) else ()
        self._tree.nodes.append(replace(node, start=start, end=self._at, comments=comments, heredocs=heredocs))

    def _join(self, line: str) -> str:
        """The logical line that starts with `line`: continuation lines follow verbatim, comments and blanks skipped."""
        escape = self._tree.escape
        head, more = _continued(line, escape)
        if not more:
            return line
        parts, blank = [head], False
        while more and self._at < len(self._lines):
            raw = self._take().rstrip("\r")
            bare = raw.lstrip(SPACE)
            if bare.startswith("#"):
                continue
            if not bare:
                blank = True
                continue
            head, more = _continued(raw, escape)
            parts.append(head)
        if blank:
            self._tree.empty_continuations.append(self._at)
        return "".join(parts)

    def _heredoc(self, doc: Heredoc, start: int) -> Heredoc:
        body: list[str] = []
        while self._at < len(self._lines):
            line = self._take()
            bare = line.rstrip("\r")
            if (bare.lstrip("\t") if doc.chomp else bare) == doc.name:
                return replace(doc, content="".join(body))
            last = self._at == len(self._lines) and not self._terminated
            body.append(line if last else line + "\n")
        raise self._error("unterminated heredoc", start, self._at)


def _continued(line: str, escape: str) -> tuple[str, bool]:
    """The line without a continuation sign at its end, and whether there was one.

    The sign is the escape token and blanks; not so when another escape token stands before it.
    """
    bare = line.rstrip(" \t")
    if bare.endswith(escape) and not bare.endswith(escape * 2):
        return bare[:-1], True
    return line, False


def _may_hold_heredoc(node: Node, line: str) -> bool:
    if "<<" not in line:
        return False
    inner = node.child or node
    return inner.name in _HEREDOC_USERS and not inner.is_json


def make_node(line: str, escape: str, *, inner: bool = False) -> Node:
    """Cut one logical line: keyword, flags, arguments in the shape the instruction wants; `inner` for a trigger."""
    keyword, _, rest = _partition_blanks(line.strip(SPACE))
    flags, args = split_flags(rest, escape) if rest else ((), "")
    name = keyword.lower()
    node = Node(name=name, keyword=keyword, original=line, flags=flags)
    shape = _SHAPES.get(name)
    if shape == "pairs":
        return replace(node, pairs=_pairs(args, name.upper(), escape))
    if shape == "trigger":
        if inner or not args:  # an ONBUILD in an ONBUILD is refused, whatever it holds
            return node
        return replace(node, child=make_node(args, escape, inner=True))
    if shape == "health":
        return _health(node, args)
    words, is_json = _words(shape, args, escape)
    return replace(node, args=words, is_json=is_json)


_SHAPES: Final = {
    "add": "json-list",
    "arg": "quoted",
    "cmd": "json-text",
    "copy": "json-list",
    "entrypoint": "json-text",
    "env": "pairs",
    "expose": "blanks",
    "from": "blanks",
    "healthcheck": "health",
    "label": "pairs",
    "maintainer": "text",
    "onbuild": "trigger",
    "run": "json-text",
    "shell": "json-text",
    "stopsignal": "text",
    "user": "text",
    "volume": "json-list",
    "workdir": "text",
}


def _words(shape: str | None, args: str, escape: str) -> tuple[tuple[str, ...], bool]:
    if not args or shape is None:
        return (), False
    if shape.startswith("json-"):
        parsed = json_array(args)
        if parsed is not None:
            return parsed, True
    if shape in ("json-list", "blanks"):
        return tuple(_BLANKS.split(args)), False
    if shape == "quoted":
        return tuple(quoted_words(args, escape)), False
    return (args,), False


def _health(node: Node, args: str) -> Node:
    kind, _, rest = _partition_space(args)
    if not kind:
        return node
    words, is_json = _words("json-text", rest, "")
    return replace(node, args=(kind, *words), is_json=is_json)


def _partition_blanks(text: str) -> tuple[str, str, str]:
    found = _BLANKS.search(text)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")


def _partition_space(text: str) -> tuple[str, str, str]:
    for i, char in enumerate(text):
        if char in SPACES:
            return text[:i], char, text[i:].lstrip(SPACE)
    return text, "", ""


def json_array(text: str) -> tuple[str, ...] | None:
    """The strings of a JSON array, or None where the text is none; an array of other things is an error."""
    text = text.lstrip(SPACE)
    if not text.startswith("["):
        return None
    try:
        parsed = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # not JSON: the shell form
        return None
    if not all(isinstance(item, str) for item in parsed):
        raise DockerfileError("when using JSON array syntax, arrays must be comprised of strings only")
    return tuple(_SURROGATE.sub("\ufffd", item) for item in parsed)


_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def _refuse_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are not JSON


def quoted_words(text: str, escape: str) -> list[str]:
    """Cut at blanks outside quotes; quotes and escapes stay for the expansion that follows."""
    if not ("'" in text or '"' in text or escape in text):
        return [w for w in _ANY_SPACE.split(text) if w]
    words: list[str] = []
    out: list[str] = []
    quoting, i, n = "", 0, len(text)
    while i < n:
        char = text[i]
        i += 1
        if char == escape and quoting != "'":
            if i < n:  # a lone escape at the end is dropped
                out.append(char + text[i])
                i += 1
        elif char in SPACES and not quoting:
            if out:
                words.append("".join(out))
                out = []
        else:
            if char == quoting:
                quoting = ""
            elif not quoting and char in "'\"":
                quoting = char
            out.append(char)
    if out:
        words.append("".join(out))
    return words


_ANY_SPACE: Final = re.compile(f"[{SPACE}]+")


def _pairs(args: str, instruction: str, escape: str) -> tuple[KeyValue, ...]:
    words = quoted_words(args, escape)
    if not words:
        return ()
    if "=" not in words[0]:
        parts = _BLANKS.split(args, maxsplit=1)
        if len(parts) < 2:
            raise DockerfileError(f"{instruction} must have two arguments")
        return (KeyValue(key=parts[0], value=parts[1], no_delim=True),)
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise DockerfileError(f"Syntax error - can't find = in {quote(word)}. Must be of the form: name=value")
        pairs.append(KeyValue(key=key, value=value))
    return tuple(pairs)


__all__ = ["MAX_LINE", "Node", "Tree", "json_array", "line_ranges", "make_node", "quoted_words", "read"]
