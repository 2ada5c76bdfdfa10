# SPDX-License-Identifier: Apache-2.0
"""HTTP requests as values, and what a conversation needs of a response."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from types import MappingProxyType
from typing import BinaryIO, Protocol

from urllib3 import HTTPHeaderDict

from chantier.values import dataclass, field, replace

_EMPTY: Mapping[str, str] = MappingProxyType({})
Body = Callable[[], BinaryIO]
"""Opens the body anew for each try; whoever opens it closes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    body: Body | None = None
    length: int = 0

    def with_headers(self, **headers: str | None) -> Request:
        """`_` in names stands for `-`; None removes one."""
        merged = {k.lower(): v for k, v in self.headers.items()}
        for name, value in headers.items():
            key = name.replace("_", "-").lower()
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = value
        return replace(self, headers=MappingProxyType(merged))


def bytes_body(data: bytes) -> Body:
    return lambda: BytesIO(data)


class Answer(Protocol):
    """A response. `read` gives at most `limit` bytes of the body and remembers them; the rest is dropped by `close`."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> HTTPHeaderDict: ...
    @property
    def url(self) -> str: ...
    def read(self, limit: int = ...) -> bytes: ...
