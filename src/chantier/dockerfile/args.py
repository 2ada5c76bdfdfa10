# SPDX-License-Identifier: Apache-2.0
"""Arguments outside of stages: the predefined ones, and ARG lines before the first FROM."""

from __future__ import annotations

from collections.abc import Mapping

from chantier.errors import ChantierError
from chantier.llb import Proxy
from chantier.values import dataclass, field

from .instructions import Arg, ArgPair, Program
from .scope import Platforms, Ranges
from .shell import Lex

EPOCH = "SOURCE_DATE_EPOCH"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgInfo:
    """One declared argument, for the outline."""

    pair: ArgPair
    value: str = ""
    deps: frozenset[str] = frozenset()  # arguments its default uses
    ranges: Ranges = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalArgs:
    values: Mapping[str, str]
    infos: Mapping[str, ArgInfo] = field(default_factory=dict)


def predefined(platforms: Platforms, overrides: Mapping[str, str], target: str) -> dict[str, str]:
    """BUILD*, TARGET*: what FROM may use without an ARG."""
    build, made = platforms.build[0], platforms.target
    values = {
        "BUILDPLATFORM": str(build),
        "BUILDOS": build.os,
        "BUILDOSVERSION": build.os_version,
        "BUILDARCH": build.architecture,
        "BUILDVARIANT": build.variant,
        "TARGETPLATFORM": made.format_all(),
        "TARGETOS": made.os,
        "TARGETOSVERSION": made.os_version,
        "TARGETARCH": made.architecture,
        "TARGETVARIANT": made.variant,
        "TARGETSTAGE": target or "default",
    }
    return {key: overrides.get(key, value) for key, value in values.items()}


def global_args(program: Program, lex: Lex, start: Mapping[str, str], build_args: Mapping[str, str]) -> GlobalArgs:
    """`start` and the ARG lines of the file's head; build arguments win and are not expanded."""
    values = dict(start)
    infos: dict[str, ArgInfo] = {}
    for line in program.meta_args:
        for pair in line.args:
            infos[pair.key] = _one(program, line, pair, lex, values, build_args, infos)
            info = infos[pair.key]
            if info.pair.value is not None:
                values[pair.key] = info.pair.value
    return GlobalArgs(values=values, infos=infos)


def _one(
    program: Program,
    line: Arg,
    pair: ArgPair,
    lex: Lex,
    values: Mapping[str, str],
    build_args: Mapping[str, str],
    known: Mapping[str, ArgInfo],
) -> ArgInfo:
    value, deps = pair.value, frozenset[str]()
    if pair.key in build_args:
        value = build_args[pair.key]
    elif value is not None:
        try:
            made = lex.expand(value, values)
        except ChantierError as err:
            raise err.at(program.source(*line.ranges)) from None
        value, deps = made.text, frozenset(made.matched)
        if pair.key in deps:  # `ARG X=$X-more`: what the earlier X came from
            deps = (deps - {pair.key}) | (known[pair.key].deps if pair.key in known else frozenset())
    resolved = ArgPair(key=pair.key, value=value, doc=pair.doc)
    return ArgInfo(pair=resolved, value=value or "", deps=deps, ranges=line.ranges)


def proxy_of(build_args: Mapping[str, str]) -> Proxy | None:
    """The proxy variables among the build arguments, in any case; of two spellings the later in byte order wins."""
    found = {}
    for key in sorted(build_args):
        name = key.lower()
        if name in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"):
            found[name.removesuffix("_proxy")] = build_args[key]
    return Proxy(**found) if found else None


__all__ = ["EPOCH", "ArgInfo", "GlobalArgs", "global_args", "predefined", "proxy_of"]
