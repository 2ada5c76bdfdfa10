# SPDX-License-Identifier: Apache-2.0
"""Finding and reading the config file, and where state lives."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from chantier.errors import ConfigError
from chantier.values import replace

from .lines import Path as KeyPath
from .lines import line_map
from .read import Mistake, Reader, dotted
from .values import Config

_AT_LINE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)\Z")


def parse(text: str, file: str = "<config>") -> Config:
    """Read a `buildkitd.toml`. Raises ConfigError `FILE:LINE: …` for the first mistake, with all of them in `detail`."""
    import tomllib  # 11 ms that a command without a config file need not pay

    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise _syntax_error(str(err), text, file) from err
    reader = Reader(Config)
    config: Config = reader.table(Config, raw, ())
    if not reader.mistakes and not reader.warnings:
        return replace(config, file=file)
    lines = line_map(text)
    if reader.mistakes:
        raise _config_error(reader.mistakes, lines, file)
    warnings = tuple(f"{file}:{_line_of(path, lines)}: {said}" for path, said in reader.warnings)
    return replace(config, file=file, warnings=warnings)


def load(path: str | os.PathLike[str]) -> Config:
    """Read the file at `path`. Raises ConfigError also if it cannot be read."""
    return parse(read_text(path), os.fspath(path))


def read_text(path: str | os.PathLike[str]) -> str:
    """What `load` parses. Raises ConfigError."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = file.read()
    except FileNotFoundError as err:
        raise ConfigError(f"{name}: config file not found", file=name) from err
    except OSError as err:
        raise ConfigError(f"{name}: cannot read config file: {os.strerror(err.errno or 0).lower()}", file=name) from err
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        raise ConfigError(f"{name}:{line}: config file is not UTF-8", file=name, line=line) from err


def line_of(key: str, text: str) -> int:
    """The line of a key as errors name it (`registry."docker.io".ca[0]`), or of what it is in; 0 if there is no such key."""
    lines = {dotted(path): line for path, line in line_map(text).items()}
    while key:
        if key in lines:
            return lines[key]
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return 0


def find(env: Mapping[str, str] | None = None, *, rootless: bool | None = None, etc: Path = Path("/etc")) -> Path | None:
    """The config file to read: CHANTIER_CONFIG, else the first that exists of chantier's own and BuildKit's default places.

    A file named by CHANTIER_CONFIG is returned whether it exists or not, so that `load` can say that it does not.
    """
    env = os.environ if env is None else env
    if named := env.get("CHANTIER_CONFIG"):
        return Path(named)
    if is_rootless(env) if rootless is None else rootless:
        base = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME", "/")) / ".config")
    else:
        base = etc
    for candidate in (base / "chantier" / "chantierd.toml", base / "buildkit" / "buildkitd.toml"):
        if candidate.is_file():
            return candidate
    return None


def discover(env: Mapping[str, str] | None = None) -> Config:
    """`load(find(env))`, or the empty config where there is no file."""
    path = find(env)
    return Config() if path is None else load(path)


def state_root(config: Config, env: Mapping[str, str] | None = None, *, rootless: bool | None = None) -> Path:
    """Where state lives: CHANTIER_ROOT, else the config's `root`, else /var/lib/chantier or $XDG_DATA_HOME/chantier."""
    env = os.environ if env is None else env
    if chosen := env.get("CHANTIER_ROOT") or config.root:
        return Path(chosen).absolute()
    if is_rootless(env) if rootless is None else rootless:
        # With one id all files are one owner's: nothing that a build with more of them could go on with.
        name = "chantier-one-id" if env.get("CHANTIER_ONE_ID") else "chantier"
        return Path(env.get("XDG_DATA_HOME") or Path(env.get("HOME", "/")) / ".local/share") / name
    return Path("/var/lib/chantier")


def is_rootless(env: Mapping[str, str] | None = None) -> bool:
    """Not uid 0, or uid 0 of a user namespace that a plain user made (USER is set and is not root), as BuildKit decides."""
    env = os.environ if env is None else env
    if os.geteuid() != 0:
        return True
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            inside, outside, count = file.readline().split()
    except (OSError, ValueError):  # no procfs, or no user namespaces: then root is root
        return False
    whole = (inside, outside, count) == ("0", "0", "4294967295")
    return not whole and env.get("USER", "root") != "root"


def _syntax_error(text: str, document: str, file: str) -> ConfigError:
    match = _AT_LINE.search(text)
    cause = _AT_LINE.sub("", text)
    line = int(match[1]) if match and match[1] else document.rstrip("\n").count("\n") + 1
    shown = document.splitlines()[line - 1].strip() if 0 < line <= len(document.splitlines()) else ""
    return ConfigError(
        f"{file}:{line}: not valid TOML: {cause[:1].lower()}{cause[1:]}",
        file=file,
        line=line,
        hint=f"the line reads: {shown}" if shown else None,
    )


def _config_error(mistakes: list[Mistake], lines: Mapping[KeyPath, int], file: str) -> ConfigError:
    ordered = sorted(mistakes, key=lambda m: _line_of(m.path, lines))
    said = [f"{file}:{_line_of(m.path, lines)}: {m.text}" + (f" ({m.nearest})" if m.nearest else "") for m in ordered]
    first = ordered[0]
    return ConfigError(
        said[0],
        file=file,
        line=_line_of(first.path, lines),
        key=dotted(first.path),
        detail="\n".join(said[1:]) or None,
        hint=first.hint or None,
    )


def _line_of(path: KeyPath, lines: Mapping[KeyPath, int]) -> int:
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return 1
