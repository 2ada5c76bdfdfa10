# SPDX-License-Identifier: Apache-2.0
"""Whether an engine has an image already, and giving it its names: Docker's Engine API, ImageInspect and ImageTag."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import quote, urlencode

from chantier.spec import Reference


def named(connection: HTTPConnection, metadata: Mapping[str, str]) -> bool:
    """True if the engine has the image of `metadata` and it has all its names now. False leaves nothing to undo: load it then.

    An engine's id of an image is the digest of its config, or with the containerd image store that of its manifest or index:
    either way equal ids are equal images.
    """
    ids = [metadata[key] for key in ("containerimage.config.digest", "containerimage.digest") if metadata.get(key)]
    names = [name for name in metadata.get("image.name", "").split(",") if name]
    try:
        found = next((id for id in ids if _id(connection, id) == id), None)
        return found is not None and all(_has_name(connection, found, name) for name in names)
    except (OSError, HTTPException, ValueError):
        connection.close()  # whatever is wrong, loading will say it better
        return False


def _has_name(connection: HTTPConnection, id: str, name: str) -> bool:
    if _id(connection, name) == id:
        return True
    reference = Reference.parse(name)
    query = urlencode({"repo": reference.name, "tag": reference.tag})
    return _ask(connection, "POST", f"/images/{quote(id)}/tag?{query}")[0] == 201


def _id(connection: HTTPConnection, name: str) -> str:
    """ "" if there is no such image."""
    status, answer = _ask(connection, "GET", f"/images/{quote(name, safe='/:@')}/json")
    return str(answer.get("Id", "")) if status == 200 and isinstance(answer, dict) else ""


def _ask(connection: HTTPConnection, method: str, path: str) -> tuple[int, Any]:
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    return response.status, json.loads(body) if body else None


__all__ = ["named"]
