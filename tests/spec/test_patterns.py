# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chantier.errors import ChantierError
from chantier.spec.patterns import Filter, Parents, Patterns, check_syntax, read_ignore


@pytest.mark.parametrize(
    ("pattern", "hits", "misses"),
    [
        ("a", ["a", "a/b", "a/b/c"], ["ab", "b/a", "b"]),
        ("a/b", ["a/b", "a/b/c"], ["a", "x/a/b"]),
        ("./a/", ["a", "a/b"], ["b"]),
        ("a/../b", ["b"], ["a"]),
        ("*", ["a", "a/b", ".x"], []),
        ("*.md", ["x.md", ".md", "x.md/y"], ["a/x.md", "xmd"]),
        ("*/x", ["a/x", "a/x/y"], ["x", "a/b/x"]),
        ("a?c", ["abc", "a.c"], ["ac", "a/c", "abbc"]),
        ("**", ["a", "a/b"], []),
        ("**/x", ["x", "a/x", "a/b/x", "x/y"], ["xa", "a/xb"]),
        ("**x", ["x", "ax", "a/bx"], ["xa"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "ab"]),
        ("a**", ["a", "ab", "a/b"], ["b"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a/xb", "b"]),
        ("a**b", ["ab", "ax/b", "a/x/b"], ["axb"]),
        ("**/*.go", ["x.go", "a/x.go", "a/b/x.go"], ["x.goo"]),
        ("**/a/**", ["a/x", "z/a/x"], ["za/x", "a"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "x"]),
        ("[^a-c]x", ["dx", "/x"], ["ax"]),
        ("[a\\-c]x", ["ax", "-x", "cx"], ["bx"]),
        ("[\\]]x", ["]x"], ["x"]),
        ("\\*", ["*"], ["a"]),
        ("\\a", [], ["a", "b"]),  # what \a means to the expression: a bell
        ("a.b", ["a.b"], ["axb"]),
        ("*.b+", ["x.b+"], ["x.bb"]),
        ("a(b)|{c}$*", ["a(b)|{c}$x"], ["a"]),
        ("é*", ["éa"], ["e"]),
        ("a b*", ["a bc"], ["ab"]),
        ("*^b", [], ["a^b"]),  # a caret outside a class is the start of the text
        ("a^b", ["a^b"], ["ab"]),  # but not where nothing else is special
    ],
)
def test_one_pattern(pattern: str, hits: list[str], misses: list[str]) -> None:
    patterns = Patterns([pattern])
    assert [p for p in hits if not patterns.matches(p)] == []
    assert [p for p in misses if patterns.matches(p)] == []


@pytest.mark.parametrize(
    ("patterns", "kept", "left_out"),
    [
        (["*.md", "!README.md"], ["README.md", "x"], ["a.md"]),
        (["*", "!a", "a/b"], ["a/c", "a"], ["a/b", "x"]),
        (["!a", "a"], [], ["a"]),
        (["a", "!a/b", "a/b/c"], ["a/b", "a/b/d"], ["a", "a/x", "a/b/c"]),
        (["**/*.txt", "!**/keep.txt", "x/keep.txt"], ["keep.txt", "y/keep.txt"], ["x/keep.txt", "a.txt"]),
        (["", "  ", "a"], ["b"], ["a"]),
        ([], ["a"], []),
    ],
)
def test_lists(patterns: list[str], kept: list[str], left_out: list[str]) -> None:
    compiled = Patterns(patterns)
    assert [p for p in kept if compiled.matches(p)] == []
    assert [p for p in left_out if not compiled.matches(p)] == []


def test_exact_looks_at_no_parents() -> None:
    compiled = Patterns(["a", "!a/b"])
    assert compiled.matches_exact("a")
    assert not compiled.matches_exact("a/c")


@pytest.mark.parametrize("pattern", ["[a", "[]", "[]a]", "[^]", "a\\", "[a-]", "[-a]", "[a-\\", "\\q", "[\\", "[z-a]x", "[a]["])
def test_malformed(pattern: str) -> None:
    with pytest.raises(ChantierError) as caught:
        Patterns([pattern])
    assert caught.value.brief == "syntax error in pattern"


def test_a_lone_negation_is_refused() -> None:
    with pytest.raises(ChantierError) as caught:
        Patterns([" ! "])
    assert caught.value.brief == 'illegal exclusion pattern: "!"'


@pytest.mark.parametrize("pattern", ["a", "*", "[a]", "[^a-z]", "[a\\]]", "\\[", "a]", "[a*b?]", "", "[\\a]"])
def test_well_formed(pattern: str) -> None:
    check_syntax(pattern)


def test_reading_a_file() -> None:
    data = "\ufeff# note\n *.md \r\n\n  # pattern\n! /a/../b/\n/x\n/\n./y/./z\n#also\n!\n!é \n".encode()
    assert read_ignore(data) == ["*.md", "# pattern", "!b", "x", "/", "y/z", "!", "!é"]
    assert read_ignore(b"") == []
    assert read_ignore(b"\xff\n") == ["\udcff"]


def test_walks_skip_what_nothing_can_bring_back() -> None:
    assert not Patterns(["a"]).may_return_below("a")
    patterns = Patterns(["a", "b", "!a/x/y", "!c/**"])
    assert patterns.may_return_below("a")
    assert patterns.may_return_below("a/x")
    assert not patterns.may_return_below("a/z")
    assert not patterns.may_return_below("b")
    assert Patterns(["a", "!**/x"]).may_return_below("a")
    assert not Patterns(["aa", "!a"]).may_return_below("aa")


def test_walks_enter_what_an_include_may_want() -> None:
    patterns = Patterns(["a/b/c", "d/*"])
    assert patterns.may_match_below("a")
    assert patterns.may_match_below("a/b")
    assert not patterns.may_match_below("a/x")
    assert patterns.may_match_below("d")
    assert Patterns(["*/x"]).may_match_below("anything")


TREE = ["a/", "a/b/", "a/b/c", "a/b/d.md", "a/e", "f.md", "g/", "g/h/", "g/h/i"]


def walk(chosen: Filter) -> list[str]:
    """The files a walk over TREE keeps; it looks below a directory only when told to."""
    kept = []
    states: dict[str, tuple[Parents, Parents]] = {"": ((), ())}
    for entry in TREE:
        path = entry.rstrip("/")
        parent = path.rpartition("/")[0]
        if parent not in states:
            continue
        verdict = chosen.look(path, directory=entry.endswith("/"), state=states[parent])
        if verdict.descend:
            states[path] = verdict.state
        if verdict.keep and not entry.endswith("/"):
            kept.append(path)
    return kept


@pytest.mark.parametrize(
    ("includes", "excludes", "kept"),
    [
        ([], [], ["a/b/c", "a/b/d.md", "a/e", "f.md", "g/h/i"]),
        (["a"], [], ["a/b/c", "a/b/d.md", "a/e"]),
        (["a/b/c", "g"], [], ["a/b/c", "g/h/i"]),
        (["**/*.md"], [], ["a/b/d.md", "f.md"]),
        ([], ["a", "!a/b/c"], ["a/b/c", "f.md", "g/h/i"]),
        ([], ["*", "!**/i"], ["g/h/i"]),
        (["a"], ["**/*.md"], ["a/b/c", "a/e"]),
        (["x"], [], []),
    ],
)
def test_filter(includes: list[str], excludes: list[str], kept: list[str]) -> None:
    assert walk(Filter(includes=includes, excludes=excludes)) == kept


def test_filter_names_the_bad_list() -> None:
    with pytest.raises(ChantierError) as caught:
        Filter(includes=["[a"])
    assert caught.value.brief == "invalid includepatterns: [[a]: syntax error in pattern"


# A literal model of the token table, without the fast paths and without regular expressions.


def model_hit(pattern: str, path: str) -> bool:
    stars = len(re.findall(r"\*\*", pattern))
    plain = re.sub(r"\*\*", "", pattern)
    if not re.search(r"[*?\[\]\\]", plain):  # the fast paths of the table
        if pattern.startswith("**") and stars == 1:
            rest = pattern[2:]
            return path.endswith(rest) or (rest.startswith("/") and path == rest[1:])
        if pattern.endswith("**") and stars == 1:
            return path.startswith(pattern[:-2])
        if stars == 0:
            return path == pattern
    return model_match(pattern, path)


def model_match(pattern: str, path: str) -> bool:
    if not pattern:
        return not path
    if pattern.startswith("**"):
        rest = pattern[2:].removeprefix("/")
        if not rest:
            return True
        starts = [0] + [i + 1 for i, c in enumerate(path) if c == "/"]
        return any(model_match(rest, path[i:]) for i in starts)
    if pattern[0] == "*":
        run = len(path) if "/" not in path else path.index("/")
        return any(model_match(pattern[1:], path[i:]) for i in range(run + 1))
    if not path:
        return False
    if pattern[0] == "?":
        return path[0] != "/" and model_match(pattern[1:], path[1:])
    if pattern[0] == "[":
        end = pattern.index("]")
        inside = pattern[1:end]
        negated = inside.startswith("^")
        return ((path[0] in inside.removeprefix("^")) != negated) and model_match(pattern[end + 1 :], path[1:])
    if pattern[0] == "\\":
        return path[0] == pattern[1] and model_match(pattern[2:], path[1:])
    return path[0] == pattern[0] and model_match(pattern[1:], path[1:])


def model_matches(patterns: list[str], path: str) -> bool:
    parts = path.split("/")
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    matched = False
    for text in patterns:
        negated, pattern = text.startswith("!"), text.removeprefix("!")
        if negated == matched and any(model_hit(pattern, p) for p in above):
            matched = not negated
    return matched


NAME = st.text("ab.", min_size=1, max_size=3).filter(lambda t: t.strip("."))
PATHS = st.lists(NAME, min_size=1, max_size=4).map("/".join)
PIECES = st.sampled_from(["a", "b", ".", "*", "?", "[ab]", "[^a]", "\\.", "\\*", "+", "$"])
PART = st.lists(PIECES, min_size=1, max_size=3).map("".join).filter(lambda t: t not in (".", "..", "...") and "**" not in t)
PATTERNS = st.lists(st.one_of(PART, st.just("**")), min_size=1, max_size=4).map("/".join)
SIGNED = st.tuples(st.sampled_from(["", "", "!"]), PATTERNS).map("".join)


@given(st.lists(SIGNED, max_size=5), st.lists(PATHS, min_size=1, max_size=5))
@settings(max_examples=600)
def test_the_matcher_agrees_with_the_model(patterns: list[str], paths: list[str]) -> None:
    compiled = Patterns(patterns)
    for path in paths:
        assert compiled.matches(path) == model_matches(patterns, path), (patterns, path)


def model_walk(patterns: list[str], path: str) -> tuple[bool, list[bool]]:
    """What a walk knows of a path: the answer, and for each pattern whether it was seen to hit here or above."""
    above = path.rpartition("/")[0]
    known = model_walk(patterns, above)[1] if above else [False] * len(patterns)
    matched = False
    for i, text in enumerate(patterns):
        negated, pattern = text.startswith("!"), text.removeprefix("!")
        if not known[i] and negated == matched:  # a pattern that could change nothing is not looked at
            known[i] = model_hit(pattern, path)
        if known[i]:
            matched = not negated
    return matched, known


@given(st.lists(SIGNED, max_size=5), PATHS)
@settings(max_examples=400)
def test_a_walk_agrees_with_its_model(patterns: list[str], path: str) -> None:
    compiled = Patterns(patterns)
    parts = path.split("/")
    state: Parents = ()
    skipped = got = False
    for i in range(len(parts)):
        here = "/".join(parts[: i + 1])
        got, state = compiled.matches_in_walk(here, state)
        assert got == model_walk(patterns, here)[0]
        skipped = skipped or (got and not compiled.may_return_below(here))
    assert got or not skipped
    if not any(p.startswith("!") for p in patterns):
        assert got == compiled.matches(path)


@given(st.lists(st.sampled_from(["*", "**/", "a", "?", "/", "[ab]", "**"]), min_size=4, max_size=14).map("".join), PATHS)
@settings(max_examples=400)
def test_the_machine_agrees_with_the_expression(text: str, path: str) -> None:
    pattern = Patterns([text.strip("/") or "*"]).all[0]
    if pattern.machine is not None and pattern.regex is not None:
        assert pattern.machine.covers(path) == (pattern.regex.match(path) is not None)


def test_many_stars_take_no_time() -> None:
    start = time.process_time()
    assert not Patterns(["*a" * 30 + "b"]).matches("a" * 255)
    assert not Patterns(["**/a/" * 10 + "b"]).matches("a/" * 200 + "c")
    assert not Patterns(["[a?*]*" * 6 + "x"]).matches("a" * 255)
    assert time.process_time() - start < 20


@given(st.lists(st.text("ab/*?[]^\\!-. é", max_size=8), max_size=4), st.text("ab/*", min_size=1, max_size=8))
@settings(max_examples=400)
def test_any_pattern_compiles_or_is_refused_at_once(patterns: list[str], path: str) -> None:
    try:
        compiled = Patterns(patterns)
    except ChantierError as err:
        assert err.brief in ("syntax error in pattern", 'illegal exclusion pattern: "!"')
    else:
        compiled.matches(path)
