# SPDX-License-Identifier: Apache-2.0
"""Which ids a user namespace made here can have, and what stands in its way (user_namespaces(7), subuid(5)).

Facts and one pure decision; the program `enter.py` makes the namespace, since only a process without threads can: `chantier build`
and `chantierd` execute themselves again through it, the library starts an engine through it.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from chantier.values import dataclass, replace

from .namespaces import IdRange, parse_id_map

_CAP_SETGID, _CAP_SETUID, _CAP_SYS_ADMIN = 1 << 6, 1 << 7, 1 << 21
_ALL = 2**32 - 1
_WANTED = 65536  # what images are made for

ROOT, DIRECT, HELPERS, SINGLE = "root", "direct", "helpers", "single"


_ENTER = Path(__file__).with_name("enter.py")


def command(argv: Sequence[str]) -> list[str]:
    """`argv` as a command that runs it as root of a new user and mount namespace."""
    return [sys.executable, "-I", "-S", "-B", str(_ENTER), *argv]


def needs_namespace() -> bool:
    """Whether this process may not mount, and so must not hold an engine itself."""
    return plan_ids(this_caller()).how != ROOT


def execute_again() -> None:
    """Execute this command again as root of a user namespace, if it needs that; returns if it does not."""
    if needs_namespace():
        os.execv(sys.executable, command([sys.executable, *sys.orig_argv[1:]]))


_LOST = (
    "not possible then: COPY --chown and RUN chown to another user, USER, and package managers that change to another user "
    "(apt's _apt, dpkg's groups)"
)
_SQUASHED = "images whose files have several owners: all are root's while building, and so are those that a step changes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What of a process decides. `outer` is the map of the user namespace it is in, by `inside` ids."""

    uid: int
    gid: int
    name: str
    capabilities: int = 0
    no_new_privs: bool = False
    newuidmap: str = ""
    newgidmap: str = ""
    subuid: str = ""
    subgid: str = ""
    outer_uids: tuple[IdRange, ...] = ()
    outer_gids: tuple[IdRange, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IdPlan:
    """`how`: root (no namespace is needed), direct (we may write the maps), helpers (newuidmap does), or single (one id).

    `why` says what a single id is for want of, `hint` how to get more; both are "" otherwise.
    """

    how: str
    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()
    why: str = ""
    hint: str = ""

    @property
    def count(self) -> int:
        """How many users there are inside."""
        return sum(part.size for part in self.uids)

    def notes(self) -> tuple[str, ...]:
        """What cannot work with this plan, by name."""
        if self.how != SINGLE:
            return (
                ()
                if self.how == ROOT or self.count >= _WANTED
                else (f"only {self.count} user ids: images with higher ones fail",)
            )
        more = (f"to get all of them: {self.hint}",) if self.hint else ()
        return (f"one user id only: {self.why}", _LOST, _SQUASHED, *more)


def plan_ids(who: Caller) -> IdPlan:
    """How a process gets to be root of a namespace in which it may mount. Pure."""
    if who.uid == 0 and who.capabilities & _CAP_SYS_ADMIN:
        return IdPlan(how=ROOT)
    if who.uid == 0 and who.capabilities & _CAP_SETUID and who.capabilities & _CAP_SETGID:
        # Root of a container: all it has, under the same numbers. Maps are written from outside, by a child.
        return IdPlan(how=DIRECT, uids=_same(who.outer_uids), gids=_same(who.outer_gids))
    why, hint = _obstacle(who)
    if why:
        return one_id(who.uid, who.gid, why, hint)
    uids, gids = sub_ranges(who.subuid, who.uid, who.name), sub_ranges(who.subgid, who.uid, who.name)
    return IdPlan(how=HELPERS, uids=_stacked(who.uid, uids), gids=_stacked(who.gid, gids))


def one_id(uid: int, gid: int, why: str, hint: str) -> IdPlan:
    """What is always left: we are root inside, and nobody else is there."""
    uids, gids = (IdRange(inside=0, outside=uid, size=1),), (IdRange(inside=0, outside=gid, size=1),)
    return IdPlan(how=SINGLE, uids=uids, gids=gids, why=why, hint=hint)


def why_refused(program: str, said: str) -> str:
    """What to do about a newuidmap or newgidmap that is there and refuses (newuidmap(1), shadow's libmisc/idmapping.c)."""
    if _ids_outside_ours():
        return "this container has fewer ids than /etc/subuid and /etc/subgid give: make their ranges lie within its own"
    path = shutil.which(program) or program
    if not _is_privileged(path):
        return f"as root: chmod u+s {path} (or setcap cap_setuid+ep, cap_setgid+ep for newgidmap)"
    if "not allowed" in said or "entry" in said:
        return "as root, check /etc/subuid and /etc/subgid: ranges for this user that no other namespace is denied"
    return "a container without CAP_SETUID and CAP_SETGID cannot: give it both, or allow setuid programs"


def _ids_outside_ours() -> bool:
    """Whether subordinate ids of this user are not in the user namespace that we are in ourselves."""
    who = this_caller()
    for text, outer in ((who.subuid, who.outer_uids), (who.subgid, who.outer_gids)):
        for first, count in sub_ranges(text, who.uid, who.name):
            if not any(part.inside <= first and first + count <= part.inside + part.size for part in outer):
                return True
    return False


def _is_privileged(path: str) -> bool:
    try:
        if os.stat(path).st_mode & stat.S_ISUID:
            return True
        os.getxattr(path, "security.capability")
    except OSError:  # neither
        return False
    return True


def _obstacle(who: Caller) -> tuple[str, str]:
    """What keeps newuidmap from helping: the cause, and what to do."""
    missing = [name for name, path in (("newuidmap", who.newuidmap), ("newgidmap", who.newgidmap)) if not path]
    if missing:
        return f"{' and '.join(missing)} not found", "install the package uidmap (on Fedora: shadow-utils)"
    if who.no_new_privs:
        return "no_new_privs keeps newuidmap from working", "allow privilege escalation (setuid programs) for this process"
    for file, text in (("/etc/subuid", who.subuid), ("/etc/subgid", who.subgid)):
        if not sub_ranges(text, who.uid, who.name):
            return (
                f"{file} gives {who.name} no subordinate ids",
                f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {who.name}",
            )
    return "", ""


def sub_ranges(text: str, uid: int, name: str) -> tuple[tuple[int, int], ...]:
    """(first, count) of a user's lines in /etc/subuid or /etc/subgid, which go by name or number."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in (name, str(uid)) and fields[1].isdecimal() and fields[2].isdecimal():
            found.append((int(fields[1]), int(fields[2])))
    return tuple(dict.fromkeys(found))


def _stacked(own: int, ranges: Sequence[tuple[int, int]]) -> tuple[IdRange, ...]:
    """0 is ourselves, the subordinate ids follow without a gap."""
    out = [IdRange(inside=0, outside=own, size=1)]
    for first, count in ranges:
        out.append(IdRange(inside=out[-1].inside + out[-1].size, outside=first, size=count))
    return tuple(out)


def _same(outer: Sequence[IdRange]) -> tuple[IdRange, ...]:
    """All ids under the same numbers, but for the last of the whole range: a map of all is how the machine's own root is known."""
    return tuple(IdRange(inside=part.inside, outside=part.inside, size=part.size - (part.size == _ALL)) for part in outer)


def this_caller(env: Mapping[str, str] = os.environ) -> Caller:
    """This process."""
    uid = os.geteuid()
    status = _status()
    return Caller(
        uid=uid,
        gid=os.getegid(),
        name=this_name(uid),
        capabilities=int(status.get("CapEff", "0"), 16),
        no_new_privs=status.get("NoNewPrivs") == "1",
        newuidmap=shutil.which("newuidmap", path=env.get("PATH")) or "",
        newgidmap=shutil.which("newgidmap", path=env.get("PATH")) or "",
        subuid=_text("/etc/subuid"),
        subgid=_text("/etc/subgid"),
        outer_uids=parse_id_map(_text("/proc/self/uid_map")),
        outer_gids=parse_id_map(_text("/proc/self/gid_map")),
    )


def why_one_id(env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Why this process is in a namespace of one id, and what to do: what `enter.py` has met, or what can be told from inside."""
    if env.get("CHANTIER_ONE_ID"):
        return env["CHANTIER_ONE_ID"], env.get("CHANTIER_ONE_ID_FIX", "")
    plan = plan_ids(outside_caller())
    return plan.why, plan.hint


def outside_caller() -> Caller:
    """Whoever made the namespace of one id that this process is root of: to say again what it was for want of."""
    inside = this_caller()
    uid = inside.outer_uids[0].outside if inside.outer_uids else inside.uid
    gid = inside.outer_gids[0].outside if inside.outer_gids else inside.gid
    name = os.environ.get("USER") or str(uid)
    return replace(inside, uid=uid, gid=gid, name=name, capabilities=0)


def why_no_namespace() -> tuple[str, str]:
    """What on this machine forbids user namespaces: the cause and what to do; "" twice if nothing is known to."""
    for path, forbidding, cause, hint in _SWITCHES:
        if _text(path).strip() == forbidding:
            return f"{path} is {forbidding}: {cause}", hint
    if not os.path.exists("/proc/self/ns/user"):
        return "this kernel has no user namespaces", "use a kernel with CONFIG_USER_NS, or run as root"
    if _status().get("Seccomp") == "2":
        return (
            "a seccomp filter is on this process, as containers have it: it may forbid unshare(2) and mount(2)",
            "docker run with --security-opt seccomp=unconfined, apparmor=unconfined and systempaths=unconfined (docs/rootless.md)",
        )
    return "", ""


_SWITCHES = (
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "only root may make user namespaces",
        "as root: sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "there may be no user namespaces",
        "as root: sysctl -w user.max_user_namespaces=28633",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor takes all rights away inside them",
        "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or a profile that has `userns,` for this Python",
    ),
)


def _status() -> dict[str, str]:
    lines = _text("/proc/self/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def this_name(uid: int) -> str:
    """A user's name, or its number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # an id without an entry, as in many containers
        return str(uid)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # not there, or not ours to read
        return ""
