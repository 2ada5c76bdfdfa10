# SPDX-License-Identifier: Apache-2.0
"""The driver `remote`: a daemon that somebody else runs, reached by an address (builders.md 2.8)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from chantier.errors import ChantierError, UsageError
from chantier.progress import Reporter, step
from chantier.wire import ByteStream

from .dial import NO_CERTIFICATES, Certificates, channel_to, check_address, stream_to
from .group import Node
from .node import INACTIVE, RUNNING, Driver, check_opts

if TYPE_CHECKING:
    from chantier.client.client import Client

_WAIT_S = 20.0
_PROBE_S = 10.0
_OPTS = ("cacert", "cert", "default-load", "key", "servername")


class Remote(Driver):
    KIND = "remote"

    def __init__(self, builder: str, node: Node, *, env: Mapping[str, str] = os.environ) -> None:
        """Raises UsageError for options, flags and files that a daemon of somebody else's cannot have."""
        super().__init__(builder, node, env=env)
        if node.files:
            raise UsageError("setting config file is not supported for remote driver")
        if node.flags:
            raise UsageError("setting buildkit flags is not supported for remote driver")
        check_address(node.endpoint)
        self.certificates = certificates_of(node)

    async def client(self, *, sticky: str = "") -> Client:
        from chantier.client.client import Client

        return Client(channel_to(self.node.endpoint, certificates=self.certificates, env=self.env))

    async def stream(self, *, sticky: str = "") -> ByteStream:
        return await stream_to(self.node.endpoint, certificates=self.certificates, env=self.env)

    async def status(self) -> str:
        async with await self.client() as client:
            try:
                await client.workers(timeout_s=_PROBE_S)
            except ChantierError:
                return INACTIVE  # whatever the reason: upstream calls nobody else's daemon an error
        return RUNNING

    async def boot(self, reporter: Reporter) -> None:
        async with await self.client() as client:
            try:  # the common case shows nothing
                await client.version(timeout_s=1)
            except ChantierError as err:
                if not err.transient and err.grpc_code != 4:  # a deadline: somebody may be starting
                    raise
            else:
                return
            with step(reporter, "[internal] waiting for connection"):
                await client.wait(timeout_s=_WAIT_S)


def certificates_of(node: Node) -> Certificates:
    opts = node.opts
    check_opts(Remote.KIND, opts, _OPTS)
    tls = {name: opts[name] for name in ("cacert", "cert", "key") if name in opts}
    for name, path in tls.items():
        if not os.path.isabs(path):
            raise UsageError(f"non-absolute path '{path}' provided for {name}")
    server_name = opts.get("servername", "")
    if not tls and not server_name:
        return NO_CERTIFICATES
    missing = [] if "cacert" in tls else ["cacert"]
    if ("cert" in tls) != ("key" in tls):
        missing.append("key" if "cert" in tls else "cert")
    if missing:
        raise UsageError(f"tls enabled, but missing keys {', '.join(missing)}")
    return Certificates(
        ca=Path(tls["cacert"]),
        cert=Path(tls["cert"]) if "cert" in tls else None,
        key=Path(tls["key"]) if "key" in tls else None,
        server_name=server_name or urlsplit(node.endpoint).hostname or "",
    )


__all__ = ["Remote", "certificates_of"]
