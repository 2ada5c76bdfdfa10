# SPDX-License-Identifier: Apache-2.0
"""Limits on how much of a step's log one client is sent (protocol.md 4.3). History keeps all of it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from chantier.pb import control_pb2 as pb
from chantier.values import dataclass, field

_SIZE = 2 << 20
_SPEED = 200 << 10
_TAIL = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """Bytes of one step, and bytes a second of it; -1 for none."""

    size: int = _SIZE
    speed: int = _SPEED

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> LogLimits:
        return cls(
            size=_number(env.get("BUILDKIT_STEP_LOG_MAX_SIZE", ""), _SIZE),
            speed=_number(env.get("BUILDKIT_STEP_LOG_MAX_SPEED", ""), _SPEED),
        )


def _number(text: str, default: int) -> int:
    try:
        return int(text)
    except ValueError:
        return default


@dataclass(slots=True)
class _Step:
    sent: int = 0
    started: int = 0  # time of the first output, nanoseconds
    clipped: bool = False
    dropped: bytearray = field(default_factory=bytearray)  # the end of what was not sent


class Clip:
    """One client's view of the messages of a build."""

    def __init__(self, limits: LogLimits) -> None:
        self._limits = limits
        self._steps: dict[str, _Step] = {}

    def apply(self, message: pb.StatusResponse) -> pb.StatusResponse:
        """The message with its logs clipped; the end of a failed step's log is added where it was not sent."""
        failed = [v for v in message.vertexes if v.error and v.digest in self._steps and self._steps[v.digest].clipped]
        if not message.logs and not failed:
            return message
        logs = list(message.logs)
        del message.logs[:]
        for log in logs:
            self._add(message, log)
        for vertex in failed:
            step = self._steps[vertex.digest]
            if step.dropped:
                added = message.logs.add(vertex=vertex.digest, stream=2, msg=bytes(step.dropped))
                added.timestamp.CopyFrom(vertex.completed)
                step.dropped.clear()
        return message

    def _add(self, message: pb.StatusResponse, log: pb.VertexLog) -> None:
        step = self._steps.setdefault(log.vertex, _Step())
        reason = self._over(step, log)
        if not reason:
            step.sent += len(log.msg)
            step.clipped = False
            step.dropped.clear()
            message.logs.append(log)
            return
        if not step.clipped:
            step.clipped = True
            said = message.logs.add(
                vertex=log.vertex, stream=log.stream, msg=f"[output clipped, log limit {reason} reached]\n".encode()
            )
            said.timestamp.CopyFrom(log.timestamp)
        step.dropped += log.msg
        if len(step.dropped) > _TAIL:
            del step.dropped[: len(step.dropped) - _TAIL]

    def _over(self, step: _Step, log: pb.VertexLog) -> str:
        limits = self._limits
        at = log.timestamp.ToNanoseconds()
        step.started = step.started or at
        if limits.size >= 0 and step.sent + len(log.msg) > limits.size:
            return _size_text(limits.size)
        seconds = max(1.0, (at - step.started) / 1e9)
        if limits.speed >= 0 and step.sent > limits.speed and (step.sent + len(log.msg)) / seconds > limits.speed:
            return _size_text(limits.speed) + "/s"
        return ""


def _size_text(size: int) -> str:
    """As go-units prints it: 2MiB, 200KiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.4g}{unit}"
        value /= 1024
    return str(size)


__all__ = ["Clip", "LogLimits"]
