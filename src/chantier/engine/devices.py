# SPDX-License-Identifier: Apache-2.0
"""Which devices a build may have (protocol.md 3.8): those that are allowed to all, and those that its `device` entitlements name."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from chantier.errors import NotFoundError, PolicyError, UsageError
from chantier.pb import ops_pb2 as pb
from chantier.values import dataclass

if TYPE_CHECKING:
    from chantier.config import CdiConfig
    from chantier.runtime.cdi import Devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """Of `device` (all of them) and `device=NAME[,alias=A]`: names to "" or, by the alias that a step uses, to the name meant."""

    all: bool = False
    names: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, entitlements: Collection[str]) -> Granted:
        """Raises UsageError."""
        every, names = False, []
        for entitlement in sorted(entitlements):
            kind, equals, rest = entitlement.partition("=")
            if kind != "device":
                continue
            if not equals or not rest:
                every = True
                continue
            name, alias = _parsed(rest)
            names.append((alias, name) if alias else (name, ""))
        return cls(all=every, names=tuple(names))


def _parsed(text: str) -> tuple[str, str]:
    name, *more = text.split(",")
    alias = ""
    for field in more:
        key, equals, value = field.partition("=")
        if not equals:
            raise UsageError(f'invalid device config "{field}"')
        if key != "alias":
            raise UsageError(
                f'unknown device config key "{key}"', hint="a device is granted as device=NAME or device=NAME,alias=A"
            )
        alias = value
    return name, alias


def allowed(op: pb.ExecOp, devices: Devices | None, entitlements: Collection[str]) -> list[pb.CDIDevice]:
    """What a step gets of the devices that it asks for.

    Raises PolicyError `device X is requested by the build but not allowed`, NotFoundError for one that it needs and nobody has.
    """
    if devices is None:
        for device in op.cdiDevices:
            if not device.optional:
                raise NotFoundError(
                    f'required device "{device.name}" is not registered', hint="devices are switched off: `disabled` in [cdi]"
                )
        return []
    granted = Granted.of(entitlements)
    if granted.all:
        return list(op.cdiDevices)
    aliases = {alias: name for alias, name in granted.names if name}
    given = [pb.CDIDevice(name=aliases[d.name], optional=d.optional) for d in op.cdiDevices if d.name in aliases]
    found = devices.find([(d.name, d.optional) for d in op.cdiDevices if d.name not in aliases])
    mine = {device.name for device in devices.find([(name, True) for name, _ in granted.names])}
    refused = [device.name for device in found if device.name not in mine and not devices.auto_allowed(device)]
    if refused:
        what = f"device {refused[0]} is" if len(refused) == 1 else f"devices {', '.join(refused)} are"
        raise PolicyError(
            f"failed to load LLB: {what} requested by the build but not allowed",
            hint=f"grant it with --allow device={refused[0]}",
        )
    return [*given, *(pb.CDIDevice(name=device.name) for device in found)]


def devices_of(config: CdiConfig) -> Devices | None:
    """None where the config switches devices off."""
    from chantier.runtime.cdi import Devices

    return None if config.disabled else Devices(config.spec_dirs, config.auto_allowed)


__all__ = ["Granted", "allowed", "devices_of"]
