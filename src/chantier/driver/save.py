# SPDX-License-Identifier: Apache-2.0
"""An image of the engine people run containers with, as an archive: `GET /images/NAME/get` of Docker's Engine API."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import quote

from chantier.errors import ChantierError, NotFoundError, UsageError

from .load import find_engine

if TYPE_CHECKING:
    import http.client

    from chantier.client.archives import Save


def saving(env: Mapping[str, str] = os.environ) -> Save:
    """For `client.prepare`: looks for an engine when an image is asked for, not before."""
    return partial(saved_image, env)


@contextmanager
def saved_image(env: Mapping[str, str], image: str) -> Iterator[BinaryIO]:
    """The image as `docker save` writes it, while the block runs. Raises NotFoundError, UsageError, ChantierError."""
    try:
        name, host = find_engine(env)
    except UsageError as err:
        raise UsageError(
            err.brief.replace("load the image into", f"take {image} from"), hint="start Docker or Podman's socket"
        ) from err
    import http.client

    connection = host.http(None)
    try:
        try:
            connection.request("GET", f"/images/{quote(image, safe='/:@')}/get")
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as err:
            raise ChantierError(f"failed to take {image} from {name}: {err}") from err
        if response.status != 200:
            raise _refused(image, name, response)
        yield cast("BinaryIO", response)
    finally:
        connection.close()


def _refused(image: str, name: str, response: http.client.HTTPResponse) -> ChantierError:
    import http.client

    try:
        said = str(json.loads(response.read(64 << 10)).get("message", ""))
    except (ValueError, AttributeError, OSError, http.client.HTTPException):
        said = f"status {response.status}"
    if response.status == 404:
        return NotFoundError(f"no image {image} in {name}: {said}", hint=f"{name} images lists what there is")
    return ChantierError(f"failed to take {image} from {name}: {said}")


__all__ = ["saved_image", "saving"]
