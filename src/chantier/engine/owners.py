# SPDX-License-Identifier: Apache-2.0
"""Whether the files of a state directory have their owners, or were made with one id: the two must not be mixed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from chantier.errors import StoreError
from chantier.layer.owners import single

_MARK = "one-id"


def check(root: Path) -> None:
    """Raises StoreError if snapshots here were made with one id and we have more, or the reverse. Marks a directory that is new."""
    mark = root / _MARK
    one = single()
    if mark.exists() == one:
        return
    if any((root / "snapshots").glob("[!.]*/fs")):
        made, have = ("one user id", "more") if mark.exists() else ("many user ids", "one only")
        raise StoreError(
            f"the state below {root} was made with {made}, and there are {have} now: owners of its files would be wrong",
            hint="use another directory (--root or CHANTIER_ROOT), or remove this one",
        )
    if one:
        mark.touch()
    else:
        with suppress(FileNotFoundError):
            mark.unlink()


__all__ = ["check"]
