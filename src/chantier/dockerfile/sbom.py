# SPDX-License-Identifier: Apache-2.0
"""An SBOM of a result: an image that scans it, run as a step whose files are a bundle of statements (protocol.md 8.4)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

from chantier.errors import UsageError
from chantier.llb import from_definition, image
from chantier.llb.run import Mount
from chantier.pb import ops_pb2 as pb
from chantier.spec import Platform
from chantier.values import dataclass

from .attests import Sbom
from .bridge import Attestation, CacheImport, Resolver, SolvedRef

SPDX = "https://spdx.dev/Document"
_CORE = "sbom"
_SOURCE = f"/run/src/core/{_CORE}"
_EXTRAS = "/run/src/extras"
_OUT = "/run/out/"


class Solver(Resolver, Protocol):
    async def solve(
        self, definition: pb.Definition, *, evaluate: bool = False, cache_imports: Sequence[CacheImport] = ()
    ) -> SolvedRef:
        """As Bridge.solve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """A scanner whose image is known. Its steps run on `platform`, whatever the results are for."""

    ref: str
    platform: Platform
    args: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str

    async def scan(
        self,
        bridge: Solver,
        id: str,
        core: pb.Definition,
        extras: Mapping[str, pb.Definition],
        *,
        ignore_cache: bool = False,
    ) -> Attestation:
        """The bundle that a scan of these trees will be; `id` is the platform of the result, `core` the result itself."""
        env = {**self.env, "BUILDKIT_SCAN_DESTINATION": _OUT, "BUILDKIT_SCAN_SOURCE": _SOURCE}
        if extras:
            env["BUILDKIT_SCAN_SOURCE_EXTRAS"] = _EXTRAS
        mounts = [
            Mount(target="/tmp", tmpfs=True),
            Mount(target=_SOURCE, source=from_definition(core), readonly=True),
            *(
                Mount(target=f"{_EXTRAS}/{_CORE}-{name}", source=from_definition(extras[name]), readonly=True)
                for name in sorted(extras)
            ),
            Mount(target=_OUT),
        ]
        ran = image(self.ref, platform=self.platform).run(
            self.args,
            mounts=mounts,
            env=env,
            cwd=self.cwd or None,
            name=f"[{id}] generating sbom using {self.ref}",
            ignore_cache=ignore_cache,
        )
        definition = ran.mount(_OUT).marshal(self.platform, caps=bridge.caps)
        return Attestation(
            kind="bundle",
            ref=await bridge.solve(definition),
            predicate_type=SPDX,
            metadata={"reason": b"sbom", "sbom-core": _CORE.encode()},
        )


async def scanner_of(bridge: Solver, sbom: Sbom, platform: Platform, mode: str) -> Scanner:
    """Raises UsageError for an image that runs nothing by itself, and what the resolver raises."""
    found = await bridge.resolve_image(sbom.generator, platform=platform, mode=mode)
    config = json.loads(found.config).get("config") or {}
    args = (*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ()))
    if not args:
        raise UsageError(f"scanner {sbom.generator} does not have cmd", hint="name another with --sbom=generator=IMAGE")
    pairs = (str(item).partition("=") for item in config.get("Env") or ())
    env = {name: value for name, _, value in pairs} | {f"BUILDKIT_SCAN_{key}": value for key, value in sbom.parameters.items()}
    return Scanner(ref=found.ref, platform=platform, args=args, env=env, cwd=str(config.get("WorkingDir") or ""))


__all__ = ["SPDX", "Scanner", "scanner_of"]
