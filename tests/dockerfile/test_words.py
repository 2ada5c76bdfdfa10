# SPDX-License-Identifier: Apache-2.0
"""Small texts: flags, mounts, ports, durations, quoting, suggestions, signals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chantier.dockerfile import Lex, parse
from chantier.dockerfile.flags import split_flags
from chantier.dockerfile.gotext import csv_fields, format_duration, parse_duration, parse_size, parse_uint, quote
from chantier.dockerfile.instructions import Device, Run
from chantier.dockerfile.mounts import Mount, mount_froms, parse_device, parse_mounts
from chantier.dockerfile.names import INSTRUCTIONS, check_signal, edit_distance, nearest
from chantier.dockerfile.ports import parse_port
from chantier.errors import DockerfileError


@pytest.mark.parametrize(
    ("line", "words", "rest"),
    [
        ("--a=b --c d e", ("--a=b", "--c"), "d e"),
        ("a --b", (), "a --b"),
        ("--a='b c' \"--d\" e", ("--a=b c",), '"--d" e'),
        ("--a=b\\ c\\'d e", ("--a=b c'd",), "e"),
        ("-- --a b", (), "--a b"),
        ("--a -- b", ("--a",), "b"),
        ("--a", ("--a",), ""),
        ("--a='b", ("--a=b",), ""),
        ("- a", (), "- a"),
        ("", (), ""),
    ],
)
def test_split_flags(line: str, words: tuple[str, ...], rest: str) -> None:
    assert split_flags(line, "\\") == (words, rest)


def mounts(text: str, env: dict[str, str] | None = None) -> tuple[Mount, ...]:
    run = parse(f"FROM a\nRUN {text} true\n".encode()).stages[0].commands[0]
    assert isinstance(run, Run)
    return parse_mounts(run, lambda word: Lex().process_word(word, env or {}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("target=/x", Mount(target="/x")),
        ("type=BIND,from=s,src=a,dst=/b,rw", Mount(from_="s", source="a", target="/b", read_only=False)),
        ("type=bind,target=/b,ro=false", Mount(target="/b", read_only=False)),
        ("type=bind,target=/b,rw=false", Mount(target="/b")),
        (
            "type=cache,destination=/c,id=$i,sharing=LOCKED,mode=0755,uid=1,gid=2",
            Mount(type="cache", target="/c", cache_id="one", sharing="locked", mode=0o755, uid=1, gid=2, read_only=False),
        ),
        ("type=cache,target=/c,readonly", Mount(type="cache", target="/c")),
        ("type=tmpfs,target=/t,size=1.5g", Mount(type="tmpfs", target="/t", size=1610612736, read_only=False)),
        ("type=secret,id=s,required,env=E", Mount(type="secret", cache_id="s", required=True, env="E")),
        ("type=secret,source=s,required=false", Mount(type="secret", source="s")),
        ("type=ssh,required=1", Mount(type="ssh", required=True)),
        ('type=cache,\\"target=/a,b\\"', Mount(type="cache", target="/a,b", read_only=False)),
        ("type=$t,target=${x:-/d}", Mount(type="cache", target="/d", read_only=False)),
    ],
)
def test_mounts(text: str, expected: Mount) -> None:
    assert mounts(f"--mount={text}", {"i": "one", "t": "cache"}) == (expected,)


@pytest.mark.parametrize(
    ("text", "brief"),
    [
        ("type=cach,target=/x", 'unsupported mount type "cach" (did you mean cache?)'),
        ("type=volume,target=/x", 'unsupported mount type "volume"'),
        ("type=cache,targt=/x", "unexpected key 'targt' in 'targt=/x' (did you mean target?)"),
        ("type=cache,bogus=/x", "unexpected key 'bogus' in 'bogus=/x'"),
        ("type=cache,target", "invalid field 'target' must be a key=value pair"),
        ("type=bind,target=/x,required", "unexpected key 'required' for mount type 'bind'"),
        ("type=cache,required=true", "unexpected key 'required' for mount type 'cache'"),
        ("size=1,type=tmpfs", "unexpected key 'size' for mount type 'bind'"),
        ("type=tmpfs,size=much", "invalid value for size: much"),
        ("type=cache,sharing=exclusive", 'unsupported sharing value "exclusive"'),
        ("type=cache,sharing=share", 'unsupported sharing value "share" (did you mean shared?)'),
        ("type=bind,sharing=shared", "invalid cache sharing set for bind mount"),
        ("type=cache,mode=9", "invalid value 9 for mode"),
        ("type=cache,uid=-1", "invalid value -1 for uid"),
        ("type=cache,gid=x", "invalid value x for gid"),
        ("type=bind,mode=7", 'mode not allowed for "bind" type mounts'),
        ("type=tmpfs,uid=7", 'uid not allowed for "tmpfs" type mounts'),
        ("type=bind,ro=maybe", "invalid value for ro: maybe"),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,id=a,source=b", "both source and id can't be set"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=secret,id=a,sharing=shared", "secret mount should not define sharing"),
        ("type=cache,target=${x:?no x}", 'failed to process "${x:?no"'),
    ],
)
def test_mount_refusals(text: str, brief: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        mounts(f"--mount={text}")
    assert caught.value.brief == brief or caught.value.brief.startswith(brief + ":")


def test_froms_are_known_before_expansion() -> None:
    run = parse(b"FROM a\nRUN --mount=from=x,target=$y --mount=type=$z --mount=from=a$ true\n").stages[0].commands[0]
    assert isinstance(run, Run)
    assert mount_froms(run) == ("x", "", "a$")


def test_devices() -> None:
    assert parse_device("vendor.com/class=name") == Device(name="vendor.com/class=name")
    assert parse_device("name=x,required=false") == Device(name="x")
    assert parse_device("x,required") == Device(name="x", required=True)
    for text, brief in [
        ("x,y", "invalid field 'y' must be a key=value pair"),
        ("x,requird=1", "unexpected key 'requird' in 'requird=1' (did you mean required?)"),
        ("x,required=y", "invalid value for required: y"),
    ]:
        with pytest.raises(DockerfileError) as caught:
            parse_device(text)
        assert caught.value.brief == brief


@pytest.mark.parametrize(
    ("word", "ports", "upper", "mapped"),
    [
        ("80", ("80/tcp",), False, False),
        ("53/udp", ("53/udp",), False, False),
        ("132/SCTP", ("132/sctp",), True, False),
        ("7000-7002", ("7000/tcp", "7001/tcp", "7002/tcp"), False, False),
        ("80-80", ("80/tcp",), False, False),
        ("80/", ("80/tcp",), False, False),
        ("8080:80", ("80/tcp",), False, True),
        ("8080-8090:80", ("80/tcp",), False, True),
        ("127.0.0.1:90:91/Tcp", ("91/tcp",), True, True),
        ("[::1]:90:91", ("91/tcp",), False, True),
        ("::1:90:91", ("91/tcp",), False, True),
    ],
)
def test_ports(word: str, ports: tuple[str, ...], upper: bool, mapped: bool) -> None:
    got = parse_port(word)
    assert (got.exposed, got.proto_upper, got.mapped) == (ports, upper, mapped)


@pytest.mark.parametrize(
    ("word", "brief"),
    [
        ("80/foo", 'invalid port: "80/foo": invalid proto: foo'),
        ("/tcp", 'invalid port: "/tcp": no port specified'),
        ("", 'invalid port: "": no port specified'),
        ("80a", "invalid containerPort: 80a"),
        ("65536", "invalid containerPort: 65536"),
        ("90-80", "invalid containerPort: 90-80"),
        ("-80", "invalid containerPort: -80"),
        ("x:80", "invalid hostPort: x"),
        ("1.2.3:80:80", "invalid IP address: 1.2.3"),
        ("1-3:80-81", "invalid ranges specified for container and host Ports: 80-81 and 1-3"),
    ],
)
def test_port_refusals(word: str, brief: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse_port(word)
    assert caught.value.brief == brief


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1ns", 1),
        ("1us", 1_000),
        ("1\xb5s", 1_000),
        ("1.5s", 1_500_000_000),
        (".5s", 500_000_000),
        ("1h2m3s", 3_723_000_000_000),
        ("-1m", -60_000_000_000),
        ("+1m", 60_000_000_000),
    ],
)
def test_durations(text: str, value: int) -> None:
    assert parse_duration(text) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5\xb5s"),
        (500_000_000, "500ms"),
        (1_000_000_000, "1s"),
        (1_500_000_000, "1.5s"),
        (90_000_000_000, "1m30s"),
        (60_000_000_000, "1m0s"),
        (3_600_000_000_000, "1h0m0s"),
        (-90_000_000_000, "-1m30s"),
    ],
)
def test_durations_as_text(value: int, text: str) -> None:
    assert format_duration(value) == text
    assert parse_duration(text) == value


@given(st.integers(-(1 << 62), 1 << 62))
def test_durations_round_trip(value: int) -> None:
    assert parse_duration(format_duration(value)) == value


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a b", '"a b"'),
        ('a"\\', '"a\\"\\\\"'),
        ("\n\t\x01\x7f", '"\\n\\t\\x01\\x7f"'),
        ("é", '"é"'),
        ("\u200b", '"\\u200b"'),
        ("\udcff", '"\\xff"'),
    ],
)
def test_quote(text: str, quoted: str) -> None:
    assert quote(text) == quoted


@pytest.mark.parametrize(
    ("text", "size"),
    [("64m", 67108864), ("1.5GiB", 1610612736), ("100", 100), ("100b", 100), ("1 kb", 1024), ("", None), ("x", None)]
    + [("-1", None), ("1xb", None), ("1mib", 1048576), ("1mi", None), ("1.2.3m", None)],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size(text) == size


def test_unsigned() -> None:
    assert parse_uint("755", 8) == 0o755
    assert parse_uint("8", 8) is None
    assert parse_uint("4294967296", 10) is None
    assert parse_uint("+1", 10) is None
    assert parse_uint("", 10) is None


@pytest.mark.parametrize(
    ("line", "fields"),
    [("a,b", ["a", "b"]), ('"a,b",c', ["a,b", "c"]), ('"a""b"', ['a"b']), ("a,", ["a", ""]), (",", ["", ""]), ('""', [""])],
)
def test_csv(line: str, fields: list[str]) -> None:
    assert csv_fields(line) == fields


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"])), min_size=1).filter(lambda f: f != [""]))
def test_csv_reads_what_a_writer_writes(fields: list[str]) -> None:
    assert csv_fields(",".join('"' + f.replace('"', '""') + '"' for f in fields)) == fields


def test_suggestions() -> None:
    assert nearest("FORM", INSTRUCTIONS, ignore_case=True) == "FROM"
    assert nearest("rum", INSTRUCTIONS, ignore_case=True) == "run"
    assert nearest("Rum", INSTRUCTIONS, ignore_case=True) == "run"
    assert nearest("vresion", ["version", "PATH"]) == "version"
    assert nearest("dest", ["version"]) == ""
    assert nearest("version", ["Version", "version"]) == ""
    assert nearest("ab", ["abc", "abd"]) == "abc"


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance(a: str, b: str) -> None:
    def slow(x: str, y: str) -> int:
        if not x or not y:
            return len(x) + len(y)
        return min(slow(x[1:], y) + 1, slow(x, y[1:]) + 1, slow(x[1:], y[1:]) + (x[0] != y[0]))

    assert min(edit_distance(a, b, 3), 3) == min(slow(a, b), 3)


@pytest.mark.parametrize("text", ["SIGTERM", "term", "15", "SIGRTMIN+3", "rtmax-14", "SIGKILL", "99"])
def test_signals(text: str) -> None:
    check_signal(text)


@pytest.mark.parametrize("text", ["SIGNOPE", "", "0", "SIGRTMIN+16", "1x"])
def test_bad_signals(text: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        check_signal(text)
    assert caught.value.brief == f"invalid signal: {text}"
