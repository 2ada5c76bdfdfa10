# SPDX-License-Identifier: Apache-2.0
"""Where the context and the Dockerfile come from (builders.md 5.3): frontend options, and directories the session offers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from chantier.errors import UsageError
from chantier.spec import new_id
from chantier.values import dataclass, field

from .request import BuildRequest

_PEEK = 1024
_GIT_URL = re.compile(r"(?:git@[^:/]+:|ssh://|git://|github\.com/)|https?://[^#?]+\.git(?:[#?].*)?\Z")
_HTTP_URL = re.compile(r"https?://")
_ARCHIVE_MAGIC = (b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """`attrs` go to the frontend; the rest is what the session serves: directories by name, files held in memory, an upload."""

    attrs: dict[str, str] = field(default_factory=dict)
    directories: dict[str, Path] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # directories that exist only here
    upload: tuple[str, BinaryIO, bytes] | None = None  # id, stream, what was peeked of it
    shared_base: str = ""  # what makes two builds of one directory share their local sources
    dockerfile_name: str = "Dockerfile"  # what to call it in messages


def is_git_url(text: str) -> bool:
    return _GIT_URL.match(text) is not None


def is_http_url(text: str) -> bool:
    return _HTTP_URL.match(text) is not None and not is_git_url(text)


def resolve_context(request: BuildRequest, stdin: Callable[[], BinaryIO]) -> Context:
    """Raises UsageError with docker buildx's texts. Standard input is read only where the request names it."""
    where = request.context
    if not where:
        raise UsageError('please specify build context (e.g. "." for the current directory)')
    text = request.dockerfile_text
    if request.dockerfile == "-":
        if where == "-":
            raise UsageError("invalid argument: can't use stdin for both build context and dockerfile")
        text = stdin().read()
    if where == "-":
        return _from_stdin(request, stdin())
    if os.path.isdir(where):
        return _from_directory(request, text)
    if is_git_url(where) or is_http_url(where):
        return _from_url(request, text)
    if os.path.exists(where):
        raise UsageError(
            f'unable to prepare context: path "{where}" is not a directory', hint="pass the directory, and the Dockerfile with -f"
        )
    raise UsageError(
        f'unable to prepare context: path "{where}" not found', hint="pass a directory, a git URL, an http URL, or -"
    )


def _from_stdin(request: BuildRequest, stream: BinaryIO) -> Context:
    head = _peek(stream, _PEEK)
    if _is_archive(head):
        id = new_id()
        attrs = {"context": f"http://buildkit-session/{id}"}
        if request.dockerfile:
            attrs["filename"] = request.dockerfile
        return Context(attrs=attrs, upload=(id, stream, head))
    if request.dockerfile or request.dockerfile_text is not None:
        raise UsageError("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
    text = head + stream.read()
    return Context(
        attrs={"dockerfilekey": "dockerfile", "filename": "Dockerfile"},
        files={"dockerfile": {"Dockerfile": text}, "context": {}},
        dockerfile_name="stdin",
    )


def _from_directory(request: BuildRequest, text: bytes | None) -> Context:
    root = Path(request.context).resolve()
    base = root.name
    if text is not None:
        return Context(
            attrs={"dockerfilekey": "dockerfile", "filename": "Dockerfile"},
            directories={"context": root},
            files={"dockerfile": {"Dockerfile": text}},
            shared_base=base,
            dockerfile_name="stdin" if request.dockerfile == "-" else "inline",
        )
    if request.dockerfile is None:
        name = "Dockerfile"
        if not (root / name).exists() and (root / "dockerfile").exists():
            name = "dockerfile"
        return Context(
            attrs={"filename": name}, directories={"context": root, "dockerfile": root}, shared_base=base, dockerfile_name=name
        )
    if is_http_url(request.dockerfile):
        raise UsageError(
            f"a Dockerfile from a URL cannot be combined with a local context: {request.dockerfile}",
            hint="download it first, or pass the URL as the context",
        )
    path = Path(request.dockerfile)
    if not path.is_file() and path.parent.is_dir() and path.name == "Dockerfile" and (path.parent / "dockerfile").is_file():
        path = path.parent / "dockerfile"
    directory = Path(os.path.abspath(path)).parent
    if not directory.is_dir():
        raise UsageError(f"unable to prepare context: the directory of the Dockerfile {request.dockerfile!r} does not exist")
    return Context(
        attrs={"filename": path.name},
        directories={"context": root, "dockerfile": directory},
        shared_base=base,
        dockerfile_name=request.dockerfile,
    )


def _from_url(request: BuildRequest, text: bytes | None) -> Context:
    attrs = {"context": request.context}
    if text is not None:
        return Context(
            attrs=attrs | {"dockerfilekey": "dockerfile", "filename": "Dockerfile"},
            files={"dockerfile": {"Dockerfile": text}},
            dockerfile_name="stdin",
        )
    if request.dockerfile and os.path.isabs(request.dockerfile):
        path = Path(request.dockerfile)
        return Context(
            attrs=attrs | {"dockerfilekey": "dockerfile", "filename": path.name},
            directories={"dockerfile": path.parent},
            dockerfile_name=request.dockerfile,
        )
    if request.dockerfile:
        attrs["filename"] = request.dockerfile
    return Context(attrs=attrs, dockerfile_name=request.dockerfile or "Dockerfile")


def _peek(stream: BinaryIO, size: int) -> bytes:
    head = b""
    while len(head) < size:
        piece = stream.read(size - len(head))
        if not piece:
            break
        head += piece
    return head


def _is_archive(head: bytes) -> bool:
    """Compressed, or a tar: 512 bytes whose checksum is right."""
    if head.startswith(_ARCHIVE_MAGIC):
        return True
    if len(head) < 512:
        return False
    field_text = head[148:156].strip(b"\0 ")
    if not field_text:
        return False
    try:
        expected = int(field_text, 8)
    except ValueError:
        return False
    block = head[:512]
    return sum(block[:148]) + 8 * 32 + sum(block[156:512]) == expected
