# SPDX-License-Identifier: Apache-2.0
"""Image references, by the grammar of distribution/reference, with Docker's defaults for the domain."""

from __future__ import annotations

import re

from chantier.errors import ReferenceError_
from chantier.values import dataclass, replace

from .digest import Digest

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN_NAME = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_DOMAIN_NAME}(?:\.{_DOMAIN_NAME})*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?"
_REFERENCE = re.compile(
    rf"(?P<name>(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_COMPONENT}(?:/{_COMPONENT})*))"
    r"(?::(?P<tag>[\w][\w.-]{0,127}))?"
    r"(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?\Z",
    re.ASCII,
)
_HEX64 = re.compile(r"[a-f0-9]{64}\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference: `docker.io/library/alpine:latest`. `tag` and `digest` may both be empty."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Normalise what a person writes (`alpine`, `me/app:1`, `reg:5000/x@sha256:…`); no tag is added.

        Raises ReferenceError_ with distribution's own texts.
        """
        if _HEX64.match(text):
            raise ReferenceError_(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
        domain, remainder = _split_domain(text)
        name = remainder.split("@", 1)[0].rsplit(":", 1)[0] if ":" in remainder.split("@", 1)[0] else remainder.split("@", 1)[0]
        if name.lower() != name:
            raise ReferenceError_("invalid reference format: repository name (" + name + ") must be lowercase")
        match = _REFERENCE.match(f"{domain}/{remainder}")
        if match is None:
            raise ReferenceError_("invalid reference format")
        if len(match["name"]) - len(match["domain"] or "") > 256:
            raise ReferenceError_("repository name must not be more than 255 characters")
        digest = match["digest"] or ""
        if digest:
            Digest.parse(digest)
        return cls(match["domain"] or domain, match["path"], match["tag"] or "", digest)

    @property
    def name(self) -> str:
        """`docker.io/library/alpine`: neither tag nor digest."""
        return f"{self.domain}/{self.path}"

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def familiar(self) -> str:
        """The short form people know: `alpine:3`, `me/app`, `reg.test/x`."""
        name = self.name
        if self.domain == "docker.io":
            name = self.path.removeprefix("library/") if self.path.count("/") == 1 else self.path
        return name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def with_default_tag(self) -> Reference:
        """`:latest` where there is neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag="latest")

    def with_digest(self, digest: str) -> Reference:
        return replace(self, digest=str(digest))

    @property
    def object(self) -> str:
        """What to ask a registry for: the digest if there is one, else the tag (default `latest`)."""
        return self.digest or self.tag or "latest"


def _split_domain(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if not slash or (not any(c in first for c in ".:") and first != "localhost" and first.lower() == first):
        domain, remainder = "docker.io", text
    else:
        domain, remainder = first, rest
    if domain == "index.docker.io":
        domain = "docker.io"
    if domain == "docker.io" and "/" not in remainder:
        remainder = "library/" + remainder
    return domain, remainder
