# SPDX-License-Identifier: Apache-2.0
"""Making and describing trees for the tests of layers."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

Described = dict[str, tuple[Any, ...]]


def describe(root: Path, *, times: bool = True, root_too: bool = False) -> Described:
    """Everything that must survive: type, mode, owner, content or target, device, times in seconds, xattrs, links."""
    found: Described = {}
    inodes: dict[tuple[int, int], str] = {}
    for here, directories, files in os.walk(os.fsencode(root)):
        directories.sort()
        for name in sorted([*directories, *files]):
            path = os.path.join(here, name)
            info = os.lstat(path)
            key = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            found[key] = _describe(path, info, times)
            if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
                first = inodes.setdefault((info.st_dev, info.st_ino), key)
                if first != key:
                    found[key] += (f"link to {first}",)
    if root_too:
        found["."] = _describe(os.fsencode(root), os.lstat(root), times)
    return found


def _describe(path: bytes, info: os.stat_result, times: bool) -> tuple[Any, ...]:
    what: Any = None
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:
            what = (info.st_size, hashlib.file_digest(file, "sha256").hexdigest()[:16])
    elif stat.S_ISLNK(info.st_mode):
        what = os.readlink(path)
    elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
        what = info.st_rdev
    xattrs = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in os.listxattr(path, follow_symlinks=False))
    when = info.st_mtime_ns // 1_000_000_000 if times else None
    return (oct(info.st_mode), info.st_uid, info.st_gid, what, when, xattrs)


def make_tar(*items: tuple[str, dict[str, Any]] | str, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar from names ("d/" is a directory, "l -> x" a symbolic and "h => x" a hard link) or (name, fields)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, errors="surrogateescape") as tar:
        for item in items:
            name, fields = (item, {}) if isinstance(item, str) else item
            fields = dict(fields)
            data = fields.pop("data", None)
            info = tarfile.TarInfo(name)
            info.mode = 0o644
            info.mtime = 1_600_000_000
            if " -> " in name:
                info.name, info.linkname = name.split(" -> ")
                info.type, info.mode = tarfile.SYMTYPE, 0o777
            elif " => " in name:
                info.name, info.linkname = name.split(" => ")
                info.type = tarfile.LNKTYPE
            elif name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif data is None and "type" not in fields:
                data = f"content of {name}".encode()
            for key, value in fields.items():
                setattr(info, key, value)
            if data is not None:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if data is not None else None)
    return out.getvalue()


def make_everything(root: Path) -> None:
    """A tree with one of each thing that layers must keep. Needs root."""
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "dir" / "file").write_text("hello")
    os.chown(root / "dir" / "file", 1000, 100)
    os.link(root / "dir" / "file", root / "dir" / "sub" / "linked")
    (root / "empty").touch()
    (root / "setuid").write_text("#!")
    os.chown(root / "setuid", 12, 34)
    os.chmod(root / "setuid", 0o6755)
    os.setxattr(root / "setuid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    (root / "sticky").mkdir()
    os.chmod(root / "sticky", 0o1777)
    (root / "symlink").symlink_to("../elsewhere/" + "y" * 120)
    os.chown(root / "symlink", 7, 8, follow_symlinks=False)
    long = root / ("l" * 120) / ("m" * 130)
    long.mkdir(parents=True)
    (long / ("n" * 200)).write_text("long")
    (root / "dir" / ("p" * 99)).write_text("fits ustar with a prefix")
    with open(os.fsencode(root) + b"/not-utf8-\xff\xfe", "wb") as file:
        file.write(b"odd")
    (root / "ünïcode").write_text("u")
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    os.mknod(root / "disk", 0o060660, os.makedev(8, 300))
    os.mkfifo(root / "fifo", 0o640)
    with open(root / "sparse", "wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    (root / "big-owner").touch()
    os.chown(root / "big-owner", 3_000_000, 2**31)
    (root / "old").touch()
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, ns=(1_500_000_000 * 10**9, 1_500_000_000 * 10**9 + 123), follow_symlinks=False)
    os.utime(root / "old", (-5, -5))
