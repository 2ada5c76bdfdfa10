# SPDX-License-Identifier: Apache-2.0
"""SOURCE_DATE_EPOCH: a number of seconds, or the name of a source whose own time is used (semantics.md 1.20)."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping

from chantier.errors import ChantierError, DockerfileError
from chantier.llb import GitRef, State, http
from chantier.pb import ops_pb2 as pb

from .contexts import Contexts, git_state, source_of
from .do_copy import is_http, url_file_name
from .graph import SCRATCH
from .instructions import Add, Arg, Program, Stage
from .options import Options
from .shell import Lex

_COMMITTER = re.compile(rb"committer .* (-?\d+) [+-]\d{4}\Z")


async def resolve_epoch(
    value: str, program: Program, options: Options, global_args: Mapping[str, str], lex: Lex, contexts: Contexts | None
) -> int | None:
    """Seconds since the epoch; None where the source has no time of its own (a local directory), or for no value."""
    if not value:
        return None
    if re.fullmatch(r"[+-]?\d+", value, re.ASCII) and -(2**63) <= int(value) < 2**63:
        return int(value)
    if value == "context":
        if contexts is None:
            return None
        return await _time_of(await contexts.main(), contexts, "[internal] resolve main build context metadata")
    if contexts is not None:
        named = contexts.named_any(value, platform=None)
        if named is not None:
            state, _ = await named.load()
            return await _time_of(state, contexts, f"[internal] resolve SOURCE_DATE_EPOCH named context {value}")
    for stage in program.stages:
        if stage.stage_name == value.lower():
            try:
                state = _stage_source(stage, options, global_args, lex)
            except ChantierError as err:
                raise err.at(program.source(*stage.ranges)) from None
            log = f"[internal] resolve SOURCE_DATE_EPOCH source stage {stage.stage_name}"
            return await _time_of(state, contexts, log) if contexts is not None else None
    raise DockerfileError(f"invalid SOURCE_DATE_EPOCH: {value}")


def _stage_source(stage: Stage, options: Options, global_args: Mapping[str, str], lex: Lex) -> State:
    """The one remote source of a stage that does nothing but ADD it."""
    env = {key: value for key, value in global_args.items() if key != "SOURCE_DATE_EPOCH"}
    if lex.process_word(stage.base_name, env) != SCRATCH:
        raise DockerfileError("SOURCE_DATE_EPOCH stage must use FROM scratch")
    found: State | None = None
    for command in stage.commands:
        if isinstance(command, Arg):
            for pair in command.args:
                if pair.key in options.build_args:
                    env[pair.key] = options.build_args[pair.key]
                elif pair.value is not None:
                    env[pair.key] = lex.process_word(pair.value, env)
        elif isinstance(command, Add):
            if found is not None:
                raise DockerfileError("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD")
            found = _add_source(command, env, lex)
        else:
            raise DockerfileError(
                f"SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported {command.keyword} instruction"
            )
    if found is None:
        raise DockerfileError("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD")
    return found


def _add_source(command: Add, env: Mapping[str, str], lex: Lex) -> State:
    if command.contents or len(command.sources) != 1:
        raise DockerfileError("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source")
    src = lex.process_word(command.sources[0], env)
    checksum = lex.process_word(command.checksum, env) if command.checksum else ""
    if is_http(src):
        return http(src, filename=url_file_name(src), checksum=checksum)
    ref = GitRef.parse(src)
    if ref is not None and not ref.like_local:
        return git_state(ref, keep_git_dir=bool(command.keep_git_dir or ref.keep_git_dir), checksum=checksum)
    raise DockerfileError("SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD")


async def _time_of(state: State, contexts: Contexts, log_name: str) -> int | None:
    main = await contexts.main_context()
    source = main.source if state is main.state and main.source is not None else source_of(state)
    if source is None:
        return None
    is_git = source.identifier.startswith("git://")
    is_web = source.identifier.startswith(("http://", "https://"))
    if not is_git and not is_web:
        return None
    meta = await contexts.bridge.resolve_source(source, log_name=log_name, return_object=is_git)
    if meta.commit_object is not None:
        return commit_time(meta.commit_object)
    if meta.last_modified is not None:
        return meta.last_modified
    return await _archive_time(source, contexts) if is_web and source.attrs.get("http.filename") else None


async def _archive_time(source: pb.SourceOp, contexts: Contexts) -> int | None:
    """The newest regular file of a downloaded archive; None where it is none."""
    state = http(source.identifier, filename=source.attrs["http.filename"], checksum=source.attrs.get("http.checksum", ""))
    ref = await contexts.bridge.solve(state.marshal(caps=contexts.bridge.caps))
    data = await ref.read_file(source.attrs["http.filename"])
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            times = [int(member.mtime) for member in tar if member.isreg()]
    except (tarfile.TarError, OSError, EOFError):  # not an archive: it has no time
        return None
    return max(times, default=None)


def commit_time(commit: bytes) -> int:
    """Seconds in the committer line of a raw commit. Raises DockerfileError."""
    for line in commit.split(b"\n\n", 1)[0].split(b"\n"):
        match = _COMMITTER.match(line)
        if match is not None:
            return int(match[1])
    raise DockerfileError("invalid git commit: no committer")


__all__ = ["commit_time", "resolve_epoch"]
