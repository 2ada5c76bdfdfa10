# SPDX-License-Identifier: Apache-2.0
"""The builders that were created, and which one is chosen; shared with docker buildx (builders.md 1).

    DIR/.lock                       flock(2): held while anything here is read or written
    DIR/instances/NAME              a Group, the file's name in lower case
    DIR/activity/NAME               when it was last used, RFC 3339
    DIR/current                     {"Key": ENDPOINT, "Name": BUILDER, "Global": false}
    DIR/defaults/SHA256(KEY)[:20]   the builder that `use --default` chose for an endpoint
    DIR/refs/BUILDER/NODE/REF       where a build's context and Dockerfile were

DIR is $BUILDX_CONFIG, or `buildx` beside docker's config.json. Directories are 0700, files are written whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from chantier.errors import ChantierError, NotFoundError
from chantier.kernel import write_all
from chantier.kernel.temporary import NewFile
from chantier.kernel.trace import point
from chantier.spec import dumps

from .context import Contexts
from .group import Group, decode, encode, valid_name

CONFIG_NAME = "buildkitd.toml"


class Store:
    """Every method takes the lock for itself; `locked` holds it over several."""

    def __init__(self, directory: Path, *, env: Mapping[str, str] = os.environ) -> None:
        self.directory = directory
        self._env = env
        self._depth = 0
        self._lock: int | None = None
        self._owner = _sudo_user(directory, env)

    @classmethod
    def open(cls, env: Mapping[str, str] = os.environ) -> Store:
        where = Path(env["BUILDX_CONFIG"]) if env.get("BUILDX_CONFIG") else Contexts(env).directory / "buildx"
        return cls(where, env=env)

    @contextmanager
    def locked(self) -> Iterator[None]:
        if self._depth == 0:
            self._mkdir(self.directory)
            path = self.directory / ".lock"
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._chown(path)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and self._lock is not None:
                os.close(self._lock)
                self._lock = None

    # -- builders

    def groups(self) -> list[Group]:
        """All, by name. Raises ChantierError for a file that is no builder."""
        folder = self.directory / "instances"
        if not folder.is_dir():
            return []
        with self.locked():
            found = []
            for path in sorted(folder.iterdir()):
                with suppress(FileNotFoundError):
                    found.append(decode(path.read_bytes(), str(path)))
            return found

    def group(self, name: str) -> Group:
        """Raises NotFoundError."""
        path = self._instance(name)
        with self.locked():
            try:
                return decode(path.read_bytes(), str(path))
            except FileNotFoundError as err:
                raise NotFoundError(f'failed to find instance "{name}": open {path}: no such file or directory') from err

    def find(self, name: str) -> Group | None:
        with suppress(NotFoundError):
            return self.group(name)
        return None

    def save(self, group: Group) -> None:
        with self.locked():
            self._write(self._instance(group.name), encode(group))
            self.touch(group.name)

    def remove(self, name: str) -> None:
        """Also what is known of its builds. Raises NotFoundError."""
        with self.locked():
            found = self.group(name)
            for node in found.nodes:
                self.forget_builds(found.name, node.name)
            self._instance(name).unlink()
            (self.directory / "activity" / found.name).unlink(missing_ok=True)

    def _instance(self, name: str) -> Path:
        return self.directory / "instances" / valid_name(name)

    # -- activity

    def touch(self, name: str) -> None:
        """It is being used."""
        with self.locked():
            at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._write(self.directory / "activity" / name, at.encode())

    def last_activity(self, name: str) -> datetime | None:
        try:
            return datetime.fromisoformat((self.directory / "activity" / name).read_text().strip())
        except (OSError, ValueError):
            return None

    # -- the choice

    def current(self, key: str) -> Group | None:
        """The builder chosen for an endpoint; None for whatever is there when nothing was chosen."""
        if not self.directory.is_dir():
            return None
        with self.locked():
            chosen = self._current()
            name = str(chosen.get("Name") or "")
            if name and chosen.get("Global") and (found := self.find(name)) is not None:
                return found
            if name and chosen.get("Key") == key:
                return self.find(name)
            default = self._default_path(key)
            try:
                name = default.read_text().strip()
            except FileNotFoundError:
                if chosen.get("Key") != key or chosen.get("Name"):
                    self._choose(key, "", everywhere=False)
                return None
            self._choose(key, name, everywhere=False)
            return self.find(name)

    def choose(self, key: str, name: str, *, everywhere: bool = False, default: bool = False) -> None:
        """`name` "" for none. `default` keeps the choice for this endpoint when another endpoint's is made."""
        with self.locked():
            self._choose(key, name, everywhere=everywhere)
            if default:
                self._write(self._default_path(key), name.encode())
            else:
                self._default_path(key).unlink(missing_ok=True)

    def _choose(self, key: str, name: str, *, everywhere: bool) -> None:
        self._write(self.directory / "current", dumps({"Key": key, "Name": name, "Global": everywhere}))

    def _current(self) -> dict[str, object]:
        path = self.directory / "current"
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as err:
            raise ChantierError(f"failed to read {path}: {err}") from err
        return found if isinstance(found, dict) else {}

    def _default_path(self, key: str) -> Path:
        return self.directory / "defaults" / hashlib.sha256(key.encode()).hexdigest()[:20]

    # -- what is known of builds

    def remember_build(self, builder: str, node: str, ref: str, *, context: str, dockerfile: str) -> None:
        where = {"Target": "default", "LocalPath": context, "DockerfilePath": dockerfile}
        with self.locked():
            self._write(self.directory / "refs" / builder / node / ref, dumps(where), mode=0o644)

    def forget_builds(self, builder: str, node: str) -> None:
        folder = self.directory / "refs" / builder / node
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()

    # -- files

    @property
    def default_config(self) -> Path | None:
        """What `create` configures daemons with when it is given no config."""
        path = self.directory / "buildkitd.default.toml"
        return path if path.exists() else None

    def _write(self, path: Path, data: bytes, *, mode: int = 0o600) -> None:
        self._mkdir(path.parent)
        file = NewFile(path, 0o600)
        try:
            write_all(file.fd, data)
            os.fchmod(file.fd, mode)
            if self._owner is not None:
                with suppress(OSError):
                    os.fchown(file.fd, *self._owner)
            point("builder.written")
        except BaseException:
            file.drop()
            raise
        file.take()
        point("builder.named")

    def _mkdir(self, path: Path) -> None:
        missing = []
        while not path.is_dir():
            missing.append(path)
            path = path.parent
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
            self._chown(folder)

    def _chown(self, path: Path) -> None:
        if self._owner is not None:
            with suppress(OSError):
                os.chown(path, *self._owner)


def _sudo_user(directory: Path, env: Mapping[str, str]) -> tuple[int, int] | None:
    """Whom the files belong to when root writes into the home of the user who ran sudo."""
    if not env.get("SUDO_COMMAND"):
        return None
    try:
        import pwd

        uid, gid = int(env["SUDO_UID"]), int(env["SUDO_GID"])
        home = Path(pwd.getpwuid(uid).pw_dir)
    except (KeyError, ValueError):
        return None
    if Path(env.get("HOME", "")) != home or home not in directory.parents:
        return None
    return uid, gid


__all__ = ["CONFIG_NAME", "Store"]
