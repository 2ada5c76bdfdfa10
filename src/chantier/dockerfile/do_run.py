# SPDX-License-Identifier: Apache-2.0
"""RUN: one process, its mounts, secrets and agents, and here-documents given to it (semantics.md 1.5, 1.9)."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from chantier import llb
from chantier.errors import DockerfileError
from chantier.llb import caps as cap
from chantier.llb.run import Sharing
from chantier.values import dataclass, field, replace

from . import mounts as mount_words
from .at import At
from .do_config import with_shell
from .graph import SCRATCH
from .heredoc import parse_word
from .instructions import ArgPair, Heredoc, Run
from .paths import used
from .scope import Built
from .titles import internal, upper_first

_PIPES = "/dev/pipes/"
_SHARINGS: dict[str, Sharing] = {"": "shared", "shared": "shared", "private": "private", "locked": "locked"}


@dataclass(slots=True)
class _Mounts:
    """What a RUN is given besides its root."""

    binds: list[llb.Mount] = field(default_factory=list)
    secrets: list[llb.Secret] = field(default_factory=list)
    ssh: list[llb.Ssh] = field(default_factory=list)
    masked: dict[str, str] = field(default_factory=dict)  # variables that hold secrets, for display


def do_run(at: At, built: Built, line: Run) -> Built:
    at.node.paths.add("/")  # a process may read anything
    mounts = _Mounts()
    words, note = _words(at, built, line, mounts)
    if line.shell_form:
        words = with_shell(built, words)
    _read_mounts(at, built, line, mounts)
    scope, options = at.scope, at.scope.options
    env = built.env
    if options.shm_size > 0 and scope.supports(cap.EXEC_MOUNT_TMPFS_SIZE):
        mounts.binds.append(llb.tmpfs("/dev/shm", size=options.shm_size))
    display = upper_first(scope.lex.display(line.code + note, {**env, **mounts.masked}))
    name, built = at.step(built, display, built.state.platform)
    how: llb.How = {
        "name": name,
        "description": {"com.docker.dockerfile.v1.command": line.code},
        "locations": scope.locations(at.ranges),
    }
    if at.node.ignore_cache:
        how["ignore_cache"] = True
    if options.resources is not None and scope.supports(cap.EXEC_RESOURCES):
        how["resources"] = options.resources
    state = built.state.run(
        words,
        mounts=mounts.binds,
        secrets=mounts.secrets,
        ssh=mounts.ssh,
        network=line.network if line.network in ("none", "host") else None,  # type: ignore[arg-type] # checked by the parser
        security=line.security,  # type: ignore[arg-type] # checked by the parser
        hosts=options.add_hosts,
        ulimits=options.ulimits if scope.supports(cap.EXEC_ULIMIT) else (),
        cgroup_parent=options.cgroup_parent or None if scope.supports(cap.EXEC_CGROUP_PARENT) else None,
        proxy=scope.proxy,
        devices=_devices(at, line),
        **how,
    )
    text = "RUN " + " ".join([*_arg_words(built.args, env), *words]) + " # buildkit"
    return replace(built, state=state.root).commit(text, scope, layer=True)


def _words(at: At, built: Built, line: Run, mounts: _Mounts) -> tuple[tuple[str, ...], str]:
    """The command, and what its name says about a here-document."""
    if not line.heredocs:
        return line.command, ""
    if len(line.command) != 1 or not line.shell_form:
        raise DockerfileError(f"parsing produced an invalid run command: [{' '.join(line.command)}]")
    if parse_word(line.command[0]) is None:
        # The shell reads the documents itself: give it the lines as they stood.
        return (line.command[0] + "".join(f"\n{doc.content}{doc.name}" for doc in line.heredocs),), ""
    doc = line.heredocs[0]
    note = f" ({_summary(doc.content)})"
    if built.image.platform.os != "windows" and doc.text.startswith("#!"):
        return (_script(built, doc, mounts),), note
    return (doc.text,), note


def _script(built: Built, doc: Heredoc, mounts: _Mounts) -> str:
    """A document that names its interpreter: a file that is run."""
    tree = llb.scratch().file(
        llb.FileAction().mkfile(doc.name, doc.text.encode("utf-8", "surrogateescape"), 0o755),
        name=internal("preparing inline document"),
        platform=built.platform,
    )
    mounts.binds.append(llb.Mount(target=_PIPES, source=tree, path="/", readonly=True))
    return posixpath.join(_PIPES, doc.name)


def _summary(text: str) -> str:
    first, *more = text.strip().replace("\r\n", "\n").split("\n")
    return first + ("..." if more else "")


def _arg_words(args: tuple[ArgPair, ...], env: Mapping[str, str]) -> list[str]:
    """`|2 A=1 B=2`: the arguments in scope with the values the process sees."""
    values = {pair.key: env.get(pair.key, pair.value or "") for pair in args}
    return [f"|{len(values)}", *(f"{key}={value}" for key, value in values.items())] if values else []


def _devices(at: At, line: Run) -> tuple[llb.Device, ...]:
    if not at.scope.supports(cap.EXEC_CDI):
        return ()
    return (*at.scope.options.devices, *(llb.Device(name=d.name, optional=not d.required) for d in line.devices))


def _read_mounts(at: At, built: Built, line: Run, mounts: _Mounts) -> None:
    words = mount_words.parse_mounts(line, at.expander(built))
    for number, mount in enumerate(words):
        origin = at.planned.sources[number]
        from_ = mount.from_ or (SCRATCH if mount.type == "cache" else "")
        if from_ and not origin.dispatched:
            raise DockerfileError(
                f'cannot mount from stage "{from_}" to "{mount.target}", stage needs to be defined before current command'
            )
        if mount.type == "secret":
            mounts.secrets.append(_secret(at, mount))
            if mount.env is not None:
                mounts.masked[mount.env] = "****"
        elif mount.type == "ssh":
            mounts.ssh.append(_agent(at, mount))
        else:
            tree = origin.after.state if from_ else at.scope.context
            mounts.binds.append(_bind(at, built, mount, tree))
            (origin.paths if from_ else at.node.context_paths).add(used(mount.source))


def _bind(at: At, built: Built, mount: mount_words.Mount, tree: llb.State) -> llb.Mount:
    target = mount.target
    if not posixpath.normpath(target or ".").startswith("/"):
        target = posixpath.normpath(posixpath.join("/", built.state.cwd, target))
    if target == "/":
        raise DockerfileError('invalid mount target "/"')
    if mount.type == "tmpfs":
        return llb.Mount(target=target, tmpfs=True, size=mount.size, readonly=mount.read_only)
    path = used(mount.source)
    if path == "/":
        path = ""
        if mount.uid is not None or mount.gid is not None or mount.mode is not None:
            tree, path = _owned_cache(mount, tree), "/cache"
    made = llb.Mount(target=target, source=tree, path=path, readonly=mount.read_only)
    if mount.type == "cache":
        id = mount.cache_id or posixpath.normpath(mount.target or ".")
        sharing = _SHARINGS[mount.sharing]
        return replace(made, cache_id=f"{at.scope.options.cache_namespace}/{id}", sharing=sharing)
    if not mount.read_only and at.scope.supports(cap.EXEC_MOUNT_BIND_RW_NO_OUTPUT):
        return replace(made, no_output=True)
    return made


def _owned_cache(mount: mount_words.Mount, tree: llb.State) -> llb.State:
    """A cache's first content: a directory with the owner and mode that were asked for."""
    return tree.file(
        llb.FileAction().mkdir(
            "/cache", 0o755 if mount.mode is None else mount.mode, owner=llb.Owner(mount.uid or 0, mount.gid or 0)
        ),
        name=internal("setting cache mount permissions"),
    )


def _secret(at: At, mount: mount_words.Mount) -> llb.Secret:
    id = mount.source or mount.cache_id
    if not id:
        if not mount.target:
            raise DockerfileError("one of source, target required")
        id = posixpath.basename(mount.target.rstrip("/"))
    target = mount.target or None
    if mount.env is None and target is None:
        target = "/run/secrets/" + posixpath.basename(id.rstrip("/"))
    at.node.outline.want_secret(id, required=mount.required, ranges=at.ranges)
    return llb.Secret(
        id=id,
        target=target,
        env=mount.env,
        uid=mount.uid or 0,
        gid=mount.gid or 0,
        mode=0o400 if mount.mode is None else mount.mode,
        optional=not mount.required,
    )


def _agent(at: At, mount: mount_words.Mount) -> llb.Ssh:
    if mount.source:
        raise DockerfileError("ssh does not support source")
    at.node.outline.want_ssh(mount.cache_id or "default", required=mount.required, ranges=at.ranges)
    return llb.Ssh(
        id=mount.cache_id,
        target=mount.target,
        uid=mount.uid or 0,
        gid=mount.gid or 0,
        mode=0o600 if mount.mode is None else mount.mode,
        optional=not mount.required,
    )


__all__ = ["do_run"]
