# SPDX-License-Identifier: Apache-2.0
"""The file as a JSON Schema (draft 2020-12), for editors that check TOML by one. Made from the same fields as the reader."""

from __future__ import annotations

from typing import Any

from .schema import Key, Table, keys_of
from .values import Config

_ID = "buildkitd.schema.json"


def json_schema() -> dict[str, Any]:
    """A new document; equal for equal versions, keys in the order of the tables' fields."""
    definitions: dict[str, Any] = {}
    top = _object(Config, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": _ID,
        "title": "buildkitd.toml, with what Chantier adds under [chantier]",
        **top,
        "$defs": dict(sorted(definitions.items())),
    }


def _object(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    properties = {name: _key(key, definitions) for name, (_, key) in keys_of(cls).items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _key(key: Key, definitions: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = _table(key.kind, definitions) if isinstance(key.kind, Table) else dict(key.kind.schema)
    about = key.about
    if key.deprecated:
        made["deprecated"] = True
        about = f"{about + '; ' if about else ''}write {key.deprecated} instead"
    if about:
        made["description"] = about
    return made


def _table(kind: Table, definitions: dict[str, Any]) -> dict[str, Any]:
    name = kind.cls.__name__.removesuffix("Config")
    if name not in definitions:
        definitions[name] = {}  # stands here while its own keys are described
        described = _object(kind.cls, definitions)
        if own := _sentence(kind.cls):
            described["description"] = own
        definitions[name] = described
    reference = {"$ref": f"#/$defs/{name}"}
    if kind.many:
        return {"type": "array", "items": reference}
    if kind.named:
        return {"type": "object", "additionalProperties": reference}
    return reference


def _sentence(cls: type) -> str:
    """The first line of the class's own docstring; dataclasses make one up where there is none."""
    text = (cls.__doc__ or "").strip().split("\n")[0]
    return "" if text.startswith(f"{cls.__name__}(") else text


__all__ = ["json_schema"]
