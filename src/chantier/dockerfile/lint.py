# SPDX-License-Identifier: Apache-2.0
"""The build checks: every rule with its texts, and the `Linter` that collects what they find.

The parser applies the rules that need no conversion; the converter calls `Linter.warn` for the rest, in its own order,
because clients show warnings in the order they were found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from chantier.errors import DockerfileError, SourceRange
from chantier.values import dataclass, field

from .directives import DirectiveReader, find_directive
from .gotext import SPACE, parse_bool, quote
from .instructions import Instruction, Stage


@dataclass(frozen=True, slots=True)
class Rule:
    """One check. `text` makes the message of one finding."""

    name: str
    description: str
    text: Callable[..., str] = field(compare=False)
    experimental: bool = False
    has_page: bool = True

    @property
    def url(self) -> str:
        """The page that explains the rule; "" where there is none."""
        if not self.has_page:
            return ""
        kebab = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", self.name).lower()
        return f"https://docs.docker.com/go/dockerfile/rule/{kebab}/"


def _suggesting(text: str, suggestion: str, mark: str = "") -> str:
    return f"{text} (did you mean {mark}{suggestion}?)" if suggestion else text


STAGE_NAME_CASING: Final = Rule(
    "StageNameCasing",
    "Stage names should be lowercase",
    lambda name: f"Stage name '{name}' should be lowercase",
)
FROM_AS_CASING: Final = Rule(
    "FromAsCasing",
    "The 'as' keyword should match the case of the 'from' keyword",
    lambda from_word, as_word: f"'{as_word}' and '{from_word}' keywords' casing do not match",
)
NO_EMPTY_CONTINUATION: Final = Rule(
    "NoEmptyContinuation",
    "Empty continuation lines will become errors in a future release",
    lambda: "Empty continuation line",
)
CONSISTENT_INSTRUCTION_CASING: Final = Rule(
    "ConsistentInstructionCasing",
    "All commands within the Dockerfile should use the same casing (either upper or lower)",
    lambda keyword, casing: f"Command '{keyword}' should match the case of the command majority ({casing})",
)
DUPLICATE_STAGE_NAME: Final = Rule(
    "DuplicateStageName",
    "Stage names should be unique",
    lambda name: f"Duplicate stage name {quote(name)}, stage names should be unique",
)
RESERVED_STAGE_NAME: Final = Rule(
    "ReservedStageName",
    "Reserved words should not be used as stage names",
    lambda name: f"Stage name should not use the same name as reserved stage {quote(name)}",
)
JSON_ARGS_RECOMMENDED: Final = Rule(
    "JSONArgsRecommended",
    "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
    lambda keyword: f"JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals",
)
MAINTAINER_DEPRECATED: Final = Rule(
    "MaintainerDeprecated",
    "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
    lambda: "Maintainer instruction is deprecated in favor of using label",
)
UNDEFINED_ARG_IN_FROM: Final = Rule(
    "UndefinedArgInFrom",
    "FROM command must use declared ARGs",
    lambda name, suggestion="": _suggesting(f"FROM argument '{name}' is not declared", suggestion),
)
WORKDIR_RELATIVE_PATH: Final = Rule(
    "WorkdirRelativePath",
    "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image"
    " changes",
    lambda path: f"Relative workdir {quote(path)} can have unexpected results if the base image changes",
)
UNDEFINED_VAR: Final = Rule(
    "UndefinedVar",
    "Variables should be defined before their use",
    lambda name, suggestion="": _suggesting(f"Usage of undefined variable '${name}'", suggestion, "$"),
)
MULTIPLE_INSTRUCTIONS_DISALLOWED: Final = Rule(
    "MultipleInstructionsDisallowed",
    "Multiple instructions of the same type should not be used in the same stage",
    lambda keyword: (
        f"Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
    ),
)
LEGACY_KEY_VALUE_FORMAT: Final = Rule(
    "LegacyKeyValueFormat",
    "Legacy key/value format with whitespace separator should not be used",
    lambda keyword: f'"{keyword} key=value" should be used instead of legacy "{keyword} key value" format',
)
INVALID_BASE_IMAGE_PLATFORM: Final = Rule(
    "InvalidBaseImagePlatform",
    "Base image platform does not match expected target platform",
    lambda image, actual, expected: (
        f"Base image {image} was pulled with platform {quote(actual)}, expected {quote(expected)} for current build"
    ),
    has_page=False,
)
REDUNDANT_TARGET_PLATFORM: Final = Rule(
    "RedundantTargetPlatform",
    "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
    lambda variable="$TARGETPLATFORM": (
        f"Setting platform to predefined {variable} in FROM is redundant as this is the default behavior"
    ),
)
SECRETS_USED_IN_ARG_OR_ENV: Final = Rule(
    "SecretsUsedInArgOrEnv",
    "Sensitive data should not be used in the ARG or ENV commands",
    lambda instruction, key: f"Do not use ARG or ENV instructions for sensitive data ({instruction} {quote(key)})",
)
INVALID_DEFAULT_ARG_IN_FROM: Final = Rule(
    "InvalidDefaultArgInFrom",
    "Default value for global ARG results in an empty or invalid base image name",
    lambda base: f"Default value for ARG {base} results in empty or invalid base image name",
)
FROM_PLATFORM_FLAG_CONST_DISALLOWED: Final = Rule(
    "FromPlatformFlagConstDisallowed",
    "FROM --platform flag should not use a constant value",
    lambda platform: f"FROM --platform flag should not use constant value {quote(platform)}",
)
COPY_IGNORED_FILE: Final = Rule(
    "CopyIgnoredFile",
    "Attempting to Copy file that is excluded by .dockerignore",
    lambda verb, path: f"Attempting to {verb} file {quote(path)} that is excluded by .dockerignore",  # Copy or Add
)
INVALID_DEFINITION_DESCRIPTION: Final = Rule(
    "InvalidDefinitionDescription",
    "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not"
    " intended to be a description comment, add an empty line or comment between the instruction and the comment.",
    lambda instruction, name: f"Comment for {instruction} should follow the format: `# {name} <description>`",
    experimental=True,
)
EXPOSE_PROTO_CASING: Final = Rule(
    "ExposeProtoCasing",
    "Protocol in EXPOSE instruction should be lowercase",
    lambda port: f"Defined protocol '{port}' in EXPOSE instruction should be lowercase",
)
EXPOSE_INVALID_FORMAT: Final = Rule(
    "ExposeInvalidFormat",
    "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release",
    lambda port: f"EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'",
)

RULES: Final[tuple[Rule, ...]] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))

RESERVED_STAGE_NAMES: Final = ("context", "scratch")


@dataclass(frozen=True, slots=True)
class LintWarning:
    """One finding."""

    rule: Rule
    detail: str
    ranges: tuple[SourceRange, ...]

    def __str__(self) -> str:
        line = self.ranges[0].start if self.ranges else 0
        text = f"{self.rule.name}: {self.detail}"
        return f"{text} (line {line})" if line > 0 else text


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckConfig:
    """What a `check` directive or the BUILDKIT_DOCKERFILE_CHECK argument says."""

    skip: frozenset[str] = frozenset()
    skip_all: bool = False
    experimental: frozenset[str] = frozenset()
    experimental_all: bool = False
    error: bool = False

    def allows(self, rule: Rule) -> bool:
        """Whether findings of the rule are wanted. Rule names are compared as they are written."""
        if rule.experimental:
            return self.experimental_all or rule.name in self.experimental
        return not (self.skip_all or rule.name in self.skip)

    def merged(self, other: CheckConfig) -> CheckConfig:
        return CheckConfig(
            skip=self.skip | other.skip,
            skip_all=self.skip_all or other.skip_all,
            experimental=self.experimental | other.experimental,
            experimental_all=self.experimental_all or other.experimental_all,
            error=self.error,
        )


def parse_check(text: str) -> CheckConfig:
    """Read `skip=...;experimental=...;error=...`; raises DockerfileError without a prefix."""
    text = text.strip(SPACE)
    if not text:
        return CheckConfig()
    lists: dict[str, frozenset[str]] = {"skip": frozenset(), "experimental": frozenset()}
    everything = {"skip": False, "experimental": False}
    error = False
    for part in text.split(";", 2):
        key, equals, value = part.partition("=")
        if not equals:
            raise DockerfileError(f"invalid check option {quote(part)}")
        key, value = key.strip(SPACE), value.strip(SPACE)
        if key in lists:
            if value == "all":
                everything[key] = True
            else:
                lists[key] = frozenset(name.strip(SPACE) for name in value.split(","))
        elif key == "error":
            parsed = parse_bool(value)
            if parsed is None:
                cause = f"strconv.ParseBool: parsing {quote(value)}: invalid syntax"
                raise DockerfileError(f"failed to parse check option {quote(part)}: {cause}")
            error = parsed
        else:
            raise DockerfileError(f"invalid check option {quote(key)}")
    return CheckConfig(
        skip=lists["skip"],
        skip_all=everything["skip"],
        experimental=lists["experimental"],
        experimental_all=everything["experimental"],
        error=error,
    )


class Linter:
    """Collects findings. One for each file and platform; not shared between threads."""

    __slots__ = ("config", "warnings")

    def __init__(self, config: CheckConfig | None = None) -> None:
        self.config = config or CheckConfig()
        self.warnings: list[LintWarning] = []

    @classmethod
    def for_file(cls, data: bytes) -> Linter:
        """A linter that obeys the file's own `check` directive; raises `failed to parse check options: ...`."""
        directive = find_directive(data, "check")
        try:
            return cls(parse_check(directive.value.split(" ", 1)[0]) if directive else None)
        except DockerfileError as err:
            raise DockerfileError(f"failed to parse check options: {err.brief}") from None

    def warn(
        self,
        rule: Rule,
        *args: str,
        at: Instruction | Sequence[SourceRange] = (),
        comments: Iterable[str] = (),
    ) -> None:
        """Record one finding unless the config, or a check comment above the instruction, turns the rule off.

        `at` is the instruction it is about; where only ranges are known, `comments` may give the comment lines.
        """
        if isinstance(at, Instruction):
            ranges, comments = at.ranges, at.comments
        else:
            ranges = tuple(at)
        config = self.config
        for comment in comments:
            override = _override(comment)
            if override is not None:
                config = config.merged(override)
        if config.allows(rule):
            self.warnings.append(LintWarning(rule, rule.text(*args), ranges))

    def failure(self) -> DockerfileError | None:
        """The error to fail the build with, when `error=true` asks for it and something was found."""
        if not self.config.error or not self.warnings:
            return None
        names = ", ".join(sorted({w.rule.name for w in self.warnings}))
        return DockerfileError(f"lint violation found for rules: {names}")


def _override(comment: str) -> CheckConfig | None:
    """The config in a comment line `check=...`; None where there is none or it does not parse."""
    if not comment.lower().startswith("check"):
        return None
    directive = DirectiveReader().read("#" + comment)
    if directive is None or directive.name != "check":
        return None
    try:
        return parse_check(directive.value.split(" ", 1)[0])
    except DockerfileError:  # a comment that only looks like one is a comment
        return None


_SECRET: Final = re.compile(
    r"(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE | re.ASCII
)
_HARMLESS: Final = re.compile(r"(?:_|^)(?:public|file|version)(?:_|$)", re.IGNORECASE | re.ASCII)


def is_secret_name(key: str) -> bool:
    """Whether a variable name looks like it holds a secret (rule SecretsUsedInArgOrEnv)."""
    return bool(_SECRET.search(key)) and not _HARMLESS.search(key)


def check_stages(stages: Sequence[Stage], lint: Linter) -> None:
    """The rules about whole files: stage names, then the casing of instructions."""
    _check_stage_names(stages, lint)
    _check_casing(stages, lint)


def _check_stage_names(stages: Sequence[Stage], lint: Linter) -> None:
    seen: set[str] = set()
    for stage in stages:
        name = stage.stage_name
        if not name:
            continue
        if name in RESERVED_STAGE_NAMES:
            lint.warn(RESERVED_STAGE_NAME, name, at=stage)
        if name in seen:
            lint.warn(DUPLICATE_STAGE_NAME, name, at=stage)
        seen.add(name)


def _check_casing(stages: Sequence[Stage], lint: Linter) -> None:
    lines: list[Instruction] = [i for stage in stages for i in (stage, *stage.commands)]
    lower = sum(i.keyword == i.name for i in lines)
    upper = sum(i.keyword == i.name.upper() for i in lines)
    for i in lines:
        wanted, casing = (i.name, "lowercase") if lower > upper else (i.name.upper(), "uppercase")
        if i.keyword != wanted:
            lint.warn(CONSISTENT_INSTRUCTION_CASING, i.keyword, casing, at=i)


__all__ = [
    "CONSISTENT_INSTRUCTION_CASING",
    "COPY_IGNORED_FILE",
    "DUPLICATE_STAGE_NAME",
    "EXPOSE_INVALID_FORMAT",
    "EXPOSE_PROTO_CASING",
    "FROM_AS_CASING",
    "FROM_PLATFORM_FLAG_CONST_DISALLOWED",
    "INVALID_BASE_IMAGE_PLATFORM",
    "INVALID_DEFAULT_ARG_IN_FROM",
    "INVALID_DEFINITION_DESCRIPTION",
    "JSON_ARGS_RECOMMENDED",
    "LEGACY_KEY_VALUE_FORMAT",
    "MAINTAINER_DEPRECATED",
    "MULTIPLE_INSTRUCTIONS_DISALLOWED",
    "NO_EMPTY_CONTINUATION",
    "REDUNDANT_TARGET_PLATFORM",
    "RESERVED_STAGE_NAME",
    "RESERVED_STAGE_NAMES",
    "RULES",
    "SECRETS_USED_IN_ARG_OR_ENV",
    "STAGE_NAME_CASING",
    "UNDEFINED_ARG_IN_FROM",
    "UNDEFINED_VAR",
    "WORKDIR_RELATIVE_PATH",
    "CheckConfig",
    "LintWarning",
    "Linter",
    "Rule",
    "check_stages",
    "is_secret_name",
    "parse_check",
]
