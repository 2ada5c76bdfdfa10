# SPDX-License-Identifier: Apache-2.0
"""Threads for the files of sessions. They wait for nothing but the disk, so a few are enough and none can block another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_pool = ThreadPoolExecutor(8, thread_name_prefix="session")


async def in_thread(work: Callable[..., T], *args: object) -> T:
    """Run `work` in a thread. If the caller is cancelled, it is so only once the work is done: what it uses can be closed then."""
    future = asyncio.get_running_loop().run_in_executor(_pool, work, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        raise


__all__ = ["in_thread"]
