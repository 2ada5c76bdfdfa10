# SPDX-License-Identifier: Apache-2.0
"""Programs and libraries in C that come as source: compiled where there is a compiler, and kept under a name made of the source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .files import is_ours
from .temporary import TemporaryDirectory

_COMPILERS = ("cc", "gcc", "clang", "musl-gcc")
_COMPILE_S = 120.0


class CompileError(Exception):
    """Says what the compiler said; "" if there is none."""


def caches() -> list[Path]:
    """Where what is compiled may be kept for all engines of this user, in the order of trial. Look at `is_ours` of what is there."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "chantier")
    return [Path("/var/cache/chantier"), own] if os.geteuid() == 0 else [own]


def compiled(
    source: Path,
    cache: Path,
    name: str,
    *,
    flags: Sequence[str],
    variants: Sequence[Sequence[str]] = ((),),
    beside: Sequence[Path] = (),
) -> Path:
    """The file in `cache` that `source` was or now is compiled to, of mode 0755. `variants` are more flags, tried in turn; `beside`
    are the sources that it includes.

    Safe beside others that do the same. Raises CompileError, OSError if `cache` cannot be written.
    """
    text = b"".join(path.read_bytes() for path in (source, *beside))
    digest = hashlib.sha256(b" ".join([text, os.uname().machine.encode(), *map(str.encode, flags)])).hexdigest()[:16]
    kept = cache / f"{name}-{digest}"
    if kept.is_file():
        return kept
    compiler = next((found for each in _COMPILERS if (found := shutil.which(each))), None)
    if compiler is None:
        raise CompileError
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    said = ""
    with TemporaryDirectory("build", base=cache) as work:
        fresh = Path(work) / name
        for how in variants:
            command = [compiler, *flags, *how, "-o", os.fspath(fresh), os.fspath(source)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_S, check=False, cwd=work)
            except (OSError, subprocess.TimeoutExpired) as err:
                said = str(err)
                continue
            if done.returncode == 0:
                fresh.chmod(0o755)
                os.replace(fresh, kept)
                return kept
            said = f"{compiler}: {done.stderr}"
    raise CompileError(said or f"{compiler} failed")


__all__ = ["CompileError", "caches", "compiled", "is_ours"]
