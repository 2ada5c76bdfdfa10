# SPDX-License-Identifier: Apache-2.0
"""A Program back to text: what is printed reads as the same program.

Only places are lost, and how things were written where that says nothing: blanks, quotes of flags, the order of plain and
heredoc sources. Any Program that `parse` gave can be printed; one made by hand may hold what no text stands for, which
raises UsageError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from chantier.errors import UsageError

from .gotext import SPACE, SPACES
from .heredoc import opened_by, parse_word
from .instructions import (
    Add,
    Arg,
    Cmd,
    Command,
    Copy,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Heredoc,
    Instruction,
    KeyValue,
    Label,
    Maintainer,
    OnBuild,
    Program,
    Run,
    Shell,
    Stage,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from .lexer import MAX_LINE, make_node

_SOFT: Final = "\u00a0"  # a blank that is stripped, but does not keep an escape token before it from being one
_CHUNK: Final = MAX_LINE // 4  # characters; no character takes more than four bytes


def to_text(program: Program) -> bytes:
    """The text of a program. Costs time linear in its size."""
    lines = [f"# {d.name}={d.value}" for d in program.directives]
    if lines or any(instruction.comments for instruction in _first(program)):
        lines.append("")  # what follows is a comment, whatever it looks like
    instructions = [*program.meta_args, *(i for stage in program.stages for i in (stage, *stage.commands))]
    for number, instruction in enumerate(instructions):
        lines += _Printer(instruction, program.escape, last=number + 1 == len(instructions)).lines()
    text = "\n".join(lines)
    open_end = bool(instructions) and _ends_open(lines[-1], program.escape)
    return (text if open_end else text + "\n").encode(errors="surrogateescape")


def _first(program: Program) -> Iterator[Instruction]:
    yield from program.meta_args[:1]
    yield from program.stages[:1]


def _ends_open(line: str, escape: str) -> bool:
    bare = line.rstrip(" \t")
    return bare.endswith(escape) and not bare.endswith(escape * 2)


class _Printer:
    def __init__(self, instruction: Command | Stage, escape: str, *, last: bool) -> None:
        self._of = instruction
        self._escape = escape
        self._last = last

    def lines(self) -> list[str]:
        """Comments, the instruction (in parts where it is longer than a line may be), its heredocs."""
        of = self._of
        line, bodies = self._line()
        return [*(f"# {comment}" for comment in of.comments), *self._parts(line, last=self._last and not bodies), *bodies]

    def _line(self) -> tuple[str, list[str]]:
        of = self._of
        if isinstance(of, OnBuild):
            first, *rest = of.expression.split("\n")
            return f"{of.keyword} {first}", rest
        if isinstance(of, Add | Copy):
            return self._files(of)
        line = self._with(_WRITERS[type(of)](of))
        return line, _bodies(of.heredocs) if isinstance(of, Run) else []

    def _with(self, args: str) -> str:
        """The keyword, the flags and the arguments; `--` keeps arguments from being read as flags."""
        flags = [self._flag(word) for word in self._of.flags]
        if args.startswith("--") or (flags and not args and flags[-1].endswith(tuple(SPACES))):
            flags.append("--")
        return " ".join([self._of.keyword, *flags, *([args] if args else [])])

    def _flag(self, word: str) -> str:
        # Bytes that are no UTF-8 might become some beside each other: they are kept apart too.
        special = {*SPACES, "'", '"', self._escape}
        return "".join(self._escape + char if char in special or "\udc80" <= char <= "\udcff" else char for char in word)

    def _files(self, of: Add | Copy) -> tuple[str, list[str]]:
        """Sources and destination as words, or as JSON where words would not do; bodies of the heredocs that then are open."""
        known = {doc.name: doc for doc in of.contents}
        documents = tuple(map(self._heredoc_word, of.contents))
        wanted = sorted((*of.sources, *documents))
        for line in self._candidates(of, documents):
            node = make_node(line, self._escape)
            opened = [known.get(doc.name, doc) for doc in opened_by(line)] if not node.is_json else []
            names = {doc.name for doc in opened}
            if sorted(node.args[:-1]) == wanted and node.args[-1:] == (of.dest,):
                if all(doc.name in names or not doc.content for doc in of.contents):
                    return line, _bodies(opened)
        raise UsageError(f"{of.name.upper()} of {of.sources} and {len(documents)} heredocs to {of.dest!r} cannot be written")

    def _candidates(self, of: Add | Copy, documents: tuple[str, ...]) -> Iterator[str]:
        """Heredocs after the plain sources; before them, since quotes of a source may hide them; JSON; what it was read from.

        A vertical tab between words keeps words that look like JSON from being it.
        """
        after, before = (*of.sources, *documents, of.dest), (*documents, *of.sources, of.dest)
        yield self._with(" ".join(after))
        yield self._with("\v".join(after))
        yield self._with(_json(after))
        yield self._with(" ".join(before))
        yield of.code

    def _heredoc_word(self, doc: Heredoc) -> str:
        """The word that opens `doc`: plain for one that is expanded, quoted for one that is not."""
        head = f"{doc.fd or ''}<<{'-' if doc.chomp else ''}"
        name = doc.name
        escaped = "".join("\\" + char if char in "'\"\\$" else char for char in name)
        for written in (name, f'"{name}"', f"'{name}'", escaped, f'"{escaped}"'):
            made = parse_word(head + written)
            if made is not None and (made.name, made.expand, made.chomp, made.fd) == (name, doc.expand, doc.chomp, doc.fd):
                return head + written
        raise UsageError(f"no word opens a heredoc that ends at {name!r}")

    def _parts(self, line: str, *, last: bool) -> Iterator[str]:
        """Physical lines that join to `line`. Parts never begin as a comment or blank, nor end in an escape token."""
        if _ends_open(line, self._escape):
            line += _SOFT if not last else f" {self._escape}" if line.endswith(self._escape) else self._escape
        while len(line.encode(errors="surrogateescape")) > MAX_LINE:
            at = _CHUNK
            while at > 1 and (line[at - 1] == self._escape or line[at:].lstrip(SPACE)[:1] in ("", "#", self._escape)):
                at -= 1
            if at == 1:
                raise UsageError("a line of an instruction is too long to be written")
            yield line[:at] + self._escape
            line = line[at:]
        yield line


def _bodies(documents: Sequence[Heredoc]) -> list[str]:
    """The lines after the instruction: each body and its end."""
    lines: list[str] = []
    for doc in documents:
        lines += [*doc.content.split("\n")[:-1], doc.name]
    return lines


def _json(words: Sequence[str]) -> str:
    return json.dumps(list(words), ensure_ascii=False)


def _pair(pair: KeyValue) -> str:
    return f"{pair.key} {pair.value}" if pair.no_delim else f"{pair.key}={pair.value}"


def _pairs(of: Env | Label) -> str:
    return " ".join(map(_pair, of.pairs))


def _arg(of: Arg) -> str:
    return " ".join(pair.key if pair.value is None else f"{pair.key}={pair.value}" for pair in of.args)


def _from(of: Stage) -> str:
    if not of.original_name:
        return of.base_name
    return f"{of.base_name} {'as' if of.keyword.islower() else 'AS'} {of.original_name}"


def _command(of: Run | Cmd | Entrypoint) -> str:
    return "".join(of.command) if of.shell_form else _json(of.command)


def _health(of: Healthcheck) -> str:
    kind, *words = of.test
    if kind == "CMD-SHELL":
        return f"CMD {words[0]}"
    return f"CMD {_json(words)}" if kind == "CMD" else "NONE"


def _volume(of: Volume) -> str:
    for plain in (" ".join(of.volumes), "\v".join(of.volumes)):
        if make_node(f"VOLUME -- {plain}", "\\").args == of.volumes:
            return plain
    return _json(of.volumes)


_WRITERS: Final[dict[type, Callable[..., str]]] = {
    Arg: _arg,
    Cmd: _command,
    Entrypoint: _command,
    Env: _pairs,
    Expose: lambda of: " ".join(of.ports),
    Healthcheck: _health,
    Label: _pairs,
    Maintainer: lambda of: str(of.maintainer),
    Run: _command,
    Shell: lambda of: _json(of.shell),
    Stage: _from,
    StopSignal: lambda of: str(of.signal),
    User: lambda of: str(of.user),
    Volume: _volume,
    Workdir: lambda of: str(of.path),
}


__all__ = ["to_text"]
