# SPDX-License-Identifier: Apache-2.0
"""Chantier: BuildKit and Buildx for Python.

`build` turns a Dockerfile into an image inside this process, with no daemon and no docker command; `abuild` is the same
for asyncio. `chantier.events` are what happens meanwhile, `ChantierError` and its kin are how it fails.

    import chantier

    result = chantier.build(".", tags=["registry.example/app:1"], push=True)
    print(result.digest)

Names are imported when first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .client import BuildRequest, BuildResult, Output, Secret, Ssh
    from .errors import ChantierError
    from .face import Builder, abuild, build, convert, solve
    from .llb import State, image, local
    from .spec import Digest, Platform, Reference

_WHERE = {
    "BuildRequest": "client",
    "BuildResult": "client",
    "Builder": "face",
    "ChantierError": "errors",
    "Digest": "spec",
    "Engine": "engine",
    "Output": "client",
    "Platform": "spec",
    "Reference": "spec",
    "Secret": "client",
    "Ssh": "client",
    "State": "llb",
    "abuild": "face",
    "build": "face",
    "convert": "face",
    "image": "llb",
    "local": "llb",
    "solve": "face",
}

__all__ = [
    "BuildRequest",
    "BuildResult",
    "Builder",
    "ChantierError",
    "Digest",
    "Output",
    "Platform",
    "Reference",
    "Secret",
    "Ssh",
    "State",
    "__version__",
    "abuild",
    "build",
    "convert",
    "image",
    "local",
    "solve",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _WHERE:
        raise AttributeError(f"module 'chantier' has no attribute {name!r}")
    value = getattr(import_module(f"chantier.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
