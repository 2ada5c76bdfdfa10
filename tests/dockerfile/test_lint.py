# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from chantier.dockerfile import Linter, parse
from chantier.dockerfile import lint as rules
from chantier.errors import DockerfileError


def found(text: str) -> list[str]:
    data = text.encode()
    lint = Linter.for_file(data)
    parse(data, lint=lint)
    return [str(w) for w in lint.warnings]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM a AS Dev", ["StageNameCasing: Stage name 'Dev' should be lowercase (line 1)"]),
        ("FROM a as b", ["FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)"]),
        ("from a AS b", ["FromAsCasing: 'AS' and 'from' keywords' casing do not match (line 1)"]),
        ("FROM a\nRUN b \\\n\n  c", ["NoEmptyContinuation: Empty continuation line (line 4)"]),
        (
            "FROM a\nrun b\nUSER c",
            ["ConsistentInstructionCasing: Command 'run' should match the case of the command majority (uppercase) (line 2)"],
        ),
        (
            "from a\nrun b\nUSER c",
            ["ConsistentInstructionCasing: Command 'USER' should match the case of the command majority (lowercase) (line 3)"],
        ),
        (
            "from a\nUSER c",
            ["ConsistentInstructionCasing: Command 'from' should match the case of the command majority (uppercase) (line 1)"],
        ),
        ("FROM a AS b\nFROM a AS b", ['DuplicateStageName: Duplicate stage name "b", stage names should be unique (line 2)']),
        (
            "FROM a AS context",
            ['ReservedStageName: Stage name should not use the same name as reserved stage "context" (line 1)'],
        ),
        ("FROM a\nMAINTAINER m", ["MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 2)"]),
        ("# x\nFROM a AS b", []),
        (
            "# check=experimental=all\n# x\nFROM a AS b",
            ["InvalidDefinitionDescription: Comment for FROM should follow the format: `# b <description>` (line 3)"],
        ),
        (
            "# check=experimental=all\n\n# x\nARG c d\nFROM a",
            ["InvalidDefinitionDescription: Comment for ARG should follow the format: `# <arg_key> <description>` (line 4)"],
        ),
        ("# check=experimental=all\n# c x\nARG c\nFROM a\n# x\nUSER d", []),
        ("# check=skip=all\nfrom a AS B", []),
        ("# check=skip=StageNameCasing, FromAsCasing\nFROM a as B", ["FromAsCasing"]),
        ("# check=skip=StageNameCasing,FromAsCasing\nFROM a as B", []),
        ("# check=skip=stagenamecasing\nFROM a AS B", ["StageNameCasing"]),
        ("FROM a\n# check=skip=MaintainerDeprecated\nMAINTAINER a\nMAINTAINER b", ["MaintainerDeprecated"]),
        ("FROM a\n# check=skip=all because\nMAINTAINER a", []),
        ("FROM a\n# check=nonsense\nMAINTAINER a", ["MaintainerDeprecated"]),
    ],
)
def test_parse_rules(text: str, expected: list[str]) -> None:
    got = found(text)
    assert len(got) == len(expected)
    assert all(g.startswith(e) for g, e in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    ("text", "brief"),
    [
        ("skipp=all", 'invalid check option "skipp"'),
        ("skip", 'invalid check option "skip"'),
        ("error=perhaps", 'failed to parse check option "error=perhaps": strconv.ParseBool: parsing "perhaps": invalid syntax'),
        ("skip=a;", 'invalid check option ""'),
    ],
)
def test_bad_config(text: str, brief: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        rules.parse_check(text)
    assert caught.value.brief == brief
    with pytest.raises(DockerfileError) as caught:
        Linter.for_file(f"# check={text}\nFROM a\n".encode())
    assert caught.value.brief == f"failed to parse check options: {brief}"


def test_config() -> None:
    config = rules.parse_check(" skip = A , B ; experimental=all;error=true")
    assert config.skip == {"A", "B"}
    assert (config.skip_all, config.experimental_all, config.error) == (False, True, True)
    assert rules.parse_check("") == rules.CheckConfig()


def test_failure() -> None:
    lint = Linter(rules.parse_check("error=true"))
    assert lint.failure() is None
    lint.warn(rules.WORKDIR_RELATIVE_PATH, "x")
    lint.warn(rules.JSON_ARGS_RECOMMENDED, "CMD")
    lint.warn(rules.JSON_ARGS_RECOMMENDED, "CMD")
    failure = lint.failure()
    assert failure is not None
    assert failure.brief == "lint violation found for rules: JSONArgsRecommended, WorkdirRelativePath"
    lint = Linter()
    lint.warn(rules.JSON_ARGS_RECOMMENDED, "CMD")
    assert lint.failure() is None


@pytest.mark.parametrize(
    ("rule", "args", "text"),
    [
        (rules.UNDEFINED_VAR, ("Y", "K"), "Usage of undefined variable '$Y' (did you mean $K?)"),
        (rules.UNDEFINED_VAR, ("Y",), "Usage of undefined variable '$Y'"),
        (rules.UNDEFINED_ARG_IN_FROM, ("A", "B"), "FROM argument 'A' is not declared (did you mean B?)"),
        (rules.COPY_IGNORED_FILE, ("Add", "x"), 'Attempting to Add file "x" that is excluded by .dockerignore'),
        (rules.LEGACY_KEY_VALUE_FORMAT, ("ENV",), '"ENV key=value" should be used instead of legacy "ENV key value" format'),
        (
            rules.REDUNDANT_TARGET_PLATFORM,
            (),
            "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        ),
    ],
)
def test_texts(rule: rules.Rule, args: tuple[str, ...], text: str) -> None:
    assert rule.text(*args) == text


def test_every_rule_has_its_page() -> None:
    assert len(rules.RULES) == 22
    assert rules.JSON_ARGS_RECOMMENDED.url == "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/"
    assert rules.SECRETS_USED_IN_ARG_OR_ENV.url == "https://docs.docker.com/go/dockerfile/rule/secrets-used-in-arg-or-env/"
    assert rules.INVALID_BASE_IMAGE_PLATFORM.url == ""


@pytest.mark.parametrize("key", ["DB_PASSWORD", "GH_TOKEN", "AWS_SECRET_ACCESS", "key", "Api_ApiKey", "CREDENTIALS_X"])
def test_secret_names(key: str) -> None:
    assert rules.is_secret_name(key)


@pytest.mark.parametrize("key", ["PUBLIC_KEY", "TOKEN_FILE", "KEYBOARD", "MONKEY", "AUTHOR", "KEY_VERSION", ""])
def test_harmless_names(key: str) -> None:
    assert not rules.is_secret_name(key)
