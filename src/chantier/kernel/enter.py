# SPDX-License-Identifier: Apache-2.0
"""enter.py COMMAND ARG…: become root of a new user and mount namespace, then execute COMMAND.

Run as a program, never imported by the engine. It has no threads, so it may fork, and unshare(2) is allowed.

A child stays outside and writes the id maps: newuidmap and newgidmap are setuid programs of the parent namespace. Exit code
125 and lines on standard error say that there is no namespace, and what to do. What will not work inside is said there first,
unless CHANTIER_NOTES is 0.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

if __name__ == "__main__":  # alone it knows nothing of the package; its own directory is no place to import from
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from chantier import kernel
from chantier.kernel import userns

_FAILED = 125
# What the namespace is entered with: a mount of the caller's that goes away goes away inside too, never the other way.
_SLAVE = kernel.MS_SLAVE | kernel.MS_REC


def main(argv: list[str]) -> NoReturn:
    if not argv:
        fail("no command", "enter.py COMMAND ARG…")
    plan = userns.plan_ids(userns.this_caller())
    if plan.how != userns.ROOT:
        if os.environ.get("CHANTIER_NOTES") != "0":
            for note in plan.notes():
                os.write(2, f"WARNING: {note}\n".encode())
        enter(plan)
    os.environ.update(identity(plan))
    try:
        os.execvp(argv[0], argv)
    except OSError as err:
        fail(f"cannot execute {argv[0]}: {err.strerror}", "")


def enter(plan: userns.IdPlan) -> None:
    """Make the namespaces, with the maps of the plan, and be root in them."""
    uid = os.geteuid()
    child, go, answer = -1, -1, -1
    if plan.how in (userns.HELPERS, userns.DIRECT):
        child, go, answer = start_mapper(plan)
    try:
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
    except OSError as err:
        why, hint = userns.why_no_namespace()
        fail(f"cannot make a user namespace: {why or err.strerror}", hint)
    if child >= 0:
        os.write(go, b"!")
        os.close(go)
        said = b""
        while piece := os.read(answer, 4096):
            said += piece
        os.close(answer)
        os.waitpid(child, 0)
        if said:
            fail(said.decode(errors="replace"), "as root, check /etc/subuid and /etc/subgid; newuidmap must be setuid root")
    else:
        write_single(plan)
    if uid != 0:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    try:
        kernel.mount("none", "/", None, _SLAVE)
    except OSError as err:
        fail(f"cannot make mounts of our own: {err.strerror}", "an AppArmor or SELinux profile may forbid mount(2)")


def start_mapper(plan: userns.IdPlan) -> tuple[int, int, int]:
    """A child outside that writes the maps when told: its pid, where to tell it, and where it says what went wrong."""
    parent = os.getpid()
    told, go = os.pipe()
    answer, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.close(answer)
        if os.read(told, 1):
            said = write_maps(plan, parent)
            os.write(say, said.encode())
        os._exit(0)
    os.close(told)
    os.close(say)
    return child, go, answer


def write_maps(plan: userns.IdPlan, pid: int) -> str:
    """In the child. Returns what went wrong."""
    for name, ranges in (("uid", plan.uids), ("gid", plan.gids)):
        words = [str(number) for part in ranges for number in (part.inside, part.outside, part.size)]
        if plan.how == userns.DIRECT:
            lines = "\n".join(" ".join(words[n : n + 3]) for n in range(0, len(words), 3))
            try:
                with open(f"/proc/{pid}/{name}_map", "w", encoding="ascii") as file:
                    file.write(lines + "\n")
            except OSError as err:
                return f"cannot write the {name} map: {err.strerror}"
            continue
        read, write = os.pipe()
        helper = os.fork()
        if helper == 0:
            os.dup2(write, 2)
            try:
                os.execvp(f"new{name}map", [f"new{name}map", str(pid), *words])
            except OSError as err:
                os.write(2, (err.strerror or "").encode())
            os._exit(127)
        os.close(write)
        said = os.read(read, 4096).decode(errors="replace").strip()
        os.close(read)
        if os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1]) != 0:
            return f"new{name}map failed: {said}"
    return ""


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
