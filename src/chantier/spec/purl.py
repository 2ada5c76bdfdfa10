# SPDX-License-Identifier: Apache-2.0
"""Package URLs (github.com/package-url/purl-spec) of images, and addresses without their passwords: how provenance names things."""

from __future__ import annotations

import re
from urllib.parse import quote, quote_plus

from .platform import Platform
from .reference import Reference

_IN_PATH = "$&+=:@"  # what Go's url.PathEscape leaves as it is, besides letters, digits and -_.~
_USER = re.compile(r"\A([a-zA-Z][a-zA-Z0-9+.-]*://)([^/?#]*)@")
_MASK = "xxxxx"


def package_url(ref: Reference, platform: Platform | None = None, *, kind: str = "docker", **qualifiers: str) -> str:
    """`pkg:docker/NAME@TAG?digest=…&platform=…` as BuildKit writes it: the tag `latest` is added where there is nothing else.

    `kind` is `docker` for images of registries, `oci` for those of an OCI layout.
    """
    ref = ref.with_default_tag()
    name = ref.familiar().partition("@")[0].removesuffix(f":{ref.tag}" if ref.tag else "")
    path = "/".join(quote_plus(part, safe="") for part in name.split("/"))
    version = "@" + quote(ref.tag, safe=_IN_PATH) if ref.tag else ""
    said = {"digest": ref.digest, "platform": str(platform.normalise()) if platform is not None else "", **qualifiers}
    query = "&".join(f"{key}={quote(value, safe=_IN_PATH)}" for key, value in said.items() if value)
    return f"pkg:{kind}/{path}{version}" + (f"?{query}" if query else "")


def redacted(address: str) -> str:
    """A URL with `xxxxx` for its user and its password; any other text as it is."""
    match = _USER.match(address)
    if match is None:
        return address
    user, colon, _ = match[2].partition(":")
    shown = (_MASK if user else "") + (colon + _MASK if colon else "")
    return f"{match[1]}{shown}@{address[match.end() :]}" if shown else address


__all__ = ["package_url", "redacted"]
