# SPDX-License-Identifier: Apache-2.0
"""Logins that the config itself holds: from a file, the environment, docker's config.json, a credential helper.

A host that has one is logged in to with it alone: the client's credentials and tokens are not asked for. Secrets are read
when they are needed, so that they may rotate.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from chantier.config import CredentialsConfig
from chantier.errors import ConfigError, RegistryError

from .auth_file import AuthFile, Login, ask_helper
from .tables import Tables
from .types import Credentials, CredentialsFor, TokenFor

_KEEP_S = 290.0


class Logins:
    """Of one config. Thread-safe."""

    def __init__(
        self, tables: Tables, env: Mapping[str, str] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tables = tables
        self._env = os.environ if env is None else env
        self._clock = clock
        self._mutex = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[float, Login | None]] = {}

    def has(self, host: str) -> bool:
        """Whether the config decides, be it that nobody is to log in."""
        table = self._tables.of(host).extra.credentials
        return bool(table.ways) or table.client is False

    def where(self, host: str) -> str:
        """Where the login of a host comes from, in words for a person."""
        table = self._tables.of(host).extra.credentials
        names = {
            "passwordFile": f"config: password in {table.password_file}",
            "passwordEnv": f"config: password in ${table.password_env}",
            "tokenFile": f"config: token in {table.token_file}",
            "authFile": f"config: {table.auth_file}",
            "helper": f"config: docker-credential-{table.helper}",
        }
        if table.ways:
            return names[table.ways[0]]
        return "config: none" if table.client is False else "client"

    def of(self, host: str) -> Login | None:
        """Raises ConfigError or RegistryError where the login that the config names cannot be had."""
        table = self._tables.of(host).extra.credentials
        if table.password_file:
            return Login(username=table.username, secret=_secret(table.password_file, host))
        if table.password_env:
            return Login(username=table.username, secret=self._variable(table.password_env, host))
        if table.token_file:
            return Login(username="", secret=_secret(table.token_file, host))
        if table.auth_file:
            env = {k: v for k, v in self._env.items() if k != "DOCKER_AUTH_CONFIG"}
            if not os.path.exists(table.auth_file):
                raise ConfigError(f"no login for {host}: {table.auth_file}: no such file", file=table.auth_file)
            return AuthFile({**env, "REGISTRY_AUTH_FILE": table.auth_file}).credentials(host)
        return self._helper(table, host) if table.helper else None

    def asking(self, client: CredentialsFor) -> CredentialsFor:
        """The client's credentials, for hosts of which the config says nothing."""

        def credentials(host: str) -> Credentials | None:
            return self.of(host) if self.has(host) else client(host)

        return credentials

    def delegating(self, client: TokenFor | None) -> TokenFor | None:
        if client is None:
            return None

        def token(host: str, realm: str, service: str, scopes: Sequence[str]) -> str | None:
            return None if self.has(host) else client(host, realm, service, scopes)

        return token

    def token_servers(self, host: str) -> tuple[str, ...]:
        return self._tables.of(host).extra.token_servers

    def _variable(self, name: str, host: str) -> str:
        value = self._env.get(name, "")
        if not value:
            raise RegistryError(f"no login for {host}: the environment of the engine has no {name}", host=host)
        return value

    def _helper(self, table: CredentialsConfig, host: str) -> Login | None:
        with self._mutex:
            kept = self._kept.get((table.helper, host))
            if kept is not None and self._clock() - kept[0] < _KEEP_S:
                return kept[1]
        login = ask_helper(table.helper, host, self._env)
        with self._mutex:
            self._kept[table.helper, host] = (self._clock(), login)
        return login


def _secret(path: str, host: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(64 << 10).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as err:
        why = os.strerror(err.errno or 0).lower() if isinstance(err, OSError) else "not UTF-8"
        raise ConfigError(f"no login for {host}: cannot read {path}: {why}", file=path) from err
    if not text:
        raise ConfigError(f"no login for {host}: {path} is empty", file=path)
    return text
