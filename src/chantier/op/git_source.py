# SPDX-License-Identifier: Apache-2.0
"""What a git source says (protocol.md 1.4.5), and what it turned out to be."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit

from chantier.errors import UsageError

from .blob import BlobPlace
from .signature import wanted_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chantier.pb import ops_pb2 as pb

SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_HEX = re.compile(r"[0-9a-fA-F]+\Z")


class Commit:
    """What a source resolved to: the commit (or the tag object where `.git` is kept) and the full name it had."""

    def __init__(self, sha: str, ref: str, commit: str = "", tag: str = "") -> None:
        self.sha = sha
        self.ref = ref
        self.tag = tag  # the object of an annotated tag
        self.commit = commit  # of an annotated tag

    @property
    def format(self) -> str:
        """What names objects. A server that only serves files does not say it, and a repository has to have it from the start."""
        return "sha256" if len(self.sha) == 64 else "sha1"


class GitSource:
    """The vertex's identifier and attributes, checked."""

    def __init__(self, source: pb.SourceOp) -> None:
        attrs = source.attrs
        rest, _, fragment = source.identifier.removeprefix("git://").partition("#")
        self.ref, _, subdir = fragment.partition(":")
        self.subdir = "" if subdir.strip("/.") == "" else os.path.normpath("/" + subdir).lstrip("/")
        self.remote = attrs.get("git.fullurl") or f"https://{rest}"
        if self.remote.startswith("-") or self.ref.startswith("-"):
            raise UsageError(f"invalid git address {self.shown}#{self.ref}")
        self.keep_git_dir = attrs.get("git.keepgitdir") == "true" and not self.subdir
        self.skip_submodules = attrs.get("git.skipsubmodules") == "true"
        self.mtime_commit = attrs.get("git.mtime") == "commit"
        self.by_commit = attrs.get("git.fetchbycommit") == "true"
        self.checksum = attrs.get("git.checksum", "")
        if self.checksum and not _HEX.match(self.checksum):
            raise UsageError(f"invalid checksum {self.checksum} for Git URL, expected hex commit hash")
        self.token_secret = attrs.get("git.authtokensecret", "GIT_AUTH_TOKEN")
        self.header_secret = attrs.get("git.authheadersecret", "GIT_AUTH_HEADER")
        self.known_hosts = attrs.get("git.knownsshhosts", "")
        self.agent = attrs.get("git.mountsshsock", "")
        self.signature = wanted_of(attrs)
        self.bundle = BlobPlace.parse(attrs["git.bundle"], attrs) if attrs.get("git.bundle") else None
        self.checkout_bundle = attrs.get("git.checkoutbundle") == "true"
        self._check_bundles(attrs)

    def _check_bundles(self, attrs: Mapping[str, str]) -> None:
        if self.bundle is not None:
            if not self.checksum:
                raise UsageError("git.bundle requires git.checksum to be set")
            if not self.ref and not SHA.match(self.checksum):
                raise UsageError(f"git.bundle without a ref requires the whole commit as git.checksum, not {self.checksum}")
        if self.checkout_bundle and attrs.get("git.keepgitdir") == "true":
            raise UsageError("git.checkoutbundle is incompatible with git.keepgitdir")
        if self.checkout_bundle and self.subdir:
            raise UsageError("git.checkoutbundle is incompatible with git.subdir")

    @property
    def shown(self) -> str:
        """The address without a password."""
        return redacted(self.remote)


def redacted(remote: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(remote)
        if parts.scheme and parts.password is not None:
            user = quote(parts.username or "", safe="")
            return urlunsplit(parts._replace(netloc=f"{user}:xxxxx@{parts.netloc.rpartition('@')[2]}"))
    return remote


__all__ = ["SHA", "Commit", "GitSource", "redacted"]
