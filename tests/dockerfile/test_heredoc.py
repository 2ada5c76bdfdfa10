# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from chantier.dockerfile import parse
from chantier.dockerfile.heredoc import chomp, parse_word
from chantier.dockerfile.instructions import Add, Copy, Instruction, OnBuild, Run


def only(text: str | bytes) -> Instruction:
    data = text if isinstance(text, bytes) else text.encode()
    commands = parse(b"FROM a\n" + data).stages[0].commands
    assert len(commands) == 1
    return commands[0]


@pytest.mark.parametrize(
    ("word", "name", "expand", "strip", "fd"),
    [
        ("<<EOF", "EOF", True, False, 0),
        ("<<-EOF", "EOF", True, True, 0),
        ("3<<EOF", "EOF", True, False, 3),
        ("<<'EOF'", "EOF", False, False, 0),
        ('<<-"E F"', "E F", False, True, 0),
        ("<<E'O'F", "EOF", False, False, 0),
        ("<<  EOF", "EOF", True, False, 0),
        ("<<$EOF", "$EOF", True, False, 0),
        ("<<\\EOF", "EOF", True, False, 0),
    ],
)
def test_words_that_open_a_heredoc(word: str, name: str, expand: bool, strip: bool, fd: int) -> None:
    found = parse_word(word)
    assert found is not None
    assert (found.name, found.expand, found.chomp, found.fd) == (name, expand, strip, fd)


@pytest.mark.parametrize("word", ["<<", "<<-", "<EOF", "<<<EOF", "a<<EOF", "<<a b", "<<'a", "EOF", ""])
def test_words_that_open_none(word: str) -> None:
    assert parse_word(word) is None


def test_chomp() -> None:
    assert chomp("\t\ta\n\t \tb\nc\n\t\n") == "a\n \tb\nc\n\n"


def test_run() -> None:
    run = only("RUN <<EOF\necho $a\n  # kept \\\n\nEOF\n")
    assert isinstance(run, Run)
    assert run.command == ("<<EOF",)
    assert run.shell_form
    assert [h.content for h in run.heredocs] == ["echo $a\n  # kept \\\n\n"]
    assert (run.start, run.end) == (2, 6)
    assert run.code == "RUN <<EOF"


def test_two_documents_in_order() -> None:
    run = only("RUN cat <<A - <<-'B'\n1\nA\n\t2\n\tB\n")
    assert isinstance(run, Run)
    assert [(h.name, h.content, h.text, h.expand) for h in run.heredocs] == [
        ("A", "1\n", "1\n", True),
        ("B", "\t2\n", "2\n", False),
    ]


def test_the_body_starts_after_the_continuation() -> None:
    run = only("RUN cat <<A \\\n    > /f \\\n    && echo done >> /f\nbody \\\nnext\nA\n")
    assert isinstance(run, Run)
    assert run.command == ("cat <<A     > /f     && echo done >> /f",)
    assert run.heredocs[0].content == "body \\\nnext\n"


def test_copy() -> None:
    copy = only("COPY --chmod=600 <<a.txt x <<\"b c\" /d/\n$v\na.txt\n'raw'\nb c\n")
    assert isinstance(copy, Copy)
    assert copy.sources == ("x", '<<"b', 'c"')  # blanks cut COPY words before quotes are seen
    copy = only("COPY <<a.txt x <<'b' /d/\n$v\na.txt\n'raw'\nb\n")
    assert isinstance(copy, Copy)
    assert copy.sources == ("x",)
    assert copy.dest == "/d/"
    assert [(h.name, h.content, h.expand) for h in copy.contents] == [("a.txt", "$v\n", True), ("b", "'raw'\n", False)]


def test_add_with_crlf_and_no_last_newline() -> None:
    add = only(b"ADD <<EOF /x\r\na\r\nEOF")
    assert isinstance(add, Add)
    assert add.contents[0].content == "a\r\n"
    assert add.dest == "/x"


def test_bytes_survive() -> None:
    copy = only(b"COPY <<EOF /x\n\xff\xfe\nEOF\n")
    assert isinstance(copy, Copy)
    assert copy.contents[0].content.encode(errors="surrogateescape") == b"\xff\xfe\n"


def test_onbuild_keeps_the_document_in_its_text() -> None:
    trigger = only("ONBUILD RUN  <<EOF\necho hi\nEOF\n")
    assert isinstance(trigger, OnBuild)
    assert trigger.expression == "RUN  <<EOF\necho hi\nEOF"


@pytest.mark.parametrize(
    "line",
    ['RUN ["cat", "<<EOF"]', "CMD cat <<EOF", "ENV a=<<EOF", "RUN echo 1 \\<\\< 2", "RUN cat '<<EOF'", "RUN cat <<<EOF"],
)
def test_lines_that_open_none(line: str) -> None:
    assert len(parse(f"FROM a\n{line}\nUSER x\n".encode()).stages[0].commands) == 2
