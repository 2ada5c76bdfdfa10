# SPDX-License-Identifier: Apache-2.0
"""A parsed TOML document to a dataclass, collecting every mistake with its path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

from chantier.values import dataclass, field

from .lines import Path
from .schema import ItemError, Key, Scalar, Table, keys_of
from .units import name_of

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    path: Path
    text: str
    nearest: str = ""  # the key that was meant
    hint: str = ""


@dataclass(slots=True)
class Reader:
    """One reading of one document for the schema `root`."""

    root: type
    mistakes: list[Mistake] = field(default_factory=list)
    warnings: list[tuple[Path, str]] = field(default_factory=list)

    def table(self, cls: type, raw: object, path: Path) -> Any:
        if not isinstance(raw, dict):
            self.mistakes.append(
                Mistake(path=path, text=f"{dotted(path)}: want a table, got {name_of(raw)}", hint=f"write [{dotted(path)}]")
            )
            return cls()
        keys = keys_of(cls)
        folded = {name.lower(): name for name in keys}
        values: dict[str, Any] = {}
        for name, value in raw.items():
            here = (*path, name)
            known = name if name in keys else folded.get(name.lower())
            if known is None:
                self.mistakes.append(
                    Mistake(
                        path=here,
                        text=f"unknown key {dotted(here)}",
                        nearest=self._nearest(name, keys, path),
                        hint=_listing(keys, path),
                    )
                )
                continue
            target, key = keys[known]
            if key.deprecated:
                self.warnings.append((here, f"{dotted(here)} is deprecated: use {key.deprecated}"))
            values[target.name] = self._value(key.kind, value, here, key)
        made = cls(**{name: value for name, value in values.items() if value is not _INVALID})
        if _INVALID not in values.values() and hasattr(made, "mistakes"):
            self.mistakes += [Mistake(path=(*path, key), text=f"{dotted((*path, key))}: {said}") for key, said in made.mistakes()]
        return made

    def _value(self, kind: Scalar | Table, raw: object, path: Path, key: Key) -> Any:
        if isinstance(kind, Table):
            return self._tables(kind, raw, path)
        hint = f"for example: {key.name} = {kind.example}" if kind.example else ""
        try:
            return kind.read(raw)
        except ItemError as err:
            self.mistakes.append(Mistake(path=(*path, err.at), text=f"{dotted((*path, err.at))}: {err}", hint=hint))
        except ValueError as err:
            self.mistakes.append(Mistake(path=path, text=f"{dotted(path)}: {err}", hint=hint))
        return _INVALID

    def _tables(self, kind: Table, raw: object, path: Path) -> Any:
        if kind.many:
            if not isinstance(raw, list):
                self.mistakes.append(
                    Mistake(
                        path=path,
                        text=f"{dotted(path)}: want an array of tables, got {name_of(raw)}",
                        hint=f"write [[{dotted(path)}]]",
                    )
                )
                return ()
            return tuple(self.table(kind.cls, item, (*path, index)) for index, item in enumerate(raw))
        if not isinstance(raw, dict):
            self.mistakes.append(
                Mistake(path=path, text=f"{dotted(path)}: want a table, got {name_of(raw)}", hint=f"write [{dotted(path)}]")
            )
            return _INVALID
        if kind.named:
            for name in raw:
                if kind.check_name and (warning := kind.check_name(name)):
                    self.warnings.append(((*path, name), warning))
            return MappingProxyType({name: self._item(kind, name, item, (*path, name)) for name, item in raw.items()})
        return self.table(kind.cls, raw, path)

    def _item(self, kind: Table, name: str, raw: object, path: Path) -> Any:
        made = self._tables(Table(kind.cls), raw, path)
        if made is not _INVALID and kind.check_item is not None:
            for key, said in kind.check_item(name, made):
                here = (*path, key) if key else path
                self.mistakes.append(Mistake(path=here, text=f"{dotted(here)}: {said}"))
        return made

    def _nearest(self, name: str, keys: dict[str, Any], path: Path) -> str:
        """The key meant: one of this table by spelling, else the same name elsewhere in the file."""
        folded = {k.lower(): k for k in keys}
        if close := difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6):
            return f"did you mean {dotted((*path, folded[close[0]]))}?"
        plain = re.sub(r"[-_]", "", name.lower())
        elsewhere = [p for p in all_paths(self.root) if re.sub(r"[-_]", "", str(p[-1]).lower()) == plain]
        if elsewhere:
            return f"did you mean {dotted(elsewhere[0])}?"
        near = {str(p[-1]).lower(): p for p in reversed(list(all_paths(self.root)))}
        if close := difflib.get_close_matches(name.lower(), near, n=1, cutoff=0.8):
            return f"did you mean {dotted(near[close[0]])}?"
        return f"nearest valid key: {dotted((*path, min(folded, key=lambda k: -_ratio(k, name.lower()))))}"


_INVALID = object()


def _listing(keys: dict[str, Any], path: Path) -> str:
    where = f"of [{dotted(path)}]" if path else "at the top of the file"
    return f"keys {where}: {', '.join(keys)}"


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def all_paths(cls: type, prefix: Path = ()) -> Iterator[Path]:
    """Every key of the schema; `HOST` stands where any name may."""
    for name, (_, key) in keys_of(cls).items():
        yield (*prefix, name)
        if isinstance(key.kind, Table):
            inner: Path = (*prefix, name, "HOST") if key.kind.named else (*prefix, name)
            yield from all_paths(key.kind.cls, inner)


def dotted(path: Path) -> str:
    """`worker.oci.gcpolicy[0].all`, `registry."docker.io".http`."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            out += ("." if out else "") + (part if _BARE.match(part) else f'"{part}"')
    return out
