# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from chantier.errors import ConfigError, RegistryError
from chantier.registry import AuthFile, Login


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def file(folder: Path, document: Any, **env: str) -> AuthFile:
    (folder / "config.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return AuthFile({"DOCKER_CONFIG": str(folder), "PATH": f"{folder}:/usr/bin:/bin", **env})


def helper(folder: Path, name: str, script: str) -> None:
    program = folder / f"docker-credential-{name}"
    program.write_text(f'#!/bin/sh\necho "$1 $(cat)" >>{folder}/asked\n{script}\n')
    program.chmod(0o755)


def test_auths(folder: Path) -> None:
    f = file(
        folder,
        {
            "auths": {
                "reg.test:5000": auth("me:pass:word"),
                "https://old.test/v1/": auth("old:x"),
                "plain.test": {"username": "u", "password": "p"},
                "token.test": {"auth": "", "identitytoken": "idt"},
                "empty.test": {},
            }
        },
    )
    assert f.credentials("reg.test:5000") == Login(username="me", secret="pass:word")
    assert f.credentials("reg.test") is None
    assert f.credentials("old.test") == Login(username="old", secret="x")
    assert f.credentials("plain.test") == Login(username="u", secret="p")
    assert f.credentials("token.test") == Login(username="", secret="idt")
    assert f.credentials("empty.test") is None


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub(folder: Path, key: str) -> None:
    f = file(folder, {"auths": {key: auth("hub:pw")}})
    for host in ("registry-1.docker.io", "docker.io", "dhi.io"):
        assert f.credentials(host) == Login(username="hub", secret="pw")
    assert f.credentials("quay.io") is None


def test_the_hubs_own_key_wins(folder: Path) -> None:
    f = file(folder, {"auths": {"docker.io": auth("a:1"), "https://index.docker.io/v1/": auth("b:2")}})
    assert f.credentials("registry-1.docker.io") == Login(username="b", secret="2")


def test_paths_below_a_host(folder: Path) -> None:
    f = file(folder, {"auths": {"r.test": auth("all:1"), "r.test/team": auth("team:2"), "r.test/team/app": auth("app:3")}})
    assert f.credentials("r.test") == Login(username="all", secret="1")
    assert f.credentials("r.test", "team/app") == Login(username="app", secret="3")
    assert f.credentials("r.test", "team/x") == Login(username="team", secret="2")
    assert f.credentials("r.test", "teammate/x") == Login(username="all", secret="1")


def test_helpers(folder: Path) -> None:
    helper(folder, "one", """echo '{"ServerURL":"x","Username":"h","Secret":"s"}'""")
    helper(folder, "two", """echo '{"Username":"<token>","Secret":"idt"}'""")
    f = file(folder, {"credsStore": "two", "credHelpers": {"r.test": "one"}, "auths": {"r.test": auth("no:no")}})
    assert f.credentials("r.test") == Login(username="h", secret="s")
    assert f.credentials("other.test") == Login(username="", secret="idt")
    assert f.credentials("registry-1.docker.io") == Login(username="", secret="idt")
    f.credentials("r.test")
    assert (folder / "asked").read_text().splitlines() == ["get r.test", "get other.test", "get https://index.docker.io/v1/"]


def test_helper_that_knows_nothing(folder: Path) -> None:
    helper(folder, "none", "echo 'credentials not found in native keychain'; exit 1")
    f = file(folder, {"credsStore": "none", "auths": {"r.test": auth("file:x")}})
    assert f.credentials("r.test") == Login(username="file", secret="x")
    assert f.credentials("other.test") is None


def test_helpers_that_fail(folder: Path) -> None:
    helper(folder, "locked", "echo 'keyring is locked' >&2; exit 1")
    helper(folder, "odd", "echo surprise")
    f = file(folder, {"credHelpers": {"a.test": "locked", "b.test": "odd", "c.test": "absent"}})
    with pytest.raises(RegistryError, match=r"docker-credential-locked failed for a\.test: keyring is locked"):
        f.credentials("a.test")
    with pytest.raises(RegistryError, match="something that is not a login"):
        f.credentials("b.test")
    with pytest.raises(RegistryError, match="docker-credential-absent is not installed") as caught:
        f.credentials("c.test")
    assert "credHelpers" in (caught.value.hint or "")


def test_which_file(folder: Path) -> None:
    other = folder / "auth.json"
    other.write_text(json.dumps({"auths": {"r.test": auth("podman:x")}}))
    f = file(folder, {"auths": {"r.test": auth("docker:x")}}, REGISTRY_AUTH_FILE=str(other))
    assert f.credentials("r.test") == Login(username="podman", secret="x")
    home = AuthFile({"HOME": str(folder)})
    assert home.path == folder / ".docker/config.json"
    assert home.credentials("r.test") is None
    inline = AuthFile({"HOME": str(folder), "DOCKER_AUTH_CONFIG": json.dumps({"auths": {"r.test": auth("inline:x")}})})
    assert inline.credentials("r.test") == Login(username="inline", secret="x")


def test_a_login_made_meanwhile_counts(folder: Path) -> None:
    f = file(folder, {})
    assert f.credentials("r.test") is None
    file(folder, {"auths": {"r.test": auth("new:x")}})
    assert f.credentials("r.test") == Login(username="new", secret="x")


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"r.test": {"auth": "%%%"}}}', '{"auths": {"r.test": {"auth": "YQ=="}}}'])
def test_files_that_make_no_sense(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: "):
        file(folder, text).credentials("r.test")


def test_what_was_given_comes_first(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"auths": {"r.test": auth("file:1"), "other.test": auth("file:2")}}))
    given = {"r.test": Login(username="own", secret="3"), "docker.io": Login(username="", secret="idt")}
    f = AuthFile({"DOCKER_CONFIG": str(folder)}, given=given)
    assert f.credentials("r.test") == Login(username="own", secret="3")
    assert f.credentials("registry-1.docker.io") == Login(username="", secret="idt")
    assert f.credentials("other.test") == Login(username="file", secret="2")
    assert "3" not in repr(given["r.test"])
