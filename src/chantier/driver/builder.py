# SPDX-License-Identifier: Apache-2.0
"""A builder: nodes, and builds spread over them by platform (builders.md 5.14)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from chantier.client import BuildResult, Prepared
from chantier.client.cache_dir import name_caches
from chantier.errors import CancelledError_, ChantierError, SolveError, UnsupportedError, UsageError
from chantier.progress import Reporter, step
from chantier.spec import Platform
from chantier.values import replace

from .group import Group, Node
from .logins import credentials_of
from .node import RUNNING, Driver, Facts, NotRunning
from .offer import offered, open_session
from .outputs import Plan, plan
from .running import Converted, Running, result_of

if TYPE_CHECKING:
    from chantier.client.client import Client
    from chantier.client.solve import Answer

_TRIES = 3


_KINDS = {
    "remote": ("remote", "Remote"),
    "docker": ("docker", "Docker"),
    "docker-container": ("container", "Container"),
    "kubernetes": ("kubernetes", "Kubernetes"),
    "rootless": ("rootless", "Rootless"),
}


def driver_of(kind: str, builder: str, node: Node, *, env: Mapping[str, str]) -> Driver:
    """Raises UsageError for a driver that does not exist, or a node it cannot have."""
    from importlib import import_module

    if kind not in _KINDS:
        raise UsageError(f'failed to find driver "{kind}"', hint="drivers are docker-container, kubernetes and remote")
    module, name = _KINDS[kind]
    made: Driver = getattr(import_module(f"chantier.driver.{module}"), name)(builder, node, env=env)
    return made


class Builder(Running):
    """A Group in use. Its nodes are booted and reached when something is to be built."""

    def __init__(self, group: Group, *, env: Mapping[str, str] = os.environ, implicit: bool = False) -> None:
        """`implicit`: nothing of it is stored."""
        super().__init__()
        self.group = group
        self.implicit = implicit
        self.env = env
        self.heading = f'building with "{group.name}" instance using {group.driver} driver'
        self.title = f"{group.driver}:{group.name}"
        self.without_output = f" with {group.driver} driver"
        self.place = f"{group.name}/{group.nodes[0].name if group.nodes else group.name}"
        self.drivers = [driver_of(group.driver, group.name, node, env=env) for node in group.nodes]
        if not self.drivers:
            raise UsageError(f"builder {group.name} has no nodes", hint="add one with chantier create --append")

    @property
    def default_output(self) -> str:
        if self.env.get("BUILDX_NO_DEFAULT_LOAD", "") in ("1", "t", "T", "true", "True", "TRUE"):
            return ""
        if self.group.driver == "docker":
            return "image"
        return "docker" if all(d.default_load for d in self.drivers) else ""

    async def aclose(self) -> None:
        for driver in self.drivers:
            await driver.close()

    # -- reaching nodes

    async def boot(self, reporter: Reporter, drivers: Sequence[Driver] | None = None) -> None:
        """Start what is not running. Raises the first error."""
        async with asyncio.TaskGroup() as group:
            for driver in self.drivers if drivers is None else drivers:
                group.create_task(self._boot(driver, reporter))

    async def _boot(self, driver: Driver, reporter: Reporter) -> None:
        if driver.KIND in ("docker", "remote") or await driver.status() != RUNNING:
            await driver.boot(reporter)

    async def reach(self, driver: Driver, reporter: Reporter, *, sticky: str = "") -> Client:
        """A client of a node that is booted for it."""
        for attempt in range(_TRIES):
            await self._boot(driver, reporter)
            try:
                return await driver.client(sticky=sticky)
            except NotRunning:
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError

    async def node_for(self, platform: str, reporter: Reporter) -> Driver:
        """The node that builds for a platform; the first for none."""
        if not platform or len(self.drivers) == 1:
            return self.drivers[0]
        pick = _pick(platform, [d.node.platforms or () for d in self.drivers])
        if pick is None:
            pick = _pick(platform, [await self._platforms(d, reporter) for d in self.drivers], loose=True)
        return self.drivers[pick or 0]

    async def facts(self, driver: Driver, *, timeout_s: float = 20.0) -> Facts:
        """What a node says of itself; never raises for one that cannot be asked."""
        try:
            async with asyncio.timeout(timeout_s):
                status = await driver.status()
                if status != RUNNING:
                    return Facts(status=status)
                async with await driver.client() as client:
                    workers = await client.workers()
                    version = await client.version()
                return Facts(status=status, version=version.version if version else await driver.version(), workers=workers)
        except TimeoutError:
            return Facts(error=f"no answer in {timeout_s:g} s")
        except ChantierError as err:
            return Facts(error=str(err))

    # -- building

    async def abuild(self, prepared: Prepared, reporter: Reporter) -> BuildResult:
        shares = await self._shares(prepared, reporter)
        sticky = str(prepared.offer.context.directories.get("context", "")) or prepared.call.attrs.get("context", "")
        if len(shares) == 1:
            ((driver, _),) = shares
            self.place = f"{self.group.name}/{driver.node.name}"
            return await self._build(driver, prepared, reporter, sticky)
        from . import merge

        results: list[BuildResult] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._build(driver, share, reporter, sticky))
                    for driver, share in zip((d for d, _ in shares), merge.split(prepared, shares), strict=True)
                ]
        except* ChantierError as errs:
            raise errs.exceptions[0] from None
        results = [task.result() for task in tasks]
        return await merge.join(prepared, results, reporter, self)

    async def aconvert(self, prepared: Prepared, reporter: Reporter) -> Converted:
        """What a daemon's frontend makes of the build: nothing is run for it. Raises UnsupportedError for an old daemon."""
        platform = prepared.call.attrs.get("platform", "").partition(",")[0]
        driver = await self.node_for(platform, reporter)
        async with await self.reach(driver, reporter) as client:
            answer = await _solve(client, await _with_gateway(driver, prepared), reporter, self.env, convert=True)
        if not answer.definitions:
            raise UnsupportedError(f"{self.group.name} does not tell the graph of a build", hint="leave `builder` out")
        return Converted(definitions=answer.definitions, metadata=answer.metadata)

    async def _shares(self, prepared: Prepared, reporter: Reporter) -> list[tuple[Driver, list[str]]]:
        """Which node builds which platforms; one node without any for what the Dockerfile says."""
        wanted = [p for p in prepared.call.attrs.get("platform", "").split(",") if p]
        if len(self.drivers) == 1 or not wanted:
            return [(self.drivers[0], wanted)]
        fixed = [driver.node.platforms or () for driver in self.drivers]
        picks = [_pick(platform, fixed) for platform in wanted]
        if None in picks:
            await self.boot(reporter)
            able = [await self._platforms(driver, reporter) for driver in self.drivers]
            picks = [pick if pick is not None else _pick(p, able, loose=True) for p, pick in zip(wanted, picks, strict=True)]
        shares: dict[int, list[str]] = {}
        for platform, pick in zip(wanted, picks, strict=True):
            shares.setdefault(pick or 0, []).append(platform)  # a platform nobody has runs on the first node
        return [(self.drivers[index], platforms) for index, platforms in shares.items()]

    async def _platforms(self, driver: Driver, reporter: Reporter) -> tuple[Platform, ...]:
        async with await self.reach(driver, reporter) as client:
            workers = await client.workers()
        return tuple(p for w in workers for p in w.platforms)

    async def _build(self, driver: Driver, prepared: Prepared, reporter: Reporter, sticky: str) -> BuildResult:
        try:
            return await self._build_on(driver, prepared, reporter, sticky)
        except CancelledError_:
            raise
        except ChantierError as err:
            better = await driver.explain(err)
            if better is err:
                raise
            raise better from err

    async def _build_on(self, driver: Driver, prepared: Prepared, reporter: Reporter, sticky: str) -> BuildResult:
        async with await self.reach(driver, reporter, sticky=sticky) as client:
            planned = await self._plan(driver, prepared)
            self._remember(driver, planned.prepared)
            result = await build_on(client, planned.prepared, reporter, self.env)
            if prepared.provenance and not prepared.call.internal:
                result = await _with_provenance(client, result, reporter)
        if planned.push:
            result = await self._push(driver, planned, result, reporter)
        return result

    async def _plan(self, driver: Driver, prepared: Prepared) -> Plan:
        from .load import find_engine, takes_oci

        prepared = await _with_gateway(driver, prepared)
        loads = [o for o in prepared.offer.outputs if o.load]
        modern = False
        if loads and driver.KIND != "docker":
            _, host = await asyncio.to_thread(find_engine, self.env, context=loads[0].attrs.get("context", ""))
            modern = await asyncio.to_thread(takes_oci, host)
        return await plan(driver, prepared, engine_takes_oci=modern)

    def _remember(self, driver: Driver, prepared: Prepared) -> None:
        if prepared.call.internal:
            return
        from .store import Store

        store = Store.open(self.env)
        context = prepared.offer.context
        folder = context.directories.get("dockerfile")
        where = str(context.directories.get("context") or context.attrs.get("context") or "-")
        dockerfile = str(folder / context.attrs.get("filename", "Dockerfile")) if folder else context.attrs.get("filename", "")
        try:
            store.remember_build(self.group.name, driver.node.name, prepared.call.ref, context=where, dockerfile=dockerfile)
            store.touch(self.group.name)
        except OSError:
            return  # a home that cannot be written is no reason not to build

    async def _push(self, driver: Driver, planned: Plan, result: BuildResult, reporter: Reporter) -> BuildResult:
        from .docker import Docker
        from .push import push

        assert isinstance(driver, Docker)
        logins = credentials_of(self.env, planned.prepared.offer.logins)
        response = dict(result.response)
        for name in planned.push:
            digest = await asyncio.to_thread(push, driver.host, name, reporter, logins)
            if digest:
                response["containerimage.digest"] = digest
        return replace(result, digest=response.get("containerimage.digest", ""), response=response)


async def _with_gateway(driver: Driver, prepared: Prepared) -> Prepared:
    hosts = prepared.call.attrs.get("add-hosts", "")
    if "host-gateway" not in hosts:
        return prepared
    address = await driver.gateway() if hasattr(driver, "gateway") else None
    if address is None:
        raise UsageError(
            "unable to derive the IP value for host-gateway"
            + ("" if driver.KIND == "docker" else f": host-gateway is not supported by the {driver.KIND} driver")
        )
    pairs = [f"{name}={address if ip == 'host-gateway' else ip}" for name, _, ip in (h.partition("=") for h in hosts.split(","))]
    call = replace(prepared.call, attrs={**prepared.call.attrs, "add-hosts": ",".join(pairs)})
    return replace(prepared, call=call)


def _pick(platform: str, nodes: Sequence[Sequence[Platform]], *, loose: bool = False) -> int | None:
    """The node that has the platform; `loose` takes one that can run it too."""
    wanted = Platform.parse(platform)
    for index, platforms in enumerate(nodes):
        if any(p.matches(wanted) for p in platforms):
            return index
    if loose:
        for index, platforms in enumerate(nodes):
            if any(wanted.normalise() in p.candidates() for p in platforms):
                return index
    return None


async def _with_provenance(client: Client, result: BuildResult, reporter: Reporter) -> BuildResult:
    from chantier.client.provenance import fetch_provenance

    with step(reporter, "resolving provenance for metadata file"):
        return replace(result, provenance=await fetch_provenance(client.channel, result.ref))


async def build_on(client: Client, prepared: Prepared, reporter: Reporter, env: Mapping[str, str]) -> BuildResult:
    """One build on one daemon. Raises SolveError."""
    answer = await _solve(client, prepared, reporter, env)
    await asyncio.to_thread(name_caches, prepared, answer.response)
    return result_of(prepared.call.ref, dict(answer.response), dict(answer.metadata))


async def _solve(
    client: Client, prepared: Prepared, reporter: Reporter, env: Mapping[str, str], *, convert: bool = False
) -> Answer:
    with ExitStack() as stack:
        session = await asyncio.to_thread(open_session, prepared.offer, env, stack)
        offer = offered(prepared.offer, session)
        try:
            return await client.solve(prepared.call, offer, reporter, convert=convert, on_failure=prepared.on_failure)
        except CancelledError_:
            raise
        except ChantierError as err:
            raise SolveError(f"failed to solve: {err}", err) from err


__all__ = ["Builder", "build_on", "driver_of"]
