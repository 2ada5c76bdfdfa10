# SPDX-License-Identifier: Apache-2.0
"""Why a step was not found in the cache, in words: which file, argument, variable, mount or base image differs from the
nearest earlier key. The solver says which key comes nearest; what both are made of is compared here."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chantier.cache.listing import Listings, differences
from chantier.solver import Explanation, KeyInfo, KeyStore
from chantier.values import replace

_LIMIT = 8


class Explainer:
    """Made for one engine; called by the solver for each step that runs. Asks the database a few bounded questions."""

    def __init__(self, keys: KeyStore, listings: Listings) -> None:
        self._keys = keys
        self._listings = listings

    def __call__(self, found: Explanation) -> Explanation:
        """The same with what differs, also in its reason."""
        if found.outcome != "miss" or found.nearest is None:
            return found
        lines = [*self._own(found, found.nearest), *self._inputs(found, found.nearest)][:_LIMIT]
        if not lines:
            return found
        return replace(found, differences=tuple(lines), reason=f"{found.reason}: " + "; ".join(lines))

    def _own(self, found: Explanation, nearest: KeyInfo) -> Iterator[str]:
        before, after = _document(nearest.detail), _document(found.detail)
        if before is None or after is None or before == after:
            return
        yield from compare(before, after)

    def _inputs(self, found: Explanation, nearest: KeyInfo) -> Iterator[str]:
        links = self._keys.parents(nearest.id)
        contents = dict(found.contents)
        for index in found.changed:
            earlier = [parent for parent, link in links if link.input == index]
            now = self._listings.load(contents[index]) if index in contents else None
            then = next((listing for parent in earlier if (listing := self._listings.load(parent)) is not None), None)
            if now is not None and then is not None:
                yield from differences(then, now)
                continue
            name, detail = next(((name, detail) for i, name, detail in found.inputs if i == index), ("", b""))
            new = _document(detail)
            for parent in earlier:
                info = self._keys.info(parent)
                old = _document(info.detail) if info is not None else None
                if old is not None and new is not None and "Digest" in old and "Digest" in new:
                    if old["Digest"] != new["Digest"]:
                        yield f"base image {_short_name(name)}: {old['Digest'][:19]} became {new['Digest'][:19]}"
                    break


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two operations as their keys have them."""
    if before.get("Type") != after.get("Type"):
        yield "another kind of step"
        return
    if "Exec" in after:
        yield from _exec(before["Exec"], after["Exec"])
    elif "Actions" in after:
        yield from _actions(before.get("Actions") or [], after["Actions"])
    for key, what in (("OS", "operating system"), ("Arch", "architecture"), ("Variant", "variant"), ("Digest", "digest")):
        if before.get(key) != after.get(key):
            yield f"{what} {before.get(key)} became {after.get(key)}"


def _exec(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    old, new = before.get("meta") or {}, after.get("meta") or {}
    if old.get("args") != new.get("args"):
        yield f"command {_words(old.get('args'))} became {_words(new.get('args'))}"
    yield from _env(old.get("env") or [], new.get("env") or [])
    for key, what in (("cwd", "directory"), ("user", "user"), ("hostname", "host name"), ("ulimit", "ulimits")):
        if old.get(key) != new.get(key):
            yield f"{what} {_shown(old.get(key))} became {_shown(new.get(key))}"
    for key in ("network", "security", "secretenv", "cdiDevices"):
        if before.get(key) != after.get(key):
            yield f"{key} changed"
    yield from _mounts(before.get("mounts") or [], after.get("mounts") or [])


def _env(before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    old, new = (dict(text.partition("=")[::2] for text in texts) for texts in (before, after))
    for name in sorted({*old, *new}):
        if old.get(name) == new.get(name):
            continue
        if name not in old:
            yield f"variable {name} is new"
        elif name not in new:
            yield f"variable {name} is gone"
        else:
            yield f"variable {name}: {_shown(old[name])} became {_shown(new[name])}"
    if old == new and list(before) != list(after):
        yield "the order of variables changed"


def _mounts(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    old, new = ({mount.get("dest", ""): mount for mount in mounts} for mounts in (before, after))
    for place in sorted({*old, *new} - {"/"}):
        if place not in old:
            yield f"mount {place} is new"
        elif place not in new:
            yield f"mount {place} is gone"
        elif old[place] != new[place]:
            yield f"mount {place} changed"


def _actions(before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    if len(before) != len(after):
        yield f"{len(before)} actions became {len(after)}"
        return
    for old, new in zip(before, after, strict=True):
        if old == new:
            continue
        first, second = (_document(base64.b64decode(text)) or {} for text in (old, new))
        for key in sorted({*first, *second}):
            if first.get(key) != second.get(key):
                yield f"{key} {_shown(first.get(key))} became {_shown(second.get(key))}"


def _document(detail: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(detail)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _words(args: Sequence[str] | None) -> str:
    words = list(args or ())
    return _shown(words[2] if words[:2] == ["/bin/sh", "-c"] and len(words) == 3 else " ".join(words))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if value is not None else "nothing"
    return text if len(text) <= 80 else text[:77] + "…"


def _short_name(name: str) -> str:
    return name.rpartition("FROM ")[2].partition("@")[0] or name


__all__ = ["Explainer", "compare"]
