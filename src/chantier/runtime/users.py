# SPDX-License-Identifier: Apache-2.0
"""Who a step runs as: `user[:group]` looked up in the rootfs's own passwd and group files.

The files are whatever the image put there: they are opened without leaving the rootfs, must be regular, and at most
10 MiB are read. Names and numbers follow docker's rules, which are those of `chown`: a number needs no entry.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from chantier.errors import UsageError
from chantier.kernel import open_in_root
from chantier.values import dataclass

_LIMIT = 10 << 20
_MAX_ID = (1 << 31) - 1
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}\Z")  # more digits are a name, as for whoever counts in 64 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    uid: int
    gid: int
    groups: tuple[int, ...] = ()  # supplementary


@dataclass(frozen=True, slots=True, kw_only=True)
class _Account:
    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def resolve_user(rootfs: Path, spec: str) -> User:
    """The ids of `user`, `user:group`, either by name or number; "" is root. Raises UsageError with docker's texts."""
    direct = _both_numeric(spec)
    if direct is not None:
        return direct
    try:
        return _look_up(rootfs, spec or "0")
    except UsageError:
        if not spec:
            return User(uid=0, gid=0)  # the default user needs no working passwd file
        raise


def home_of(rootfs: Path, uid: int) -> str:
    """The home directory of a user by number; "/" for one that has none."""
    for fields in _records(rootfs, "/etc/passwd"):
        if len(fields) > 5 and fields[2] == str(uid):
            return fields[5] or "/"
    return "/"


def _both_numeric(spec: str) -> User | None:
    """`uid:gid` in numbers (or `root`) needs no file and gives no supplementary groups."""
    user, colon, group = spec.partition(":")
    if not colon:
        return None
    ids = [0 if part == "root" else number if (number := _id(part)) is not None else -1 for part in (user, group)]
    if any(not 0 <= number < 1 << 32 for number in ids):
        return None
    return User(uid=ids[0], gid=ids[1])


def _look_up(rootfs: Path, spec: str) -> User:
    wanted, _, wanted_group = spec.partition(":")
    number = _number(wanted)
    account = next((a for a in _accounts(rootfs) if (a.uid == number if number is not None else a.name == wanted)), None)
    if account is not None:
        uid, gid = account.uid, account.gid
    elif number is not None:
        uid, gid = _in_range(number), 0
    elif wanted:
        raise UsageError(
            f"unable to find user {wanted}: no matching entries in passwd file",
            hint="add the user in an earlier RUN, or name it by number",
        )
    else:
        uid, gid = 0, 0
    if wanted_group:
        return User(uid=uid, gid=_group(rootfs, wanted_group))
    if account is None:
        return User(uid=uid, gid=gid)
    member_of = tuple(dict.fromkeys(group.gid for group in _groups(rootfs) if account.name in group.members))
    return User(uid=uid, gid=gid, groups=member_of)


def _group(rootfs: Path, wanted: str) -> int:
    number = _number(wanted)
    for group in _groups(rootfs):
        if group.gid == number if number is not None else group.name == wanted:
            return group.gid
    if number is None:
        raise UsageError(
            f"unable to find group {wanted}: no matching entries in group file",
            hint="add the group in an earlier RUN, or name it by number",
        )
    return _in_range(number)


def _in_range(number: int) -> int:
    if not 0 <= number <= _MAX_ID:
        raise UsageError(f"uids and gids must be in range 0-{_MAX_ID}")
    return number


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.match(text) else None


def _id(text: str) -> int | None:
    """An id as a file has it: digits, and no more than a number can have."""
    return int(text) if text[:1] not in ("+", "-") and _NUMBER.match(text) else None


def _accounts(rootfs: Path) -> Iterator[_Account]:
    for fields in _records(rootfs, "/etc/passwd"):
        if len(fields) >= 4 and (uid := _id(fields[2])) is not None and (gid := _id(fields[3])) is not None:
            yield _Account(name=fields[0], uid=uid, gid=gid)


def _groups(rootfs: Path) -> Iterator[_Group]:
    for fields in _records(rootfs, "/etc/group"):
        if len(fields) >= 3 and (gid := _id(fields[2])) is not None:
            members = tuple(name for name in (fields[3] if len(fields) > 3 else "").split(",") if name)
            yield _Group(name=fields[0], gid=gid, members=members)


def _records(rootfs: Path, path: str) -> Iterator[list[str]]:
    """The lines of a colon-separated file of the rootfs; none where there is no such regular file."""
    try:
        fd = open_in_root(rootfs, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # missing, a loop of links, not readable: docker treats all of them as an empty file
        return
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return
        data = file.read(_LIMIT)
    for line in data.decode("utf-8", "surrogateescape").split("\n"):  # other ends of lines are part of a name
        if line.strip():
            yield line.strip().split(":")


__all__ = ["User", "home_of", "resolve_user"]
