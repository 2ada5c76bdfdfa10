# SPDX-License-Identifier: Apache-2.0
"""Changes to a protobuf message by its descriptor: one field of one message in it gets another value, goes or doubles."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

_TEXTS = (
    "",
    "/",
    "..",
    "/a/../b",
    "a" * 300,
    "*",
    "[",
    "\\",
    "\x00",
    "sha256:" + "0" * 64,
    "local://x",
    "docker-image://a",
    "0",
    "-1",
    "\u202e",
)
_INTS = (0, 1, -1, 2, 7, 0o777, 1 << 20, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1, -(1 << 63))


def change(chance: random.Random, message: Any) -> None:
    """Change one thing somewhere in the message."""
    inner = list(_within(message))
    at = chance.choice(inner)
    fields = list(at.DESCRIPTOR.fields)
    if not fields:
        return
    field = chance.choice(fields)
    try:
        if _is_map(field):
            _change_map(chance, getattr(at, field.name), field)
        elif field.is_repeated:
            _change_list(chance, getattr(at, field.name), field)
        elif chance.random() < 0.2:
            at.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            getattr(at, field.name).SetInParent()
        else:
            setattr(at, field.name, value(chance, field))
    except (ValueError, TypeError):  # a value that the field cannot hold: another one comes next time
        return


def value(chance: random.Random, field: Any) -> Any:
    if field.type in (field.TYPE_STRING, field.TYPE_BYTES):
        text = chance.choice(_TEXTS)
        return text.encode() if field.type == field.TYPE_BYTES else text
    if field.type == field.TYPE_BOOL:
        return chance.random() < 0.5
    return chance.choice(_INTS)


def _within(message: Any) -> Iterator[Any]:
    yield message
    for field, got in message.ListFields():
        if field.type != field.TYPE_MESSAGE or _is_map(field):
            continue
        for inner in got if field.is_repeated else (got,):
            yield from _within(inner)


def _is_map(field: Any) -> bool:
    return field.type == field.TYPE_MESSAGE and field.message_type.GetOptions().map_entry


def _change_map(chance: random.Random, held: Any, field: Any) -> None:
    key = chance.choice([*held, value(chance, field.message_type.fields_by_name["key"])])
    inner = field.message_type.fields_by_name["value"]
    if inner.type == inner.TYPE_MESSAGE:
        change(chance, held[key])
    else:
        held[key] = value(chance, inner)


def _change_list(chance: random.Random, held: Any, field: Any) -> None:
    if held and chance.random() < 0.4:
        del held[chance.randrange(len(held))]
    elif field.type == field.TYPE_MESSAGE:
        new = held.add()
        if len(held) > 1 and chance.random() < 0.7:
            new.CopyFrom(held[chance.randrange(len(held) - 1)])
    else:
        held.append(value(chance, field))


__all__ = ["change", "value"]
