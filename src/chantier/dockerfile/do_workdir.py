# SPDX-License-Identifier: Apache-2.0
"""WORKDIR: a directory for what follows, made as a layer unless it is the root."""

from __future__ import annotations

from chantier.llb import FileAction, Owner
from chantier.values import replace

from . import lint as checks
from .at import At
from .instructions import Workdir
from .paths import is_absolute, to_slash, workdir
from .scope import Built


def do_workdir(at: At, built: Built, line: Workdir) -> Built:
    path = at.expander(built)(line.path)
    if not built.workdir_set and not is_absolute(path, built.platform.os):
        at.warn(checks.WORKDIR_RELATIVE_PATH, path)
    built = set_workdir(replace(built, workdir_set=True), path)
    made = built.state.cwd
    if made != "/":
        built = _make(at, built, made)
    return built.commit("WORKDIR " + made, at.scope, layer=made != "/")


def set_workdir(built: Built, path: str) -> Built:
    """Change the directory without making it: what a base image's config says."""
    os = built.platform.os
    full = workdir(built.image.config.working_dir, path, os)
    return replace(built, state=built.state.dir(to_slash(full, os))).configured(working_dir=full)


def _make(at: At, built: Built, path: str) -> Built:
    scope, user = at.scope, built.image.config.user
    action = FileAction().mkdir(
        path,
        0o755,
        parents=True,
        owner=Owner.parse(user) if user else None,
        time=scope.epoch * 1_000_000_000 if scope.epoch is not None else None,
    )
    name, built = at.step(built, at.display(built), built.platform)
    return replace(built, state=built.state.file(action, name=name, locations=scope.locations(at.ranges)))


__all__ = ["do_workdir", "set_workdir"]
