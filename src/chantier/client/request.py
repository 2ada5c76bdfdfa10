# SPDX-License-Identifier: Apache-2.0
"""What a user asks for, before anything is read: the flags of `build` as one value (builders.md 5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chantier.session.types import Credentials
from chantier.values import dataclass, field

from .output import Output


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """`id`, and where its value is: exactly one of `file`, `env` (a variable's name) and `value`."""

    id: str
    file: str = ""
    env: str = ""
    value: bytes | None = None

    def __repr__(self) -> str:  # never the value
        return f"Secret(id={self.id!r}, file={self.file!r}, env={self.env!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssh:
    """An agent by its socket, or keys by their files."""

    id: str = "default"
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """One build.

    `context` is a directory, `-`, a git URL or an http(s) URL. `dockerfile` is a path, `-`, or None for the context's own;
    `dockerfile_text` is the file itself and wins over it.
    """

    context: str
    dockerfile: str | None = None
    dockerfile_text: bytes | None = None
    tags: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ()
    push: bool = False
    load: bool = False
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    platforms: tuple[str, ...] = ()
    no_cache: bool = False
    no_cache_filter: tuple[str, ...] = ()
    pull: bool | str = False  # True or "always", "missing", "never"
    secrets: tuple[Secret, ...] = ()
    ssh: tuple[Ssh, ...] = ()
    build_contexts: Mapping[str, str] = field(default_factory=dict)
    add_hosts: tuple[str, ...] = ()
    network: str = "default"
    shm_size: int = 0
    ulimits: tuple[str, ...] = ()
    cgroup_parent: str = ""
    resources: Mapping[str, str] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    cache_from: tuple[str, ...] = ()
    cache_to: tuple[str, ...] = ()
    attest: tuple[str, ...] = ()  # as --attest has them: "type=sbom,generator=IMAGE"
    provenance: bool | str | None = None  # short for one of them: True, False, "mode=max"
    sbom: bool | str | None = None
    call: str = "build"
    logins: Mapping[str, Credentials] = field(default_factory=dict)  # by registry host; before those of docker's config.json
    extra_attrs: Mapping[str, str] = field(default_factory=dict)  # frontend options, verbatim


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What came of a build.

    `digest` is that of the manifest or index that was exported ("" if no image was), `config_digest` that of the config
    where there is one image, `response` the exporters' whole answer, `calls` the documents of a `call`. `provenance` has SLSA
    predicates by platform ("" for a build with one result), where the engine keeps them.
    """

    ref: str
    digest: str = ""
    config_digest: str = ""
    image_names: tuple[str, ...] = ()
    response: Mapping[str, str] = field(default_factory=dict)
    calls: Mapping[str, bytes] = field(default_factory=dict)
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
