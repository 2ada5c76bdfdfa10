# SPDX-License-Identifier: Apache-2.0
"""What a vertex is called: `[linux/amd64->arm64 build 2/3] RUN make`."""

from __future__ import annotations

from collections.abc import Mapping

from chantier.errors import ReferenceError_
from chantier.spec import Platform
from chantier.values import replace


def internal(text: str) -> str:
    return f"[internal] {text}"


def numbered(
    text: str,
    *,
    index: int,
    total: int,
    stage: str = "",
    platform: Platform | None = None,
    env: Mapping[str, str] | None = None,
    on_build: bool = False,
) -> str:
    """The name of step `index` of `total`; the bare text where a stage counts no steps. Give `platform` only if it is shown."""
    if total == 0:
        return text
    shown = f"{platform.format_all()}{_target(platform, env or {})} " if platform is not None else ""
    name = f"{stage} " if stage else ""
    return f"[{shown}{name}{index:>{len(str(total))}}/{total}] {'ONBUILD ' if on_build else ''}{text}"


def upper_first(text: str) -> str:
    first, blank, rest = text.partition(" ")
    return first.upper() + blank + rest


def _target(base: Platform, env: Mapping[str, str]) -> str:
    """`->arm64` where a stage that runs on one platform makes things for another, as far as its ARGs tell."""
    target = _from_env(env)
    if target is None:
        return ""
    made = replace(target, os=target.os or base.os, architecture=target.architecture or base.architecture).normalise()
    if made.os != base.os:
        return "->" + made.format_all()
    if made.architecture != base.architecture:
        return "->" + made.architecture + (f"/{made.variant}" if made.variant else "")
    return ""


def _from_env(env: Mapping[str, str]) -> Platform | None:
    found: dict[str, str] = {}
    for key, value in env.items():
        if key == "TARGETPLATFORM":
            try:
                return Platform.parse(value)
            except ReferenceError_:  # an odd value is no platform; the parts may still be
                continue
        if key in ("TARGETOS", "TARGETARCH", "TARGETVARIANT"):
            found[key] = value
    if not found:
        return None
    return Platform(found.get("TARGETOS", ""), found.get("TARGETARCH", ""), found.get("TARGETVARIANT", ""))


__all__ = ["internal", "numbered", "upper_first"]
