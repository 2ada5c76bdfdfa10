# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from chantier.dockerfile import parse
from chantier.dockerfile.directives import detect_syntax, find_directive
from chantier.errors import DockerfileError


@pytest.mark.parametrize(
    ("head", "escape"),
    [
        ("# escape=`\n", "`"),
        ("#escape=`\n", "`"),
        ("  #  EsCaPe  =  `  \r\n", "`"),
        ("\ufeff# escape=`\n", "`"),
        ("# syntax=x\n# escape=`\n", "`"),
        ("# check=skip=all\n# escape = `\n", "`"),
        ("# escape=\\\n", "\\"),
        ("# plain\n# escape=`\n", "\\"),
        ("\n# escape=`\n", "\\"),
        ("# other=1\n# escape=`\n", "\\"),
        ("#!/bin/sh\n# escape=`\n", "\\"),
    ],
)
def test_escape(head: str, escape: str) -> None:
    program = parse(f"{head}FROM a\n".encode())
    assert program.escape == escape


def test_directives_are_kept_with_their_lines() -> None:
    program = parse(b"# SYNTAX=docker/dockerfile:1 x=y\n# check=skip=all\nFROM a\n")
    assert [(d.name, d.value, d.line) for d in program.directives] == [
        ("syntax", "docker/dockerfile:1 x=y", 1),
        ("check", "skip=all", 2),
    ]


def test_a_directive_is_no_comment_of_the_first_instruction() -> None:
    program = parse(b"# check=skip=all\n# a is small\nARG a\nFROM x\n")
    assert program.meta_args[0].comments == ("a is small",)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"# syntax=docker/dockerfile:1\nFROM a\n", ("docker/dockerfile:1", "docker/dockerfile:1")),
        (b"# syntax = a/b:c d=e f\n", ("a/b:c", "a/b:c d=e f")),
        (b"\xef\xbb\xbf# syntax=x\n", ("x", "x")),
        (b"#!/usr/bin/env x\n# syntax=x\n", ("x", "x")),
        (b"# escape=`\n# Syntax=x\r\n", ("x", "x")),
        (b"// syntax=x\nanything\n", ("x", "x")),
        (b'{"syntax": "x", "other": 1}', ("x", "x")),
        (b'#!shebang\n{"syntax": "x"}', ("x", "x")),
        (b"  # syntax=x\n", None),
        (b"# hello\n# syntax=x\n", None),
        (b"\n# syntax=x\n", None),
        (b'{"syntax": 1}', None),
        (b'["syntax"]', None),
        (b"# syntax=\n", None),
        (b"", None),
        (b"[" * 100_000, None),
        (b"FROM a\n", None),
    ],
)
def test_detect_syntax(data: bytes, expected: tuple[str, str] | None) -> None:
    assert detect_syntax(data) == expected


def test_find_directive_tells_the_line_in_the_file() -> None:
    found = find_directive(b"#!x\n# escape=`\n# check=error=true\n", "check")
    assert found is not None
    assert (found.value, found.line) == ("error=true", 3)


@pytest.mark.parametrize("name", ["syntax", "escape", "check"])
def test_repeated(name: str) -> None:
    with pytest.raises(DockerfileError, match=f"^only one {name} parser directive can be used$") as caught:
        parse(f"# {name}=`\n# {name.upper()}=`\nFROM a\n".encode())
    assert caught.value.sources[0].ranges[0].start == 2
