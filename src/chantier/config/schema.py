# SPDX-License-Identifier: Apache-2.0
"""How a dataclass field is declared as a key of the file: its name there, how it is read, checked and written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from chantier.values import dataclass, field, fields

from .units import name_of, read_duration, read_size, write_duration, write_size

if TYPE_CHECKING:
    from dataclasses import Field

EMPTY: Mapping[str, Any] = MappingProxyType({})
_UNSET: Any = object()


@dataclass(frozen=True, slots=True)
class Scalar:
    """A value without keys of its own. `read` raises ValueError with what was wanted and what was found."""

    read: Callable[[object], Any]
    write: Callable[[Any], Any] = lambda value: value
    example: str = ""
    schema: Mapping[str, Any] = field(default_factory=lambda: EMPTY)  # JSON Schema of the raw value


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose keys are the fields of `cls`; `many` for an array of tables, `named` for a table of tables by any name.

    A class may have a method `mistakes` that yields (key, text) for values that do not go together.
    """

    cls: type
    many: bool = False
    named: bool = False
    check_name: Callable[[str], str] | None = None  # a warning about a name, or ""
    check_item: Callable[[str, Any], Iterable[tuple[str, str]]] | None = None  # mistakes of one named table: (key, text)


Kind = Scalar | Table


@dataclass(frozen=True, slots=True)
class Key:
    """`deprecated` names what to write in its place; `about` is for editors and the manual."""

    name: str
    kind: Kind
    deprecated: str = ""
    about: str = ""


def toml(name: str, kind: Kind, default: Any = _UNSET, *, deprecated: str = "", about: str = "") -> Any:
    """A dataclass field that is the TOML key `name`."""
    metadata = {"toml": Key(name, kind, deprecated, about)}
    if default is EMPTY:
        return field(default_factory=lambda: EMPTY, metadata=metadata)
    if default is not _UNSET:
        return field(default=default, metadata=metadata)
    if isinstance(kind, Table) and not kind.many and not kind.named:
        return field(default_factory=kind.cls, metadata=metadata)
    if isinstance(kind, Table) and kind.named:
        return field(default_factory=lambda: EMPTY, metadata=metadata)
    return field(default=(), metadata=metadata)


def keys_of(cls: type) -> dict[str, tuple[Field[Any], Key]]:
    return {f.metadata["toml"].name: (f, f.metadata["toml"]) for f in fields(cls) if "toml" in f.metadata}


def _boolean(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise ValueError(f"want true or false, got {name_of(raw)}")
    return raw


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"want a string, got {name_of(raw)}")
    return raw


def _integer(raw: object) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise ValueError(f"want a whole number, got {name_of(raw)}")
    return raw


def _count(raw: object) -> int:
    if _integer(raw) < 0:
        raise ValueError(f"want a number that is not negative, got {raw}")
    return _integer(raw)


def _positive(raw: object) -> int:
    if _integer(raw) <= 0:
        raise ValueError(f"must be greater than zero, got {raw}")
    return _integer(raw)


def _texts(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise ValueError(f"want an array of strings, got {name_of(raw)}")
    for index, item in enumerate(raw):
        if not isinstance(item, str):
            raise ItemError(index, f"want a string, got {name_of(item)}")
    return tuple(raw)


def _text_map(raw: object) -> Mapping[str, str]:
    if not isinstance(raw, dict):
        raise ValueError(f"want a table of strings, got {name_of(raw)}")
    for name, item in raw.items():
        if not isinstance(item, str):
            raise ItemError(name, f"want a string, got {name_of(item)}")
    return MappingProxyType(dict(raw))


def _free(raw: object) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise ValueError(f"want a table, got {name_of(raw)}")
    return MappingProxyType(dict(raw))


class ItemError(ValueError):
    """A ValueError about one element of the value: its index or key."""

    def __init__(self, at: int | str, text: str) -> None:
        super().__init__(text)
        self.at = at


def choice(*allowed: str) -> Scalar:
    def read(raw: object) -> str:
        text = _text(raw)
        if text and text not in allowed:
            raise ValueError(f"want {_or(allowed)}, got {text!r}")
        return text

    return Scalar(read, example=f'"{allowed[0]}"', schema={"type": "string", "enum": ["", *allowed]})


def choices(*allowed: str) -> Scalar:
    def read(raw: object) -> tuple[str, ...]:
        texts = _texts(raw)
        for index, text in enumerate(texts):
            if text not in allowed:
                raise ItemError(index, f"want {_or(allowed)}, got {text!r}")
        return texts

    return Scalar(read, list, f'["{allowed[0]}"]', {"type": "array", "items": {"type": "string", "enum": list(allowed)}})


def _or(words: tuple[str, ...]) -> str:
    quoted = [f'"{w}"' for w in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]


_STRINGS = {"type": "array", "items": {"type": "string"}}
_SIZES = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": r"^\s*([0-9.]+ ?[kmgtpKMGTP]?i?[bB]?|[0-9]+%)?\s*$"},
    ]
}
_DURATIONS = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": r"^\s*([0-9]+|\+?([0-9.]+(ns|us|µs|μs|ms|s|m|h))+)?\s*$"},
    ]
}

BOOL = Scalar(_boolean, example="true", schema={"type": "boolean"})
TEXT = Scalar(_text, example='"text"', schema={"type": "string"})
INT = Scalar(_integer, example="1000", schema={"type": "integer"})
COUNT = Scalar(_count, example="4", schema={"type": "integer", "minimum": 0})
POSITIVE = Scalar(_positive, example="4", schema={"type": "integer", "minimum": 1})
TEXTS = Scalar(_texts, list, '["one", "two"]', _STRINGS)
TEXT_MAP = Scalar(_text_map, dict, '{ name = "value" }', {"type": "object", "additionalProperties": {"type": "string"}})
FREE = Scalar(_free, dict, '{ name = "value" }', {"type": "object"})
SIZE = Scalar(read_size, write_size, '"10GB"', _SIZES)
DURATION = Scalar(read_duration, write_duration, '"48h"', _DURATIONS)
