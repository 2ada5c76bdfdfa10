# SPDX-License-Identifier: Apache-2.0
"""Logins that the config holds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from chantier.config import parse
from chantier.errors import ChantierError, ConfigError, RegistryError
from chantier.registry import Login
from chantier.registry.logins import Logins
from chantier.registry.tables import Tables


def logins(text: str, **env: str) -> Logins:
    config = parse(text)
    return Logins(Tables(registries=config.registries, extras=config.chantier.registries), {**os.environ, **env})


def table(host: str, *lines: str) -> str:
    return f'[chantier.registry."{host}".credentials]\n' + "\n".join(lines) + "\n"


def client(host: str) -> Login:
    return Login(username="client", secret="c")


def test_each_way(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("from file\n")
    (tmp_path / "token").write_text("refresh\n")
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {"d.test": {"username": "d", "password": "dd"}}}))
    helper = tmp_path / "docker-credential-mine"
    helper.write_text('#!/bin/sh\nread server\nprintf \'{"Username":"h","Secret":"for %s"}\' "$server"\n')
    helper.chmod(0o755)
    text = (
        table("a.test", 'username = "a"', f'passwordFile = "{tmp_path}/pw"')
        + table("b.test", 'username = "b"', 'passwordEnv = "B_PW"')
        + table("c.test", f'tokenFile = "{tmp_path}/token"')
        + table("d.test", f'authFile = "{tmp_path}/auth.json"')
        + table("*.e.test", 'helper = "mine"')
        + table("f.test", "client = false")
        + table("docker.io", 'username = "hub"', f'passwordFile = "{tmp_path}/pw"')
    )
    found = logins(text, B_PW="from env", PATH=f"{tmp_path}:{os.environ['PATH']}", DOCKER_AUTH_CONFIG='{"auths":{}}')
    ask = found.asking(client)
    for host, username, secret in (
        ("a.test", "a", "from file"),
        ("b.test", "b", "from env"),
        ("c.test", "", "refresh"),
        ("d.test", "d", "dd"),
        ("r.e.test:5000", "h", "for r.e.test:5000"),
        ("registry-1.docker.io", "hub", "from file"),
        ("g.test", "client", "c"),
    ):
        login = ask(host)
        assert login is not None
        assert (login.username, login.secret) == (username, secret)
    assert ask("f.test") is None
    assert found.where("a.test") == f"config: password in {tmp_path}/pw"
    assert found.where("g.test") == "client"


def test_secrets_rotate(tmp_path: Path) -> None:
    path = tmp_path / "pw"
    path.write_text("one")
    found = logins(table("a.test", 'username = "a"', f'passwordFile = "{path}"'))
    assert found.of("a.test") == Login(username="a", secret="one")
    path.write_text("two")
    assert found.of("a.test") == Login(username="a", secret="two")


def test_clients_tokens_are_not_asked_for_where_the_config_has_a_login(tmp_path: Path) -> None:
    found = logins(table("a.test", "client = false"))
    delegating = found.delegating(lambda *_: "token")
    assert delegating is not None
    assert delegating("a.test", "", "", ()) is None
    assert delegating("b.test", "", "", ()) == "token"
    assert found.delegating(None) is None


@pytest.mark.parametrize(
    ("lines", "error", "said"),
    [
        (('username = "u"', 'passwordFile = "/none"'), ConfigError, "no login for a.test: cannot read /none: no such file"),
        (('username = "u"', 'passwordFile = "/dev/null"'), ConfigError, "no login for a.test: /dev/null is empty"),
        (('username = "u"', 'passwordEnv = "NOPE"'), RegistryError, "the environment of the engine has no NOPE"),
        (('authFile = "/none"',), ConfigError, "no login for a.test: /none: no such file"),
        (('helper = "missing"',), RegistryError, "docker-credential-missing is not installed"),
    ],
)
def test_a_login_that_cannot_be_had_is_an_error(lines: tuple[str, ...], error: type[ChantierError], said: str) -> None:
    """Going on without it would be a surprise: the pull would fail, or come from somebody else's quota."""
    with pytest.raises(error, match=said):
        logins(table("a.test", *lines)).of("a.test")
