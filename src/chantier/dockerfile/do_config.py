# SPDX-License-Identifier: Apache-2.0
"""Instructions that change only the image's config, and ARG: no vertex comes of them."""

from __future__ import annotations

from chantier.errors import DockerfileError
from chantier.values import replace

from . import lint as checks
from .args import ArgInfo
from .at import At
from .config import Health
from .gotext import format_duration, quote
from .instructions import (
    Arg,
    ArgPair,
    Cmd,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    KeyValue,
    Label,
    Maintainer,
    OnBuild,
    Shell,
    StopSignal,
    User,
    Volume,
)
from .names import check_signal
from .ports import parse_port, split_port
from .scope import NON_ENV_ARGS, Built

_SHELLS = {"windows": ("cmd", "/S", "/C")}
_DEFAULT_SHELL = ("/bin/sh", "-c")


def with_shell(built: Built, command: tuple[str, ...]) -> tuple[str, ...]:
    """Shell form to words: SHELL, or the default of the image's system, then one string."""
    shell = built.image.config.shell or _SHELLS.get(built.image.platform.os, _DEFAULT_SHELL)
    return (*shell, " ".join(command))


def do_maintainer(at: At, built: Built, line: Maintainer) -> Built:
    built = replace(built, image=replace(built.image, author=line.maintainer))
    return built.commit(f"MAINTAINER {line.maintainer}", at.scope)


def _pairs(at: At, built: Built, pairs: tuple[KeyValue, ...]) -> list[tuple[str, str]]:
    expand = at.expander(built)
    return [(expand(pair.key), expand(pair.value)) for pair in pairs]


def _warn_legacy(at: At, pair: KeyValue) -> None:
    if pair.no_delim:
        at.warn(checks.LEGACY_KEY_VALUE_FORMAT, at.instruction.keyword)


def do_env(at: At, built: Built, line: Env) -> Built:
    text = "ENV"
    config, state = built.image.config, built.state
    for pair, (key, value) in zip(line.pairs, _pairs(at, built, line.pairs), strict=True):
        _warn_legacy(at, pair)
        if checks.is_secret_name(key):
            at.warn(checks.SECRETS_USED_IN_ARG_OR_ENV, "ENV", key)
        text += f" {key}={value}"
        config, state = config.with_env(key, value), state.env(key, value)
    return replace(built, state=state, image=replace(built.image, config=config)).commit(text, at.scope)


def do_label(at: At, built: Built, line: Label) -> Built:
    text = "LABEL"
    labels = dict(built.image.config.labels)
    for pair, (key, value) in zip(line.pairs, _pairs(at, built, line.pairs), strict=True):
        _warn_legacy(at, pair)
        labels[key] = value
        text += f" {key}={value}"
    return built.configured(labels=labels).commit(text, at.scope)


def do_arg(at: At, built: Built, line: Arg) -> Built:
    shown = []
    for pair in line.args:
        if checks.is_secret_name(pair.key):
            at.warn(checks.SECRETS_USED_IN_ARG_OR_ENV, "ARG", pair.key)
        value, inherited = _arg_value(at, built, pair)
        made = ArgPair(key=pair.key, value=value, doc=pair.doc)
        state = built.state
        if value is not None and pair.key not in NON_ENV_ARGS:
            state = state.env(pair.key, value)
        outline = at.node.outline
        if not inherited:  # a global one is listed at the line that defines it
            outline.all_args[pair.key] = ArgInfo(pair=made, value=value or "", ranges=at.ranges)
        outline.used_args.add(pair.key)
        built = replace(built, state=state, args=(*built.args, made))
        shown.append(pair.key if value is None else f"{pair.key}={value}")
    return built.commit("ARG " + " ".join(shown), at.scope)


def _arg_value(at: At, built: Built, pair: ArgPair) -> tuple[str | None, bool]:
    """Its value, and whether that is the one of a global ARG of the same name."""
    given = at.scope.options.build_args.get(pair.key)
    if given is not None:
        return given, False
    if pair.value is not None:
        return at.expander(built)(pair.value), False
    found = at.scope.global_args.get(pair.key)
    return found, found is not None


def _used_once(at: At, built: Built) -> Built:
    """Warn of the earlier one, which will be ignored."""
    name = at.instruction.name
    if name in built.seen:
        at.warn(checks.MULTIPLE_INSTRUCTIONS_DISALLOWED, at.instruction.keyword, at=built.seen[name])
    return replace(built, seen={**built.seen, name: at.ranges})


def _argv(at: At, built: Built, line: Cmd | Entrypoint) -> tuple[str, ...]:
    if not line.shell_form:
        return line.command
    if not built.image.config.shell:
        at.warn(checks.JSON_ARGS_RECOMMENDED, line.keyword)
    return with_shell(built, line.command)


def _quoted(words: tuple[str, ...]) -> str:
    return "[" + " ".join(map(quote, words)) + "]"


def do_cmd(at: At, built: Built, line: Cmd) -> Built:
    built = _used_once(at, built)
    words = _argv(at, built, line)
    return built.configured(cmd=words, args_escaped=True).commit(f"CMD {_quoted(words)}", at.scope)


def do_entrypoint(at: At, built: Built, line: Entrypoint) -> Built:
    built = _used_once(at, built)
    words = _argv(at, built, line)
    built = built.configured(entrypoint=words)
    if "cmd" not in built.seen:  # a CMD of the base belongs to the base's entrypoint
        built = built.configured(cmd=())
    return built.commit(f"ENTRYPOINT {_quoted(words)}", at.scope)


def do_healthcheck(at: At, built: Built, line: Healthcheck) -> Built:
    built = _used_once(at, built)
    health = Health(
        test=line.test,
        interval=line.interval,
        timeout=line.timeout,
        start_period=line.start_period,
        start_interval=line.start_interval,
        retries=line.retries,
    )
    text = (
        f"HEALTHCHECK {{Test:[{' '.join(line.test)}] Interval:{format_duration(line.interval)}"
        f" Timeout:{format_duration(line.timeout)} StartPeriod:{format_duration(line.start_period)}"
        f" StartInterval:{format_duration(line.start_interval)} Retries:{line.retries}}}"
    )
    return built.configured(healthcheck=health).commit(text, at.scope)


def do_expose(at: At, built: Built, line: Expose) -> Built:
    env = built.env
    words = [word for port in line.ports for word in at.scope.lex.process_words(port, env)]
    exposed: list[str] = []
    for word in words:
        split = split_port(word)
        if split.proto != split.proto.lower():
            at.warn(checks.EXPOSE_PROTO_CASING, word)
        if split.address or split.host:
            at.warn(checks.EXPOSE_INVALID_FORMAT, word)
        exposed += parse_port(word).exposed
    ports = built.image.config.exposed_ports | frozenset(exposed)
    return built.configured(exposed_ports=ports).commit(f"EXPOSE [{' '.join(exposed)}]", at.scope)


def do_user(at: At, built: Built, line: User) -> Built:
    user = at.expander(built)(line.user)
    return set_user(built, user).commit(f"USER {user}", at.scope)


def set_user(built: Built, user: str) -> Built:
    return replace(built, state=built.state.user(user)).configured(user=user)


def do_volume(at: At, built: Built, line: Volume) -> Built:
    volumes = tuple(map(at.expander(built), line.volumes))
    if "" in volumes:
        raise DockerfileError("VOLUME specified can not be an empty string")
    all_of = built.image.config.volumes | frozenset(volumes)
    return built.configured(volumes=all_of).commit(f"VOLUME [{' '.join(volumes)}]", at.scope)


def do_stop_signal(at: At, built: Built, line: StopSignal) -> Built:
    signal = at.expander(built)(line.signal)
    check_signal(signal)
    return built.configured(stop_signal=signal).commit(f"STOPSIGNAL {signal}", at.scope)


def do_shell(at: At, built: Built, line: Shell) -> Built:
    return built.configured(shell=line.shell).commit(f"SHELL [{' '.join(line.shell)}]", at.scope)


def do_on_build(at: At, built: Built, line: OnBuild) -> Built:
    return built.configured(on_build=(*built.image.config.on_build, line.expression))


__all__ = [
    "do_arg",
    "do_cmd",
    "do_entrypoint",
    "do_env",
    "do_expose",
    "do_healthcheck",
    "do_label",
    "do_maintainer",
    "do_on_build",
    "do_shell",
    "do_stop_signal",
    "do_user",
    "do_volume",
    "set_user",
    "with_shell",
]
