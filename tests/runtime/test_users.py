# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from chantier.errors import UsageError
from chantier.runtime import User, resolve_user
from chantier.runtime.users import home_of

ACCOUNTS = """root:x:0:0:root:/root:/bin/sh
# a comment

broken
odd:x:abc:1:::
app:x:1000:1001:app:/home/app:/bin/sh
app:x:2000:2001:again:/:/bin/sh
"""
GROUP = "root:x:0:root\napps:x:1001:\nstaff:x:50:app,web\naudio:x:29:web,app\naudio:x:30:\n"


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(ACCOUNTS)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "user"),
    [
        ("", User(uid=0, gid=0, groups=(0,))),
        ("root", User(uid=0, gid=0, groups=(0,))),
        ("root:root", User(uid=0, gid=0)),
        ("app", User(uid=1000, gid=1001, groups=(50, 29))),
        ("1000", User(uid=1000, gid=1001, groups=(50, 29))),
        ("1000:7", User(uid=1000, gid=7)),
        ("app:7", User(uid=1000, gid=7)),
        ("app:staff", User(uid=1000, gid=50)),
        ("app:audio", User(uid=1000, gid=29)),
        ("4242", User(uid=4242, gid=0)),
        ("4242:staff", User(uid=4242, gid=50)),
        ("root:5", User(uid=0, gid=5)),
        (":staff", User(uid=0, gid=50)),
    ],
)
def test_finds_a_user(rootfs: Path, spec: str, user: User) -> None:
    assert resolve_user(rootfs, spec) == user


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("nobody2", "unable to find user nobody2: no matching entries in passwd file"),
        ("odd", "unable to find user odd: no matching entries in passwd file"),
        ("app:nogroup2", "unable to find group nogroup2: no matching entries in group file"),
        ("nobody2:nogroup2", "unable to find user nobody2: no matching entries in passwd file"),
        ("-1", "uids and gids must be in range 0-2147483647"),
        ("app:4294967295", "uids and gids must be in range 0-2147483647"),
    ],
)
def test_says_what_is_not_there(rootfs: Path, spec: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_user(rootfs, spec)
    assert str(caught.value) == text


def test_numbers_need_no_files_and_names_do(tmp_path: Path) -> None:
    assert resolve_user(tmp_path, "") == User(uid=0, gid=0)
    assert resolve_user(tmp_path, "12") == User(uid=12, gid=0)
    assert resolve_user(tmp_path, "12:13") == User(uid=12, gid=13)
    with pytest.raises(UsageError, match="unable to find user app"):
        resolve_user(tmp_path, "app")


def test_links_do_not_lead_out_of_the_rootfs(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("app:x:66:66::/:/bin/sh\n")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    for target in (str(outside), "../../../../../.." + str(outside)):
        (root / "etc/passwd").symlink_to(target)
        with pytest.raises(UsageError):
            resolve_user(root, "app")
        (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("/usr/passwd")  # absolute, but inside
    (root / "usr").mkdir()
    (root / "usr/passwd").write_text("app:x:7:8::/:/bin/sh\n")
    assert resolve_user(root, "app") == User(uid=7, gid=8)


def test_a_fifo_in_place_of_the_file_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    with pytest.raises(UsageError):
        resolve_user(tmp_path, "app")


HOSTILE = {
    "digits of other scripts": "app:x:²:٣:::/\napp:x:1000:1001:::\n",
    "a number without end": f"app:x:{'9' * 5000}:1:::\napp:x:1000:1001:::\n",
    "other ends of lines": "x\x0bapp:x:0:0:::\x0capp:x:0:0:::\u2028app:x:0:0:::\x85app:x:0:0:::\napp:x:1000:1001:::\n",
    "a NUL byte": "app\0:x:0:0:::\napp:x:1000:1001:::\n",
    "signs": "app:x:-1:0:::\napp:x:+0:0:::\napp:x:1000:1001:::\n",
    "no colons": ":" * 100000 + "\n" + "x" * 100000 + "\napp:x:1000:1001:::\n",
    "bytes that are no text": "\udcff\udcfe:x:0:0:::\napp:x:1000:1001:::\n",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_is_meant_to_mislead(tmp_path: Path, what: str) -> None:
    (tmp_path / "etc").mkdir()
    for name in ("passwd", "group"):
        (tmp_path / "etc" / name).write_bytes(HOSTILE[what].encode(errors="surrogateescape"))
    assert resolve_user(tmp_path, "app") == User(uid=1000, gid=1001)
    assert resolve_user(tmp_path, "1000:app").uid == 1000
    assert home_of(tmp_path, 1000) == "/"


@pytest.mark.parametrize("spec", ["9" * 5000, f"0:{'9' * 5000}", "²", "٣:٣", "-1", "4294967296", "1:-1", "+4294967295"])
def test_a_number_that_is_none(tmp_path: Path, spec: str) -> None:
    with pytest.raises(UsageError, match=r"unable to find|must be in range"):
        resolve_user(tmp_path, spec)


@pytest.mark.parametrize(
    "link", ["/dev/zero", "/etc/passwd", "/proc/self/environ", "passwd", "../../../../etc/shadow", "/dev/full"]
)
def test_a_file_that_leads_elsewhere(tmp_path: Path, link: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").symlink_to(link)
    with pytest.raises(UsageError, match="unable to find user daemon"):
        resolve_user(tmp_path, "daemon")
