# SPDX-License-Identifier: Apache-2.0
"""`chantier.values.dataclass` makes what `dataclasses.dataclass` makes: the same shapes through both."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import pickle
import pkgutil
import re
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError, InitVar
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pytest

import chantier
from chantier import values

Make = Callable[..., Any]
T = TypeVar("T")
_Hidden = int


@values.dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """For pickle, which wants a class by its name."""

    a: int
    b: tuple[str, ...] = ()


def shapes(make: Make) -> dict[str, Any]:
    field: Make = values.field if make is values.dataclass else dataclasses.field

    @make(frozen=True, slots=True, kw_only=True)
    class Point:
        """A point."""

        kind: ClassVar[str] = "point"
        x: int
        y: int = 2
        tags: tuple[str, ...] = field(default=(), compare=False, repr=False)
        more: dict[str, int] = field(default_factory=dict)

    @make(frozen=True, slots=True, kw_only=True)
    class Point3(Point):
        z: int = 3

    @make
    class Plain:
        a: int
        b: list[int] = field(default_factory=list)
        c: InitVar[int] = 5
        d: int = field(init=False, default=7)

        def __post_init__(self, c: int) -> None:
            self.d += c

    @make(order=True, slots=True)
    class Ordered:
        a: int
        b: str = ""

        def __repr__(self) -> str:
            return f"<{self.a}>"

    @make(frozen=True)
    class Keyed(Generic[T]):
        value: T
        name: str = "n"

    @make(frozen=True, slots=True)
    class Private:
        a: _Hidden
        _b: str = "b"

    @make(eq=False)
    class Loose:
        a: int

    class Below(Plain):
        """Not decorated itself."""

    @make(frozen=True, slots=True)
    class Empty:
        pass

    return {cls.__name__: cls for cls in (Point, Point3, Plain, Ordered, Keyed, Private, Loose, Below, Empty)}


CALLS: list[tuple[str, tuple[object, ...], dict[str, object]]] = [
    ("Point", (), {"x": 1}),
    ("Point", (), {"x": 1, "y": 5, "tags": ("t",), "more": {"k": 1}}),
    ("Point", (1,), {}),
    ("Point", (), {}),
    ("Point3", (), {"x": 1, "z": 9}),
    ("Plain", (1,), {}),
    ("Plain", (1, [2]), {"c": 6}),
    ("Plain", (1,), {"d": 6}),
    ("Ordered", (1, "x"), {}),
    ("Keyed", ("v",), {}),
    ("Private", (1,), {}),
    ("Loose", (1,), {}),
    ("Below", (1,), {"b": [3]}),
    ("Empty", (), {}),
    ("Empty", (1,), {}),
]


def told(cls: Any, args: tuple[object, ...], named: dict[str, object]) -> object:
    try:
        made = cls(*args, **named)
    except TypeError as err:
        return str(err)
    first = next((f.name for f in dataclasses.fields(made)), "")
    return {
        "repr": repr(made) if cls.__name__ != "Loose" else "",
        "fields": [(f.name, f.type, f.init, f.compare, f.kw_only, f.default) for f in dataclasses.fields(made)],
        "dict": dataclasses.asdict(made),
        "equal": made == cls(*args, **named),
        "same as copy": made == copy.copy(made),
        "hashable": _try(lambda: hash(made) == hash(cls(*args, **named))),
        "ordered": _try(lambda: made < cls(*args, **named)),
        "slots": getattr(cls, "__slots__", None),
        "has a dict": hasattr(made, "__dict__"),
        "set": _try(lambda: setattr(made, first, 1)) if first else "",
        "deleted": _try(lambda: delattr(made, first)) if first else "",
        "frozen": cls.__dataclass_params__.frozen,
        "match": cls.__match_args__,
        "doc": cls.__doc__ if cls.__name__ == "Point" else "",
        "name": cls.__qualname__.rpartition(".")[2],
        "replaced": _try(lambda: repr(dataclasses.replace(made, **named)) if cls.__name__ != "Loose" else ""),
    }


def _try(work: Callable[[], object]) -> object:
    try:
        return work()
    except Exception as err:
        return type(err).__name__, str(err).replace("dataclasses.", "")


@pytest.mark.parametrize(("name", "args", "named"), CALLS)
def test_it_is_what_dataclasses_makes(name: str, args: tuple[object, ...], named: dict[str, object]) -> None:
    ours, theirs = shapes(values.dataclass)[name], shapes(dataclasses.dataclass)[name]
    assert told(ours, args, named) == told(theirs, args, named)
    assert told(ours, args, named) == told(theirs, args, named), "the second time"


@pytest.mark.parametrize(("name", "args", "named"), CALLS)
def test_before_it_is_compiled_it_is_what_dataclasses_makes(
    name: str, args: tuple[object, ...], named: dict[str, object]
) -> None:
    ours, theirs = shapes(values.dataclass)[name], shapes(dataclasses.dataclass)[name]
    assert _without_looking(ours, args, named) == _without_looking(theirs, args, named)


def _without_looking(cls: Any, args: tuple[object, ...], named: dict[str, object]) -> object:
    """What uses of values show that need no compiled method, but for errors."""
    try:
        made = cls(*args, **named)
    except TypeError as err:
        return str(err)
    again = cls(*args, **named)
    return {
        "values": {name: getattr(made, name) for name in [one.name for one in values.fields(made)]},
        "plain": values.asdict(made),
        "equal": made == again,
        "hashable": _try(lambda: hash(made) == hash(again)),
        "replaced": _try(lambda: values.asdict(values.replace(made, **named))),
        "a dict": vars(made) if hasattr(made, "__dict__") else None,
    }


def test_many_instances_make_it_compiled() -> None:
    @values.dataclass(frozen=True, slots=True)
    class Often:
        a: int
        b: tuple[int, ...] = values.field(default=(), compare=False)

    made = [Often(n, (n,)) for n in range(500)]
    assert [(one.a, one.b) for one in made] == [(n, (n,)) for n in range(500)]
    assert len(set(made)) == 500
    assert made[3] == Often(3)
    assert Often.__init__.__code__.co_varnames[:3] == ("self", "a", "b")


def test_every_value_of_the_package_can_be_completed() -> None:
    """What only `dataclasses` checks: defaults that may change, an order of fields that cannot be, frozen above not frozen."""
    seen = 0
    for module in pkgutil.walk_packages(chantier.__path__, "chantier."):
        if ".pb." in module.name or module.name.endswith("__main__"):
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            if isinstance(cls, type) and "__plan__" in cls.__dict__:
                before = [one.name for one in values.fields(cls)]
                values.complete(cls)
                assert [one.name for one in dataclasses.fields(cls)] == before
                seen += 1
    assert seen > 300


def test_nobody_else_imports_dataclasses() -> None:
    package = Path(chantier.__path__[0])
    importers = [
        path for path in package.rglob("*.py") if re.search(r"^\s*(import|from) dataclasses", path.read_text(), re.MULTILINE)
    ]
    allowed = {package / "values.py", package / "config/schema.py"}
    assert set(importers) <= allowed


def test_what_looks_at_the_class_alone_sees_a_dataclass() -> None:
    ours, theirs = shapes(values.dataclass), shapes(dataclasses.dataclass)
    for name, cls in ours.items():
        assert dataclasses.is_dataclass(cls)
        assert [f.name for f in dataclasses.fields(cls)] == [f.name for f in dataclasses.fields(theirs[name])]


def test_a_class_of_dataclasses_may_stand_above_or_below() -> None:
    for above, below in ((values.dataclass, dataclasses.dataclass), (dataclasses.dataclass, values.dataclass)):

        @above(frozen=True, kw_only=True)
        class Base:
            a: int = 1

        @below(frozen=True, kw_only=True)
        class Derived(Base):
            b: int = 2

        assert dataclasses.asdict(Derived(b=3)) == {"a": 1, "b": 3}
        with pytest.raises(FrozenInstanceError):
            Derived().a = 4  # type: ignore[misc]


def test_values_travel() -> None:
    assert pickle.loads(pickle.dumps(Sent(a=1, b=("x",)))) == Sent(a=1, b=("x",))
    assert copy.deepcopy(Sent(a=1)) == Sent(a=1)


def test_first_uses_at_once_agree() -> None:
    for _ in range(20):

        @values.dataclass(frozen=True, slots=True, kw_only=True)
        class Shared:
            a: int
            b: int = 2

        barrier, made = threading.Barrier(8), []

        def work(cls: Any = Shared, barrier: threading.Barrier = barrier, made: list[Any] = made) -> None:
            barrier.wait()
            made.append(cls(a=1))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 8
        assert set(made) == {Shared(a=1)}
