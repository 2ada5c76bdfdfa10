# SPDX-License-Identifier: Apache-2.0
"""Which records of history a client asks for (protocol.md 4.7)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime

from chantier.errors import UsageError
from chantier.pb import control_pb2 as pb
from chantier.progress import now
from chantier.wire.status import CANCELLED

_TERM = re.compile(r"(?P<key>\w+)\s*(?P<op>==|!=|~=|>=|<=|>|<|=)\s*(?P<value>.*)\Z")
Record = pb.BuildHistoryRecord


def compile_filters(filters: Sequence[str]) -> Callable[[Record], bool]:
    """Terms within one text are all to hold, of several texts any. Raises UsageError."""
    alternatives = [[_term(term.strip()) for term in text.split(",") if term.strip()] for text in filters]
    alternatives = [terms for terms in alternatives if terms]
    return lambda record: not alternatives or any(all(term(record) for term in terms) for terms in alternatives)


def _term(text: str) -> Callable[[Record], bool]:
    match = _TERM.match(text)
    if match is None:
        raise UsageError(f"invalid history filter {text!r}", hint="such as status==error, startedAt>24h, duration<5m")
    key, op, value = match["key"], match["op"], match["value"].strip("\"'")
    if key in ("ref", "status", "repository"):
        get = {"ref": lambda r: r.Ref, "status": status_of_record, "repository": _repository}[key]
        return _text_test(text, get, op, value)
    if key in ("startedAt", "completedAt"):
        limit = _time(text, value)
        field = "CreatedAt" if key == "startedAt" else "CompletedAt"
        # An age is compared as an age: startedAt<24h are builds of the last day.
        flip = not value[:4].isdigit() or "-" not in value
        return lambda r: _compare(getattr(r, field).ToNanoseconds(), _flipped(op) if flip else op, limit)
    if key == "duration":
        nanoseconds = int(_duration(text, value) * 1e9)
        return lambda r: _compare(_ended(r) - r.CreatedAt.ToNanoseconds(), op, nanoseconds)
    raise UsageError(f"unknown history filter {key!r}", hint="ref, status, repository, startedAt, completedAt, duration")


def _text_test(text: str, get: Callable[[Record], str], op: str, value: str) -> Callable[[Record], bool]:
    if op in ("==", "="):
        return lambda r: get(r) == value
    if op == "!=":
        return lambda r: get(r) != value
    if op == "~=":
        try:
            pattern = re.compile(value)
        except re.error as err:
            raise UsageError(f"invalid history filter {text!r}: {err}") from err
        return lambda r: pattern.search(get(r)) is not None
    raise UsageError(f"invalid history filter {text!r}: {op} is for times and durations")


def _repository(record: Record) -> str:
    attrs = record.FrontendAttrs
    found = attrs.get("vcs:source") or attrs.get("context", "")
    return found if "://" in found or found.startswith("git@") else ""


def _ended(record: Record) -> int:
    return record.CompletedAt.ToNanoseconds() if record.HasField("CompletedAt") else now()


def _flipped(op: str) -> str:
    return {">": "<", "<": ">", ">=": "<=", "<=": ">="}.get(op, op)


def _compare(left: int, op: str, right: int) -> bool:
    return {
        ">": left > right,
        "<": left < right,
        ">=": left >= right,
        "<=": left <= right,
        "==": left == right,
        "=": left == right,
        "!=": left != right,
        "~=": False,
    }[op]


def _time(text: str, value: str) -> int:
    try:
        return int(datetime.fromisoformat(value).timestamp() * 1e9)
    except ValueError:
        return now() - int(_duration(text, value) * 1e9)


_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(text: str, value: str) -> float:
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d)", value)
    if not parts or "".join(a + b for a, b in parts) != value:
        raise UsageError(f"invalid history filter {text!r}: {value!r} is neither a time nor a duration")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def status_of_record(record: pb.BuildHistoryRecord) -> str:
    if not record.HasField("CompletedAt"):
        return "running"
    if not record.HasField("error"):
        return "completed"
    return "canceled" if record.error.code == CANCELLED else "error"


__all__ = ["compile_filters", "status_of_record"]
