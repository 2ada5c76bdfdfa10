# SPDX-License-Identifier: Apache-2.0
"""ADD and COPY: one copy action a source, chained in one FileOp (semantics.md 2.2)."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote, urlsplit

from chantier.errors import DockerfileError, ReferenceError_, UsageError
from chantier.llb import Copying, FileAction, GitRef, Group, How, Owner, State, http, merge, scratch
from chantier.llb import caps as cap
from chantier.spec import Digest, new_id
from chantier.values import dataclass, replace

from . import lint as checks
from .at import At
from .contexts import git_state
from .instructions import Add, Copy, Heredoc
from .paths import destination, has_wildcard, source, used, without_drive
from .scope import Built
from .titles import internal

_OCTAL = re.compile(r"[0-7]+\Z")
_SYMBOLIC = re.compile(r"[ugoa]*(?:[-+=][rwxXstugo]*)+(?:,[ugoa]*(?:[-+=][rwxXstugo]*)+)*\Z")
_ALL_PATTERNS = ("*", "**", "**/*")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """An ADD or COPY, every word expanded."""

    sources: tuple[str, ...]
    contents: tuple[Heredoc, ...]
    dest: str
    chown: str
    chmod: str
    checksum: str
    exclude: tuple[str, ...]
    link: bool
    parents: bool
    is_add: bool
    keep_git_dir: bool | None
    unpack: bool | None


@dataclass(frozen=True, slots=True)
class _Copier:
    """What one instruction's sources have in common."""

    at: At
    built: Built
    files: _Files
    tree: State  # what paths are taken from
    dest: str
    base: Copying  # owner, mode, exclude
    name: str  # of remote sources: that of the step


def do_copy(at: At, built: Built, line: Copy) -> Built:
    expand = at.expander(built)
    files = _Files(
        chown=expand(line.chown),
        chmod=expand(line.chmod),
        sources=tuple(map(expand, line.sources)),
        dest=expand(line.dest),
        contents=_bodies(at, built, line.contents),
        checksum="",
        exclude=line.exclude,
        link=line.link,
        parents=line.parents,
        is_add=False,
        keep_git_dir=None,
        unpack=None,
    )
    if not at.planned.sources:
        built = _copy(at, built, files, at.scope.context, own_context=True)
        at.node.context_paths.update(map(used, files.sources))
        return built
    origin = at.planned.sources[0]
    if not origin.dispatched:
        raise DockerfileError(
            f'cannot copy from stage "{line.from_}", it needs to be defined before current stage "{at.node.name}"'
        )
    built = _copy(at, built, files, origin.after.state, own_context=False)
    origin.paths.update(map(used, files.sources))
    return built


def do_add(at: At, built: Built, line: Add) -> Built:
    expand = at.expander(built)
    files = _Files(
        chown=expand(line.chown),
        checksum=expand(line.checksum),
        chmod=expand(line.chmod),
        sources=tuple(map(expand, line.sources)),
        dest=expand(line.dest),
        contents=_bodies(at, built, line.contents),
        exclude=line.exclude,
        link=line.link,
        parents=False,
        is_add=True,
        keep_git_dir=line.keep_git_dir,
        unpack=line.unpack,
    )
    built = _copy(at, built, files, at.scope.context, own_context=True)
    at.node.context_paths.update(used(s) for s in files.sources if not s.startswith(("http://", "https://")))
    return built


def _bodies(at: At, built: Built, contents: tuple[Heredoc, ...]) -> tuple[Heredoc, ...]:
    out = []
    for doc in contents:
        text = doc.text
        if doc.expand:
            env = built.env
            made = replace(at.scope.lex, escape="\\", skip_quotes=True).expand(text, env)
            at.warn_undefined(built, env, made.unmatched)
            text = made.text
        out.append(replace(doc, content=text, chomp=False))
    return tuple(out)


def _copy(at: At, built: Built, files: _Files, tree: State, *, own_context: bool) -> Built:
    os = built.platform.os
    dest = destination(built.state.cwd, files.dest, os)
    mode = parse_chmod(files.chmod)
    _check_checksum(files)
    base = Copying(mode=mode, create_dest=True, exclude=files.exclude, owner=Owner.parse(files.chown) if files.chown else None)
    text = at.display(built)
    name, built = at.step(built, text, built.platform)
    copier = _Copier(at, built, files, tree, dest, base, name)
    action = FileAction()
    for src in files.sources:
        action = _add_source(copier, action, src, own_context=own_context)
    for doc in files.contents:
        action = _add_body(copier, action, doc)
    how: How = {"name": name, "locations": at.scope.locations(at.ranges)}
    if at.node.ignore_cache:
        how["ignore_cache"] = True
    if files.link and not files.chmod and at.scope.supports(cap.MERGE):
        built = replace(built, state=_linked(at, built, action, text, how))
    else:
        built = replace(built, state=built.state.file(action, **how))
    return built.commit(_history(files), at.scope, layer=True)


def _linked(at: At, built: Built, action: FileAction, text: str, how: How) -> State:
    """Copied into an empty tree and laid over the stage: the copy does not depend on what is below it."""
    group = Group(id=new_id(), name=at.titled(built, text, built.platform))
    below: How = {**how, "platform": built.platform, "group": replace(group, weak=True)}
    copied = scratch().file(action, **below)
    over: How = {**how, "group": group, "name": at.titled(built, "LINK " + text, built.platform)}
    return built.state.with_output(merge([built.state, copied], **over).output)


def _history(files: _Files) -> str:
    words = ["ADD" if files.is_add else "COPY"]
    if files.parents:
        words.append("--parents")
    if files.chown:
        words.append("--chown=" + files.chown)
    if files.chmod:
        words.append("--chmod=" + files.chmod)
    return " ".join([*words, *files.sources, *("<<" + doc.name for doc in files.contents), files.dest, "# buildkit"])


def parse_chmod(text: str) -> int | str | None:
    """An octal value, or the symbolic text itself. Raises DockerfileError."""
    if not text:
        return None
    wrong = f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
    if _OCTAL.match(text):
        mode = int(text, 8)
        if mode > 0o7777:
            raise DockerfileError(wrong)
        return mode
    if text[0].isdigit():
        raise DockerfileError(wrong)
    if not _SYMBOLIC.match(text):
        raise DockerfileError("invalid syntax")
    return text


def _check_checksum(files: _Files) -> None:
    if not files.checksum:
        return
    if len(files.sources) != 1:
        raise DockerfileError("checksum can't be specified for multiple sources")
    if not is_http(files.sources[0]) and not is_git(files.sources[0]):
        raise DockerfileError("checksum requires HTTP(S) or Git sources")


def is_git(src: str) -> bool:
    try:
        return GitRef.parse(src) is not None
    except UsageError:  # git with a query that cannot be meant: refused where it is used
        return True


def is_http(src: str) -> bool:
    return src.startswith(("http://", "https://")) and not is_git(src)


def url_file_name(url: str) -> str:
    """The last part of a URL's path, or a name for none."""
    try:
        name = posixpath.basename(unquote(urlsplit(url).path).rstrip("/"))
    except ValueError:
        name = ""
    return name or "__unnamed__"


def _add_source(copier: _Copier, action: FileAction, src: str, *, own_context: bool) -> FileAction:
    ref = GitRef.parse(src)
    if ref is not None and not ref.like_local:
        return _add_git(copier, action, ref)
    if is_http(src):
        return _add_http(copier, action, src)
    if own_context:
        _warn_ignored(copier, src)
    return _add_path(copier, action, src)


def _add_git(copier: _Copier, action: FileAction, ref: GitRef) -> FileAction:
    files = copier.files
    if not files.is_add:
        raise DockerfileError("source can't be a git ref for COPY")
    keep = files.keep_git_dir
    if keep is not None and ref.keep_git_dir is not None and keep != ref.keep_git_dir:
        raise DockerfileError("inconsistent keep-git-dir configuration")
    if files.checksum and ref.checksum and files.checksum != ref.checksum:
        raise DockerfileError(f'checksum mismatch "{files.checksum}" != "{ref.checksum}"')
    keep = ref.keep_git_dir if ref.keep_git_dir is not None else keep
    # ADD does not take the mtime of the query, as BuildKit does not.
    state = git_state(
        replace(ref, mtime=""),
        keep_git_dir=bool(keep),
        checksum=files.checksum,
        name=copier.name,
        locations=copier.at.scope.locations(copier.at.ranges),
    )
    return action.copy(state, "/", copier.dest, copier.base)


def _add_http(copier: _Copier, action: FileAction, src: str) -> FileAction:
    files = copier.files
    if not files.is_add:
        raise DockerfileError("source can't be a URL for COPY")
    checksum = _digest(files.checksum) if files.checksum else ""
    file = url_file_name(src)
    state = http(
        src,
        filename=file,
        checksum=checksum,
        name=copier.name,
        description={"com.docker.dockerfile.v1.command": ""},
        locations=copier.at.scope.locations(copier.at.ranges),
    )
    return action.copy(state, file, copier.dest, replace(copier.base, unpack=bool(files.unpack)))


def _digest(text: str) -> str:
    try:
        return Digest.parse(text)
    except ReferenceError_ as err:
        raise DockerfileError("invalid checksum digest format", hint=str(err)) from err


def _add_path(copier: _Copier, action: FileAction, src: str) -> FileAction:
    files, os = copier.files, copier.built.platform.os
    include: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    if files.parents:
        # `/./` marks where the kept part of the path begins.
        parent, pivot, pattern = src.partition("/./")
        src, pattern = (parent, pattern) if pivot else ("/", src)
        pattern = source(pattern, os)
        include = (pattern.removeprefix("/"),)
        if not has_wildcard(src) and not has_wildcard(pattern):
            required = (source(posixpath.join(src, pattern.lstrip("/")), os),)
    unpack = files.is_add if files.unpack is None else files.unpack
    how = replace(
        copier.base,
        follow_symlinks=True,
        contents_only=True,
        include=include,
        required=required,
        unpack=unpack,
        wildcard=True,
        empty_wildcard=True,
    )
    return action.copy(copier.tree, source(src, os), copier.dest, how)


def _add_body(copier: _Copier, action: FileAction, doc: Heredoc) -> FileAction:
    file = without_drive(doc.name, copier.built.platform.os)
    made = scratch().file(
        FileAction().mkfile(file, doc.content.encode("utf-8", "surrogateescape"), 0o644),
        name=internal("preparing inline document"),
        platform=copier.built.platform,
    )
    return action.copy(made, file, copier.dest, copier.base)


def _warn_ignored(copier: _Copier, src: str) -> None:
    """A source the ignore file leaves out. With exceptions in that file it cannot be told without looking."""
    ignore = copier.at.scope.ignore
    if ignore is None or ignore.negations:
        return
    path = posixpath.normpath(src) if src else "."
    if path in (".", "/") and not any(p.text in _ALL_PATTERNS for p in ignore.all):
        return
    if ignore.matches(path):
        copier.at.warn(checks.COPY_IGNORED_FILE, "Add" if copier.files.is_add else "Copy", path)


__all__ = ["do_add", "do_copy", "is_git", "is_http", "parse_chmod", "url_file_name"]
