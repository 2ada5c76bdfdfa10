# SPDX-License-Identifier: Apache-2.0
"""An image goes into the engine people run containers with: Docker's if its socket answers, else Podman's.

Both take `POST /images/load` of Docker's Engine API with a docker tar as the body, sent as it is made.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence

from chantier.errors import ChantierError, UsageError

from .context import DEFAULT, DEFAULT_HOST, Contexts, Host

_CONNECT_S = 5.0


def find_engine(env: Mapping[str, str] = os.environ, *, context: str = "") -> tuple[str, Host]:
    """Name and place of the engine that answers; `context` names a docker context. Raises UsageError naming all that were tried."""
    tried = []
    for name, address in [("docker", context)] if context else _candidates(env):
        host = _host(name, address, env)
        problem = _ping(host)
        if problem is None:
            return name, host
        tried.append(f"{name} at {host.address}: {problem}")
    raise UsageError(
        "no engine to load the image into: " + "; ".join(tried),
        hint="start Docker or Podman's socket, or write the image to a file with -o type=oci,dest=image.tar",
    )


def _candidates(env: Mapping[str, str]) -> list[tuple[str, str]]:
    if env.get("DOCKER_HOST"):
        return [("docker", DEFAULT)]
    current = Contexts(env).current()
    if current != DEFAULT:
        return [("docker", current)]
    found = [("docker", DEFAULT_HOST)]
    runtime = env.get("XDG_RUNTIME_DIR")
    if runtime:
        found.append(("docker", f"unix://{runtime}/docker.sock"))
    if env.get("CONTAINER_HOST"):
        found.append(("podman", env["CONTAINER_HOST"]))
    found.append(("podman", "unix:///run/podman/podman.sock"))
    if runtime:
        found.append(("podman", f"unix://{runtime}/podman/podman.sock"))
    return found


def _host(name: str, address: str, env: Mapping[str, str]) -> Host:
    """A docker address of the environment comes with the certificates of the environment."""
    return Contexts(env).resolve(address) if name == "docker" else Host(address=address)


def _ping(host: Host) -> str | None:
    import http.client

    try:
        connection = host.http(_CONNECT_S)
        connection.request("GET", "/_ping")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as err:
        return getattr(err, "strerror", None) or str(err) or type(err).__name__
    return None if status == 200 else f"status {status}"


class EngineSink:
    """A session.KnowingSink whose bytes are loaded into an engine; `close` waits until the engine says the image is in.

    An image that the engine has, by the digests of the metadata, is not loaded again: it gets its names, bytes are dropped.
    Layers that it has from other images need not be in the archive.
    """

    def __init__(self, name: str, host: Host, metadata: Mapping[str, str]) -> None:
        """`metadata` is what the exporter says of the image: containerimage.digest, containerimage.config.digest, image.name."""
        self.name = name
        self._metadata = metadata
        self._known: bool | None = None
        self._connection = host.http(None)
        self._started = False
        self.loaded = ""  # what the engine answered: "Loaded image: NAME"

    async def write(self, data: bytes | memoryview) -> None:
        await asyncio.to_thread(self._write, data)

    async def has_it(self) -> bool:
        return await asyncio.to_thread(self._has_it)

    async def has_layers(self, diff_ids: Sequence[str]) -> int:
        from .loaded import layers_there

        return await asyncio.to_thread(layers_there, self._connection, self._metadata, diff_ids)

    def _has_it(self) -> bool:
        if self._known is None:
            from .loaded import named

            self._known = named(self._connection, self._metadata)
        return self._known

    def _write(self, data: bytes | memoryview) -> None:
        if not self._started and self._has_it():
            return
        try:
            if not self._started:
                self._started = True
                self._connection.putrequest("POST", "/images/load?quiet=1")
                self._connection.putheader("Content-Type", "application/x-tar")
                self._connection.putheader("Transfer-Encoding", "chunked")
                self._connection.endheaders()
            if data:
                self._connection.send(b"%x\r\n" % len(data))
                self._connection.send(data)
                self._connection.send(b"\r\n")
        except OSError as err:
            raise ChantierError(f"failed to load the image into {self.name}: {err}") from err

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        import http.client

        self._write(b"")
        if not self._started:
            self._connection.close()
            self.loaded = f"Loaded image: {self._metadata.get('image.name', '')}"
            return
        try:
            self._connection.send(b"0\r\n\r\n")
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as err:
            raise ChantierError(f"failed to load the image into {self.name}: {err}") from err
        finally:
            self._connection.close()
        for line in body.splitlines():
            try:
                answer = json.loads(line)
            except ValueError:
                continue
            if "error" in answer or response.status >= 400:
                raise ChantierError(
                    f"failed to load the image into {self.name}: {answer.get('error') or answer.get('message') or answer}"
                )
            self.loaded = str(answer.get("stream", self.loaded)).strip()
        if response.status >= 400:
            raise ChantierError(f"failed to load the image into {self.name}: status {response.status}")

    async def abort(self) -> None:
        self._connection.close()


def takes_oci(host: Host) -> bool:
    """Whether the engine keeps images as they are (the containerd image store): it then loads OCI archives and indexes."""
    import http.client

    try:
        connection = host.http(_CONNECT_S)
        connection.request("GET", "/info")
        info = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return False  # an old form always works
    return ["driver-type", "io.containerd.snapshotter.v1"] in (info.get("DriverStatus") or [])
