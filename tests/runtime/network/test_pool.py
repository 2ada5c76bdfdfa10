# SPDX-License-Identifier: Apache-2.0
"""Namespaces that are kept ready, by a provider that only counts; and which mode holds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from chantier.config import OciConfig
from chantier.errors import UnsupportedError
from chantier.runtime import Networks, Same, open_networks
from chantier.runtime.network import mode_of, pool
from chantier.runtime.network.leases import Lease, Leases

from ..conftest import eventually

pytestmark = pytest.mark.root


class Counting:
    """A provider that connects nothing. `gate` holds it up, `broken` makes it fail."""

    kind = "counting"

    def __init__(self) -> None:
        self.attached: list[tuple[str, str]] = []
        self.checked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False
        self.lost = False
        self.closed = 0

    def attach(self, lease: Lease, hostname: str) -> None:
        self.gate.wait(60)
        if self.broken:
            raise UnsupportedError("the counter is broken")
        self.attached.append((lease.id, hostname))

    def check(self, lease: Lease) -> None:
        self.checked.append(lease.id)
        if self.lost:
            raise UnsupportedError("the counter was lost")

    def close(self) -> None:
        self.closed += 1


Work = Callable[[Networks, Counting], Coroutine[Any, Any, None]]


@pytest.fixture
def using(tmp_path: Path) -> Callable[..., Counting]:
    def call(work: Work, size: int = 0) -> Counting:
        provider = Counting()

        async def body() -> None:
            networks = Networks("counting", provider, Leases(tmp_path / "net"), size)
            try:
                async with asyncio.timeout(120):
                    await work(networks, provider)
            finally:
                provider.gate.set()
                await networks.close()

        asyncio.run(body())
        assert provider.closed == 1
        assert not list((tmp_path / "net").iterdir())  # whatever happened, all is given back
        return provider

    return call


def ready(networks: Networks) -> list[str]:
    return [lease.id for lease, _since in networks._ready]


async def until(condition: Callable[[], bool]) -> None:
    assert await asyncio.to_thread(eventually, condition, 20)


def test_without_a_pool_each_is_made(using: Callable[..., Counting]) -> None:
    async def work(networks: Networks, provider: Counting) -> None:
        async with networks.acquire("") as one, networks.acquire("") as two:
            assert one != two
            assert Path(one).stat().st_dev != Path(one).parent.stat().st_dev  # a namespace is mounted there
        await until(lambda: not Path(one).exists() and not Path(two).exists())

    assert len(using(work).attached) == 2


def test_a_pool_is_filled_and_filled_again(using: Callable[..., Counting]) -> None:
    async def work(networks: Networks, provider: Counting) -> None:
        await until(lambda: len(ready(networks)) == 2)
        first = ready(networks)[0]
        provider.gate.clear()  # nothing can be made now: it must have been ready
        async with networks.acquire("") as network:
            assert Path(network).name == first
            provider.gate.set()
            await until(lambda: len(ready(networks)) == 2)
            assert first not in ready(networks)
        await until(lambda: not Path(network).exists())
        assert first not in ready(networks)  # used once

    assert len(using(work, 2).attached) == 3


def test_a_burst_is_trimmed_to_the_size(using: Callable[..., Counting]) -> None:
    async def work(networks: Networks, provider: Counting) -> None:
        async def step() -> None:
            async with networks.acquire(""):
                await asyncio.sleep(0.01)

        await asyncio.gather(*(step() for _ in range(12)))
        await until(lambda: len(ready(networks)) == 2 and not networks._making)
        where = networks._leases._owner
        await until(lambda: sorted(p.name for p in where.iterdir() if p.name != "lock") == sorted(ready(networks)))

    using(work, 2)


def test_a_new_size_holds_at_once(using: Callable[..., Counting]) -> None:
    async def work(networks: Networks, provider: Counting) -> None:
        await until(lambda: len(ready(networks)) == 4)
        networks.resize(1)
        assert len(ready(networks)) == 1
        networks.resize(3)
        await until(lambda: len(ready(networks)) == 3)
        networks.resize(0)
        assert ready(networks) == []

    using(work, 4)


def test_a_name_of_its_own_passes_the_pool_by(using: Callable[..., Counting]) -> None:
    async def work(networks: Networks, provider: Counting) -> None:
        await until(lambda: len(ready(networks)) == 1)
        before = ready(networks)
        async with networks.acquire("web") as network:
            assert (Path(network).name, "web") in provider.attached
            assert ready(networks) == before

    using(work, 1)


def test_an_old_one_is_checked(using: Callable[..., Counting], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CHECK_AFTER_S", 0.0)

    async def work(networks: Networks, provider: Counting) -> None:
        await until(lambda: len(ready(networks)) == 1)
        (good,) = ready(networks)
        async with networks.acquire("") as network:
            assert Path(network).name == good and provider.checked == [good]
        await until(lambda: len(ready(networks)) == 1)
        provider.lost = True
        (stale,) = ready(networks)
        async with networks.acquire("") as network:
            assert Path(network).name != stale
            await until(lambda: not Path(network).with_name(stale).exists())
            provider.lost = False

    using(work, 1)


def test_a_failure_is_the_steps(using: Callable[..., Counting]) -> None:
    async def work(networks: Networks, provider: Counting) -> None:
        provider.broken = True
        with pytest.raises(UnsupportedError, match="the counter is broken"):
            async with networks.acquire(""):
                raise AssertionError("there is no network")
        provider.broken = False
        async with networks.acquire(""):
            """It works again."""

    using(work)


def test_cancelled_while_it_is_made(using: Callable[..., Counting]) -> None:
    async def work(networks: Networks, provider: Counting) -> None:
        async def step() -> None:
            async with networks.acquire(""):
                raise AssertionError("cancelled before")

        provider.gate.clear()
        task = asyncio.create_task(step())
        await until(lambda: len(list(networks._leases._owner.iterdir())) == 2)  # its lock and the namespace
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        provider.gate.set()
        await until(lambda: len(list(networks._leases._owner.iterdir())) == 1)

    using(work)


@pytest.mark.parametrize("mode", ["host", "none"])
def test_modes_with_nothing_to_prepare(mode: str, tmp_path: Path) -> None:
    async def body() -> str:
        networks = open_networks(OciConfig(network_mode=mode), tmp_path / "net")
        assert isinstance(networks, Same)
        async with networks.acquire("") as network:
            return network

    assert asyncio.run(body()) == mode
    assert not (tmp_path / "net").exists()


def test_auto(tmp_path: Path) -> None:
    """The machine's network, unless CNI is configured or the environment asks for a bridge."""
    file = tmp_path / "cni.json"
    config = OciConfig(cni_config_path=str(file))
    assert mode_of(config, {}) == "host"
    file.write_text("{}")
    assert mode_of(config, {}) == mode_of(OciConfig(network_mode="auto", cni_config_path=str(file)), {}) == "cni"
    assert mode_of(config, {"BUILDKIT_NETWORK_BRIDGE_AUTO": "true"}) == "bridge"
    assert mode_of(OciConfig(network_mode="host", cni_config_path=str(file)), {"BUILDKIT_NETWORK_BRIDGE_AUTO": "1"}) == "host"
