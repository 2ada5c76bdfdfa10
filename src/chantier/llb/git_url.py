# SPDX-License-Identifier: Apache-2.0
"""Git addresses as build contexts and ADD write them: `https://host/x.git#ref:dir`, `git@host:x.git?branch=main`."""

from __future__ import annotations

import posixpath
import re
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from chantier.errors import UsageError
from chantier.values import dataclass, field, replace

_PROTOCOL = re.compile(r"[a-zA-Z0-9]+://")
_SCHEMES = frozenset(("http", "https", "ssh", "git"))
_SCP = re.compile(r"([a-zA-Z0-9_-]+)@([a-zA-Z0-9.-]+):(.*?)(?:\?(.*?))?(?:#(.*))?\Z", re.DOTALL)
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


@dataclass(frozen=True, slots=True)
class GitUrl:
    """The parts of an address. `remote` is what git itself is given: no query, no fragment."""

    scheme: str
    host: str
    path: str
    remote: str
    fragment: str = ""
    query: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> GitUrl | None:
        """None for what is no address of a protocol git speaks here."""
        if _PROTOCOL.match(text):
            try:
                parts = urlsplit(text)
                query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=False)
            except ValueError:
                return None
            scheme = parts.scheme.lower()
            if scheme not in _SCHEMES:
                return None
            host = parts.netloc.rpartition("@")[2]
            remote = f"{scheme}://{parts.netloc}{parts.path}"
            return cls(scheme, host, unquote(parts.path), remote, unquote(parts.fragment), query)
        match = _SCP.match(text)
        if match is None:
            return None
        user, host, path, query_text, fragment = match.groups()
        query = parse_qs(query_text, keep_blank_values=True) if query_text else {}
        return cls("ssh", host, path, f"{user}@{host}:{path}", fragment or "", query)


@dataclass(frozen=True, slots=True, kw_only=True)
class GitRef:
    """What to check out of where."""

    remote: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep_git_dir: bool | None = None
    submodules: bool | None = None
    mtime: Literal["", "checkout", "commit"] = ""
    fetch_by_commit: bool = False
    like_local: bool = False  # `github.com/x/y`: as a build context this is git, in ADD it is a path

    @classmethod
    def parse(cls, text: str) -> GitRef | None:
        """None for what is not git. Raises UsageError for git with a query that cannot be meant."""
        if text.startswith(("./", "../")):
            return None
        like_local = text.startswith("github.com/")
        url = GitUrl.parse("https://" + text if like_local else text)
        if url is None:
            return None
        # Over HTTP only the suffix tells a repository from a file.
        if not like_local and url.scheme in ("http", "https") and not url.path.endswith(".git"):
            return None
        ref, _, subdir = url.fragment.partition(":")
        made = cls(
            remote=url.remote.partition("://")[2] if like_local else url.remote,
            ref=ref,
            subdir=posixpath.normpath("/" + subdir).lstrip("/") if subdir else "",
            like_local=like_local,
        )
        return made._with_query(url.query)

    def _with_query(self, query: dict[str, list[str]]) -> GitRef:
        made, tag, branch = self, "", ""
        for key, values in query.items():
            if len(values) > 1:
                raise UsageError(f'query "{key}" has multiple values')
            value = values[0]
            if not value and key not in ("submodules", "keep-git-dir", "fetch-by-commit"):
                raise UsageError(f'query "{key}" has no value')
            match key:
                case "ref":
                    made = replace(made, ref=_agree("ref", made.ref, value))
                case "tag":
                    tag = value
                case "branch":
                    branch = value
                case "subdir":
                    made = replace(made, subdir=_agree("subdir", made.subdir, value))
                case "checksum" | "commit":
                    made = replace(made, checksum=value)
                case "keep-git-dir":
                    made = replace(made, keep_git_dir=_boolean(key, value))
                case "submodules":
                    made = replace(made, submodules=_boolean(key, value))
                case "fetch-by-commit":
                    made = replace(made, fetch_by_commit=_boolean(key, value))
                case "mtime":
                    if value not in ("checkout", "commit"):
                        raise UsageError(f'invalid mtime value: "{value}" (must be "checkout" or "commit")')
                    made = replace(made, mtime="commit" if value == "commit" else "checkout")
                case _:
                    raise UsageError(f'unexpected query "{key}"')
        if tag and branch:
            raise UsageError("branch conflicts with tag")
        if tag:
            made = replace(made, ref=_agree("ref", made.ref, _prefixed("refs/tags/", tag)))
        if branch:
            made = replace(made, ref=_agree("ref", made.ref, _prefixed("refs/heads/", branch)))
        return made


def _agree(what: str, known: str, value: str) -> str:
    if known and known != value:
        raise UsageError(f'{what} conflicts: "{known}" vs "{value}"')
    return value


def _prefixed(prefix: str, name: str) -> str:
    return name if name.startswith(prefix) else prefix + name


def _boolean(key: str, value: str) -> bool:
    if not value:
        return True
    if value not in _BOOLEANS:
        raise UsageError(f'invalid {key} value: "{value}"')
    return _BOOLEANS[value]


__all__ = ["GitRef", "GitUrl"]
