# SPDX-License-Identifier: Apache-2.0
"""Dataclasses that cost next to nothing until they are used much.

`dataclasses.dataclass` writes and compiles the source of half a dozen methods for each class: 0.3 to 0.5 ms, and a command that
uses two hundred classes would spend a tenth of a second on it. `dataclass` here takes the same arguments and makes an equal
class, whose methods work from a list of its fields. A class of which many instances are made, or that somebody looks into with
`dataclasses`, gets the compiled methods then. `field` and `replace` are those of `dataclasses`, without its import.

Three names to know: `dataclass`, `field`, `replace`.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

__all__ = ["asdict", "complete", "dataclass", "field", "fields", "replace"]

_MANY = 200
"""So many instances, and compiling `__init__` has paid for itself."""
_LEFT = frozenset(["repr", "eq", "order", "unsafe_hash", "frozen", "kw_only", "slots"])
_MADE = (
    "__repr__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__match_args__", "__doc__",
    "__dataclass_params__", "__dataclass_fields__", "__init__",
)  # fmt: skip
"""What is taken from the class that `dataclasses` made. `__init__` is last: once it is there, all else is."""
_NOT_FIELDS = ("ClassVar", "typing.ClassVar")
_ONLY_THERE = ("InitVar", "dataclasses.InitVar", "KW_ONLY", "dataclasses.KW_ONLY")
"""Annotations that only `dataclasses` understands."""
_MISSING: Any = type("_Missing", (), {"__repr__": lambda self: "<no default>"})()
_lock = threading.RLock()


if TYPE_CHECKING:
    from dataclasses import asdict, dataclass, field, fields, replace  # to type checkers they are the real ones
else:

    def dataclass(cls: Any = None, /, **options: Any) -> Any:
        """As `dataclasses.dataclass`."""
        if cls is None:
            return lambda cls: _defer(cls, options)
        return _defer(cls, options)

    def field(**said: Any) -> Any:
        """As `dataclasses.field`, for the classes of this module."""
        return _Said(said)

    def replace(value: Any, /, **changes: Any) -> Any:
        """As `dataclasses.replace`."""
        plan = _plan_of(type(value))
        if plan is None or not changes.keys().isdisjoint(one.name for one in plan.fields if not one.init):
            from dataclasses import replace as thorough

            return thorough(value, **changes)
        for one in plan.fields:
            if one.init and one.name not in changes:
                changes[one.name] = getattr(value, one.name)
        return type(value)(**changes)

    def fields(of: Any) -> Any:
        """As `dataclasses.fields`; of classes of this module they have less to tell: no type, and no MISSING."""
        plan = _plan_of(of if isinstance(of, type) else type(of))
        if plan is not None:
            return tuple(plan.fields)
        from dataclasses import fields as real

        return real(of)

    def asdict(value: Any) -> Any:
        """As `dataclasses.asdict`."""
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}


def complete(cls: type) -> None:
    """Compile all methods of a class of this module now; `dataclasses` then also says what is wrong with it."""
    plan = cls.__dict__.get("__plan__")
    if plan is not None:
        plan.complete()


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | bytes | None):
        return value
    if isinstance(value, dict):
        return type(value)((_plain(key), _plain(one)) for key, one in value.items())
    if isinstance(value, list | tuple):
        inside = [_plain(one) for one in value]
        return type(value)(*inside) if hasattr(value, "_fields") else type(value)(inside)
    if hasattr(type(value), "__plan__") or "__dataclass_fields__" in dir(type(value)):
        return asdict(value)
    from copy import deepcopy

    return deepcopy(value)


class _Said:
    """What `field()` was told."""

    __slots__ = ("said",)

    def __init__(self, said: dict[str, Any]) -> None:
        self.said = said

    def real(self) -> Any:
        from dataclasses import field as real

        return real(**self.said)


class _Field:
    """One field of a class, as the methods here need it."""

    __slots__ = ("compare", "default", "factory", "hash", "init", "kw_only", "metadata", "name", "repr")

    def __init__(self, name: str, said: dict[str, Any], *, kw_only: bool) -> None:
        self.name = name
        self.default = said.get("default", _MISSING)
        self.factory = said.get("default_factory", _MISSING)
        self.init, self.repr, self.compare = said.get("init", True), said.get("repr", True), said.get("compare", True)
        self.hash = self.compare if said.get("hash") is None else said["hash"]
        self.kw_only, self.metadata = said.get("kw_only", kw_only), said.get("metadata") or {}


def _from_real(one: Any) -> _Field:
    from dataclasses import MISSING

    names = ("default", "default_factory", "init", "repr", "compare", "hash", "metadata")
    said = {name: getattr(one, name) for name in names if getattr(one, name) is not MISSING}
    return _Field(one.name, said, kw_only=one.kw_only)


def _is_real(value: Any) -> bool:
    """Whether it is what `dataclasses.field` gives: without importing that."""
    module = sys.modules.get("dataclasses")
    return module is not None and isinstance(value, module.Field)


def _defer(cls: Any, options: dict[str, Any]) -> Any:
    annotations = cls.__annotations__ if "__annotations__" in cls.__dict__ else {}
    if (
        options.keys() - _LEFT
        or "__init__" in cls.__dict__
        or any(not isinstance(kind, str) or kind.startswith(_ONLY_THERE) for kind in annotations.values())
        or any(_is_real(value) for value in cls.__dict__.values())
    ):
        return _at_once(cls, options)
    slots = options.get("slots", False)
    names = [name for name, kind in annotations.items() if not kind.startswith(_NOT_FIELDS)]
    own = [_own_field(cls, name, options) for name in names]
    made = _with_slots(cls, names) if slots else cls
    template = cls if slots else _template(cls, names)
    made.__plan__ = plan = _Plan(
        made, template, own, {key: value for key, value in options.items() if key != "slots"}, slots=slots
    )
    plan.install(cls.__dict__)
    if options.get("frozen"):
        _freeze(made, frozenset(names))
        if slots:
            made.__getstate__, made.__setstate__ = _getstate, _setstate
    return made


def _at_once(cls: Any, options: dict[str, Any]) -> Any:
    from dataclasses import dataclass as at_once

    _say_really(cls)
    return at_once(cls, **options)


def _say_really(cls: Any) -> None:
    for name, value in list(cls.__dict__.items()):
        if isinstance(value, _Said):
            setattr(cls, name, value.real())


def _own_field(cls: Any, name: str, options: dict[str, Any]) -> _Field:
    value = cls.__dict__.get(name, _MISSING)
    said = value.said if isinstance(value, _Said) else {} if value is _MISSING else {"default": value}
    return _Field(name, said, kw_only=options.get("kw_only", False))


class _Plan:
    """What a class is made from: its fields, and the methods that work from them until it is complete."""

    def __init__(self, made: Any, template: Any, own: list[_Field], options: dict[str, Any], *, slots: bool) -> None:
        self._made, self._template, self._own, self._options, self._slots = made, template, own, options, slots
        self._fields: list[_Field] | None = None
        self._done = False

    @property
    def fields(self) -> list[_Field]:
        """Those of the classes above first, as `dataclasses` orders them."""
        if self._fields is None:
            found: dict[str, _Field] = {}
            for base in self._made.__mro__[-1:0:-1]:
                if (above := base.__dict__.get("__plan__")) is not None:
                    found.update((one.name, one) for one in above.fields)
                elif "__dataclass_fields__" in base.__dict__:
                    found.update((one.name, _from_real(one)) for one in fields(base))
            found.update((one.name, one) for one in self._own)
            self._fields = list(found.values())
        return self._fields

    def complete(self) -> None:
        """Take the methods that `dataclasses` compiles, once, in whichever thread comes first."""
        with _lock:
            if self._done:
                return
            from dataclasses import dataclass as at_once

            template = self._template
            template.__doc__ = template.__doc__ or f"{self._made.__name__}()"  # without one, a signature would be worked out
            _say_really(template)
            finished = at_once(template, **self._options).__dict__
            for name in _MADE:
                if name in finished:
                    setattr(self._made, name, finished[name])
            self._done, self._template = True, None

    def install(self, body: Any) -> None:
        made, options = self._made, self._options
        made.__init__ = _init(self, made, _setter(options), slots=self._slots)
        for name in ("__dataclass_fields__", "__dataclass_params__", "__match_args__"):
            setattr(made, name, _OnDemand(self, name))
        if options.get("repr", True) and "__repr__" not in body:
            made.__repr__ = _later(self, made, "__repr__")
        if options.get("order"):
            for name in ("__lt__", "__le__", "__gt__", "__ge__"):
                setattr(made, name, _later(self, made, name))
        if options.get("eq", True):
            if "__eq__" not in body:
                made.__eq__ = _eq(self, made)
            if options.get("unsafe_hash") or (options.get("frozen") and body.get("__hash__") is None):
                made.__hash__ = _hash(self, made)
            elif body.get("__hash__") is None:
                made.__hash__ = None


def _setter(options: dict[str, Any]) -> Any:
    return object.__setattr__ if options.get("frozen") else setattr


def _init(plan: _Plan, made: Any, put: Any, *, slots: bool) -> Any:
    count, ready = 0, False
    names: list[str] = []
    steps: list[tuple[str, Any, Any]] = []
    post = hasattr(made, "__post_init__")

    def prepare() -> bool:
        nonlocal names, steps, ready
        found, optional = plan.fields, False
        for one in found:
            if one.default is not _MISSING and one.default.__class__.__hash__ is None:
                return False  # a list, say: dataclasses has the words for that
            if one.init and not one.kw_only:
                if optional and one.default is _MISSING and one.factory is _MISSING:
                    return False
                optional = optional or one.default is not _MISSING or one.factory is not _MISSING
        names = [one.name for one in found if one.init and not one.kw_only]
        steps = [
            (one.name, one.default, one.factory)
            for one in found
            if one.init or one.factory is not _MISSING or (slots and one.default is not _MISSING)
        ]
        ready = not any(not one.init and one.name in names for one in found)
        return ready

    def __init__(self: Any, /, *args: Any, **given: Any) -> None:
        nonlocal count
        count += 1
        if count <= _MANY and (ready or prepare()) and len(args) <= len(names):
            values = dict(zip(names, args, strict=False))
            if values.keys().isdisjoint(given):
                values.update(given)
                for name, default, factory in steps:
                    if name in values:
                        put(self, name, values.pop(name))
                    elif factory is not _MISSING:
                        put(self, name, factory())
                    elif default is not _MISSING:
                        put(self, name, default)
                    else:
                        values[""] = None  # one is missing
                        break
                if not values:
                    if post:
                        self.__post_init__()
                    return
        plan.complete()
        made.__init__(self, *args, **given)

    return __init__


def _later(plan: _Plan, made: Any, name: str) -> Any:
    """A method that completes the class and is then the compiled one."""

    def method(self: Any, *args: Any) -> Any:
        plan.complete()
        return getattr(made, name)(self, *args)

    return method


def _eq(plan: _Plan, made: Any) -> Any:
    def __eq__(self: Any, other: Any) -> Any:
        get = _getter([one.name for one in plan.fields if one.compare])

        def __eq__(self: Any, other: Any) -> Any:
            if other.__class__ is self.__class__:
                return get(self) == get(other)
            return NotImplemented

        made.__eq__ = __eq__
        return __eq__(self, other)

    return __eq__


def _hash(plan: _Plan, made: Any) -> Any:
    def __hash__(self: Any) -> int:
        get = _getter([one.name for one in plan.fields if one.hash])

        def __hash__(self: Any) -> int:
            return hash(get(self))

        made.__hash__ = __hash__
        return __hash__(self)

    return __hash__


def _getter(names: list[str]) -> Any:
    """The named attributes of a value, as a tuple."""
    from operator import attrgetter

    if len(names) > 1:
        return attrgetter(*names)
    return (lambda value: (getattr(value, names[0]),)) if names else (lambda value: ())


def _plan_of(cls: type) -> _Plan | None:
    """None for what `dataclasses` itself made, or nobody."""
    for base in cls.__mro__:
        if (plan := base.__dict__.get("__plan__")) is not None:
            return plan  # type: ignore[no-any-return]
        if "__dataclass_fields__" in base.__dict__:
            return None
    return None


class _OnDemand:
    """An attribute of a class that completes the class when it is read, and is then replaced."""

    __slots__ = ("_name", "_plan")

    def __init__(self, plan: _Plan, name: str) -> None:
        self._plan, self._name = plan, name

    def __get__(self, instance: Any, owner: Any) -> Any:
        self._plan.complete()
        return getattr(owner, self._name)


def _template(cls: Any, names: list[str]) -> Any:
    """A copy to make the methods of; what `field()` says stays in it, and `cls` keeps the defaults alone."""
    body = _own(cls)
    template = type(cls)(cls.__name__, cls.__bases__, body)
    template.__qualname__ = cls.__qualname__
    for name in names:
        if isinstance(said := body.get(name), _Said):
            if "default" in said.said:
                setattr(cls, name, said.said["default"])
            else:
                delattr(cls, name)
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
    def __setattr__(self: Any, name: str, value: Any) -> None:
        if type(self) is made or name in names:
            raise _frozen(f"cannot assign to field {name!r}")
        super(made, self).__setattr__(name, value)

    def __delattr__(self: Any, name: str) -> None:
        if type(self) is made or name in names:
            raise _frozen(f"cannot delete field {name!r}")
        super(made, self).__delattr__(name)

    made.__setattr__, made.__delattr__ = __setattr__, __delattr__


def _frozen(text: str) -> Exception:
    from dataclasses import FrozenInstanceError

    return FrozenInstanceError(text)


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, name) for name in _names(self)]


def _setstate(self: Any, state: list[Any]) -> None:
    for name, value in zip(_names(self), state, strict=True):
        object.__setattr__(self, name, value)


def _names(self: Any) -> list[str]:
    plan = _plan_of(type(self))
    if plan is not None:
        return [one.name for one in plan.fields]
    from dataclasses import fields as real

    return [one.name for one in real(self)]
