# SPDX-License-Identifier: Apache-2.0
"""The OCI distribution spec as a client: resolve, pull, push.

`Registries` is what an engine has once: connection pools, the limiter, tokens, the hosts of the config. `Registry` is what one
build gets from it: the same, seen with that build's credentials. All calls are synchronous and may be made from any thread;
long ones look at `cancelled()` between chunks and while they wait, and raise CancelledError_.

Promises: bytes are checked against digest and size while they stream; a download goes on where it broke off, from another
host if need be; what is worth trying again is tried again, and errors say by `transient` whether a later try may help;
credentials of one host go to no other, also not across redirects; nothing secret is logged. Refuses: schema 1 manifests,
manifests over 4 MiB, basic credentials over plain HTTP to a token server of a registry that is on HTTPS.

Debug logging goes to the logger `chantier.registry`, with BuildKit's messages; fields stand in `record.fields`.
Each request says `User-Agent: chantier/VERSION`.

A host that cost its time limit is passed over for a while (`breaker`), trust and proxies are one `Network` for all that the
engine does, and `explain` says of a reference where it would come from and why.

Three names to know: `Registries`, `Registry`, `AuthFile` (docker's config.json and credential helpers).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .auth_file import AuthFile, Login
    from .breaker import Breakers, HostState, Memory
    from .client import Registry
    from .explanation import Explanation, explain
    from .hosts import Capability, Host, Peer, hosts_for
    from .limits import Limiter, Limits, Traffic
    from .network import Network
    from .ratelimit import RateLimit, span
    from .retry import RetryPolicy
    from .shared import Registries, Settings, Status
    from .types import BlobWriter, Credentials, Fetched, MemoryWriter, Resolved, Served
    from .web import Web

_HOME = {
    "AuthFile": "auth_file",
    "BlobWriter": "types",
    "Breakers": "breaker",
    "Capability": "hosts",
    "Credentials": "types",
    "Explanation": "explanation",
    "Fetched": "types",
    "Host": "hosts",
    "HostState": "breaker",
    "Limiter": "limits",
    "Limits": "limits",
    "Login": "auth_file",
    "Memory": "breaker",
    "MemoryWriter": "types",
    "Network": "network",
    "Peer": "hosts",
    "RateLimit": "ratelimit",
    "Registries": "shared",
    "Registry": "client",
    "Resolved": "types",
    "RetryPolicy": "retry",
    "Settings": "shared",
    "Served": "types",
    "Status": "shared",
    "Traffic": "limits",
    "Web": "web",
    "explain": "explanation",
    "hosts_for": "hosts",
    "span": "ratelimit",
}


def __getattr__(name: str) -> Any:
    """urllib3 and ssl are loaded only by those who ask for a client (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


__all__ = [
    "AuthFile",
    "BlobWriter",
    "Breakers",
    "Capability",
    "Credentials",
    "Explanation",
    "Fetched",
    "Host",
    "HostState",
    "Limiter",
    "Limits",
    "Login",
    "Memory",
    "MemoryWriter",
    "Network",
    "Peer",
    "RateLimit",
    "Registries",
    "Registry",
    "Resolved",
    "RetryPolicy",
    "Served",
    "Settings",
    "Status",
    "Traffic",
    "Web",
    "explain",
    "hosts_for",
    "span",
]
