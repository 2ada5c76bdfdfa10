# SPDX-License-Identifier: Apache-2.0
"""The helper as a program that can be started: sandbox.c compiled once and kept, or `helper` in Python where there is no compiler.

It is copied into memory and sealed there before it runs. A step that executes /proc/self/exe, or names it as an interpreter,
gets hold of the helper's own program file (CVE-2019-5736): of one that nobody can write to, and that is no file of the machine.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from chantier.errors import UnsupportedError
from chantier.kernel.compiled import CompileError, compiled, is_ours
from chantier.values import dataclass

_SOURCE = Path(__file__).with_name("sandbox.c")
_SCRIPT = Path(__file__).with_name("helper") / "__main__.py"
_FLAGS = ("-O2", "-std=gnu11", "-w")
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """What to start: `program` is executed with `args` and `env`."""

    kind: str  # c or python
    program: Path
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


def find_helper(places: Sequence[Path], kind: str = "auto") -> Helper:
    """The helper of this machine. `kind` c or python insists; auto takes C where a compiler is, or has once been, found.

    It is compiled once, in the first of `places` that is ours and can be written to.
    """
    if kind not in ("auto", "c", "python"):
        raise UnsupportedError(f"unknown kind of sandbox helper {kind!r}", hint="kinds are auto, c and python")
    if kind != "python":
        for place in places:
            try:
                program = _compiled(place, must=kind == "c")
                if program is None:
                    break
                if is_ours(place.lstat()) and is_ours(program.lstat()):
                    return Helper(kind="c", program=program, args=("chantier-sandbox",))
            except OSError:  # not ours to write to, or not there and not to be made
                continue
    if kind == "c":
        raise UnsupportedError(f"the sandbox helper in C can be kept in none of {', '.join(map(str, places))}")
    return _python()


def _compiled(cache: Path, *, must: bool) -> Path | None:
    """The compiled helper. Without its static half, the C library must do."""
    try:
        return compiled(_SOURCE, cache, "sandbox", flags=_FLAGS, variants=(("-static",), ()))
    except CompileError as err:
        if not must:
            return None  # no compiler, or one without headers: Python will do
        if not str(err):
            raise UnsupportedError("the sandbox helper in C needs a compiler, and there is none", hint="install gcc") from err
        raise UnsupportedError("the sandbox helper could not be compiled", detail=str(err)) from err


def _python() -> Helper:
    env = []
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        env.append(("LD_LIBRARY_PATH", str(sysconfig.get_config_var("LIBDIR") or "")))
    args = (sys.executable, "-I", "-S", "-B", "-X", "utf8", os.fspath(_SCRIPT))
    return Helper(kind="python", program=Path(os.path.realpath(sys.executable)), args=args, env=tuple(env))


def sealed(program: Path) -> int:
    """A descriptor of a copy of `program` that nobody can change, to be executed by /proc/self/fd."""
    fd = os.memfd_create("chantier-sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(program, "rb") as source, suppress(EOFError):
            shutil.copyfileobj(source, os.fdopen(os.dup(fd), "wb"), 1 << 20)
        os.fchmod(fd, 0o555)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


__all__ = ["Helper", "find_helper", "sealed"]
