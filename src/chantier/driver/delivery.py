# SPDX-License-Identifier: Apache-2.0
"""A daemon's config and the certificates it names, as files that travel to the daemon (builders.md 3.2-3.4).

buildkitd.toml                 paths rewritten
certs/HOST/NAME                what `ca` and `keypair` name; HOST without what is not in [a-zA-Z0-9.-]
certs/chantier.network/NAME    the authorities of [chantier.network]
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chantier.config import parse
from chantier.errors import ConfigError, UsageError
from chantier.kernel.temporary import TemporaryDirectory

from . import gotoml
from .certificate import check_config, place, raise_all
from .container_spec import CONFIG_DIR, check_path
from .store import CONFIG_NAME

_NETWORK_CERTS = "certs/chantier.network"
_NOT_IN_HOST = re.compile(r"[^a-zA-Z0-9.-]+")


def files_of(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """Read, check and collect. Raises ConfigError that names what is wrong, of the config or of a certificate."""
    where = Path(path)
    try:
        data = where.read_bytes()
    except OSError as err:
        reason = (err.strerror or str(err)).lower()
        if isinstance(err, FileNotFoundError):
            raise ConfigError(f"buildkit configuration file not found: {path}: stat {path}: {reason}") from err
        raise ConfigError(f"failed to read {path}: {reason}") from err
    text = data.decode("utf-8", "surrogateescape")
    config = parse(text, str(path))  # every mistake has its line and hint
    errors, _ = check_config(config)
    raise_all(place(errors, text, str(path)))
    return collect(tomllib.loads(text))


def collect(document: dict[str, Any]) -> dict[str, bytes]:
    """The document with its certificates. Raises ConfigError for a file that cannot be read."""
    files: dict[str, bytes] = {}
    registries = document.get("registry")
    for host, registry in registries.items() if isinstance(registries, dict) else ():
        folder = f"certs/{_NOT_IN_HOST.sub('_', host)}"
        if registry.get("ca"):
            registry["ca"] = [_take(files, folder, path, "CA") for path in registry["ca"]]
        if registry.get("keypair"):
            registry["keypair"] = [
                {kind: _take(files, folder, pair[kind], kind) for kind in ("key", "cert") if pair.get(kind)}
                for pair in registry["keypair"]
            ]
    network = document.get("chantier", {}).get("network", {})
    if network.get("ca"):
        network["ca"] = [_take(files, _NETWORK_CERTS, path, "CA") for path in network["ca"]]
    files[CONFIG_NAME] = gotoml.write(document).encode("utf-8", "surrogateescape")
    return files


def _take(files: dict[str, bytes], folder: str, path: str, kind: str) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as err:
        raise ConfigError(f"failed to read {kind} file: open {path}: {(err.strerror or str(err)).lower()}") from err
    name = f"{folder}/{os.path.basename(path)}"
    if files.setdefault(name, data) != data:
        raise UsageError(
            f"two certificates of one registry would both become {name}: {path} is the second", hint="rename one of the files"
        )
    return f"{CONFIG_DIR}/{name}"


@contextmanager
def unpacked(files: Mapping[str, bytes]) -> Iterator[str]:
    """The config's text with paths of this machine, where its certificates lie while the context lasts; nobody else reads them."""
    with TemporaryDirectory("certs") as directory:
        for name, data in files.items():
            if name != CONFIG_NAME:
                check_path(name)
                where = Path(directory, name)
                where.parent.mkdir(parents=True, exist_ok=True)
                where.write_bytes(data)
        yield text_of(files).replace(f"{CONFIG_DIR}/certs/", f"{directory}/certs/")


def text_of(files: Mapping[str, bytes] | None) -> str:
    return (files or {}).get(CONFIG_NAME, b"").decode("utf-8", "surrogateescape")


__all__ = ["collect", "files_of", "text_of", "unpacked"]
