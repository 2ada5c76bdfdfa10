# SPDX-License-Identifier: Apache-2.0
"""Operations as the JSON that BuildKit hashes into cache keys: what Go's encoding/json makes of its generated structs.

Keys must be equal to the byte for caches to cross over. Fields stand in the order of their numbers and under their names in
the .proto; empty ones are left out; enums are numbers, bytes base64. BuildKit changed generators in v0.17 (gogo to
protobuf-go), and with it a few bytes: fields that gogo declared as non-nullable are written by versions before even when
they are zero, and the id of a user has another name. So an operation has a key, and sometimes a second one by which older
versions know it (`CacheMap.also`): both are looked for, both are written.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from chantier.spec.gojson import dumps

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor

_MESSAGE, _BYTES = 11, 12
"""descriptor.proto, FieldDescriptorProto.Type."""

_ALWAYS = frozenset(
    {
        ("Mount", "input"),
        ("Mount", "output"),
        ("NamedUserOpt", "input"),
        ("MergeInput", "input"),
        ("LowerDiffInput", "input"),
        ("UpperDiffInput", "input"),
        ("BuildOp", "builder"),
        ("BuildInput", "input"),
    }
)
"""Fields that versions before v0.17 write even if they are zero."""


def struct(message: Message, *, old: bool = False) -> dict[str, Any]:
    """A message as Go marshals it; `old` is the form of BuildKit before v0.17."""
    name = message.DESCRIPTOR.name
    if name == "UserOpt":
        return {"User": _user(message, old=old)}
    out: dict[str, Any] = {}
    for field in _fields(message):
        value = _value(getattr(message, field.name), field, old=old)
        if field.type == _MESSAGE and not field.is_repeated and not message.HasField(field.name):
            continue
        if value or field.type == _MESSAGE or (old and (name, field.name) in _ALWAYS):
            if field.is_repeated and not value:
                continue
            out[field.name] = value
    return out


def _fields(message: Message) -> list[Any]:
    return sorted(message.DESCRIPTOR.fields, key=lambda field: field.number)


def digests(make: Callable[[Callable[[Message], dict[str, Any]]], Mapping[str, Any]]) -> tuple[str, tuple[str, ...], bytes]:
    """The digest of an operation, the digests older versions know it by, and what the first was made of.

    `make` is given the function that turns a message into JSON, and returns the whole document.
    """
    detail = dumps(make(struct))
    digest = digest_of(detail)
    before = digest_of(dumps(make(lambda message: struct(message, old=True))))
    return digest, () if before == digest else (before,), detail


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _value(value: Any, field: FieldDescriptor, *, old: bool) -> Any:
    if field.is_repeated:
        if field.message_type is not None and hasattr(value, "keys"):  # a map
            return {key: _item(value[key], field.message_type.fields_by_name["value"], old=old) for key in sorted(value)}
        return [_item(item, field, old=old) for item in value]
    return _item(value, field, old=old)


def _item(value: Any, field: FieldDescriptor, *, old: bool) -> Any:
    if field.type == _MESSAGE:
        return struct(value, old=old)
    if field.type == _BYTES:
        return b64encode(value).decode()
    return value


def _user(message: Any, *, old: bool) -> dict[str, Any] | None:
    """The oneof of UserOpt, which Go marshals through an interface."""
    kind = message.WhichOneof("user")
    if kind == "byName":
        return {"byName": struct(message.byName, old=old)}
    if kind is None and old:
        return None
    return {"byID" if old else "byId": message.byID} if message.byID else {}


__all__ = ["digest_of", "digests", "struct"]
