# SPDX-License-Identifier: Apache-2.0
"""The plan of the house, checked: which room may import which, who may use ctypes, print, start processes."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import chantier
from chantier.errors import ChantierError

SRC = Path(chantier.__file__).parent

WORDS = {"errors", "progress", "spec", "config", "llb", "pb"}
ALLOWED: dict[str, set[str]] = {
    # floor 0, Words; errors and values are open to every room
    "errors": set(),
    "values": set(),
    "progress": {"spec"},
    "record": {"progress"},
    "spec": set(),
    "config": {"spec"},
    "llb": {"spec", "pb", "progress"},
    "pb": set(),
    # floor 1, Materials
    "kernel": set(),
    "store": {"spec", "kernel"},
    "snapshot": {"spec", "kernel", "store"},
    "layer": {"spec", "kernel"},
    "registry": {"spec", "progress", "config", "session"},
    "runtime": {"kernel", "spec", "config", "snapshot", "progress"},
    "wire": {"pb"},
    "session": {"spec", "pb", "wire", "progress", "kernel"},
    # floor 2, Engine
    "solver": {"spec", "progress"},
    "dockerfile": {"spec", "progress", "llb", "pb"},
    "cache": {"spec", "progress", "store", "layer", "snapshot", "registry", "kernel", "solver", "session"},
    "op": {
        "spec", "progress", "llb", "pb", "config", "solver", "cache", "layer", "runtime", "registry", "session", "kernel",
        "snapshot", "store",
    },
    "export": {"spec", "progress", "store", "layer", "registry", "session", "cache", "snapshot", "op", "kernel"},
    "engine": {
        "spec", "progress", "config", "llb", "pb", "kernel", "store", "layer", "snapshot", "runtime", "registry", "session",
        "dockerfile", "solver", "cache", "op", "export", "record",
    },
    # floor 3, Doors
    "daemon": {"progress", "record", "spec", "pb", "wire", "session", "engine", "config", "llb", "display", "kernel"},
    "client": {"progress", "record", "spec", "llb", "pb", "wire", "session", "kernel"},
    "display": {"spec", "progress"},
    "driver": {"record", "client", "config", "kernel", "llb", "pb", "progress", "registry", "session", "spec", "wire"},
    "bake": {"spec", "client"},
    "cli": {"record", "bake", "client", "config", "display", "driver", "llb", "pb", "progress", "registry", "spec"},
    "testing": WORDS | {"store", "registry", "runtime", "solver", "wire", "client", "kernel", "snapshot"},
}  # fmt: skip
EXCEPTIONS = {
    ("driver/doctor.py", "engine"),  # the machine is examined by who will build on it
    ("driver/embedded.py", "engine"),  # the embedded driver holds an Engine instead of a connection
    ("driver/embedded.py", "op"),
    ("driver/embedded.py", "store"),  # what is stored, and what may go, as the engine's cache says it
}
PROCESS_ROOMS = {"kernel", "runtime", "driver", "op", "registry", "snapshot", "testing"}
"""Who may start processes: the compiler of our own C, runtimes, drivers, git, credential helpers, fuse-overlayfs, and real registries for tests."""


def _files() -> list[Path]:
    return [p for p in sorted(SRC.rglob("*.py")) if not p.name.endswith("_pb2.py")]


def _room(path: Path) -> str:
    parts = path.relative_to(SRC).parts
    return parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module] if node.module != "chantier" else [f"chantier.{a.name}" for a in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("chantier.")}
    return rooms


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(SRC)))
def test_rooms_import_only_along_the_plan(path: Path) -> None:
    room = _room(path)
    if room in ("__init__", "__main__", "face"):  # the top-level face imports lazily from everywhere
        return
    assert room in ALLOWED, f"{room} is no room of the plan"
    relative = str(path.relative_to(SRC))
    wrong = {
        other
        for other in _imports(path)
        if other not in ALLOWED[room] | {room, "errors", "values"}
        and (relative, other) not in EXCEPTIONS
        and other != "__version__"
    }
    assert not wrong, f"{relative} imports {sorted(wrong)}"


def test_only_kernel_uses_ctypes() -> None:
    users = {_room(p) for p in _files() if "import ctypes" in p.read_text()}
    assert users <= {"kernel"}


def test_only_faces_print() -> None:
    for path in _files():
        if _room(path) in ("cli", "display", "testing"):
            continue
        calls = [
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"
        ]
        assert not calls, f"{path.relative_to(SRC)} prints"


def test_nothing_forks_and_few_start_processes() -> None:
    for path in _files():
        text = path.read_text()
        if not str(path.relative_to(SRC)).startswith(("runtime/native/helper/", "kernel/enter.py")):  # programs of their own
            assert "os.fork(" not in text, path
        assert "preexec_fn=" not in text, path
        if any(word in text for word in ("subprocess.", "create_subprocess_exec", "posix_spawn")):
            assert _room(path) in PROCESS_ROOMS, f"{path.relative_to(SRC)} starts processes"


def test_every_error_has_codes() -> None:
    def tree(cls: type[ChantierError]) -> list[type[ChantierError]]:
        return [cls, *(x for sub in cls.__subclasses__() for x in tree(sub))]

    for cls in tree(ChantierError):
        assert 1 <= cls.exit_code <= 255, cls
        assert 1 <= cls.grpc_code <= 16, cls


def test_faces_name_what_they_export() -> None:
    for module in pkgutil.iter_modules([str(SRC)]):
        if not module.ispkg or module.name == "pb":
            continue
        face = importlib.import_module(f"chantier.{module.name}")
        for name in getattr(face, "__all__", ()):
            assert hasattr(face, name), f"chantier.{module.name}.{name}"
        assert face.__doc__, f"chantier.{module.name} says nothing of itself"


def test_the_map_names_every_room() -> None:
    text = (SRC.parents[1] / "ARCHITECTURE.md").read_text()
    for room in sorted(p.name for p in SRC.iterdir() if p.is_dir() and (p / "__init__.py").exists()):
        assert f"`{room}" in text, f"ARCHITECTURE.md does not name the room {room}"


def test_every_named_step_is_listed() -> None:
    """Tests kill at each of them: one that is not listed would be forgotten, one that is nowhere could never be reached."""
    from chantier.kernel.trace import POINTS

    named = {name for path in _files() for name in re.findall(r'\bpoint\("([\w.-]+)"\)', path.read_text())}
    assert named == set(POINTS)
    assert len(POINTS) == len(set(POINTS))
