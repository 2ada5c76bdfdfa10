# SPDX-License-Identifier: Apache-2.0
"""Registry tables: names with stars, logins, and the schema for editors."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from chantier.config import json_schema, matching, parse
from chantier.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"
WHOLE = Path(__file__).parent / "whole.toml"
NAMES = ["*", "*.corp.example", "*.dev.corp.example", "*.corp.example:5000", "r.corp.example", "docker.io"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("docker.io", ["docker.io", "*"]),
        ("ghcr.io", ["*"]),
        ("r.corp.example", ["r.corp.example", "*.corp.example", "*"]),
        ("r.corp.example:80", ["*.corp.example", "*"]),
        ("R.Corp.Example:5000", ["*.corp.example:5000", "*.corp.example", "*"]),
        ("r.dev.corp.example", ["*.dev.corp.example", "*.corp.example", "*"]),
        ("corp.example", ["*"]),
        ("evilcorp.example", ["*"]),
        ("corp.example.evil.test", ["*"]),
    ],
)
def test_which_tables_mean_a_host(host: str, expected: list[str]) -> None:
    assert list(matching(host, NAMES)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"r".credentials]\nusername = "u"', "chantier.registry.r.credentials.username: a user name needs passwordFile"),
        ('"r".credentials]\npasswordEnv = "P"', "credentials.passwordEnv: a password needs a username"),
        ('"r".credentials]\nhelper = "h"\nauthFile = "/f"', "authFile is another"),
        (
            '"r".credentials]\nhelper = "h"\nclient = true',
            "credentials.client: the client is not asked where the config has a login",
        ),
        ('"*".credentials]\nusername = "u"\npasswordFile = "/f"', "this login would go to whatever host a build names"),
        ('"*.r"]\nonly = true', 'chantier.registry."*.r".only: is of one registry'),
        ('"r*"]\nbreaker = true', 'chantier.registry."r*": a star stands for any host'),
        ('"r"]\nconnectTimeout = 0', "connectTimeout: must be longer than nothing"),
        ('"r"]\nproxy = "socks5://p:1"', 'proxy: want "http://HOST:PORT"'),
        ('"r"]\ncapabilities = ["pul"]', 'capabilities[0]: want "pull", "resolve" or "push"'),
        ('"r"]\nconectTimeout = 1', "did you mean chantier.registry.r.connectTimeout?"),
    ],
)
def test_mistakes(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"[chantier.registry.{text}\n", "FILE")
    whole = f"{caught.value.brief}\n{caught.value.detail or ''}"
    assert said in whole
    assert caught.value.brief.startswith("FILE:")
    assert caught.value.line


def test_names_that_have_no_effect() -> None:
    (warning,) = parse('[registry."r*"]\nhttp = true\n', "f").warnings
    assert warning.startswith('f:1: [registry."r*"] has no effect: a star stands for any host')
    assert not parse('[registry."*"]\nhttp = true\n[registry."*.corp"]\n', "f").warnings


# The schema.


def test_the_published_schema_is_the_code() -> None:
    assert json.loads((DOCS / "buildkitd.schema.json").read_text()) == json_schema(), "run scripts/config-schema"


def check(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str = "") -> list[str]:
    """The part of JSON Schema that ours uses; for whole documents any validator does."""
    if "$ref" in schema:
        return check(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, where)
    if "anyOf" in schema:
        tries = [check(value, one, root, where) for one in schema["anyOf"]]
        return [] if any(not t for t in tries) else tries[0]
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    if not isinstance(value, kinds[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return [f"{where}: not {schema['type']}"]
    wrong: list[str] = []
    if isinstance(value, dict):
        for name, item in value.items():
            below = schema.get("properties", {}).get(name, schema.get("additionalProperties", {}))
            if below is False:
                wrong.append(f"{where}.{name}: unknown")
            elif below:
                wrong += check(item, below, root, f"{where}.{name}")
    elif isinstance(value, list):
        for item in value:
            wrong += check(item, schema.get("items", {}), root, where)
    elif isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            wrong.append(f"{where}: pattern")
        if "enum" in schema and value not in schema["enum"]:
            wrong.append(f"{where}: enum")
    elif "minimum" in schema and value < schema["minimum"]:
        wrong.append(f"{where}: minimum")
    return wrong


def test_the_schema_takes_a_whole_file() -> None:
    assert check(tomllib.loads(WHOLE.read_text()), json_schema(), json_schema()) == []


@pytest.mark.parametrize(
    "text",
    [
        "debugg = true",
        'debug = "yes"',
        '[registry."r"]\nmirrors = "m"',
        '[chantier.registry."r"]\nconnectTimeout = "five"',
        '[chantier.registry."r"]\ncapabilities = ["pul"]',
        "[worker.oci]\nmax-parallelism = -1",
        '[log]\nlevel = "loud"',
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)
    assert check(tomllib.loads(text), json_schema(), json_schema())


def test_our_keys_are_described() -> None:
    for name in ("RegistryExtra", "Credentials", "Network", "Registry"):
        for key, made in json_schema()["$defs"][name]["properties"].items():
            assert made.get("description") or "$ref" in made or made.get("type") == "array", (name, key)
