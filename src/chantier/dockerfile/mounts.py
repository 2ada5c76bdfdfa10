# SPDX-License-Identifier: Apache-2.0
"""RUN --mount and --device: comma lists to values.

Mounts are read twice, as stock frontends do: `mount_froms` when the file is parsed (only `from` counts then), and
`parse_mounts` when the stage is converted, with every other value expanded first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from chantier.errors import DockerfileError
from chantier.values import dataclass

from .gotext import csv_fields, parse_bool, parse_size, parse_uint, quote
from .instructions import Device, Run
from .names import hint

TYPES: Final = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING: Final = ("shared", "private", "locked")
_KEYS: Final = (
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
)
_ALIASES: Final = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One RUN --mount, every value final."""

    type: str = "bind"  # bind, cache, tmpfs, secret, ssh
    from_: str = ""  # stage, context or image; "" is the default of the type
    source: str = ""
    target: str = ""
    read_only: bool = True  # the default of the type where neither ro nor rw was given
    size: int = 0  # bytes, tmpfs only; 0 is no limit
    cache_id: str = ""  # the key `id`, for every type
    sharing: str = ""  # "" where not given; cache only
    required: bool = False
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    env: str | None = None


def mount_froms(run: Run) -> tuple[str, ...]:
    """The `from` of each mount, "" where it has none; raises on what cannot wait for expansion."""
    return tuple(_early_from(text) for text in run.mounts)


def parse_mounts(run: Run, expand: Callable[[str], str]) -> tuple[Mount, ...]:
    """Every mount of a RUN, values expanded with `expand`; raises DockerfileError with stock texts."""
    return tuple(_parse_mount(text, expand) for text in run.mounts)


def parse_device(text: str) -> Device:
    """One RUN --device: `name[,required[=bool]]` or `name=...`."""
    name, required = "", False
    for field, key, value, _ in _split(text, "devices"):
        if key == "required":
            required = True if value is None else _bool(key, value)
        elif key == "name" and value is not None:
            if name:
                raise DockerfileError(f"device name already set to {name}")
            name = value
        elif not name:
            name = field
        elif value is None:
            raise DockerfileError(f"invalid field '{field}' must be a key=value pair")
        else:
            raise DockerfileError(f"unexpected key '{key}' in '{field}'{hint(key, ('name', 'required'))}")
    return Device(name=name, required=required)


def _split(text: str, what: str) -> Iterator[tuple[str, str, str | None, str]]:
    """Each field as (field, lower-cased key, value or None, canonical key)."""
    try:
        fields = csv_fields(text)
    except DockerfileError as err:
        raise DockerfileError(f"failed to parse csv {what}: {err.brief}") from None
    for field in fields:
        key, equals, value = field.partition("=")
        key = key.lower()
        yield field, key, value if equals else None, _ALIASES.get(key, key)


def _early_from(text: str) -> str:
    found = ""
    for _, key, value, _ in _split(text, "mounts"):
        if key != "from" or value is None:
            continue
        if "$" in value[:-1]:
            raise DockerfileError("'from' doesn't support variable expansion, define alias stage instead")
        found = value
    return found


class _Draft:
    """A mount while its fields are being read; their order matters, as it does for stock frontends."""

    __slots__ = ("read_only", "type", "values")

    def __init__(self) -> None:
        self.type = "bind"
        self.read_only: bool | None = None
        self.values: dict[str, str | int | bool] = {}

    def bare(self, field: str, key: str, canonical: str) -> None:
        if canonical in ("readonly", "readwrite"):
            self.read_only = canonical == "readonly"
        elif canonical == "required":
            self.require_type(key, "secret", "ssh")
            self.values["required"] = True
        else:
            raise DockerfileError(f"invalid field '{field}' must be a key=value pair")

    def require_type(self, key: str, *types: str) -> None:
        if self.type not in types:
            raise DockerfileError(f"unexpected key '{key}' for mount type '{self.type}'")

    def put(self, field: str, key: str, canonical: str, value: str) -> None:
        if canonical == "type":
            if value.lower() not in TYPES:
                raise DockerfileError(f"unsupported mount type {quote(value)}{hint(value, TYPES)}")
            self.type = value.lower()
        elif canonical in ("from", "source", "target", "id", "env"):
            self.values[canonical] = value
        elif canonical in ("readonly", "readwrite"):
            self.read_only = _bool(key, value) == (canonical == "readonly")
        elif canonical == "required":
            self.require_type(key, "secret", "ssh")
            self.values["required"] = _bool(key, value)
        elif canonical == "size":
            self.require_type(key, "tmpfs")
            size = parse_size(value)
            if size is None:
                raise DockerfileError(f"invalid value for {key}: {value}")
            self.values["size"] = size
        elif canonical == "sharing":
            if value.lower() not in SHARING:
                raise DockerfileError(f"unsupported sharing value {quote(value)}{hint(value, SHARING)}")
            self.values["sharing"] = value.lower()
        elif canonical in ("mode", "uid", "gid"):
            number = parse_uint(value, 8 if canonical == "mode" else 10)
            if number is None:
                raise DockerfileError(f"invalid value {value} for {canonical}")
            self.values[canonical] = number
        else:
            raise DockerfileError(f"unexpected key '{key}' in '{field}'{hint(key, _KEYS)}")

    def check(self) -> None:
        values = self.values
        if self.type not in ("secret", "ssh", "cache"):
            for key in ("mode", "uid", "gid"):
                if key in values:
                    raise DockerfileError(f"{key} not allowed for {quote(self.type)} type mounts")
        if self.type == "secret":
            if values.get("from"):
                raise DockerfileError("secret mount should not have a from")
            if values.get("sharing"):
                raise DockerfileError("secret mount should not define sharing")
            if not (values.get("source") or values.get("target") or values.get("id")):
                raise DockerfileError("invalid secret mount. one of source, target required")
            if values.get("source") and values.get("id"):
                raise DockerfileError("both source and id can't be set")
        if values.get("sharing") and self.type != "cache":
            raise DockerfileError(f"invalid cache sharing set for {self.type} mount")


def _parse_mount(text: str, expand: Callable[[str], str]) -> Mount:
    draft = _Draft()
    for field, key, value, canonical in _split(text, "mounts"):
        if value is None:
            draft.bare(field, key, canonical)
        else:
            draft.put(field, key, canonical, expand(value))
    draft.check()
    got = draft.values
    read_only = draft.read_only if draft.read_only is not None else draft.type not in ("cache", "tmpfs")
    return Mount(
        type=draft.type,
        from_=_text(got, "from"),
        source=_text(got, "source"),
        target=_text(got, "target"),
        read_only=read_only,
        size=_number(got, "size") or 0,
        cache_id=_text(got, "id"),
        sharing=_text(got, "sharing"),
        required=bool(got.get("required")),
        mode=_number(got, "mode"),
        uid=_number(got, "uid"),
        gid=_number(got, "gid"),
        env=str(got["env"]) if "env" in got else None,
    )


def _text(values: dict[str, str | int | bool], key: str) -> str:
    return str(values.get(key, ""))


def _number(values: dict[str, str | int | bool], key: str) -> int | None:
    value = values.get(key)
    return None if value is None else int(value)


def _bool(key: str, value: str) -> bool:
    parsed = parse_bool(value)
    if parsed is None:
        raise DockerfileError(f"invalid value for {key}: {value}")
    return parsed


__all__ = ["SHARING", "TYPES", "Mount", "mount_froms", "parse_device", "parse_mounts"]
