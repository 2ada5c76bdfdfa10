# SPDX-License-Identifier: Apache-2.0
"""Values of flags that have a small language of their own (builders.md 5.8, 5.9, 5.13)."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence

from chantier.errors import ChantierError, UsageError
from chantier.spec import Reference

from .request import Secret, Ssh

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)i?b?\Z", re.IGNORECASE)
_FACTOR = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_ANNOTATION = re.compile(r"(?:([a-z-]+(?:\[[A-Za-z0-9/_.-]*\])?(?:,[a-z-]+(?:\[[A-Za-z0-9/_.-]*\])?)*):)?(\S+)\Z")
_TYPE = re.compile(r"([a-z-]+)(?:\[([^\]]*)\])?\Z")
_ANNOTATION_TYPES = ("index", "index-descriptor", "manifest", "manifest-descriptor")
MAX_SECRET_BYTES = 500 * 1024


def parse_size(text: str) -> int:
    """Docker's memory sizes: 64m, 1.5g, bytes without a unit; powers of 1024."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise UsageError(f"invalid size: '{text}'", hint="sizes look like 64m or 2g")
    return int(float(match[1]) * _FACTOR[match[2].lower()])


def parse_pairs(values: Sequence[str], env: Mapping[str, str]) -> dict[str, str]:
    """Build args: `K=V`, or `K` for the value of the environment (left out if unset there)."""
    pairs: dict[str, str] = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if equals:
            pairs[key] = rest
        elif key in env:
            pairs[key] = env[key]
    return pairs


def parse_labels(values: Sequence[str]) -> dict[str, str]:
    return {key: rest for key, _, rest in (value.partition("=") for value in values)}


def parse_tag(text: str) -> str:
    """The tag as given, once it is known to be one."""
    try:
        Reference.parse(text)
    except ChantierError as err:
        raise UsageError(
            f'invalid tag "{text}": {err.brief}', hint="tags look like name:1 or registry.example/team/name:1"
        ) from err
    return text


def parse_secret(text: str, env: Mapping[str, str]) -> Secret:
    """`id=X[,src=PATH][,env=NAME][,type=file|env]`; without a place the variable X, else the file X."""
    fields = _fields(text, ("id", "src", "source", "env", "type"))
    if "source" in fields:
        fields["src"] = fields.pop("source")
    kind = fields.get("type", "")
    if kind not in ("", "file", "env"):
        raise UsageError(f'unsupported secret type "{kind}"')
    id, path, variable = fields.get("id", ""), fields.get("src", ""), fields.get("env", "")
    if kind == "env" and not variable:
        path, variable = "", path
    if not path and not variable:
        if id in env and kind != "file":
            variable = id
        else:
            path = id
    if not id:
        raise UsageError("secret missing ID", hint="write --secret id=NAME,src=FILE")
    if variable:
        return Secret(id=id, env=variable)
    try:
        size = os.stat(path).st_size
    except OSError as err:
        raise UsageError(
            f"failed to stat {path}: stat {path}: {(err.strerror or '').lower()}", hint=f"the secret {id} wants this file"
        ) from err
    if size > MAX_SECRET_BYTES:
        raise UsageError(f"secret {id} is too big: {size} bytes, at most {MAX_SECRET_BYTES}")
    return Secret(id=id, file=path)


def parse_ssh(text: str, env: Mapping[str, str]) -> Ssh:
    """`id[=path[,path…]]`; without a path the agent of SSH_AUTH_SOCK."""
    id, _, rest = text.partition("=")
    paths = tuple(p for p in rest.split(",") if p)
    if not paths:
        socket = env.get("SSH_AUTH_SOCK", "")
        if not socket:
            raise UsageError(
                "invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set",
                hint="start ssh-agent, or give a key: --ssh default=KEYFILE",
            )
        paths = (socket,)
    return Ssh(id=id or "default", paths=paths)


def parse_host(text: str) -> list[str]:
    """`host=ip`, `host:ip`, several addresses by commas; gives the frontend's `host=ip` form."""
    match = re.match(r"([^=:]+)[=:](.+)\Z", text)
    if match is None:
        raise UsageError(f"invalid host {text}", hint="write --add-host NAME=ADDRESS")
    pairs = []
    for address in match[2].split(","):
        address = address.strip("[]")
        import ipaddress

        try:
            ipaddress.ip_address(address)
        except ValueError as err:
            raise UsageError(f"invalid host {text}: {address!r} is not an IP address") from err
        pairs.append(f"{match[1]}={address}")
    return pairs


def parse_annotations(values: Sequence[str]) -> list[tuple[str, str]]:
    """`[type[platform],…:]key=value` to exporter attributes."""
    attrs: list[tuple[str, str]] = []
    for text in values:
        head, equals, value = text.partition("=")
        match = _ANNOTATION.match(head)
        if not equals or match is None:
            raise UsageError(f'invalid annotation "{text}", expected key=value')
        for kind in (match[1] or "").split(",") if match[1] else [""]:
            if not kind:
                attrs.append((f"annotation.{match[2]}", value))
                continue
            parts = _TYPE.match(kind)
            if parts is None or parts[1] not in _ANNOTATION_TYPES:
                raise UsageError(
                    f'unknown annotation type "{parts[1] if parts else kind}"', hint="types are " + ", ".join(_ANNOTATION_TYPES)
                )
            platform = f"[{parts[2]}]" if parts[2] and not parts[1].startswith("index") else ""
            attrs.append((f"annotation-{parts[1]}{platform}.{match[2]}", value))
    return attrs


def parse_ulimit(text: str) -> str:
    """`name=soft[:hard]` to the frontend's `name=soft:hard`."""
    match = re.match(r"([a-z]+)=(-?\d+)(?::(-?\d+))?\Z", text)
    if match is None:
        raise UsageError(f"invalid ulimit argument: {text}", hint="write --ulimit nofile=1024:2048")
    return f"{match[1]}={match[2]}:{match[3] or match[2]}"


def parse_contexts(values: Sequence[str]) -> dict[str, str]:
    """`name=value`; names are image references without `:latest`."""
    contexts = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UsageError(f"invalid context value: {text}, expected key=value")
        try:
            normal = Reference.parse(name).familiar()
        except ChantierError as err:
            raise UsageError(f"invalid context name {name}: {err.brief}") from err
        contexts[normal.removesuffix(":latest")] = value
    return contexts


def parse_csv_fields(text: str) -> dict[str, str]:
    """`k=v,k2=v2` with quotes as in CSV; keys in lower case."""
    fields = {}
    for part in next(csv.reader([text]), []):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"invalid field '{part}' must be a key=value pair")
        fields[key.strip().lower()] = value
    return fields


def _fields(text: str, known: Sequence[str]) -> dict[str, str]:
    fields = {}
    for part in next(csv.reader([text]), []):
        key, equals, value = part.partition("=")
        key = key.lower()
        if not equals:
            raise UsageError(f"invalid field '{part}' must be a key=value pair")
        if key not in known:
            raise UsageError(f"unexpected key '{key}' in '{part}'", hint="keys are " + ", ".join(known))
        fields[key] = value
    return fields
