# SPDX-License-Identifier: Apache-2.0
"""Credentials from docker's config.json and from credential helpers.

Read anew at each question, so that a login made meanwhile counts; a helper's answer is kept for some minutes, for asking
it may unlock a keyring. A helper that fails is an error, one that knows nothing is not.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from chantier.errors import ConfigError, RegistryError
from chantier.values import dataclass

HUB_KEY = "https://index.docker.io/v1/"
_HUB_NAMES = frozenset(["docker.io", "index.docker.io", "registry-1.docker.io", HUB_KEY])
_HUB_FRIENDS = frozenset(["dhi.io", "registry.scout.docker.com"])
_KEEP_S = 290.0
_HELPER_S = 60.0
_NOT_FOUND = "credentials not found in native keychain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Credentials of one host. `username` is empty when `secret` is an identity token."""

    username: str
    secret: str

    def __repr__(self) -> str:  # never the secret
        return f"Login(username={self.username!r})"


class AuthFile:
    """Ask `credentials(host)`. The file: REGISTRY_AUTH_FILE, $DOCKER_CONFIG/config.json, ~/.docker/config.json; before them
    the JSON in DOCKER_AUTH_CONFIG; before all of them what was `given` by host."""

    def __init__(
        self,
        env: Mapping[str, str] | None = None,
        *,
        given: Mapping[str, Login] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._env = dict(os.environ if env is None else env)
        self._given = {"auths": {host: _entry_of(login) for host, login in (given or {}).items()}}
        self._clock = clock
        self._mutex = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[float, Login | None]] = {}

    @property
    def path(self) -> Path:
        if named := self._env.get("REGISTRY_AUTH_FILE"):
            return Path(named)
        if folder := self._env.get("DOCKER_CONFIG"):
            return Path(folder) / "config.json"
        return Path(self._env.get("HOME") or "/root") / ".docker" / "config.json"

    def credentials(self, host: str, repository: str = "") -> Login | None:
        """The login for `host` (`registry-1.docker.io`, `reg.test:5000`); None where there is none.

        With `repository` a more specific entry `host/team` wins, as podman writes them.
        Raises ConfigError for a file that makes no sense, RegistryError for a helper that fails.
        """
        for document in self._documents():
            found = self._in(document, host, repository)
            if found is None and host in _HUB_FRIENDS:
                found = self._in(document, "registry-1.docker.io", repository)
            if found is not None:
                return found
        return None

    def _in(self, document: Mapping[str, Any], host: str, repository: str) -> Login | None:
        helpers = document.get("credHelpers") or {}
        for name in _names(host):
            if helper := helpers.get(name):
                return self._ask(str(helper), _server(host))
        if (store := document.get("credsStore")) and (found := self._ask(str(store), _server(host))) is not None:
            return found
        auths = document.get("auths") or {}
        for name in _keys(host, repository, auths):
            if (found := _login_of(auths[name], name, str(self.path))) is not None:
                return found
        return None

    def _documents(self) -> Iterator[Mapping[str, Any]]:
        yield self._given
        if inline := self._env.get("DOCKER_AUTH_CONFIG"):
            yield _json(inline, "DOCKER_AUTH_CONFIG")
        try:
            text = self.path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, UnicodeDecodeError) as err:
            why = os.strerror(err.errno or 0).lower() if isinstance(err, OSError) else "not UTF-8"
            raise ConfigError(f"cannot read {self.path}: {why}", file=str(self.path)) from err
        yield _json(text, str(self.path))

    def _ask(self, helper: str, server: str) -> Login | None:
        with self._mutex:
            if (kept := self._kept.get((helper, server))) and self._clock() - kept[0] < _KEEP_S:
                return kept[1]
        login = _run(helper, server, self._env)
        with self._mutex:
            self._kept[helper, server] = (self._clock(), login)
        return login


def ask_helper(helper: str, host: str, env: Mapping[str, str]) -> Login | None:
    """Ask docker-credential-HELPER for a host; None: it knows none. Raises RegistryError where it fails."""
    return _run(helper, _server(host), env)


def _run(helper: str, server: str, env: Mapping[str, str]) -> Login | None:
    """The protocol of docker-credential-helpers: `get`, the server on stdin, JSON on stdout."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_S, env=dict(env), check=False
        )
    except FileNotFoundError as err:
        raise RegistryError(
            f"cannot ask credential helper for {server}: {program} is not installed",
            hint="install it, or remove credsStore or credHelpers from docker's config.json",
        ) from err
    except (OSError, subprocess.TimeoutExpired) as err:
        raise RegistryError(f"cannot ask credential helper for {server}: {program}: {err}") from err
    said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
    if done.returncode != 0:
        if _NOT_FOUND in said:
            return None
        raise RegistryError(f"credential helper {program} failed for {server}: {said or f'exit status {done.returncode}'}")
    try:
        raw = json.loads(done.stdout)
        username, secret = str(raw.get("Username") or ""), str(raw.get("Secret") or "")
    except (ValueError, AttributeError) as err:
        raise RegistryError(f"credential helper {program} answered for {server} with something that is not a login") from err
    if not secret:
        return None
    return Login(username="" if username == "<token>" else username, secret=secret)


def _login_of(entry: Any, name: str, file: str) -> Login | None:
    if not isinstance(entry, Mapping):
        return None
    if token := entry.get("identitytoken"):
        return Login(username="", secret=str(token))
    username, secret = str(entry.get("username") or ""), str(entry.get("password") or "")
    if auth := entry.get("auth"):
        try:
            username, colon, secret = base64.b64decode(str(auth), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as err:
            raise ConfigError(f"{file}: auth of {name} is not base64 of user:password", file=file) from err
        if not colon:
            raise ConfigError(f"{file}: auth of {name} is not base64 of user:password", file=file)
        secret = secret.rstrip("\0")
    return Login(username=username, secret=secret) if username else None


def _entry_of(login: Login) -> Mapping[str, str]:
    return {"username": login.username, "password": login.secret} if login.username else {"identitytoken": login.secret}


def _server(host: str) -> str:
    return HUB_KEY if host in _HUB_NAMES else host


def _names(host: str) -> tuple[str, ...]:
    return ("docker.io", "index.docker.io", HUB_KEY) if host in _HUB_NAMES else (host,)


def _keys(host: str, repository: str, auths: Mapping[str, Any]) -> list[str]:
    """Entries for `host`, the most specific first. Docker writes hosts, older files URLs, podman paths below a host."""
    wanted = {HUB_KEY} if host in _HUB_NAMES else set()
    bare = {"docker.io", "index.docker.io", "registry-1.docker.io"} if host in _HUB_NAMES else {host}
    found = []
    for name in auths:
        plain = name.removeprefix("https://").removeprefix("http://").rstrip("/")
        head, _, path = plain.partition("/")
        if path in ("v1", "v2"):
            path = ""
        if name in wanted or (head in bare and (not path or f"{repository}/".startswith(f"{path}/"))):
            found.append((-len(path), name not in wanted, "://" in name, name))
    return [entry[3] for entry in sorted(found)]


def _json(text: str, where: str) -> Mapping[str, Any]:
    try:
        raw = json.loads(text) if text.strip() else {}
    except ValueError as err:
        raise ConfigError(f"{where}: not JSON: {err}", file=where) from err
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: want a JSON object", file=where)
    return raw
