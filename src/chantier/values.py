# SPDX-License-Identifier: Apache-2.0
"""Dataclasses that cost next to nothing until the first one is made.

`dataclasses.dataclass` writes and compiles the source of half a dozen methods for each class: 0.3 to 0.5 ms at import, and a
command that imports two hundred classes pays a tenth of a second before it does anything. `dataclass` here takes the same
arguments and makes an equal class, but leaves the methods to the first call, `fields()` or subclass that needs them.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass  # to type checkers it is the real one
else:

    def dataclass(cls: Any = None, /, **options: Any) -> Any:
        """As `dataclasses.dataclass`, with the methods made at first use."""
        if cls is None:
            return lambda cls: _defer(cls, options)
        return _defer(cls, options)


_LEFT = frozenset(["repr", "eq", "order", "unsafe_hash", "frozen", "kw_only", "slots"])
_MADE = (
    "__repr__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__match_args__", "__doc__",
    "__dataclass_params__", "__dataclass_fields__", "__init__",
)  # fmt: skip
"""What is taken from the class that `dataclasses` made. `__init__` is last: once it is there, all else is."""
_NOT_FIELDS = ("ClassVar", "typing.ClassVar", "InitVar", "dataclasses.InitVar", "KW_ONLY", "dataclasses.KW_ONLY")
_lock = threading.RLock()


def _defer(cls: Any, options: dict[str, Any]) -> Any:
    annotations = cls.__annotations__
    if options.keys() - _LEFT or "__init__" in cls.__dict__ or not all(isinstance(kind, str) for kind in annotations.values()):
        from dataclasses import dataclass as at_once

        return at_once(cls, **options)
    slots = options.get("slots", False)
    names = [name for name, kind in annotations.items() if not kind.startswith(_NOT_FIELDS)]
    made = _with_slots(cls, names) if slots else cls
    template = cls if slots else _template(cls, names)
    make = _maker(made, template, {key: value for key, value in options.items() if key != "slots"})

    def __init__(self: Any, *args: Any, **values: Any) -> None:
        make()
        made.__init__(self, *args, **values)

    made.__init__ = __init__
    for name in ("__dataclass_fields__", "__dataclass_params__"):
        setattr(made, name, _OnDemand(make, name))
    if options.get("frozen"):
        _freeze(made, frozenset(names))
        if slots:
            made.__getstate__, made.__setstate__ = _getstate, _setstate
    return made


def _maker(made: Any, template: Any, options: dict[str, Any]) -> Any:
    """A function that completes `made` once, in whichever thread comes first."""
    done = False

    def make() -> None:
        nonlocal done, template
        with _lock:
            if done:
                return
            from dataclasses import dataclass as at_once

            template.__doc__ = template.__doc__ or f"{made.__name__}()"  # without one, a signature would be worked out
            finished = at_once(template, **options).__dict__
            for name in _MADE:
                if name in finished:
                    setattr(made, name, finished[name])
            done, template = True, None

    return make


class _OnDemand:
    """An attribute of a class that completes the class when it is read, and is then replaced."""

    __slots__ = ("_make", "_name")

    def __init__(self, make: Any, name: str) -> None:
        self._make, self._name = make, name

    def __get__(self, instance: Any, owner: Any) -> Any:
        self._make()
        return getattr(owner, self._name)


def _template(cls: Any, names: list[str]) -> Any:
    """A copy to make the methods of; what `field()` says stays in it, and `cls` keeps the defaults alone."""
    from dataclasses import MISSING, Field

    body = _own(cls)
    template = type(cls)(cls.__name__, cls.__bases__, body)
    template.__qualname__ = cls.__qualname__
    for name in names:
        if isinstance(said := body.get(name), Field):
            if said.default is MISSING:
                delattr(cls, name)
            else:
                setattr(cls, name, said.default)
    return template


def _own(cls: Any) -> dict[str, Any]:
    return {name: value for name, value in cls.__dict__.items() if name not in ("__dict__", "__weakref__")}


def _with_slots(cls: Any, names: list[str]) -> Any:
    """The class again, its fields in slots: those that no class above has already."""
    above = {slot for base in cls.__mro__[1:] for slot in getattr(base, "__slots__", ())}
    body = {name: value for name, value in _own(cls).items() if name not in names}
    body["__slots__"] = tuple(name for name in names if name not in above)
    made = type(cls)(cls.__name__, cls.__bases__, body)
    made.__qualname__ = cls.__qualname__
    return made


def _freeze(made: Any, names: frozenset[str]) -> None:
    from dataclasses import FrozenInstanceError

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if type(self) is made or name in names:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        super(made, self).__setattr__(name, value)

    def __delattr__(self: Any, name: str) -> None:
        if type(self) is made or name in names:
            raise FrozenInstanceError(f"cannot delete field {name!r}")
        super(made, self).__delattr__(name)

    made.__setattr__, made.__delattr__ = __setattr__, __delattr__


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, name) for name in _names(self)]


def _setstate(self: Any, state: list[Any]) -> None:
    for name, value in zip(_names(self), state, strict=True):
        object.__setattr__(self, name, value)


def _names(self: Any) -> list[str]:
    from dataclasses import fields

    return [field.name for field in fields(self)]
