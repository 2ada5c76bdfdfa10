# SPDX-License-Identifier: Apache-2.0
"""A file to a Program: each node becomes the instruction it stands for, and stages are put together.

Errors raised for one instruction read `dockerfile parse error on line N: ...` and point at its lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, TypedDict

from chantier.errors import DockerfileError
from chantier.values import replace

from . import lint as checks
from .advice import advise
from .flags import FLAGS, Flags, parse_flags
from .gotext import SPACE, format_duration, parse_duration, quote
from .heredoc import parse_word
from .instructions import (
    Add,
    Arg,
    ArgPair,
    Cmd,
    Command,
    Copy,
    Directive,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Heredoc,
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
from .lexer import Node, read
from .lint import Linter
from .mounts import mount_froms, parse_device
from .names import INSTRUCTIONS, hint

MIN_INTERVAL: Final = 1_000_000  # a health check shorter than a millisecond is refused
_STAGE_NAME: Final = re.compile(r"[a-z][a-z0-9-_.]*\Z")
_ONBUILD: Final = re.compile(r"\A[\t\n\f\r ]*ONBUILD[\t\n\f\r ]*", re.IGNORECASE)
_MAX_INT32: Final = (1 << 31) - 1


def parse(data: bytes, filename: str = "Dockerfile", *, lint: Linter | None = None) -> Program:
    """Parse a Dockerfile; raises DockerfileError with its place.

    Findings of the rules that need no conversion go to `lint`, also those made before an error.
    """
    try:
        return _parse(data, filename, lint if lint is not None else Linter())
    except DockerfileError as err:
        advise(err)
        raise


def _parse(data: bytes, filename: str, lint: Linter) -> Program:
    if not data:
        raise DockerfileError("the Dockerfile cannot be empty")
    tree = read(data, filename)
    program = Program(
        filename=filename,
        data=data,
        escape=tree.escape,
        directives=tuple(tree.directives),
        empty_continuations=tuple(tree.empty_continuations),
    )
    for line in tree.empty_continuations:
        lint.warn(checks.NO_EMPTY_CONTINUATION, at=Directive(name="", value="", line=line).ranges)
    program = _assemble(program, tree.nodes, lint)
    if not program.stages:
        raise DockerfileError("dockerfile contains no stages to build")
    checks.check_stages(program.stages, lint)
    return program


def parse_trigger(text: str, *, at: Stage, lint: Linter | None = None) -> Command:
    """Parse an ONBUILD trigger of a base image as if it stood at the FROM line of the stage that inherits it."""
    nodes = read(text.encode(errors="surrogateescape"), "ONBUILD trigger").nodes
    if len(nodes) != 1:
        raise DockerfileError("onbuild trigger should be a single expression")
    node = replace(nodes[0], start=at.start, end=at.end)
    command = _instruction(node, lint if lint is not None else Linter(), on_build=True)
    if isinstance(command, Stage):
        raise DockerfileError("*instructions.Stage is not a command type")
    return command


def _assemble(program: Program, nodes: Sequence[Node], lint: Linter) -> Program:
    stages: list[Stage] = []
    commands: list[list[Command]] = []
    meta_args: list[Arg] = []
    for node in nodes:
        try:
            instruction = _instruction(node, lint)
        except DockerfileError as err:
            located = DockerfileError(f"dockerfile parse error on line {node.start}: {err.brief}", hint=err.hint)
            raise located.at(program.source(*node.ranges)) from None
        if isinstance(instruction, Stage):
            stages.append(instruction)
            commands.append([])
        elif stages:
            commands[-1].append(instruction)
        elif isinstance(instruction, Arg):
            meta_args.append(instruction)
        else:
            raise DockerfileError("no build stage in current context").at(program.source(*node.ranges))
    full = tuple(replace(stage, commands=tuple(own)) for stage, own in zip(stages, commands, strict=True))
    return replace(program, meta_args=tuple(meta_args), stages=full)


class _Common(TypedDict):
    name: str
    keyword: str
    code: str
    start: int
    end: int
    flags: tuple[str, ...]
    comments: tuple[str, ...]
    on_build: bool


def _instruction(node: Node, lint: Linter, *, on_build: bool = False) -> Command | Stage:
    reader = _READERS.get(node.name)
    if reader is None:
        nearby = hint(node.keyword, INSTRUCTIONS, ignore_case=True)
        raise DockerfileError(f"unknown instruction: {node.keyword}{nearby}")
    common = _Common(
        name=node.name,
        keyword=node.keyword,
        code=node.original.strip(SPACE),
        start=node.start,
        end=node.end,
        flags=node.flags,
        comments=node.comments,
        on_build=on_build,
    )
    return reader(node, common, lint)


def _flags(node: Node) -> Flags:
    return parse_flags(node.flags, FLAGS.get(node.name, {}))


def _one_arg(node: Node) -> str:
    if len(node.args) != 1:
        raise DockerfileError(f"{node.name.upper()} requires exactly one argument")
    _flags(node)
    return node.args[0]


def _at_least_one(node: Node) -> None:
    if not (node.args or node.pairs):
        raise DockerfileError(f"{node.name.upper()} requires at least one argument")


def _key_values(node: Node) -> tuple[KeyValue, ...]:
    _flags(node)
    _at_least_one(node)
    if any(not pair.key for pair in node.pairs):
        raise DockerfileError(f"{node.name.upper()} names can not be blank")
    return node.pairs


def _env(node: Node, common: _Common, lint: Linter) -> Env:
    return Env(**common, pairs=_key_values(node))


def _label(node: Node, common: _Common, lint: Linter) -> Label:
    return Label(**common, pairs=_key_values(node))


def _maintainer(node: Node, common: _Common, lint: Linter) -> Maintainer:
    lint.warn(checks.MAINTAINER_DEPRECATED, at=node.ranges, comments=node.comments)
    return Maintainer(**common, maintainer=_one_arg(node))


def _arg(node: Node, common: _Common, lint: Linter) -> Arg:
    _at_least_one(node)
    pairs = []
    for word in node.args:
        key, equals, value = word.partition("=")
        if equals and not key:
            raise DockerfileError("ARG names can not be blank")
        pairs.append(ArgPair(key=key, value=value if equals else None, doc=_doc(node, key)))
    arg = Arg(**common, args=tuple(pairs))
    _check_description(arg, "ARG", [pair.key for pair in pairs], lint)
    return arg


def _doc(node: Node, name: str) -> str:
    """The description in a comment line `# name text` above."""
    if not name:
        return ""
    return next((c[len(name) + 1 :] for c in node.comments if c.startswith(name + " ")), "")


def _check_description(instruction: Arg | Stage, shown: str, names: Sequence[str], lint: Linter) -> None:
    if not instruction.comments or instruction.comments[-1].split(" ", 1)[0] in names:
        return
    example = names[0] if len(names) == 1 else "<arg_key>"
    lint.warn(checks.INVALID_DEFINITION_DESCRIPTION, shown, example, at=instruction)


def _from(node: Node, common: _Common, lint: Linter) -> Stage:
    args = node.args
    _check_from_casing(node, lint)
    name, original = "", ""
    if len(args) == 3 and args[1].lower() == "as":
        original = args[2]
        name = original.lower()
        if not _STAGE_NAME.match(name):
            raise DockerfileError(
                f"invalid name for build stage: {quote(original)}, name can't start with a number or contain symbols"
            )
    elif len(args) != 1:
        raise DockerfileError("FROM requires either one or three arguments")
    stage = Stage(
        **common,
        stage_name=name,
        original_name=original,
        base_name=args[0],
        platform=_flags(node).text("platform"),
        doc=_doc(node, name),
    )
    if name:
        _check_description(stage, "FROM", [name], lint)
    return stage


def _check_from_casing(node: Node, lint: Linter) -> None:
    args = node.args
    if len(args) == 3 and args[2] != args[2].lower():
        lint.warn(checks.STAGE_NAME_CASING, args[2], at=node.ranges, comments=node.comments)
    if len(args) < 3 or node.keyword not in (node.name, node.name.upper()):
        return  # a keyword in mixed case is another rule's business
    wanted = args[1].lower() if node.keyword == node.name else args[1].upper()
    if args[1] != wanted:
        lint.warn(checks.FROM_AS_CASING, node.keyword, args[1], at=node.ranges, comments=node.comments)


def _files(node: Node) -> tuple[tuple[str, ...], tuple[Heredoc, ...], str]:
    """Sources, heredocs and destination of ADD or COPY."""
    *sources, dest = node.args
    if parse_word(dest) is not None:
        raise DockerfileError(f"{node.name.upper()} cannot accept a heredoc as a destination")
    documents = {doc.name: doc for doc in node.heredocs}
    paths, contents = [], []
    for source in sources:
        opened = parse_word(source)
        if opened is None:
            paths.append(source)
        else:
            body = documents.get(opened.name)
            contents.append(replace(opened, content=body.content if body else ""))
    return tuple(paths), tuple(contents), dest


def _needs_destination(node: Node) -> None:
    if len(node.args) < 2:
        raise DockerfileError(
            f"{node.name.upper()} requires at least two arguments, but only one was provided. Destination could not be determined"
        )


def _add(node: Node, common: _Common, lint: Linter) -> Add:
    _needs_destination(node)
    flags = _flags(node)
    sources, contents, dest = _files(node)
    return Add(
        **common,
        sources=sources,
        contents=contents,
        dest=dest,
        chown=flags.text("chown"),
        chmod=flags.text("chmod"),
        checksum=flags.text("checksum"),
        link=flags.bools.get("link", False),
        exclude=flags.list("exclude"),
        keep_git_dir=flags.bools.get("keep-git-dir"),
        unpack=flags.bools.get("unpack"),
    )


def _copy(node: Node, common: _Common, lint: Linter) -> Copy:
    _needs_destination(node)
    flags = _flags(node)
    sources, contents, dest = _files(node)
    return Copy(
        **common,
        sources=sources,
        contents=contents,
        dest=dest,
        from_=flags.text("from"),
        chown=flags.text("chown"),
        chmod=flags.text("chmod"),
        link=flags.bools.get("link", False),
        parents=flags.bools.get("parents", False),
        exclude=flags.list("exclude"),
    )


def _onbuild(node: Node, common: _Common, lint: Linter) -> OnBuild:
    if node.child is None:
        raise DockerfileError("ONBUILD requires at least one argument")
    _flags(node)
    trigger = node.child.keyword.upper()
    if trigger == "ONBUILD":
        raise DockerfileError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        raise DockerfileError(f"{trigger} isn't allowed as an ONBUILD trigger")
    text = _ONBUILD.sub("", node.original)
    return OnBuild(**common, expression=text + "".join(f"\n{doc.content}{doc.name}" for doc in node.heredocs))


def _workdir(node: Node, common: _Common, lint: Linter) -> Workdir:
    return Workdir(**common, path=_one_arg(node))


def _user(node: Node, common: _Common, lint: Linter) -> User:
    return User(**common, user=_one_arg(node))


def _stopsignal(node: Node, common: _Common, lint: Linter) -> StopSignal:
    return StopSignal(**common, signal=_one_arg(node))


def _run(node: Node, common: _Common, lint: Linter) -> Run:
    flags = _flags(node)
    network = flags.texts.get("network", "default")
    security = flags.texts.get("security", "sandbox")
    run = Run(
        **common,
        command=node.args,
        shell_form=not node.is_json,
        heredocs=node.heredocs,
        mounts=flags.list("mount"),
        network=network,
        security=security,
        devices=tuple(map(parse_device, flags.list("device"))),
    )
    mount_froms(run)  # what must not wait for the conversion is refused here, with the line
    if network not in ("default", "none", "host"):
        raise DockerfileError(f"invalid network mode {quote(network)}")
    if security not in ("sandbox", "insecure"):
        raise DockerfileError(f"security {quote(security)} is not valid")
    return run


def _cmd(node: Node, common: _Common, lint: Linter) -> Cmd:
    _flags(node)
    return Cmd(**common, command=node.args, shell_form=not node.is_json)


def _entrypoint(node: Node, common: _Common, lint: Linter) -> Entrypoint:
    _flags(node)
    return Entrypoint(**common, command=node.args, shell_form=not node.is_json)


def _healthcheck(node: Node, common: _Common, lint: Linter) -> Healthcheck:
    _at_least_one(node)
    kind, *command = node.args
    kind = kind.upper()
    if kind == "NONE":
        if command:
            raise DockerfileError("HEALTHCHECK NONE takes no arguments")
        return Healthcheck(**common, test=("NONE",))
    flags = _flags(node)
    if kind != "CMD":
        raise DockerfileError(f"Unknown type {quote(kind)} in HEALTHCHECK (try CMD)")
    if not command:
        raise DockerfileError("Missing command after HEALTHCHECK CMD")
    return Healthcheck(
        **common,
        test=("CMD" if node.is_json else "CMD-SHELL", *command),
        interval=_interval(flags, "interval"),
        timeout=_interval(flags, "timeout"),
        start_period=_interval(flags, "start-period"),
        start_interval=_interval(flags, "start-interval"),
        retries=_retries(flags.text("retries")),
    )


def _interval(flags: Flags, name: str) -> int:
    text = flags.text(name)
    duration = parse_duration(text) if text else 0
    if duration and duration < MIN_INTERVAL:
        raise DockerfileError(f"Interval {quote(name)} cannot be less than {format_duration(MIN_INTERVAL)}")
    return duration


def _retries(text: str) -> int:
    if not text:
        return 0
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not (digits.isascii() and digits.isdigit()):
        raise DockerfileError(f"strconv.ParseInt: parsing {quote(text)}: invalid syntax")
    number = int(text)
    if not -_MAX_INT32 - 1 <= number <= _MAX_INT32:
        raise DockerfileError(f"strconv.ParseInt: parsing {quote(text)}: value out of range")
    if number < 0:
        raise DockerfileError(f"--retries cannot be negative ({number})")
    return number


def _expose(node: Node, common: _Common, lint: Linter) -> Expose:
    _at_least_one(node)
    _flags(node)
    return Expose(**common, ports=tuple(sorted(node.args)))


def _volume(node: Node, common: _Common, lint: Linter) -> Volume:
    _at_least_one(node)
    _flags(node)
    volumes = tuple(word.strip(SPACE) for word in node.args)
    if "" in volumes:
        raise DockerfileError("VOLUME specified can not be an empty string")
    return Volume(**common, volumes=volumes)


def _shell(node: Node, common: _Common, lint: Linter) -> Shell:
    _flags(node)
    _at_least_one(node)
    if not node.is_json:
        raise DockerfileError("SHELL requires the arguments to be in JSON form")
    return Shell(**common, shell=node.args)


_Reader = Callable[[Node, _Common, Linter], Command | Stage]
_READERS: Final[dict[str, _Reader]] = {
    "add": _add,
    "arg": _arg,
    "cmd": _cmd,
    "copy": _copy,
    "entrypoint": _entrypoint,
    "env": _env,
    "expose": _expose,
    "from": _from,
    "healthcheck": _healthcheck,
    "label": _label,
    "maintainer": _maintainer,
    "onbuild": _onbuild,
    "run": _run,
    "shell": _shell,
    "stopsignal": _stopsignal,
    "user": _user,
    "volume": _volume,
    "workdir": _workdir,
}


__all__ = ["parse", "parse_trigger"]
