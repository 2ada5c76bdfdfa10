# SPDX-License-Identifier: Apache-2.0
"""Cache keys: how they are named, linked and kept.

A key without inputs is named by what it is: `key_id(digest, output)`. A key with inputs has a random name and is *found*:
every link (input index, operation, selector) from a key of each input leads to it. A child matches when, for every
input, some key of that input links to it. So one result may have many keys (definition keys, content keys, the keys of
another definition that gave the same content), and any mixture of them finds it.

      sha256:3a.. (image) --(0, op1, "")--> k1 --(0, op2, "")--> k2 [record: result r9]
                                  sha256:c4.. (content) --(1, op2, "")-----^

Keys that start with `random:` live in memory only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from chantier.spec import new_id
from chantier.values import dataclass

from .types import CacheRecord

DETAIL_LIMIT = 64 << 10
"""Bytes of `KeyInfo.detail` that are worth keeping."""


def key_id(digest: str, output: int) -> str:
    """The name of the key of one output of an operation that has no inputs, and of an operation within links."""
    algorithm = "random" if digest.startswith("random:") else "sha256"
    return f"{algorithm}:{hashlib.sha256(f'{digest}@{output}'.encode()).hexdigest()}"


def content_key_id(digest: str) -> str:
    """The name of the slow key of a content digest."""
    return key_id(digest, -1)


def fresh_key_id() -> str:
    """The name of a new key with inputs."""
    return new_id()


def is_volatile(key: str) -> bool:
    """Whether a key is never stored."""
    return key.startswith("random:")


@dataclass(frozen=True, slots=True)
class Link:
    """How a key of an input leads to a key of an operation: the input's index, `key_id(operation, output)`, the selector."""

    input: int
    op: str
    selector: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """What a key was made for; serves explanations and nothing else."""

    id: str
    op: str
    name: str = ""
    vertex: str = ""
    created_at: int = 0
    detail: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """A change: the key is led to by these links, and has this record. Keeping twice is keeping once."""

    key: str
    links: tuple[tuple[str, Link], ...] = ()  # (parent key, link)
    record: CacheRecord | None = None
    info: KeyInfo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """A change: the record's result is gone. The key stays: others may lead through it."""

    key: str
    result: str


Change = Keep | Drop


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    records: int
    keys: int


class KeyStore(Protocol):
    """Where keys are kept. Sync and quick; called from several threads. A miss is an empty answer, never an error."""

    def children(self, parents: Collection[str], link: Link) -> set[str]:
        """Keys that `link` leads to from any of the parents."""

    def records(self, keys: Collection[str]) -> list[CacheRecord]:
        """All records of these keys, in no order."""

    def parents(self, key: str) -> list[tuple[str, Link]]:
        """The links that lead to a key, each with the key it comes from."""

    def links(self, parent: str, limit: int = 64) -> list[tuple[Link, str]]:
        """Some links that leave a key, each with the key it leads to."""

    def info(self, key: str) -> KeyInfo | None: ...

    def find(self, op: str, limit: int = 16) -> list[KeyInfo]:
        """Keys of an operation, newest first."""

    def apply(self, changes: Sequence[Change]) -> None:
        """Make these changes, all or none, in this order. May wait for a disk; run in a thread."""

    def keys_of(self, result: str) -> list[str]:
        """Keys that have a record with this result."""

    def sweep(self, exists: Callable[[str], bool]) -> Swept:
        """Drop records whose result is gone, then keys that lead to no record. Slow; for idle times."""


__all__ = [
    "DETAIL_LIMIT",
    "Change",
    "Drop",
    "Keep",
    "KeyInfo",
    "KeyStore",
    "Link",
    "Swept",
    "content_key_id",
    "fresh_key_id",
    "is_volatile",
    "key_id",
]
