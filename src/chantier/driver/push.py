# SPDX-License-Identifier: Apache-2.0
"""A Docker engine pushes an image that it has (Docker Engine API, `POST /images/NAME/push`)."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Callable
from urllib.parse import quote

from chantier.errors import ChantierError
from chantier.progress import Reporter, Step, step
from chantier.session.types import Credentials
from chantier.spec import Reference

from .context import Host


def push(host: Host, name: str, reporter: Reporter, credentials: Callable[[str], Credentials | None]) -> str:
    """Blocks. The digest that the registry gave it, "" if the engine does not say. Raises ChantierError."""
    reference = Reference.parse(name)
    login = _login(credentials(reference.domain), reference.domain)
    with step(reporter, f"pushing {name} with docker") as report:
        connection = host.http(timeout=None)
        try:
            repository = name.rpartition(":")[0] if reference.tag and name.endswith(f":{reference.tag}") else name
            path = f"/images/{quote(repository, safe='/')}/push?tag={quote(reference.tag or 'latest')}"
            connection.request("POST", path, headers={"X-Registry-Auth": login, "Content-Length": "0"})
            return _follow(connection.getresponse(), name, report)
        except (OSError, http.client.HTTPException) as err:
            raise ChantierError(f"failed to push {name} with the Docker engine at {host.address}: {err}") from err
        finally:
            connection.close()


def _login(found: Credentials | None, host: str) -> str:
    if found is None:
        return "e30="
    known = {"username": found.username, "password": found.secret} if found.username else {"identitytoken": found.secret}
    return base64.urlsafe_b64encode(json.dumps({**known, "serveraddress": host}).encode()).decode()


def _follow(response: http.client.HTTPResponse, name: str, report: Step) -> str:
    digest = ""
    started: dict[str, int] = {}
    for line in response:
        try:
            said = json.loads(line)
        except ValueError:
            continue  # no line of the protocol
        if "error" in said or "message" in said:
            raise ChantierError(f"failed to push {name}: {said.get('error') or said['message']}")
        aux = said.get("aux") or {}
        digest = str(aux.get("Digest") or digest)
        id, what = said.get("id"), str(said.get("status") or "")
        if not id or what in ("Preparing", "Waiting"):
            continue
        label = f"pushing layer {id}"
        detail = said.get("progressDetail") or {}
        done = what in ("Pushed", "Layer already exists") or what.startswith("Mounted from")
        started[label] = report.status(
            label,
            current=int(detail.get("current") or 0),
            total=int(detail.get("total") or 0),
            started=started.get(label),
            done=done,
        )
    if response.status >= 400:
        raise ChantierError(f"failed to push {name}: status {response.status}")
    return digest


__all__ = ["push"]
