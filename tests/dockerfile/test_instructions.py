# SPDX-License-Identifier: Apache-2.0
"""What each instruction's fields hold."""

from __future__ import annotations

from typing import TypeVar

import pytest

from chantier.dockerfile import instructions as i
from chantier.dockerfile import parse

T = TypeVar("T", bound=i.Instruction)


def one(kind: type[T], line: str) -> T:
    command = parse(f"FROM a\n{line}\n".encode()).stages[0].commands[0]
    assert isinstance(command, kind)
    return command


@pytest.mark.parametrize(
    ("line", "base", "name", "original", "platform"),
    [
        ("FROM alpine", "alpine", "", "", ""),
        ("FROM --platform=$P a/b:c@sha256:0 as Build.1-x_y", "a/b:c@sha256:0", "build.1-x_y", "Build.1-x_y", "$P"),
        ("FROM $X As y", "$X", "y", "y", ""),
    ],
)
def test_from(line: str, base: str, name: str, original: str, platform: str) -> None:
    stage = parse(line.encode()).stages[0]
    assert (stage.base_name, stage.stage_name, stage.original_name, stage.platform) == (base, name, original, platform)


def test_descriptions() -> None:
    program = parse(b"# TAG the version\n# more\nARG TAG=1 OTHER\n# app the thing\n# in two\nFROM a AS app\n")
    assert [(p.key, p.value, p.doc) for p in program.meta_args[0].args] == [("TAG", "1", "the version"), ("OTHER", None, "")]
    assert program.stages[0].doc == "the thing"


def test_run() -> None:
    run = one(
        i.Run, "RUN --mount=type=cache,target=/c --network=host --mount=target=/b --security=insecure --device=x,required a b"
    )
    assert run.command == ("a b",)
    assert run.shell_form
    assert run.mounts == ("type=cache,target=/c", "target=/b")
    assert (run.network, run.security) == ("host", "insecure")
    assert run.devices == (i.Device(name="x", required=True),)
    assert one(i.Run, "RUN").command == ()
    assert one(i.Run, "RUN").shell_form
    run = one(i.Run, 'RUN ["a", "b c"]')
    assert (run.command, run.shell_form) == (("a", "b c"), False)
    assert (run.network, run.security, run.mounts) == ("default", "sandbox", ())


def test_copy() -> None:
    copy = one(i.Copy, "COPY --from=x --chown=$u:g --chmod=0755 --link --parents=TRUE --exclude=*.a --exclude=b a 'b c' /d/")
    assert (copy.from_, copy.chown, copy.chmod, copy.link, copy.parents) == ("x", "$u:g", "0755", True, True)
    assert copy.exclude == ("*.a", "b")
    assert (copy.sources, copy.dest) == (("a", "'b", "c'"), "/d/")
    copy = one(i.Copy, 'COPY --link=false ["a b", "/c d"]')
    assert (copy.sources, copy.dest, copy.link) == (("a b",), "/c d", False)


def test_add() -> None:
    add = one(i.Add, "ADD --checksum=sha256:0 --keep-git-dir --unpack=false --link https://x/y /z")
    assert (add.checksum, add.keep_git_dir, add.unpack, add.link) == ("sha256:0", True, False, True)
    add = one(i.Add, "ADD a b")
    assert (add.keep_git_dir, add.unpack, add.link, add.exclude) == (None, None, False, ())


def test_pairs() -> None:
    env = one(i.Env, "ENV A=1 B=\"x y\" C='$z' D=a\\ b E= F==x")
    assert [(p.key, p.value) for p in env.pairs] == [
        ("A", "1"),
        ("B", '"x y"'),
        ("C", "'$z'"),
        ("D", "a\\ b"),
        ("E", ""),
        ("F", "=x"),
    ]
    label = one(i.Label, 'LABEL "a b"=c legacy=1')
    assert label.pairs[0].key == '"a b"'
    assert one(i.Label, "LABEL k some value").pairs == (i.KeyValue(key="k", value="some value", no_delim=True),)


def test_arg() -> None:
    arg = one(i.Arg, 'ARG a b= c="d e" f=$a')
    assert [(p.key, p.value) for p in arg.args] == [("a", None), ("b", ""), ("c", '"d e"'), ("f", "$a")]


@pytest.mark.parametrize(
    ("line", "command", "shell_form"),
    [
        ("CMD echo  hi", ("echo  hi",), True),
        ('CMD ["a"]', ("a",), False),
        ("CMD []", (), False),
        ("CMD", (), True),
        ("CMD [a]", ("[a]",), True),
    ],
)
def test_cmd_and_entrypoint(line: str, command: tuple[str, ...], shell_form: bool) -> None:
    cmd = one(i.Cmd, line)
    entrypoint = one(i.Entrypoint, line.replace("CMD", "ENTRYPOINT"))
    assert (cmd.command, cmd.shell_form) == (entrypoint.command, entrypoint.shell_form) == (command, shell_form)


def test_healthcheck() -> None:
    check = one(
        i.Healthcheck,
        'HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=2s --start-interval=1s --retries=4 CMD ["a", "b"]',
    )
    assert check.test == ("CMD", "a", "b")
    assert (check.interval, check.timeout) == (90_000_000_000, 500_000_000)
    assert (check.start_period, check.start_interval, check.retries) == (2_000_000_000, 1_000_000_000, 4)
    assert one(i.Healthcheck, "HEALTHCHECK cmd curl x || exit 1").test == ("CMD-SHELL", "curl x || exit 1")
    assert one(i.Healthcheck, "HEALTHCHECK none").test == ("NONE",)
    assert one(i.Healthcheck, "HEALTHCHECK --interval=0 CMD a").interval == 0


def test_the_rest() -> None:
    assert one(i.Expose, "EXPOSE 80 53/udp  $p").ports == ("$p", "53/udp", "80")
    assert one(i.Volume, 'VOLUME ["/a b", "c"]').volumes == ("/a b", "c")
    assert one(i.Volume, "VOLUME /a $b").volumes == ("/a", "$b")
    assert one(i.Workdir, "WORKDIR /a b").path == "/a b"
    assert one(i.User, "USER a:b").user == "a:b"
    assert one(i.StopSignal, "STOPSIGNAL $s").signal == "$s"
    assert one(i.Shell, 'SHELL ["a", "-c"]').shell == ("a", "-c")
    assert one(i.Maintainer, "MAINTAINER A B <c@d>").maintainer == "A B <c@d>"
    assert one(i.OnBuild, 'onbuild   run echo  $B   "x"').expression == 'run echo  $B   "x"'
    assert one(i.OnBuild, "ONBUILD COPY --from=x  a b").expression == "COPY --from=x  a b"


def test_values_are_frozen() -> None:
    with pytest.raises(AttributeError):
        one(i.User, "USER a").user = "b"  # type: ignore[misc]
