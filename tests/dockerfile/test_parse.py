# SPDX-License-Identifier: Apache-2.0
"""Lines to instructions: comments, continuations, bytes, places."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chantier.dockerfile import Linter, parse, parse_trigger
from chantier.dockerfile.instructions import Env, Instruction, Label, Run
from chantier.dockerfile.lexer import MAX_LINE, json_array, quoted_words
from chantier.errors import ChantierError, DockerfileError


def commands(text: str) -> tuple[Instruction, ...]:
    return parse(text.encode()).stages[0].commands


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("RUN a \\\n  b", "a   b"),
        ("RUN a \\  \t\nb", "a b"),
        ("RUN a\\\nb", "ab"),
        ("RUN a \\\n# note\n   # more\n  b", "a   b"),
        ("RUN a \\\n\n  b", "a   b"),
        ("RUN a \\\r\n  b\r\n", "a   b"),
        ("RUN a \\", "a"),
        ("RUN \\\n \\\n  a", "a"),
        ("\\\nRUN a", "a"),
        ("   \t RUN a", "a"),
        ("RUN\t\ta  b ", "a  b"),
        ("RUN a # b", "a # b"),
        ("RUN é\u00a0", "é"),
    ],
)
def test_logical_lines(text: str, command: str) -> None:
    run = commands(f"FROM x\n{text}")[0]
    assert isinstance(run, Run)
    assert run.command == (command,)


def test_an_escaped_escape_continues_nothing() -> None:
    one, two = commands("FROM x\nLABEL one=x\\\\\nLABEL two=y\n")
    assert isinstance(one, Label)
    assert isinstance(two, Label)
    assert one.pairs[0].value == "x\\\\"


def test_the_other_escape_token() -> None:
    (label,) = commands('# escape=`\nFROM x\nLABEL a=c:\\ `\n b=`"q\n')
    assert isinstance(label, Label)
    assert [(p.key, p.value) for p in label.pairs] == [("a", "c:\\"), ("b", '`"q')]


def test_places() -> None:
    program = parse(b"\n# c\n\nARG a\nFROM x \\\n  AS y\n\nRUN b \\\n\n  c \\\n# d\n  e\nUSER f\n")
    stage = program.stages[0]
    assert [(i.name, i.start, i.end) for i in (program.meta_args[0], stage, *stage.commands)] == [
        ("arg", 4, 4),
        ("from", 5, 6),
        ("run", 8, 12),
        ("user", 13, 13),
    ]
    assert [(r.start, r.end) for r in stage.ranges] == [(5, 5), (6, 6)]
    assert program.empty_continuations == (12,)
    assert stage.commands[0].code == "RUN b   c   e"


def test_comments_above() -> None:
    program = parse(b"# far\n\n# one\n#two\nARG a\n# lost\n#\n# kept\nFROM x\nRUN a\n")
    assert program.meta_args[0].comments == ("one", "two")
    assert program.stages[0].comments == ("kept",)
    assert program.stages[0].commands[0].comments == ()


def test_bom_only_at_the_start() -> None:
    assert parse(b"\xef\xbb\xbfFROM x\n").stages[0].base_name == "x"
    with pytest.raises(DockerfileError, match="unknown instruction"):
        parse(b"FROM x\n\xef\xbb\xbfRUN a\n")


def test_keywords_in_any_case() -> None:
    program = parse(b"from x\nRun a\neNv k=v\n")
    assert [(i.name, i.keyword) for i in (program.stages[0], *program.stages[0].commands)] == [
        ("from", "from"),
        ("run", "Run"),
        ("env", "eNv"),
    ]


def test_the_longest_line() -> None:
    fits = b"RUN " + b"a" * (MAX_LINE - 4)
    parse(b"FROM x\n" + fits + b"\n")
    with pytest.raises(DockerfileError, match=r"^dockerfile line greater than max allowed size of 65535$") as caught:
        parse(b"FROM x\n" + fits + b"a\n")
    assert caught.value.sources[0].ranges[0].start == 2
    with pytest.raises(DockerfileError):
        parse(b"FROM x\nRUN " + "é".encode() * 33_000 + b"\n")


def test_flags_are_kept_as_written_without_quotes() -> None:
    (run,) = commands("FROM x\nRUN --mount='type=cache,target=/a b' --network=\"none\" -- --x\n")
    assert isinstance(run, Run)
    assert run.flags == ("--mount=type=cache,target=/a b", "--network=none")
    assert run.command == ("--x",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["a", "b"]', ("a", "b")),
        ("[]", ()),
        (' [ "a" ] ', ("a",)),
        ('["\\u00e9\\n\\ud800"]', ("é\n\ufffd",)),
        ('["a"', None),
        ('["a"] x', None),
        ("['a']", None),
        ("[NaN]", None),
        ('["a",]', None),
        ("[ -d x ] && y", None),
        ("a", None),
        ("[" * 50_000, None),
    ],
)
def test_json_form(text: str, expected: tuple[str, ...] | None) -> None:
    assert json_array(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=b c", ["a=b", "c"]),
        ("a='b c' d", ["a='b c'", "d"]),
        ('a="b \\" c" d', ['a="b \\" c"', "d"]),
        ("a='\\' b", ["a='\\'", "b"]),
        ("a\\ b", ["a\\ b"]),
        ("a\\", ["a"]),
        ("  ", []),
        ('a="b c', ['a="b c']),
        ("a\u00a0b", ["a", "b"]),
        ('""', ['""']),
    ],
)
def test_quoted_words(text: str, expected: list[str]) -> None:
    assert quoted_words(text, "\\") == expected


def test_a_trigger_stands_at_the_from_line() -> None:
    stage = parse(b"FROM x\n\nFROM y AS z\n").stages[1]
    command = parse_trigger("RUN <<EOF\nhi\nEOF", at=stage)
    assert isinstance(command, Run)
    assert (command.start, command.end, command.on_build) == (3, 3, True)
    assert command.heredocs[0].content == "hi\n"
    with pytest.raises(DockerfileError, match=r"^onbuild trigger should be a single expression$"):
        parse_trigger("RUN a\nRUN b", at=stage)
    with pytest.raises(DockerfileError, match=r"^unknown instruction: BOGUS$"):
        parse_trigger("BOGUS a", at=stage)


def test_warnings_survive_an_error() -> None:
    lint = Linter()
    with pytest.raises(DockerfileError):
        parse(b"FROM a AS Xx\nRUM true\n", lint=lint)
    assert [str(w) for w in lint.warnings] == ["StageNameCasing: Stage name 'Xx' should be lowercase (line 1)"]


def test_legacy_env_takes_the_rest_verbatim() -> None:
    env = commands('FROM x\nENV A one two   "three"\n')[0]
    assert isinstance(env, Env)
    assert [(p.key, p.value, p.no_delim) for p in env.pairs] == [("A", 'one two   "three"', True)]


WORDS = st.sampled_from(
    ["FROM", "RUN", "COPY", "ENV", "ARG", "LABEL", "ONBUILD", "HEALTHCHECK", "a", "a=b", "--x=y", "--from=b", "<<E", "E"]
    + ["\\", "#", "'", '"', "[", "]", ",", "\n", "\n", "\n", " ", " ", "\t", "\r\n", "é", "$a", "`", "AS", "\u00a0", "\ufeff"]
)


@given(st.lists(WORDS, max_size=40).map(" ".join), st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_text_gives_a_program_or_one_kind_of_error(text: str, tight: bool) -> None:
    text = text.replace(" ", "") if tight else text
    data = ("FROM a\n" + text).encode()
    try:
        program = parse(data)
    except ChantierError as err:
        assert isinstance(err, DockerfileError)
        last = data.count(b"\n") + 1
        assert all(1 <= r.start <= last for s in err.sources for r in s.ranges)
    else:
        lines = [i for s in program.stages for i in (s, *s.commands)]
        assert all(a.end < b.start for a, b in itertools.pairwise(lines))


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_program_or_one_kind_of_error(data: bytes) -> None:
    try:
        parse(data)
    except ChantierError as err:
        assert isinstance(err, DockerfileError)


def test_two_thousand_lines_parse_quickly() -> None:
    block = (
        "RUN apt-get update && \\\n    apt-get install -y x \\\n    && true\n# c\nENV A=b B='c d'\nCOPY --chown=1:1 a b /c/\n"
        'LABEL a=b c="d e"\nRUN --mount=type=cache,target=/x echo "$A"\nARG X=1\nWORKDIR /x/$A\n'
    )
    data = b"FROM a\n" + block.encode() * 200
    parse(data)
    best = min(_timed(data) for _ in range(3))
    assert best < 2  # thirty times what it takes: only what grows faster than the text is caught


def _timed(data: bytes) -> float:
    start = time.process_time()
    parse(data)
    return time.process_time() - start
