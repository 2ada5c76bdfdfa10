# SPDX-License-Identifier: Apache-2.0
"""What of an image an engine has already, and giving it its names: Docker's Engine API, ImageList, ImageInspect and ImageTag."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import quote, urlencode

from chantier.spec import Reference

_LOOKED_AT = 100
"""Images of the engine that are asked about, the newest: each costs a call."""


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


def layers_there(connection: HTTPConnection, metadata: Mapping[str, str], diff_ids: Sequence[str]) -> int:
    """How many layers, from the first, some image of the engine begins with. 0 if the engine must be sent all of them.

    Docker's own image store looks for a layer, by the diff IDs up to it, before it reads its file from the archive. The
    containerd image store keeps archives as they come; what blobs it has it does not tell.
    """
    try:
        names = [name for name in metadata.get("image.name", "").split(",") if name]
        connection.request("GET", "/images/json")
        response = connection.getresponse()
        images = json.loads(response.read())
        if response.getheader("Libpod-API-Version"):
            return 0  # Podman: it wants every layer that an archive names
        ids = [str(image.get("Id", "")) for image in images if isinstance(image, dict)] if isinstance(images, list) else []
        most = 0
        for name in [*names, *ids[:_LOOKED_AT]]:
            status, image = _ask(connection, "GET", f"/images/{quote(name, safe='/:@')}/json")
            if status != 200 or not isinstance(image, dict):
                continue
            if not (image.get("GraphDriver") or {}).get("Data"):
                return 0  # no such layers: another store, or a driver that is not known to have them
            layers = (image.get("RootFS") or {}).get("Layers") or []
            same = next(
                (n for n, (a, b) in enumerate(zip(layers, diff_ids, strict=False)) if a != b), min(len(layers), len(diff_ids))
            )
            most = max(most, same)
            if most == len(diff_ids):
                break
        return most
    except (OSError, HTTPException, ValueError, AttributeError, TypeError):
        connection.close()
        return 0


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


__all__ = ["layers_there", "named"]
