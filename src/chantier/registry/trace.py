# SPDX-License-Identifier: Apache-2.0
"""Debug logging of registry traffic: BuildKit's messages and fields, with what is secret blacked out (protocol.md 7.5)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

logger = logging.getLogger("chantier.registry")

REDACTED = "REDACTED"
_NONE: Mapping[str, object] = MappingProxyType({})
_SECRET_HEADERS = frozenset(
    [
        "cookie",
        "set-cookie",
        "proxy-authorization",
        "x-registry-auth",
        "x-amz-security-token",
        "x-auth-token",
        "authentication-info",
    ]
)
_URL_HEADERS = frozenset(["location", "content-location", "link", "referer"])
_QUERY = re.compile(r"([?&;])([^=&;#>\s]*)=([^&;#>\s]*)")
_USERINFO = re.compile(r"(\A|<)([a-z][a-z0-9+.-]*://)[^/@\s>]*@", re.IGNORECASE)


class Trace:
    """Writes to `chantier.registry`; every record carries `fields`, a dict whose keys may have dots."""

    def __init__(self, fields: Mapping[str, object] = _NONE) -> None:
        self._fields = dict(fields)

    def debug(self, message: str, fields: Mapping[str, object] = _NONE) -> None:
        self._say(logging.DEBUG, message, fields)

    def info(self, message: str, fields: Mapping[str, object] = _NONE) -> None:
        self._say(logging.INFO, message, fields)

    def request(self, method: str, url: str, headers: Mapping[str, str], host: str) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            fields = {"request.method": method, "url": redact_url(url), "host": host}
            self.debug("do request", fields | header_fields("request", headers.items()))

    def response(self, status: str, headers: Iterable[tuple[str, str]], host: str) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            self.debug("fetch response received", {"response.status": status, "host": host} | header_fields("response", headers))

    def _say(self, level: int, message: str, fields: Mapping[str, object]) -> None:
        if logger.isEnabledFor(level):
            logger.log(level, "%s", message, extra={"fields": self._fields | dict(fields)})


def header_fields(prefix: str, headers: Iterable[tuple[str, str]]) -> dict[str, object]:
    """`request.header.accept`; further values of one header are `request.header.accept.1`, and so on."""
    fields: dict[str, object] = {}
    for name, value in headers:
        key = base = f"{prefix}.header.{name.lower()}"
        number = 0
        while key in fields:
            number += 1
            key = f"{base}.{number}"
        fields[key] = redact_header(name, value)
    return fields


def redact_header(name: str, value: str) -> str:
    lower = name.lower()
    if lower == "authorization":
        scheme, space, _ = value.partition(" ")
        return f"{scheme} {REDACTED}" if space else REDACTED
    if lower in _SECRET_HEADERS:
        return REDACTED
    return redact_url(value) if lower in _URL_HEADERS else value


def redact_url(url: str) -> str:
    """Neither user names nor values of the query, except `ns`: signed URLs carry their key there."""
    url = _USERINFO.sub(r"\1\2", url)
    return _QUERY.sub(lambda m: m[0] if m[2] == "ns" else f"{m[1]}{m[2]}={REDACTED}", url)
