# SPDX-License-Identifier: Apache-2.0
"""The records of a plan, and how it is said that one cannot be carried out."""

from __future__ import annotations

import os
from collections.abc import Iterator

_Record = tuple[str, list[str]]


class Refused(Exception):
    """Why the step cannot be started."""


def reason(err: OSError) -> str:
    text = os.strerror(err.errno or 0)
    return text[:1].lower() + text[1:]


def because(what: str, err: OSError) -> Refused:
    return Refused(f"{what}: {reason(err)}")


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

    @classmethod
    def of(cls, fd: int) -> Plan:
        """A plan as it is sent: the descriptor of a file in memory."""
        return cls(os.pread(fd, os.fstat(fd).st_size, 0))

    @property
    def own_pids(self) -> bool:
        """Whether the container has a pid namespace of its own."""
        return self.find("pids") is not None

    @property
    def joins(self) -> bool:
        """Whether its first process has to be put into cgroups."""
        return self.find("group") is not None or self.find("join") is not None

    def find(self, op: str) -> list[str] | None:
        return next((args for name, args in self.records if name == op), None)

    def all(self, *ops: str) -> Iterator[_Record]:
        return ((name, args) for name, args in self.records if name in ops)
