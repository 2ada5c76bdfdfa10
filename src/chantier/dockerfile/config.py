# SPDX-License-Identifier: Apache-2.0
"""The image config a Dockerfile makes: values, and JSON as Go's structs give it (image-spec config.md, Docker's additions).

A base image's unknown fields are dropped, as BuildKit drops them; its `created` too. Empty fields are left out of the JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from chantier.errors import IntegrityError
from chantier.llb import DEFAULT_PATH
from chantier.spec import Platform, dumps
from chantier.values import dataclass, field, replace

HISTORY_COMMENT = "buildkit.dockerfile.v0"
_FRACTION = re.compile(r"(\.\d*?)0+(?=Z|[+-]\d\d:\d\d\Z)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0

    def to_json(self) -> dict[str, Any]:
        return _present(
            Test=list(self.test),
            Interval=self.interval,
            Timeout=self.timeout,
            StartPeriod=self.start_period,
            StartInterval=self.start_interval,
            Retries=self.retries,
        )

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Health:
        return cls(
            test=_strings(raw.get("Test")),
            interval=int(raw.get("Interval") or 0),
            timeout=int(raw.get("Timeout") or 0),
            start_period=int(raw.get("StartPeriod") or 0),
            start_interval=int(raw.get("StartInterval") or 0),
            retries=int(raw.get("Retries") or 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The `config` object: what a container of the image starts with."""

    user: str = ""
    exposed_ports: frozenset[str] = frozenset()
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    volumes: frozenset[str] = frozenset()
    working_dir: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    args_escaped: bool = False
    healthcheck: Health | None = None
    on_build: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Config:
        health = raw.get("Healthcheck")
        return cls(
            user=str(raw.get("User") or ""),
            exposed_ports=frozenset(raw.get("ExposedPorts") or ()),
            env=_strings(raw.get("Env")),
            entrypoint=_strings(raw.get("Entrypoint")),
            cmd=_strings(raw.get("Cmd")),
            volumes=frozenset(raw.get("Volumes") or ()),
            working_dir=str(raw.get("WorkingDir") or ""),
            labels={str(k): str(v) for k, v in (raw.get("Labels") or {}).items()},
            stop_signal=str(raw.get("StopSignal") or ""),
            args_escaped=bool(raw.get("ArgsEscaped")),
            healthcheck=Health.from_json(health) if health else None,
            on_build=_strings(raw.get("OnBuild")),
            shell=_strings(raw.get("Shell")),
        )

    def to_json(self) -> dict[str, Any]:
        return _present(
            User=self.user,
            ExposedPorts={port: {} for port in sorted(self.exposed_ports)},
            Env=list(self.env),
            Entrypoint=list(self.entrypoint),
            Cmd=list(self.cmd),
            Volumes={path: {} for path in sorted(self.volumes)},
            WorkingDir=self.working_dir,
            Labels=dict(sorted(self.labels.items())),
            StopSignal=self.stop_signal,
            ArgsEscaped=self.args_escaped,
            Healthcheck=self.healthcheck.to_json() if self.healthcheck is not None else None,  # never empty: it has a test
            OnBuild=list(self.on_build),
            Shell=list(self.shell),
        )

    def get_env(self, key: str) -> str | None:
        for item in self.env:
            name, _, value = item.partition("=")
            if name == key:
                return value
        return None

    def with_env(self, key: str, value: str) -> Config:
        """A variable keeps its place when its value changes."""
        item = f"{key}={value}"
        if self.get_env(key) is None:
            return replace(self, env=(*self.env, item))
        replaced, out = False, []
        for old in self.env:
            if not replaced and old.partition("=")[0] == key:
                out.append(item)
                replaced = True
            else:
                out.append(old)
        return replace(self, env=tuple(out))


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> History:
        return cls(
            created=_time(str(raw.get("created") or "")),
            created_by=str(raw.get("created_by") or ""),
            author=str(raw.get("author") or ""),
            comment=str(raw.get("comment") or ""),
            empty_layer=bool(raw.get("empty_layer")),
        )

    def to_json(self) -> dict[str, Any]:
        return _present(
            created=self.created,
            created_by=self.created_by,
            author=self.author,
            comment=self.comment,
            empty_layer=self.empty_layer,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A whole image config."""

    platform: Platform
    created: str = ""
    author: str = ""
    config: Config = field(default_factory=Config)
    rootfs_type: str = "layers"
    diff_ids: tuple[str, ...] | None = None
    history: tuple[History, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> Image:
        """Raises IntegrityError for what is no image config."""
        try:
            raw = json.loads(data)
            if not isinstance(raw, dict):
                raise TypeError("want a JSON object")
            rootfs = raw.get("rootfs") or {}
            ids = rootfs.get("diff_ids")
            return cls(
                platform=Platform.from_json(raw),
                created=_time(str(raw.get("created") or "")),
                author=str(raw.get("author") or ""),
                config=Config.from_json(raw.get("config") or {}),
                rootfs_type=str(rootfs.get("type") or ""),
                diff_ids=_strings(ids) if ids is not None else None,
                history=tuple(History.from_json(h) for h in raw.get("history") or ()),
            )
        except (ValueError, TypeError, AttributeError) as err:
            raise IntegrityError(f"failed to parse image config: {err}") from err

    @classmethod
    def empty(cls, platform: Platform) -> Image:
        """The config of `FROM scratch`."""
        env = () if platform.os == "windows" else ("PATH=" + DEFAULT_PATH,)
        return cls(platform=platform, config=Config(working_dir="/", env=env))

    @property
    def is_empty(self) -> bool:
        """Whether it has no layers: neither diff ids nor, for old schemas, history that made one."""
        return not self.diff_ids and all(h.empty_layer for h in self.history)

    def to_json(self) -> bytes:
        p = self.platform
        head = _present(created=self.created, author=self.author)
        body: dict[str, Any] = {"architecture": p.architecture, "os": p.os}
        body |= _present(**{"os.version": p.os_version, "os.features": list(p.os_features), "variant": p.variant})
        body["rootfs"] = {"type": self.rootfs_type, "diff_ids": list(self.diff_ids) if self.diff_ids is not None else None}
        if self.history:
            body["history"] = [h.to_json() for h in self.history]
        return dumps({**head, **body, "config": self.config.to_json()})

    def with_history(self, created_by: str, *, layer: bool, epoch: str = "") -> Image:
        line = History(created=epoch, created_by=created_by, comment=HISTORY_COMMENT, empty_layer=not layer)
        return replace(self, history=(*self.history, line))


def rfc3339(seconds: int) -> str:
    """Whole seconds, UTC; years outside of 0001-9999 do not occur in configs."""
    from datetime import UTC, datetime, timedelta

    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def _time(text: str) -> str:
    """Go writes no trailing zeros in the fraction of a second."""
    out = _FRACTION.sub(r"\1", text)
    return out.replace(".Z", "Z").replace(".+", "+").replace(".-", "-")


def _strings(raw: Sequence[Any] | None) -> tuple[str, ...]:
    return tuple(str(item) for item in raw or ())


def _present(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}


__all__ = ["HISTORY_COMMENT", "Config", "Health", "History", "Image", "rfc3339"]
