# SPDX-License-Identifier: Apache-2.0
"""From the seccomp part of an OCI spec to a filter the kernel takes (seccomp(2), linux/filter.h).

The numbers of a machine's calls are cut into ranges with one answer each, and a binary tree finds the range: eight steps a
call where a list would take hundreds. An unknown machine is killed; a call younger than all the profile names is ENOSYS, so
that C libraries fall back to an older one (what runc adds to libseccomp's filters); another that is not listed gets the
profile's default.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chantier.errors import UnsupportedError
from chantier.kernel import syscalls
from chantier.values import dataclass

# linux/bpf_common.h
_LD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JA = 0x05
_JEQ = 0x15
_JGT = 0x25
_JGE = 0x35
_AND = 0x54
_RET = 0x06

# linux/seccomp.h
_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ACTIONS = {
    "SCMP_ACT_ALLOW": _ALLOW,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL_PROCESS": _KILL_PROCESS,
}
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data

_X32_BIT = 0x40000000  # calls of x86-64's third ABI; its kernels answer ENOSYS where it is off
_PRIVATE = 0xF0000  # arm's calls of its own lie here, above all others
_MAX_JUMP = 255
_MAX_PROGRAM = 4096  # BPF_MAXINSNS


@dataclass(frozen=True, slots=True)
class _Machine:
    name: str  # of the table of calls
    audit: int  # linux/audit.h
    bits: int = 64
    big: bool = False


_MACHINES = {
    "SCMP_ARCH_X86_64": _Machine("x86_64", 0xC000003E),
    "SCMP_ARCH_X86": _Machine("i386", 0x40000003, bits=32),
    "SCMP_ARCH_AARCH64": _Machine("aarch64", 0xC00000B7),
    "SCMP_ARCH_ARM": _Machine("arm", 0x40000028, bits=32),
    "SCMP_ARCH_RISCV64": _Machine("riscv64", 0xC00000F3),
    "SCMP_ARCH_PPC64LE": _Machine("ppc64le", 0xC0000015),
    "SCMP_ARCH_S390X": _Machine("s390x", 0x80000016, big=True),
    "SCMP_ARCH_LOONGARCH64": _Machine("loongarch64", 0xC0000102),
}
_NATIVE = {
    "x86_64": "SCMP_ARCH_X86_64",
    "i686": "SCMP_ARCH_X86",
    "aarch64": "SCMP_ARCH_AARCH64",
    "armv7l": "SCMP_ARCH_ARM",
    "riscv64": "SCMP_ARCH_RISCV64",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "s390x": "SCMP_ARCH_S390X",
    "loongarch64": "SCMP_ARCH_LOONGARCH64",
}

_Code = list[tuple[int, int, int, int]]  # code, jt, jf, k


_kept: dict[tuple[int, str], tuple[Mapping[str, Any], bytes]] = {}
_KEPT = 32


def compile_filter(profile: Mapping[str, Any], machine: str) -> bytes:
    """The filter as an array of struct sock_filter. UnsupportedError for a machine whose calls we do not know.

    A profile is compiled once: `seccomp.profile` gives the same object for the same question.
    """
    found = _kept.get((id(profile), machine))
    if found is not None and found[0] is profile:
        return found[1]
    compiled = _compile(profile, machine)
    while len(_kept) >= _KEPT:
        _kept.pop(next(iter(_kept)))
    _kept[id(profile), machine] = (profile, compiled)
    return compiled


def _compile(described: Mapping[str, Any], machine: str) -> bytes:
    names = described.get("architectures") or [_NATIVE.get(machine, machine)]
    # Machines of the list that we do not know are refused at run time like every foreign one.
    known = [_MACHINES[name] for name in names if name in _MACHINES]
    if not any(_NATIVE.get(machine) in (name, None) for name in names if name in _MACHINES):
        raise UnsupportedError(f"no seccomp filter can be built for {machine}")
    program: _Code = [(_LD, 0, 0, _ARCH)]
    for one in known:
        section = _section(described, one)
        # A jump of one instruction's reach, over a far one: sections are long.
        program += [(_JEQ, 0, 1, one.audit), (_JA, 0, 0, 1), (_JA, 0, 0, len(section)), *section]
    program.append((_RET, 0, 0, _KILL_PROCESS))
    if len(program) > _MAX_PROGRAM:
        raise UnsupportedError(f"the seccomp filter has {len(program)} instructions, more than the kernel takes")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _section(profile: Mapping[str, Any], machine: _Machine) -> _Code:
    """The answer for every call of one machine."""
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet", errno.EPERM))
    answers = _answers(profile["syscalls"], machine, default)
    numbers = sorted(answers)
    youngest = max((number for number in numbers if number < _PRIVATE), default=-1)
    unknown: _Code = [(_RET, 0, 0, _ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS)]
    usual: _Code = [(_RET, 0, 0, default)]
    ranges: list[tuple[int, _Code]] = []

    def add(start: int, code: _Code) -> None:
        if not ranges or ranges[-1][1] != code:
            ranges.append((start, code))

    after = 0
    for number in numbers:
        if number > after:
            add(after, usual if after <= youngest else unknown)
        add(number, answers[number])
        after = number + 1
    add(after, unknown)
    code: _Code = [(_LD, 0, 0, _NR)]
    if machine.name == "x86_64":
        code += [(_JGE, 0, 1, _X32_BIT), *unknown]
    return code + _tree(ranges)


def _tree(ranges: Sequence[tuple[int, _Code]]) -> _Code:
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    low, high = _tree(ranges[:middle]), _tree(ranges[middle:])
    if len(low) <= _MAX_JUMP:
        return [(_JGE, len(low), 0, ranges[middle][0]), *low, *high]
    return [(_JGE, 0, 1, ranges[middle][0]), (_JA, 0, 0, len(low)), *low, *high]


def _answers(rules: Iterable[Mapping[str, Any]], machine: _Machine, default: int) -> dict[int, _Code]:
    """What becomes of each call that is named, on a machine that has it. The first rule without conditions decides."""
    calls = syscalls(machine.name)
    always: dict[int, int] = {}
    depends: dict[int, list[tuple[int, Sequence[Mapping[str, Any]]]]] = {}
    for rule in rules:
        action = _action(rule["action"], rule.get("errnoRet", errno.EPERM))
        for name in rule["names"]:
            number = calls.get(name)
            if number is None:
                continue
            if rule.get("args"):
                depends.setdefault(number, []).append((action, rule["args"]))
            else:
                always.setdefault(number, action)
    out: dict[int, _Code] = {number: [(_RET, 0, 0, action)] for number, action in always.items()}
    for number, cases in depends.items():
        if number not in always:
            out[number] = _cases(cases, machine, default)
    return out


def _cases(cases: Sequence[tuple[int, Sequence[Mapping[str, Any]]]], machine: _Machine, default: int) -> _Code:
    """One rule after the other; all conditions of a rule must hold."""
    code: _Code = []
    for action, conditions in cases:
        body: list[tuple[int, Any, Any, int]] = []
        for number, condition in enumerate(conditions):
            body += _condition(condition, machine, match=("end", number))
            body.append((0, ("end", number), None, 0))
        body.append((_RET, 0, 0, action))
        code += _resolve(body)
    return [*code, (_RET, 0, 0, default)]


def _resolve(body: Sequence[tuple[int, Any, Any, int]]) -> _Code:
    """Jumps to labels become distances: `("end", n)` is after the n-th condition, "fail" is after the last instruction."""
    places: dict[Any, int] = {}
    real: list[tuple[int, Any, Any, int]] = []
    for instruction in body:
        if instruction[0] == 0:
            places[instruction[1]] = len(real)
        else:
            real.append(instruction)
    places["fail"] = len(real)
    out: _Code = []
    for index, (code, jt, jf, k) in enumerate(real):
        jumps = [places[jump] - index - 1 if not isinstance(jump, int) else jump for jump in (jt, jf)]
        out.append((code, jumps[0], jumps[1], k))
    return out


def _condition(condition: Mapping[str, Any], machine: _Machine, match: Any) -> list[tuple[int, Any, Any, int]]:
    """Compare one argument, which is 64 bits in two words (seccomp(2)); 32-bit machines have the lower one only."""
    value, second, op = int(condition["value"]), int(condition.get("valueTwo", 0)), condition["op"]
    at = _ARGS + 8 * int(condition["index"])
    low, high = (at + 4, at) if machine.big else (at, at + 4)
    words = [(low, 0)] if machine.bits == 32 else [(high, 32), (low, 0)]
    if op == "SCMP_CMP_NE" and value < 1 << 32:
        words = [(low, 0)]  # the kernel takes an int: a bit above it must not make a forbidden value another one
    out: list[tuple[int, Any, Any, int]] = []
    for position, (offset, shift) in enumerate(words):
        word, other = value >> shift & 0xFFFFFFFF, second >> shift & 0xFFFFFFFF
        last = position == len(words) - 1
        out.append((_LD, 0, 0, offset))
        if op == "SCMP_CMP_MASKED_EQ":
            out += [(_AND, 0, 0, word), (_JEQ, 0, "fail", other)]
        elif op == "SCMP_CMP_EQ":
            out.append((_JEQ, 0, "fail", word))
        elif op == "SCMP_CMP_NE":
            out.append((_JEQ, "fail" if last else 0, match, word))
        elif op in ("SCMP_CMP_GT", "SCMP_CMP_GE"):
            final = _JGT if op == "SCMP_CMP_GT" else _JGE
            out += [(final, match, "fail", word)] if last else [(_JGT, match, 0, word), (_JEQ, 0, "fail", word)]
        elif op in ("SCMP_CMP_LT", "SCMP_CMP_LE"):
            final = _JGE if op == "SCMP_CMP_LT" else _JGT
            out += [(final, "fail", match, word)] if last else [(_JGT, "fail", 0, word), (_JEQ, 0, match, word)]
        else:
            raise UnsupportedError(f"unknown seccomp comparison {op}")
    return out


def _action(name: str, code: int) -> int:
    if name not in _ACTIONS:
        raise UnsupportedError(f"unknown seccomp action {name}")
    takes_code = name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
    return _ACTIONS[name] | (code & 0xFFFF if takes_code else 0)


def run_filter(program: bytes, number: int, audit: int, args: Sequence[int] = (), *, big: bool = False) -> int:
    """What a filter answers: an interpreter of the instructions we use, for looking at filters without loading them."""
    padded = [*args, *[0] * (6 - len(args))]
    data = struct.pack((">" if big else "<") + "iIQ6Q", number, audit, 0, *(arg & (1 << 64) - 1 for arg in padded))
    code = list(struct.iter_unpack("=HBBI", program))
    at = value = 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        if op == _LD:
            value = int.from_bytes(data[k : k + 4], "big" if big else "little")
        elif op == _AND:
            value &= k
        elif op == _JA:
            at += k
        elif op == _RET:
            return int(k)
        else:
            held = {_JEQ: value == k, _JGT: value > k, _JGE: value >= k}[op]
            at += jt if held else jf


__all__ = ["compile_filter", "run_filter"]
