# SPDX-License-Identifier: Apache-2.0
"""enter.py COMMAND ARG…: become root of a new user and mount namespace, then execute COMMAND.

Run as a program, never imported by the engine. It has no threads, so it may fork, and unshare(2) is allowed.

A child makes the user namespace, we write its id maps from outside (newuidmap and newgidmap are setuid programs of the parent
namespace) and join it. If they cannot be written, nothing is lost: the child is let go, and a namespace of one id is made, which
nobody has to allow. Exit code 125 and lines on standard error say that there is no namespace, and what to do. What will not work
inside is said there first; CHANTIER_NOTES is a descriptor to say it on instead, or 0 for nowhere. CHANTIER_ONE_ID tells the
command why it has one id only, and CHANTIER_ONE_ID_FIX what to do about it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

if __name__ == "__main__":  # alone it knows nothing of the package; its own directory is no place to import from
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from chantier import kernel
from chantier.kernel import userns

_FAILED = 125
_SETFCAP = "run as another user than root, or with --cap-add SETUID, SETGID and SETFCAP"
# What the namespace is entered with: a mount of the caller's that goes away goes away inside too, never the other way.
_SLAVE = kernel.MS_SLAVE | kernel.MS_REC


def main(argv: list[str]) -> NoReturn:
    if not argv:
        fail("no command", "enter.py COMMAND ARG…")
    plan = userns.plan_ids(userns.this_caller())
    if plan.how != userns.ROOT:
        plan = enter(plan)
    say(plan.notes())
    os.environ.pop("CHANTIER_NOTES", None)
    os.environ.update(identity(plan))
    if plan.how == userns.SINGLE:
        os.environ.update(CHANTIER_ONE_ID=plan.why, CHANTIER_ONE_ID_FIX=plan.hint)
    try:
        os.execvp(argv[0], argv)
    except OSError as err:
        fail(f"cannot execute {argv[0]}: {err.strerror}", "")


def say(notes: Sequence[str]) -> None:
    where = os.environ.get("CHANTIER_NOTES", "")
    if not where:
        os.write(2, "".join(f"WARNING: {note}\n" for note in notes).encode())
    elif where != "0" and where.isdecimal():
        os.write(int(where), "".join(f"{note}\n" for note in notes).encode())
        os.close(int(where))


def enter(plan: userns.IdPlan) -> userns.IdPlan:
    """Make the namespaces, with the maps of the plan, and be root in them. Returns the plan that could be carried out."""
    uid, gid = os.geteuid(), os.getegid()
    if plan.how != userns.SINGLE:
        why, hint = join_mapped(plan)
        if why:
            plan = userns.one_id(uid, gid, why, hint)
    if plan.how == userns.SINGLE:
        try:
            kernel.unshare(kernel.CLONE_NEWUSER)
        except OSError as err:
            no_namespace(err)
        write_single(plan)
    if uid != 0:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    try:
        kernel.unshare(kernel.CLONE_NEWNS)
    except OSError as err:
        no_namespace(err)
    try:
        kernel.mount("none", "/", None, _SLAVE)
    except OSError as err:
        fail(f"cannot make mounts of our own: {err.strerror}", "an AppArmor or SELinux profile may forbid mount(2)")
    return plan


def join_mapped(plan: userns.IdPlan) -> tuple[str, str]:
    """Be in a new user namespace with the maps of the plan. Returns why it cannot have them, and what to do; we are outside then."""
    answer, say_made = os.pipe()
    let_go, hold = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hold)
        try:
            kernel.unshare(kernel.CLONE_NEWUSER)
        except OSError as err:
            os.write(say_made, b"%d" % (err.errno or errno.EPERM))
        else:
            os.write(say_made, b"0")
            os.read(let_go, 1)
        os._exit(0)
    os.close(say_made)
    os.close(let_go)
    try:
        made = int(os.read(answer, 16) or b"%d" % errno.EPERM)
        if made:
            no_namespace(OSError(made, os.strerror(made)))
        refused = write_maps(plan, child)
        if not refused[0]:
            fd = os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            kernel.setns(fd, kernel.CLONE_NEWUSER)
            os.close(fd)
            return "", ""
    except OSError as err:
        return f"a namespace with the id maps cannot be joined: {err.strerror}", ""
    finally:
        os.close(hold)
        os.close(answer)
        os.waitpid(child, 0)
    return refused


def no_namespace(err: OSError) -> NoReturn:
    why, hint = userns.why_no_namespace()
    fail(f"cannot make a user namespace: {why or err.strerror}", hint)


def write_maps(plan: userns.IdPlan, pid: int) -> tuple[str, str]:
    """Write the maps of a namespace from outside. Returns what went wrong and what to do, or "" twice."""
    for name, ranges in (("uid", plan.uids), ("gid", plan.gids)):
        words = [str(number) for part in ranges for number in (part.inside, part.outside, part.size)]
        if plan.how == userns.DIRECT:
            lines = "\n".join(" ".join(words[n : n + 3]) for n in range(0, len(words), 3))
            try:
                with open(f"/proc/{pid}/{name}_map", "w", encoding="ascii") as file:
                    file.write(lines + "\n")
            except OSError as err:
                return f"the {name} map of a namespace cannot be written: {err.strerror}", _SETFCAP
            continue
        code, said = run_helper(f"new{name}map", [str(pid), *words])
        if code:
            return f"new{name}map refused: {said or f'exit code {code}'}", userns.why_refused(f"new{name}map", said)
    return "", ""


def run_helper(program: str, args: list[str]) -> tuple[int, str]:
    """Its exit code, and what it says on standard error."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 2)
        try:
            os.execvp(program, [program, *args])
        except OSError as err:
            os.write(2, (err.strerror or "").encode())
        os._exit(127)
    os.close(write)
    said = b""
    while piece := os.read(read, 4096):
        said += piece
    os.close(read)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, " ".join(said.decode(errors="replace").split())


def write_single(plan: userns.IdPlan) -> None:
    """One id, which anybody may map for himself once the process has given up setgroups(2)."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {plan.uids[0].outside} 1"),
        ("gid_map", f"0 {plan.gids[0].outside} 1"),
    ):
        try:
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        except OSError as err:
            if plan.uids[0].outside == 0 and err.errno == errno.EPERM:
                # Since Linux 5.12 the parent's root can be mapped only by who could also give files its capabilities.
                fail("root without CAP_SETFCAP cannot be mapped into a user namespace", _SETFCAP)
            why, hint = userns.why_no_namespace()
            fail(f"cannot write /proc/self/{name}: {why or err.strerror}", hint)


def identity(plan: userns.IdPlan) -> dict[str, str]:
    """Variables that still speak of the user outside: by USER the engine sees whose directories are his (`config.is_rootless`)."""
    if plan.how == userns.ROOT or plan.uids[0].outside == 0:
        return {}
    if os.environ.get("USER", "root") != "root":
        return {}
    return {"USER": userns.this_name(plan.uids[0].outside)}


def fail(cause: str, hint: str) -> NoReturn:
    os.write(2, f"{cause}\n{hint}\n".encode() if hint else f"{cause}\n".encode())
    os._exit(_FAILED)


if __name__ == "__main__":
    main(sys.argv[1:])
