# SPDX-License-Identifier: Apache-2.0
"""Source policies that are rules (protocol.md 1.9, 3.9): which sources may be used, and what is used in their place.

Rules of one policy run in order and the last that matches decides; one that changes the source starts all over again.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Awaitable, Callable, Sequence

from chantier.errors import PolicyError, ReferenceError_, UsageError
from chantier.llb.definition import raw_ops
from chantier.op.worker import run_all
from chantier.pb import ops_pb2 as pb
from chantier.pb import sourcepolicy_pb2 as sp
from chantier.spec import Reference, digest_of

_MOST_CHANGES = 20
_IMAGES = ("docker-image", "docker-image+blob", "oci-layout+blob")
_NAME = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))")

SourceCheck = Callable[[pb.SourceOp, pb.Platform | None], Awaitable[pb.SourceOp]]
"""The source to use in place of another. Raises PolicyError where none may be used."""


def check_rules(policies: Sequence[sp.Policy]) -> None:
    """Raises PolicyError for a policy that cannot be one."""
    if any(not rule.HasField("selector") for policy in policies for rule in policy.rules):
        raise PolicyError("invalid nil selector in policy")


def apply_rules(policies: Sequence[sp.Policy], source: pb.SourceOp) -> pb.SourceOp:
    """The source that the rules make of it: the same object if nothing changes. Raises PolicyError.

    Rules see names in one form only: there is no other way to write what a rule denies.
    """
    current = canonical(source)
    for _ in range(_MOST_CHANGES):
        changed = _once(policies, current)
        if changed is None:
            return current
        current = canonical(changed)
    raise PolicyError("error evaluating the source policy: too many operations")


def canonical(source: pb.SourceOp) -> pb.SourceOp:
    """The same object if its identifier is in the form that clients write. What is no name at all stays as it is."""
    scheme, separator, rest = source.identifier.partition("://")
    if not separator:
        return source
    if scheme == "git":
        name = _git_name(rest)
    elif scheme in _IMAGES:
        try:
            name = str(Reference.parse(rest).with_default_tag())
        except ReferenceError_:
            return source
    else:
        return source
    if name == rest:
        return source
    made = pb.SourceOp()
    made.CopyFrom(source)
    made.identifier = f"{scheme}://{name}"
    return made


def _git_name(rest: str) -> str:
    """`HOST/PATH#REF:SUBDIR` without `.`, `..`, doubled slashes and empty parts."""
    address, _, fragment = rest.partition("#")
    host, slash, path = address.partition("/")
    ref, _, subdir = fragment.partition(":")
    subdir = posixpath.normpath("/" + subdir.lstrip("/")).lstrip("/")
    name = host + (posixpath.normpath("/" + path.lstrip("/")) if slash else "")
    if ref or subdir:
        name += f"#{ref}" + (f":{subdir}" if subdir else "")
    return name


def _once(policies: Sequence[sp.Policy], source: pb.SourceOp) -> pb.SourceOp | None:
    for policy in policies:
        denied = False
        for rule in policy.rules:
            if not _matches(rule.selector, source):
                continue
            if rule.action == sp.CONVERT:
                changed = _convert(rule, source)
                if changed is not None:
                    return changed
            elif rule.action in (sp.ALLOW, sp.DENY):
                denied = rule.action == sp.DENY
            else:
                raise PolicyError(
                    f"error evaluating the source policy: source policy: rule {rule.action} {rule.selector.identifier}: "
                    f'unknown type "{source.identifier}"'
                )
        if denied:
            raise PolicyError(
                f'error evaluating the source policy: source "{source.identifier}" denied by policy: source denied by policy'
            )
    return None


def _matches(selector: sp.Selector, source: pb.SourceOp) -> bool:
    for constraint in selector.constraints:
        have = source.attrs.get(constraint.key, "")
        if constraint.condition == sp.EQUAL and have != constraint.value:
            return False
        if constraint.condition == sp.NOTEQUAL and have == constraint.value:
            return False
        if constraint.condition == sp.MATCHES and not _pattern(constraint.value).search(have):
            return False
    if selector.identifier == source.identifier:
        return True
    pattern = _selector_pattern(selector)
    return pattern is not None and pattern.search(source.identifier) is not None


def _selector_pattern(selector: sp.Selector) -> re.Pattern[str] | None:
    if selector.match_type == sp.REGEX:
        return _pattern(selector.identifier)
    if selector.match_type == sp.WILDCARD:
        return re.compile(r"\A" + "(.*)".join(re.escape(part) for part in selector.identifier.split("*")) + r"\Z", re.DOTALL)
    return None


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as err:
        raise UsageError(f"error evaluating the source policy: invalid regular expression {text!r}: {err}") from err


def _convert(rule: sp.Rule, source: pb.SourceOp) -> pb.SourceOp | None:
    """None if it changes nothing."""
    if not rule.HasField("updates"):
        raise PolicyError("error evaluating the source policy: missing destination for convert rule")
    made = pb.SourceOp()
    made.CopyFrom(source)
    wanted = rule.updates.identifier
    if wanted:
        made.identifier = _format(rule.selector, source.identifier, wanted)
    for key, value in rule.updates.attrs.items():
        made.attrs[key] = value
    return made if made != source else None


def _format(selector: sp.Selector, identifier: str, wanted: str) -> str:
    pattern = _selector_pattern(selector)
    if pattern is None or not pattern.search(identifier):
        return wanted
    return pattern.sub(lambda match: _expand(wanted, match), identifier)


def _expand(template: str, match: re.Match[str]) -> str:
    """Go's regexp.Expand: `$1`, `${1}`, `$name`; what is no group is empty."""

    def one(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name is None:
            return "$"
        try:
            return match[int(name) if name.isdecimal() else name] or ""
        except IndexError:
            return ""

    return _NAME.sub(one, template)


def in_turn(checks: Sequence[SourceCheck]) -> SourceCheck:
    """One check after another."""

    async def check(source: pb.SourceOp, platform: pb.Platform | None) -> pb.SourceOp:
        for one in checks:
            source = await one(source, platform)
        return source

    return check


async def checked_sources(definition: pb.Definition, check: SourceCheck) -> dict[str, pb.SourceOp]:
    """What the check makes of a definition's sources, where it changes them, by digests of the definition's operations.

    They are checked at the same time: a verifier may have to wait for one to decide of another.
    """
    changed: dict[str, pb.SourceOp] = {}

    async def one(raw: bytes, op: pb.Op) -> None:
        made = await check(op.source, op.platform if op.HasField("platform") else None)
        if made != op.source:
            changed[digest_of(raw)] = made

    checks = []
    for raw in raw_ops(definition):
        if b"://" not in raw:
            continue
        op = pb.Op()
        op.ParseFromString(raw)
        if op.WhichOneof("op") == "source":
            checks.append(one(raw, op))
    await run_all(checks)
    return changed


__all__ = ["SourceCheck", "apply_rules", "check_rules", "checked_sources", "in_turn"]
