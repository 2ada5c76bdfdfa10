# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chantier.dockerfile.shell import Lex
from chantier.errors import DockerfileError

ENV = {
    "v": "val",
    "v_2": "two",
    "s": "set",
    "e": "",
    "f": "foobarbaz",
    "t": "a.tar.gz",
    "b": "banana",
    "r": "R",
    "w": "one two",
    "nl": "a\nb",
    "É1": "acc",
}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("plain", "plain"),
        ("$v", "val"),
        ("${v}x", "valx"),
        ("$vx", ""),
        ("$v.x", "val.x"),
        ("$v_2", "two"),
        ("a$", "a$"),
        ("$ $", "$ $"),
        ("$1x", "x"),
        ("$12x", "x"),
        ("$@|$*|$#|$?|$-|$$|$!|$0|", "||||||||"),
        ("${none}|", "|"),
        ("$v$v_2", "valtwo"),
        ("$É1", "acc"),
        ("$/", "$/"),
        # quotes and escapes
        ('"$v"', "val"),
        ("'$v'", "$v"),
        ("\"'$v'\"", "'val'"),
        ("'\"$v\"'", '"$v"'),
        ("x\"y z\"'w $v'", "xy zw $v"),
        ('""', ""),
        ("\\$v", "$v"),
        ('"\\$v"', "$v"),
        ("'\\$v'", "\\$v"),
        ("a\\ b", "a b"),
        ('"a\\ b"', "a\\ b"),
        ("\\a\\b", "ab"),
        ('"\\"q\\""', '"q"'),
        ("\\\\$v", "\\val"),
        ('"\\\\$v"', "\\val"),
        ("end\\", "end"),
        # defaults and alternatives
        ("${s:-w}|${e:-w}|${u:-w}|${s-w}|${e-w}|${u-w}|${u:-}", "set|w|w|set||w|"),
        ('"${u:-two words}"', "two words"),
        ("${s:+w}|${e:+w}|${u:+w}|${s+w}|${e+w}|${u+w}", "w|||w|w|"),
        ("${u:-${n:-${s}}}", "set"),
        ("${s:+${u:-x}y}", "xy"),
        ("${u:-a\\}b}", "a}b"),
        ("${u:-'a}b'}", "a}b"),
        ("${s:?never}", "set"),
        ("${s?never}${e?never}", "set"),
        # patterns
        ("${f#foo}|${f#*b}|${f##*b}|${f#???}|${f#zzz}|${u#x}", "barbaz|arbaz|az|barbaz|foobarbaz|"),
        ("${t%.gz}|${t%.*}|${t%%.*}|${t%??}|${t%x}|${t%*}|${t%%*}", "a.tar|a.tar|a|a.tar.|a.tar.gz|a.tar.gz|"),
        (
            "${b/a/o}|${b//a/o}|${b/an/}|${b//an/}|${b//?n/$r}|${b/x/y}|${b//a/${r}2}",
            "bonana|bonono|bana|ba|bRRa|banana|bR2nR2nR2",
        ),
        ("${b/a*a/X}", "bX"),
        ("${b//*/X}", "X"),
        ("${b//[an]/X}", "banana"),
        ("${t/./-}", "a-tar.gz"),
        ("${b/a/$0}", "bnana"),
        ("${b//a/\\$0}", "b\\an\\an\\a"),  # the template sees $0 behind a backslash that stays
        ("${nl#*}|${nl##*}", "a\nb|\nb"),
        ("${u:-a<b}", "a<b"),
    ],
)
def test_expansion(word: str, expected: str) -> None:
    assert Lex().expand(word, ENV).text == expected
    assert Lex().process_word(word, ENV) == expected


@pytest.mark.parametrize(
    ("word", "cause"),
    [
        ("${v:=x}", "unsupported modifier (:=) in substitution"),
        ("${v=x}", "unsupported modifier (=) in substitution"),
        ("${v:#x}", "unsupported modifier (:#) in substitution"),
        ("${v:%x}", "unsupported modifier (:%) in substitution"),
        ("${v", "unsupported modifier (\ufffd) in substitution"),
        ("${v^^}", "unsupported modifier (^) in substitution"),
        ("${", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${{v}}", "syntax error: bad substitution"),
        ("${:-x}", "syntax error: bad substitution"),
        ("${v:-x", "syntax error: missing '}'"),
        ("${v#x", "syntax error: missing '}'"),
        ("${v/x", "syntax error: missing '/' in ${}"),
        ("${v/x/y", "syntax error: missing '}'"),
        ('"b c', "unexpected end of statement while looking for matching double-quote"),
        ("'b c", "unexpected end of statement while looking for matching single-quote"),
        ("${u:?give a u}", "u: give a u"),
        ("${u?}", "u: is not allowed to be unset"),
        ("${u:?}", "u: is not allowed to be unset"),
        ("${e:?}", "e: is not allowed to be empty"),
        ("${e:?${s}}", "e: set"),
        ("${v#\\x}", "invalid pattern (\\x) in substitution: invalid escape '\\x'"),
    ],
)
def test_refusals(word: str, cause: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        Lex().process_word(word, ENV)
    quoted = word.replace("\\", "\\\\").replace('"', '\\"')
    assert caught.value.brief == f'failed to process "{quoted}": {cause}'


def test_the_other_escape_token() -> None:
    lex = Lex("`")
    assert lex.process_word("`$v", ENV) == "$v"
    assert lex.process_word("\\$v", ENV) == "\\val"
    assert lex.process_word('"`$v`""', ENV) == '$v"'
    assert lex.process_word("'`$v'", ENV) == "`$v"
    assert lex.process_word("a` b", ENV) == "a b"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a b  c", ("a", "b", "c")),
        ('"a b" c', ("a b", "c")),
        ("a\\ b c", ("a b", "c")),
        ("$w", ("one", "two")),
        ('"$w"', ("one two",)),
        ("x$w", ("xone", "two")),
        ("  ", ()),
        ("", ()),
        ("$u", ()),
        ("<<  EOF x", ("<<  EOF", "x")),
        ("a < b", ("a", "<", "b")),
    ],
)
def test_cutting_into_words(word: str, expected: tuple[str, ...]) -> None:
    assert Lex().process_words(word, ENV) == expected


def test_names_found_and_not_found() -> None:
    got = Lex().expand("$v ${u:-$n} \"$e\" ${v} '$x' \\$y $u", ENV)
    assert got.matched == ("v", "e")
    assert got.unmatched == ("n", "u")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RUN echo \"$v\" '$v' $u", "RUN echo \"val\" '$v' $u"),
        ("${v} ${u} ${u:-x} ${u#a} ${u/a/b} ${s:-x}", "val ${u} ${u:-x} ${u#a} ${u/a/b} set"),
        ("it's broken $v", "it's broken $v"),
    ],
)
def test_display(text: str, expected: str) -> None:
    assert Lex().display(text, ENV) == expected


def test_heredoc_bodies_know_no_quotes() -> None:
    assert Lex("`").body('it\'s "$v" \\$v $u.\n', ENV) == 'it\'s "val" $v .\n'


PLAIN = st.text(st.characters(blacklist_characters="$'\"\\", blacklist_categories=["Cs"]))
NAMES = st.sampled_from(["v", "s", "e", "u", "w"])


@given(PLAIN)
def test_plain_text_stays(text: str) -> None:
    got = Lex().expand(text, ENV)
    assert got.text == text
    assert got.unmatched == got.matched == ()


@given(st.text(st.characters(blacklist_characters="'", blacklist_categories=["Cs"])))
def test_single_quotes_shield_everything(text: str) -> None:
    assert Lex().process_word(f"'{text}'", ENV) == text


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=30))
def test_escaping_every_character_shields_everything(text: str) -> None:
    assert Lex().process_word("".join("\\" + c for c in text), ENV) == text


@given(st.text("ab$'\"\\{}:-+?#%/<*! \t1é", max_size=40))
@settings(max_examples=400)
def test_any_text_gives_a_result_or_one_kind_of_error(text: str) -> None:
    try:
        got = Lex().expand(text, ENV)
    except DockerfileError as err:
        assert err.brief.startswith("failed to process ")
    else:
        assert "".join("".join(got.words).split()) == "".join(got.text.split())
        assert Lex().process_word(text, ENV) == got.text


@st.composite
def references(draw: st.DrawFn, depth: int = 2) -> tuple[str, str]:
    """A reference and its meaning, from a model that looks at nothing but the table of section 1.6."""
    name = draw(NAMES)
    value = ENV.get(name)
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from([f"${{{name}}}", f"${{{name}:-}}"])), value or ""
    operator = draw(st.sampled_from([":-", "-", ":+", "+"]))
    word, meaning = draw(references(depth=depth - 1))
    absent = value is None or (":" in operator and value == "")
    if operator.endswith("-"):
        return f"${{{name}{operator}{word}}}", meaning if absent else value or ""
    return f"${{{name}{operator}{word}}}", "" if absent else meaning


@given(st.lists(st.one_of(references(), st.text("xyz .", max_size=3).map(lambda t: (t, t))), max_size=6))
def test_nested_references_mean_what_the_table_says(parts: list[tuple[str, str]]) -> None:
    word = "".join(p[0] for p in parts)
    meaning = "".join(p[1] for p in parts)
    assert Lex().process_word(word, ENV) == meaning
    assert Lex().process_word(f'"{word}"', ENV) == meaning
    assert Lex().expand(f"{word}", ENV).words == tuple(meaning.split())


def glob(pattern: str, text: str) -> bool:
    """Whether a pattern of `*` and `?` covers the whole text, by trying everything."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(glob(pattern[1:], text[i:]) for i in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and glob(pattern[1:], text[1:])


@given(st.text("ab", max_size=6), st.text("ab*?", max_size=5))
@settings(max_examples=300)
def test_stripping_matches_the_definition(value: str, pattern: str) -> None:
    env = {"x": value}
    n = len(value)
    heads = [i for i in range(n + 1) if glob(pattern, value[:i])]
    tails = [i for i in range(n + 1) if glob(pattern, value[i:])]
    assert Lex().process_word(f"${{x#{pattern}}}", env) == (value[heads[0] :] if heads else value)
    assert Lex().process_word(f"${{x##{pattern}}}", env) == (value[heads[-1] :] if heads else value)
    assert Lex().process_word(f"${{x%{pattern}}}", env) == (value[: tails[-1]] if tails else value)
    assert Lex().process_word(f"${{x%%{pattern}}}", env) == (value[: tails[0]] if tails else value)


@given(st.text("ab\n", max_size=6), st.text("ab*?", min_size=1, max_size=4), st.booleans())
@settings(max_examples=300)
def test_replacing_matches_the_definition(value: str, pattern: str, everywhere: bool) -> None:
    def longest(start: int) -> int:
        ends = [end for end in range(start, len(value) + 1) if covers(pattern, value[start:end])]
        return max(ends, default=-1)

    out, at, last = "", 0, 0
    while at <= len(value):
        end = longest(at)
        if end < 0:
            at += 1
            continue
        out += value[last:at]
        if end > last or at == 0:
            out += "X"
        last, at = end, max(at + 1, end)
        if not everywhere:
            break
    out += value[last:]
    slash = "//" if everywhere else "/"
    assert Lex().process_word(f"${{x{slash}{pattern}/X}}", {"x": value}) == out


def covers(pattern: str, text: str) -> bool:
    return glob(pattern, text) and ("\n" not in text)


def test_hostile_words_end_soon() -> None:
    start = time.process_time()
    assert Lex().process_word("${v##" + "*a" * 20 + "b}", {"v": "a" * 20_000}) == "a" * 20_000
    assert Lex().process_word("${v//*a*a*b/x}", {"v": "a" * 5_000}) == "a" * 5_000
    with pytest.raises(DockerfileError, match="nested too deeply"):
        Lex().process_word("${a:-" * 12_000 + "}" * 12_000, {})
    assert time.process_time() - start < 30
