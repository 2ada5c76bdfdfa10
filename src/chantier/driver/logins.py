# SPDX-License-Identifier: Apache-2.0
"""The logins of a build: those that the caller gave, then those of docker's config.json and its credential helpers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chantier.session.types import Credentials


def credentials_of(env: Mapping[str, str], given: Mapping[str, Credentials] | None = None) -> Callable[[str], Credentials | None]:
    """Ask the answer for a registry host (`docker.io` and its other names, `reg.test:5000`); None: no login is known.

    Asking may run a helper, and raises what `AuthFile.credentials` raises.
    """
    from chantier.registry import AuthFile, Login

    known = AuthFile(env, given={h: Login(username=c.username, secret=c.secret) for h, c in (given or {}).items()})

    def credentials(host: str) -> Credentials | None:
        login = known.credentials(host)
        return Credentials(username=login.username, secret=login.secret) if login is not None else None

    return credentials


__all__ = ["credentials_of"]
