# SPDX-License-Identifier: Apache-2.0
"""The helper of the native sandbox for machines without a C compiler: sandbox.c in Python, record by record.

Run as a program of its own, never imported by the engine. It uses no thread, so it may fork. What each record means, and
why things are done in this order, stands in sandbox.c; both helpers pass the same tests.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

if __name__ == "__main__":  # alone it knows nothing of the package; its own directory is no place to import from
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from chantier import kernel
from chantier.kernel import process as caller

_LINKS = 40
_PROC_MAGIC = 0x9FA0
_CAP_KILL = 1 << 5
_TIOCSPTLCK, _TIOCGPTN = 0x40045431, 0x80045430
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_RUN_FLAGS = os.O_PATH | os.O_CLOEXEC

_Record = tuple[str, list[str]]


class Refused(Exception):
    """Why the step cannot be started."""


def _reason(err: OSError) -> str:
    text = os.strerror(err.errno or 0)
    return text[:1].lower() + text[1:]


def _because(what: str, err: OSError) -> Refused:
    return Refused(f"{what}: {_reason(err)}")


class Plan:
    """The records in order; arguments are text with surrogate escapes for bytes that are no UTF-8."""

    def __init__(self, data: bytes) -> None:
        words = [os.fsdecode(word) for word in data.split(b"\0")[:-1]]
        self.records: list[_Record] = []
        at = 0
        while at + 1 < len(words):
            count = int(words[at + 1])
            self.records.append((words[at], words[at + 2 : at + 2 + count]))
            at += 2 + count

    def find(self, op: str) -> list[str] | None:
        return next((args for name, args in self.records if name == op), None)

    def all(self, *ops: str) -> Iterator[_Record]:
        return ((name, args) for name, args in self.records if name in ops)


# Paths below the root we are chrooted into; the old root is our working directory meanwhile.


def _by_fd(fd: int) -> str:
    return f"proc/self/fd/{fd}"


def _make_path(path: str, *, directory: bool) -> None:
    """Make what is missing of a path, following links as securejoin does: also those that lead nowhere yet."""
    done, rest, links = "", path, 0
    try:
        while rest := rest.lstrip("/"):
            part, _, rest = rest.partition("/")
            last = not rest.strip("/")
            if part == ".":
                continue
            if part == "..":
                done = done.rpartition("/")[0]
                continue
            following = f"{done}/{part}"
            try:
                mode = os.lstat(following).st_mode
            except FileNotFoundError:
                with suppress(FileExistsError):
                    if last and not directory:
                        os.close(os.open(following, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
                    else:
                        os.mkdir(following, 0o755)
                mode = 0
            if stat.S_ISLNK(mode):
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, "")
                link = os.readlink(following)
                rest = f"{link}/{rest}"
                if link.startswith("/"):
                    done = ""
                continue
            done = following
    except OSError as err:
        raise _because(f'error creating mount point "{path}"', err) from err


def _target(path: str, *, directory: bool) -> int:
    try:
        try:
            fd = os.open(path, _RUN_FLAGS)
        except FileNotFoundError:
            _make_path(path, directory=directory)
            fd = os.open(path, _RUN_FLAGS)
    except OSError as err:
        raise _because(f'error opening mount point "{path}"', err) from err
    if path != "/proc" and not path.startswith("/proc/") and kernel.file_system(fd) == _PROC_MAGIC:
        raise Refused(f'refusing to mount at "{path}": it leads into /proc')
    return fd


def _kept(fd: int) -> int:
    flags = os.fstatvfs(fd).f_flag
    return flags & (kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)


def _apply(target: str, fd: int, flags: int, propagation: int, *, locked: bool) -> None:
    try:
        if flags:
            flags |= kernel.MS_REMOUNT | kernel.MS_BIND | (_kept(fd) if locked else 0)
            kernel.mount("none", _by_fd(fd), None, flags)
        if propagation:
            kernel.mount("none", _by_fd(fd), None, propagation)
    except OSError as err:
        raise _because(f'error remounting "{target}"', err) from err


def _mount(kind: str, source: str, target: str, flags: str, data: str, propagation: str) -> None:
    if kind in ("proc", "sysfs"):
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.lstat(target).st_mode):
                raise Refused(f'filesystem "{kind}" must be mounted on ordinary directory')
    fd = _target(target, directory=True)
    try:
        kernel.mount(source, _by_fd(fd), kind, int(flags, 0), data)
    except OSError as err:
        raise _because(f'error mounting "{source}" to rootfs at "{target}"', err) from err
    finally:
        os.close(fd)
    if int(propagation, 0):
        fd = os.open(target, _RUN_FLAGS)
        _apply(target, fd, 0, int(propagation, 0), locked=False)
        os.close(fd)


def _bind(source: str, target: str, recursive: str, flags: str, propagation: str) -> None:
    where = f'error mounting "{source}" to rootfs at "{target}"'
    try:
        src = os.open(source.lstrip("/") or ".", _RUN_FLAGS)
        before = os.fstat(src)
        fd = _target(target, directory=stat.S_ISDIR(before.st_mode))
        kernel.mount(_by_fd(src), _by_fd(fd), None, kernel.MS_BIND | int(recursive, 0))
        os.close(fd)
        os.close(src)
        if not int(flags, 0) and not int(propagation, 0):
            return
        fd = os.open(target, _RUN_FLAGS)
        after = os.fstat(fd)
    except OSError as err:
        raise _because(where, err) from err
    if (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino):
        raise Refused(f'mount point "{target}" has changed while it was being mounted')
    _apply(target, fd, int(flags, 0), int(propagation, 0), locked=True)
    os.close(fd)


def _node(path: str, kind: str, major: str, minor: str, mode: str, uid: str, gid: str) -> None:
    try:
        _make_path(path, directory=False)
        os.unlink(path)
        types = {"b": stat.S_IFBLK, "p": stat.S_IFIFO}
        os.mknod(path, types.get(kind[:1], stat.S_IFCHR) | int(mode, 0), os.makedev(int(major), int(minor)))
        os.lchown(path, int(uid), int(gid))
    except OSError as err:
        raise _because(f'error creating device "{path}"', err) from err


def _mask(path: str) -> None:
    try:
        fd = os.open(path, _RUN_FLAGS)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except OSError as err:
        raise _because(f'error masking "{path}"', err) from err
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            kernel.mount("tmpfs", _by_fd(fd), "tmpfs", kernel.MS_RDONLY, "size=4k")
            return
        src = os.open("dev/null", _RUN_FLAGS)
        null = os.fstat(src)
        if not stat.S_ISCHR(null.st_mode) or null.st_rdev != os.makedev(1, 3):
            raise Refused(f'error masking "{path}": /dev/null is not what it should be')
        kernel.mount(_by_fd(src), _by_fd(fd), None, kernel.MS_BIND)
        os.close(src)
    except OSError as err:
        raise _because(f'error masking "{path}"', err) from err
    finally:
        os.close(fd)


def _readonly(path: str) -> None:
    try:
        fd = os.open(path, _RUN_FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        kernel.mount(_by_fd(fd), _by_fd(fd), None, kernel.MS_BIND | kernel.MS_REC)
        os.close(fd)
        fd = os.open(path, _RUN_FLAGS)
    except OSError as err:
        raise _because(f'error making "{path}" read-only', err) from err
    _apply(path, fd, kernel.MS_RDONLY, 0, locked=True)
    os.close(fd)


def _remount(target: str, flags: str) -> None:
    fd = os.open(target, _RUN_FLAGS)
    _apply(target, fd, int(flags, 0), 0, locked=True)
    os.close(fd)


_roots: list[int] = []


def _root(path: str) -> None:
    try:
        kernel.mount("none", "/", None, kernel.MS_SLAVE | kernel.MS_REC)
        kernel.mount(path, path, None, kernel.MS_BIND | kernel.MS_REC)
        _roots[:] = [os.open(where, _RUN_FLAGS | os.O_DIRECTORY) for where in ("/", path)]
        os.fchdir(_roots[1])
        kernel.mount("none", ".", None, kernel.MS_PRIVATE | kernel.MS_REC)
        os.chroot(".")
        os.fchdir(_roots[0])
    except OSError as err:
        raise _because(f'error mounting rootfs "{path}"', err) from err


def _pivot(move: str) -> None:
    old, new = _roots
    try:
        os.fchdir(old)
        os.chroot(".")
        os.fchdir(new)
        if int(move):
            kernel.mount(".", "/", None, kernel.MS_MOVE)
            os.chroot(".")
        else:
            kernel.pivot_root(".", ".")
            os.fchdir(old)
            kernel.mount("none", ".", None, kernel.MS_SLAVE | kernel.MS_REC)
            kernel.umount(".", kernel.MNT_DETACH)
        os.chdir("/")
        os.close(old)
        os.close(new)
    except OSError as err:
        raise _because("pivot_root", err) from err


def _loopback() -> None:
    try:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError:  # a kernel without IPv4
        return
    with made:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(made, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(made, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def _netns(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        kernel.setns(fd, kernel.CLONE_NEWNET)
        os.close(fd)
    except OSError as err:
        raise _because(f'error joining network namespace "{path}"', err) from err


def _link(to: str, path: str) -> None:
    with suppress(FileExistsError):
        os.symlink(to, path)


_SET_UP: dict[str, Callable[..., None]] = {
    "netns": _netns,
    "cgroupns": lambda: kernel.unshare(kernel.CLONE_NEWCGROUP),
    "loopback": _loopback,
    "hostname": socket.sethostname,
    "root": _root,
    "mount": _mount,
    "bind": _bind,
    "node": _node,
    "symlink": _link,
    "mask": _mask,
    "readonly": _readonly,
    "remount": _remount,
    "pivot": _pivot,
    "mkdir": lambda path: _make_path(path, directory=True),
}


def _open_terminal(uid: str, console: str, parent: socket.socket) -> int:
    try:
        master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        index = struct.unpack("I", fcntl.ioctl(master, _TIOCGPTN, struct.pack("I", 0)))[0]
        name = f"/dev/pts/{index}"
        slave = os.open(name, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        os.fchown(slave, int(uid), -1)
        if int(console):
            os.close(os.open("/dev/console", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o600))
            kernel.mount(name, "/dev/console", None, kernel.MS_BIND)
    except OSError as err:
        raise _because("error opening a terminal", err) from err
    socket.send_fds(parent, [b"T"], [master])
    os.close(master)
    return slave


def _set_up(plan: Plan, parent: socket.socket) -> int:
    """All records that make the container; returns the terminal, or -1."""
    os.umask(0)
    terminal = -1
    for name, args in plan.records:
        if name == "tty":
            terminal = _open_terminal(args[0], args[1], parent)
        elif name in _SET_UP:
            try:
                _SET_UP[name](*args)
            except OSError as err:
                raise _because(f"error at {name}", err) from err
    return terminal


def _enter(args: list[str], alive: int) -> None:
    """Become a neighbour of a running container; `alive` proves that the PID is still that one."""
    pid, kinds = args[0], args[1:]
    try:
        fds = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds]
    except OSError as err:
        raise Refused("container has stopped") from err
    if alive >= 0 and select.select([alive], [], [], 0)[0]:
        raise Refused("container has stopped")
    for kind, fd in zip(kinds, fds, strict=True):
        try:
            kernel.setns(fd)
        except OSError as err:
            raise _because(f"error joining the container's {kind} namespace", err) from err
        os.close(fd)


# The step


def _limit_bounding(keep: int) -> None:
    for cap in range(64):
        try:
            caller.prctl(caller.PR_CAPBSET_READ, cap)
        except OSError:
            return
        if not keep >> cap & 1:
            with suppress(PermissionError):  # we never had CAP_SETPCAP, nor then what it would let through
                caller.prctl(caller.PR_CAPBSET_DROP, cap)


def _set_capabilities(effective: int, permitted: int, inheritable: int, ambient: int) -> None:
    have = caller.capget()[1]
    permitted &= have
    effective &= permitted
    inheritable &= have
    caller.capset(effective, permitted, inheritable)
    with suppress(OSError):  # a kernel without ambient capabilities
        caller.prctl(caller.PR_CAP_AMBIENT, caller.PR_CAP_AMBIENT_CLEAR_ALL)
    for cap in range(64):
        if (ambient & permitted & inheritable) >> cap & 1:
            caller.prctl(caller.PR_CAP_AMBIENT, caller.PR_CAP_AMBIENT_RAISE, cap)


def _label(path: str, text: str) -> None:
    try:
        with open(path, "wb", buffering=0) as file:
            if os.readlink(f"/proc/self/fd/{file.fileno()}").startswith("/proc/"):
                file.write(text.encode())
                return
    except OSError as err:
        raise _because(f'error applying profile "{text}"', err) from err
    raise Refused(f'error applying profile "{text}": /proc is not what it should be')


def _give_stdio(uid: int) -> None:
    """The pipes are root's; a step that opens /dev/stderr by name must be allowed to."""
    for fd in range(3):
        info = os.fstat(fd)
        if info.st_uid == uid or (stat.S_ISCHR(info.st_mode) and info.st_rdev == os.makedev(1, 3)):
            continue
        try:
            os.fchown(fd, uid, -1)
        except OSError as err:
            if err.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS):
                raise


def _runnable(path: str) -> int:
    try:
        info = os.stat(path)
    except OSError as err:
        return err.errno or errno.ENOENT
    if stat.S_ISDIR(info.st_mode):
        return errno.EISDIR
    if not info.st_mode & 0o111 or not os.access(path, os.X_OK, effective_ids=True):
        return errno.EACCES
    return 0


def _look_up(name: str, environment: dict[str, str]) -> str:
    """Where a program lies, by PATH of the step's own environment. Messages are those of Go's exec.LookPath."""
    if "/" in name:
        wrong = _runnable(name)
        if not wrong:
            return name
        said = _reason(OSError(wrong, ""))
        raise Refused(
            f'exec: "{name}": {said}' if wrong in (errno.EACCES, errno.EISDIR) else f'exec: "{name}": stat {name}: {said}'
        )
    for directory in environment.get("PATH", "").split(":"):
        if directory and not _runnable(f"{directory}/{name}"):
            return f"{directory}/{name}"
    raise Refused(f'exec: "{name}": executable file not found in $PATH')


def _run_step(plan: Plan, terminal: int, monitor: socket.socket | None = None) -> NoReturn:
    """In the step's process, with what it may keep at 0, 1, 2 and at 3 what errors are told on. Raises Refused."""
    described, args, env = plan.find("process"), plan.find("args"), plan.find("env") or []
    assert described is not None
    assert args is not None
    uid, gid, cwd, quiet, umask = int(described[0]), int(described[1]), described[2], int(described[3]), int(described[4], 0)
    masks = [int(mask, 0) for mask in plan.find("caps") or ["0"] * 5]
    program = bytes.fromhex((plan.find("seccomp") or [""])[0])
    if terminal >= 0:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        for fd in range(3):
            os.dup2(terminal, fd)
    else:
        _give_stdio(uid)
    caller.close_range(4)
    for _, (kind, soft, hard) in plan.all("rlimit"):
        try:
            limits = [resource.RLIM_INFINITY if int(value) >= 1 << 63 else int(value) for value in (soft, hard)]
            resource.setrlimit(int(kind), (limits[0], limits[1]))
        except (OSError, ValueError) as err:
            raise Refused(f"error setting rlimit type {kind}: operation not permitted") from err
    os.umask(umask)
    lost = f'chdir to cwd ("{cwd}") set in config.json failed'
    later = False
    try:
        os.chdir(cwd)
    except PermissionError:
        later = True
    except OSError as err:
        raise _because(lost, err) from err
    for _, (path, text) in plan.all("label"):
        _label(path, text)
    environment = dict(entry.partition("=")[::2] for entry in env)
    try:
        if quiet:
            caller.prctl(caller.PR_SET_NO_NEW_PRIVS, 1)
        elif program:
            caller.load_seccomp(program)
        _limit_bounding(masks[0])
        caller.prctl(caller.PR_SET_KEEPCAPS, 1)
        groups = plan.find("groups")
        if groups is not None:
            os.setgroups([int(group) for group in groups])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        caller.prctl(caller.PR_SET_KEEPCAPS, 0)
        _set_capabilities(masks[2], masks[1], masks[3], masks[4])
    except OSError as err:
        raise _because("error changing the user", err) from err
    if monitor is not None:
        # If the monitor is killed. A change of user takes this away: it comes after.
        caller.prctl(caller.PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(BlockingIOError):
            if not monitor.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                os._exit(1)
    if later:
        try:
            os.chdir(cwd)
        except OSError as err:
            raise _because(lost, err) from err
    try:
        outside = not os.getcwd().startswith("/")
    except OSError:
        outside = True
    if outside:
        raise Refused("current working directory is outside of container mount namespace root")
    path = _look_up(args[0], environment)
    if program and quiet:
        caller.load_seccomp(program)
    for number in range(1, 65):
        with suppress(OSError, ValueError):  # those that cannot be changed
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        os.execve(path, args, environment)
    except OSError as err:
        raise _because(f"exec {path}", err) from err


# The first process, and the guard of a neighbour


def _code(status: int) -> int:
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else 255


class _Signals:
    """Blocked signals as something to poll: signalfd(2) is not in Python, so a pipe that the interpreter writes to."""

    def __init__(self) -> None:
        self.readable, self._writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._writable, warn_on_full_buffer=False)
        for number in signal.valid_signals():
            with suppress(OSError, ValueError):  # KILL and STOP
                signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def take(self) -> bytes:
        try:
            return os.read(self.readable, 256)
        except BlockingIOError:
            return b""


def _watch_step(parent: socket.socket, signals: _Signals, step: int) -> NoReturn:
    watched: list[Any] = [parent, signals.readable]
    while True:
        ready = select.select(watched, [], [])[0]
        for number in signals.take():
            if number != signal.SIGCHLD:
                with suppress(ProcessLookupError):
                    os.kill(step, number)
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not ended:
                break
            if ended == step:
                parent.send(b"X%d" % _code(status))
                os._exit(0)
        if parent in ready:
            try:
                packet = parent.recv(64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            if not packet:
                with suppress(ProcessLookupError):
                    os.kill(step, signal.SIGKILL)
                os._exit(137)
            if packet[:1] == b"S":
                with suppress(ProcessLookupError):
                    os.kill(step, int(packet[1:]))


def _run_first(plan: Plan, parent: socket.socket, alive: int) -> NoReturn:
    try:
        _first(plan, parent, alive)
    except Refused as err:
        parent.send(b"E" + os.fsencode(str(err))[:3900])
    except BaseException as err:
        parent.send(b"E" + repr(err).encode()[:3900])
    os._exit(1)


def _first(plan: Plan, parent: socket.socket, alive: int) -> NoReturn:
    entered = plan.find("enter")
    caller.prctl(caller.PR_SET_NAME, b"chantier-first")
    os.setsid()
    if entered is None:
        caller.prctl(caller.PR_SET_PDEATHSIG, signal.SIGKILL)
    if _joins(plan) and parent.recv(1) != b"G":  # in its cgroups; or the monitor is gone
        os._exit(1)
    flags = plan.find("clone")
    assert flags is not None
    try:
        kernel.unshare(int(flags[0], 0) & ~kernel.CLONE_NEWPID)
    except OSError as err:
        raise _because("error making namespaces", err) from err
    caller.join_session_keyring()
    if entered is not None:
        _enter(entered, alive)
        wanted = plan.find("tty")
        terminal = _open_terminal(wanted[0], wanted[1], parent) if wanted is not None else -1
        _run_guarded(plan, parent, terminal, alive)
    terminal = _set_up(plan, parent)
    if terminal == 3:
        terminal = os.dup(terminal)
    if parent.fileno() != 3:
        os.dup2(parent.fileno(), 3, inheritable=False)
        parent.close()
        parent.__init__(fileno=3)  # type: ignore[misc]  # where those who say what went wrong look for it
    _run_step(plan, terminal, parent)


def _run_guarded(plan: Plan, parent: socket.socket, terminal: int, alive: int) -> NoReturn:
    """The step of a container that runs: it is in that one's pid namespace, so it is our child."""
    readable, writable = os.pipe2(os.O_CLOEXEC)
    signals = _Signals()
    step = os.fork()
    if step == 0:
        _step(plan, terminal, writable)
    os.close(writable)
    for fd in (0, 1, 2, terminal, alive):
        if fd >= 0:
            os.close(fd)
    failure = b""
    while piece := os.read(readable, 4096):
        failure += piece
    if failure:
        parent.send(b"E" + failure[:3900])
        os._exit(1)
    os.close(readable)
    plan.records.clear()
    _limit_bounding(0)
    caller.prctl(caller.PR_SET_NO_NEW_PRIVS, 1)
    _set_capabilities(_CAP_KILL, _CAP_KILL, 0, 0)
    parent.send(b"R")
    _watch_step(parent, signals, step)


def _step(plan: Plan, terminal: int, errors: int) -> NoReturn:
    signal.set_wakeup_fd(-1)
    try:
        os.setsid()
        if terminal == 3:
            terminal = os.dup(terminal)
        os.dup2(errors, 3, inheritable=False)
        _run_step(plan, terminal)
    except Refused as err:
        os.write(3, os.fsencode(str(err)))
    except BaseException as err:
        os.write(3, repr(err).encode())
    os._exit(1)


# The monitor


def _oom(plan: Plan) -> int:
    place = plan.find("oom")
    if place is None:
        return 0
    try:
        with open(place[0], encoding="ascii") as file:
            counts = dict(line.split(maxsplit=1) for line in file.read().splitlines() if " " in line)
    except OSError:
        return 0
    return int(int(counts.get("oom_kill", 0)) > 0)


def _kill_children() -> None:
    """Without a pid namespace: whatever is left of the container is our child by now, since we are its reaper."""
    while True:
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError, ValueError, IndexError):
                    with open(f"/proc/{name}/stat", "rb") as file:
                        if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                            os.kill(int(name), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _remove_groups(plan: Plan) -> None:
    for _, args in plan.all("group"):
        for _attempt in range(100):
            try:
                os.rmdir(args[0])
            except OSError as err:
                if err.errno != errno.EBUSY:
                    break
                time.sleep(0.002)
            else:
                break


def _monitor(control: socket.socket, plan_fd: int, alive: int) -> NoReturn:
    try:
        _watch(control, plan_fd, alive)
    except BaseException as err:
        with suppress(OSError):
            control.send(b"E" + (str(err) if isinstance(err, Refused) else repr(err)).encode()[:3900])
    os._exit(1)


def _watch(control: socket.socket, plan_fd: int, alive: int) -> NoReturn:
    os.setsid()
    size = os.fstat(plan_fd).st_size
    plan = Plan(os.pread(plan_fd, size, 0))
    os.close(plan_fd)
    own_pids = plan.find("pids") is not None
    entered = plan.find("enter") is not None
    if not own_pids:
        caller.prctl(caller.PR_SET_CHILD_SUBREAPER, 1)
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    signals = _Signals()
    try:
        if own_pids:
            kernel.unshare(kernel.CLONE_NEWPID)  # for our children; the rest is the first one's to make
        first = os.fork()
    except OSError as err:
        raise _because("error making namespaces", err) from err
    if first == 0:
        signal.set_wakeup_fd(-1)
        control.close()
        mine.close()
        _run_first(plan, theirs, alive)
    theirs.close()
    mine.setblocking(False)
    for fd in (0, 1, 2):
        os.close(fd)
    code = _join(plan, first, control)
    if _joins(plan):
        with suppress(OSError):
            mine.send(b"G")
    code = _serve(control, mine, signals, first, code, entered=entered)
    if not own_pids and not entered:
        _kill_children()
    out_of_memory = _oom(plan)
    _remove_groups(plan)
    with suppress(OSError):
        control.send(b"X%d %d" % (255 if code < 0 else code, out_of_memory))
    os._exit(0)


def _joins(plan: Plan) -> bool:
    return plan.find("group") is not None or plan.find("join") is not None


def _join(plan: Plan, first: int, control: socket.socket) -> int:
    for _, args in plan.all("group", "join"):
        try:
            with open(f"{args[0]}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(first))
        except OSError as err:
            control.send(f"Eerror joining cgroup {args[0]}: {_reason(err)}".encode())
            os.kill(first, signal.SIGKILL)
            return 1
    return -1


def _serve(control: socket.socket, mine: socket.socket, signals: _Signals, first: int, code: int, *, entered: bool) -> int:
    """Until the first process has ended; returns the step's exit code, or -1."""
    watched: list[Any] = [signals.readable, mine, control]
    pidfd = os.pidfd_open(first)
    ended = failed = False
    while not ended:
        ready = select.select(watched, [], [])[0]
        if control in ready:
            packet = _packet(control)
            if not packet:
                watched.remove(control)
            if not packet or packet[:1] == b"K":
                with suppress(OSError):
                    if entered:
                        mine.send(b"S9")
                    else:
                        os.kill(first, signal.SIGKILL)
            elif packet[:1] == b"S":
                with suppress(OSError):
                    if entered:
                        mine.send(packet)
                    else:
                        os.kill(first, int(packet[1:]))
        if signals.readable in ready:
            signals.take()
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == first:
                    ended = True
                    # A guard has said how its step ended; if it says nothing and ends well, something is wrong.
                    if code < 0 and (not entered or _code(found[1])):
                        code = _code(found[1])
        while mine in watched:
            try:
                packet, fds, _, _ = socket.recv_fds(mine, 4096, 1)
            except BlockingIOError:
                break
            except ConnectionError:
                packet, fds = b"", []
            if not packet:
                watched.remove(mine)
                if not entered and not failed:  # it is closed as the step is executed
                    _tell_begun(control, first, pidfd)
            elif packet[:1] == b"X":
                code = int(packet[1:])
            elif packet[:1] == b"R":
                _tell_begun(control, first, pidfd)
            else:
                failed = failed or packet[:1] == b"E"
                _tell(control, packet, fds)
            for fd in fds:
                os.close(fd)
    return code


def _packet(control: socket.socket) -> bytes:
    try:
        return control.recv(64, socket.MSG_DONTWAIT)
    except OSError:
        return b""


def _tell(control: socket.socket, packet: bytes, fds: list[int]) -> None:
    with suppress(OSError):
        socket.send_fds(control, [packet], list(fds))


def _tell_begun(control: socket.socket, first: int, pidfd: int) -> None:
    with suppress(OSError):
        socket.send_fds(control, [b"R%d" % first], [pidfd])


def main() -> NoReturn:
    """The server: a monitor for each container that is asked for."""
    caller.prctl(caller.PR_SET_DUMPABLE, 0)
    caller.prctl(caller.PR_SET_NAME, b"chantier")
    os.setsid()
    os.chdir("/")
    caller.close_range(4)
    server = socket.socket(fileno=3)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _warm_up()
    while True:
        packet, fds, _, _ = socket.recv_fds(server, 16, 8)
        if not packet:
            os._exit(0)
        if len(fds) >= 5:
            pid = os.fork()
            if pid == 0:
                _become_monitor(server, fds)
        for fd in fds:
            os.close(fd)


def _warm_up() -> None:
    """What every container would have to do anew: C functions looked up, modules imported, garbage collected."""
    caller.prctl(caller.PR_CAPBSET_READ, 0)
    caller.capget()
    kernel.file_system(3)
    gc.collect()
    gc.disable()
    gc.freeze()


def _become_monitor(server: socket.socket, fds: list[int]) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    server.close()
    # Out of the way first: they are to stand where others may stand now.
    places = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in fds]
    for number, place in enumerate(places[:6]):
        os.dup2(place, number, inheritable=number < 3)
    caller.close_range(len(places[:6]))
    _monitor(socket.socket(fileno=3), 4, 5 if len(places) > 5 else -1)


if __name__ == "__main__":
    main()
