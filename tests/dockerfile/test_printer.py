# SPDX-License-Identifier: Apache-2.0
"""Parse, print, parse: the same program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chantier.dockerfile import parse
from chantier.dockerfile.instructions import Copy, Heredoc, Run
from chantier.dockerfile.lexer import MAX_LINE
from chantier.dockerfile.printer import to_text
from chantier.errors import ChantierError, UsageError

from .same import check_round_trip, said


def printed(text: str) -> str:
    return to_text(parse(text.encode())).decode()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("from alpine as B\nrun echo  hi \\\n  there\n", "from alpine as B\nrun echo  hi   there\n"),
        ('FROM a\nCMD [ "x" , "y\\n" ]', 'FROM a\nCMD ["x", "y\\n"]\n'),
        ("FROM a\nENV  A=1   B='x y'", "FROM a\nENV A=1 B='x y'\n"),
        ("FROM a\nENV A  x y", "FROM a\nENV A x y\n"),
        ("FROM a\nEXPOSE 9 8/udp", "FROM a\nEXPOSE 8/udp 9\n"),
        ('FROM a\nCOPY ["a b", "/c"]', 'FROM a\nCOPY ["a b", "/c"]\n'),
        ('FROM a\nCOPY --chown="a b" x y', "FROM a\nCOPY --chown=a\\ b x y\n"),
        ("FROM a\nCOPY <<E b /d\nx\nE\n", "FROM a\nCOPY b <<E /d\nx\nE\n"),
        ("FROM a\nCOPY <<-'E' /d\n\tx\n\tE\n", 'FROM a\nCOPY <<-"E" /d\n\tx\nE\n'),
        ("FROM a\nRUN cat <<A 3<<B\n1\nA\n2\nB\n", "FROM a\nRUN cat <<A 3<<B\n1\nA\n2\nB\n"),
        ("FROM a\nONBUILD RUN <<E\nx\nE", "FROM a\nONBUILD RUN <<E\nx\nE\n"),
        ("FROM a\nHEALTHCHECK --retries=2 CMD x  y", "FROM a\nHEALTHCHECK --retries=2 CMD x  y\n"),
        ("FROM a\nHEALTHCHECK none", "FROM a\nHEALTHCHECK NONE\n"),
        ("FROM a\nVOLUME a b", "FROM a\nVOLUME a b\n"),
        ('FROM a\nVOLUME ["a b"]', 'FROM a\nVOLUME ["a b"]\n'),
        ("# escape=`\nFROM a\nRUN a`\n b", "# escape=`\n\nFROM a\nRUN a b\n"),
        ("\n# b what it is\nFROM a AS b", "\n# b what it is\nFROM a AS b\n"),
        ("\n# escape=`\nARG x=1\nFROM a", "\n# escape=`\nARG x=1\nFROM a\n"),
        ("FROM a\nRUN -- --x", "FROM a\nRUN -- --x\n"),
        ("FROM a\nRUN", "FROM a\nRUN\n"),
        ("FROM a\nRUN []", "FROM a\nRUN []\n"),
        ("FROM a\nRUN x\\\u00a0\nUSER u", "FROM a\nRUN x\\\u00a0\nUSER u\n"),
        ("FROM a\nRUN x\\ \\", "FROM a\nRUN x\\ \\"),
    ],
)
def test_what_is_printed(text: str, want: str) -> None:
    assert printed(text) == want
    check_round_trip(parse(text.encode()))


def test_bytes_that_are_no_text_stay() -> None:
    data = b"FROM a\nRUN x \xff\xfe\nCOPY \xe9 /\n"
    assert to_text(parse(data)) == data


@pytest.mark.parametrize("escape", ["\\", "`"])
def test_a_destination_that_is_an_escape_token_before_a_heredoc(escape: str) -> None:
    text = f"# escape={escape}\nFROM a\nADD --link : <<E {escape}\u00a0\nx\nE\n"
    check_round_trip(parse(text.encode()))


def test_a_line_longer_than_a_line_may_be_is_cut() -> None:
    words = " \\\n".join("w#" * 10 + str(i) for i in range(MAX_LINE // 10))
    program = parse(f"FROM a\nRUN {words}\n".encode())
    text = to_text(program)
    assert max(map(len, text.split(b"\n"))) <= MAX_LINE
    assert said(parse(text)) == said(program)


def test_a_changed_program_is_printed_as_it_now_is() -> None:
    program = parse(b"FROM a\nRUN x\n")
    stage = program.stages[0]
    run = stage.commands[0]
    assert isinstance(run, Run)
    changed = replace(
        program, stages=(replace(stage, base_name="b", commands=(replace(run, command=("y", "z"), shell_form=False),)),)
    )
    assert to_text(changed) == b'FROM b\nRUN ["y", "z"]\n'


def test_what_no_text_stands_for_is_refused() -> None:
    program = parse(b"FROM a\nCOPY <<E /d\nx\nE\n")
    stage = program.stages[0]
    copy = stage.commands[0]
    assert isinstance(copy, Copy)
    for wrong in (replace(copy, dest="/a b"), replace(copy, contents=(Heredoc(name="<", content=""),))):
        with pytest.raises(UsageError):
            to_text(replace(program, stages=(replace(stage, commands=(wrong,)),)))


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "malformed").glob("*.dockerfile")), ids=lambda p: p.stem)
def test_files_that_are_nearly_wrong(path: Path) -> None:
    try:
        program = parse(path.read_bytes())
    except ChantierError:
        return
    check_round_trip(program)


WORD = st.text("ab$\\\"'`[]{}=<-# ,:/.é\u00a0", min_size=1, max_size=8)
LINE = st.one_of(
    st.builds("RUN {} {}".format, WORD, WORD),
    st.builds("RUN --mount={} --network=none {}".format, WORD.filter(lambda w: w[0] not in " \u00a0"), WORD),
    st.builds("COPY --chown={} {} {}".format, WORD, WORD, WORD),
    st.builds('COPY ["{}", "{}"]'.format, WORD, WORD),
    st.builds("ADD --link {} <<E {}\n{}\nE".format, WORD, WORD, WORD),
    st.builds("COPY <<-\"E F\" <<'G' /d\n\t{}\nE F\n{}\n\tG".format, WORD, WORD),
    st.builds("RUN cat <<{0}\n{1}\n{0}".format, st.sampled_from(["E", "a-b", "x1"]), WORD),
    st.builds("ENV {}={} {}={}".format, WORD, WORD, WORD, WORD),
    st.builds("LABEL {} {}".format, WORD, WORD),
    st.builds("ARG {}={}".format, WORD, WORD),
    st.builds("{} {}".format, st.sampled_from(["USER", "Workdir", "maintainer", "STOPSIGNAL", "EXPOSE", "VOLUME", "CMD"]), WORD),
    st.builds('{} ["{}","{}"]'.format, st.sampled_from(["RUN", "CMD", "ENTRYPOINT", "SHELL", "VOLUME"]), WORD, WORD),
    st.builds("HEALTHCHECK --interval=3s CMD {}".format, WORD),
    st.builds("ONBUILD {} {}".format, st.sampled_from(["RUN", "COPY", "ENV", "--"]), WORD),
    st.builds("FROM {} AS s{}".format, WORD, st.integers(0, 9)),
    st.builds("# {}".format, WORD),
    st.just(""),
)


@given(st.sampled_from(["", "# escape=`\n", "# syntax=a b\n# check=skip=all\n"]), st.lists(LINE, max_size=6), st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_program(head: str, lines: list[str], ended: bool) -> None:
    text = head + "\n".join(["FROM base", *lines]) + ("\n" if ended else "")
    try:
        program = parse(text.encode())
    except ChantierError:
        assume(False)
        return
    check_round_trip(program)
