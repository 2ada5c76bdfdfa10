# SPDX-License-Identifier: Apache-2.0
"""What a process may do and how it is seen: prctl(2), capabilities(7), seccomp(2), keyrings, cgroup devices by bpf(2)."""

from __future__ import annotations

import errno
import os
from typing import Any

from . import libc
from .numbers import number

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

SECCOMP_MODE_FILTER = 2
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
_CAPABILITY_VERSION_3 = 0x20080522
_KEYCTL_JOIN_SESSION_KEYRING = 1
_BPF_PROG_LOAD = 5
_BPF_PROG_ATTACH = 8
_BPF_PROG_TYPE_CGROUP_DEVICE = 15
_BPF_CGROUP_DEVICE = 6
_BPF_F_ALLOW_MULTI = 2


def prctl(option: int, arg2: int | bytes = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2)."""
    args = [libc.c_long(arg) if isinstance(arg, int) else arg for arg in (arg2, arg3, arg4, arg5)]
    return libc.check(libc.function("prctl")(option, *args))


def capget() -> tuple[int, int, int]:
    """capget(2) of this thread: effective, permitted and inheritable masks."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    libc.syscall(number("capget"), header, data)
    low = [int(word) for word in data]
    return low[0] | low[3] << 32, low[1] | low[4] << 32, low[2] | low[5] << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2)."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    masks = (effective, permitted, inheritable)
    words = [mask >> shift & 0xFFFFFFFF for shift in (0, 32) for mask in masks]
    libc.syscall(number("capset"), header, (ctypes.c_uint32 * 6)(*words))


def load_seccomp(program: bytes) -> None:
    """seccomp(2), or prctl(2) where the kernel knows no flags: `program` is an array of struct sock_filter."""
    import ctypes

    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    described = Program(len(program) // 8, program)
    try:
        libc.syscall(number("seccomp"), 1, SECCOMP_FILTER_FLAG_SPEC_ALLOW, ctypes.byref(described))
    except OSError:
        pointer: Any = ctypes.byref(described)
        libc.check(
            libc.function("prctl")(PR_SET_SECCOMP, libc.c_long(SECCOMP_MODE_FILTER), pointer, libc.c_long(0), libc.c_long(0))
        )


def join_session_keyring() -> None:
    """keyctl(2): a new session keyring; nothing where there are no keys, or none for us."""
    try:
        libc.syscall(number("keyctl"), _KEYCTL_JOIN_SESSION_KEYRING, None)
    except OSError as err:
        if err.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
            raise


def reset_signals() -> None:
    """rt_sigaction(2), rt_sigprocmask(2): no signal is caught, ignored or blocked.

    Also those two that the C library keeps for itself, and has ignored in every program that it starts.
    """
    none = bytes(64)  # struct sigaction of the kernel, SIG_DFL; an empty set
    for signal in range(1, 65):
        if signal not in (9, 19):  # KILL and STOP cannot be changed
            libc.syscall(number("rt_sigaction"), signal, none, None, 8)
    libc.syscall(number("rt_sigprocmask"), 2, none, None, 8)  # SIG_SETMASK; on MIPS, where it is 3, we do not run


def close_range(first: int) -> None:
    """close_range(2) from `first` on, or one by one."""
    try:
        libc.syscall(number("close_range"), first, 0xFFFFFFFF, 0)
    except OSError:
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def attach_device_program(program: bytes, group_fd: int) -> None:
    """bpf(2): let a cgroup v2's access to devices be decided by `program` (BPF_PROG_TYPE_CGROUP_DEVICE)."""
    import ctypes

    code = ctypes.create_string_buffer(program, len(program))
    text = ctypes.create_string_buffer(b"Apache-2.0")
    # union bpf_attr: prog_type, insn_cnt, insns, license, then nothing we need
    load = (ctypes.c_uint64 * 16)()
    load[0] = _word_pair(_BPF_PROG_TYPE_CGROUP_DEVICE, len(program) // 8)
    load[1], load[2] = ctypes.addressof(code), ctypes.addressof(text)
    fd = libc.syscall(number("bpf"), _BPF_PROG_LOAD, load, ctypes.sizeof(load))
    try:
        attach = (ctypes.c_uint64 * 16)()
        attach[0] = _word_pair(group_fd, fd)
        attach[1] = _word_pair(_BPF_CGROUP_DEVICE, _BPF_F_ALLOW_MULTI)
        libc.syscall(number("bpf"), _BPF_PROG_ATTACH, attach, ctypes.sizeof(attach))
    finally:
        os.close(fd)


def _word_pair(first: int, second: int) -> int:
    """Two 32-bit members of a struct, as one 64-bit word of this machine."""
    import sys

    return first | second << 32 if sys.byteorder == "little" else first << 32 | second
