# SPDX-License-Identifier: Apache-2.0
"""An image goes into the engine people run containers with: Docker's if its socket answers, else Podman's.

Both take `POST /images/load` of Docker's Engine API with a docker tar as the body, sent as it is made.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
from collections.abc import Mapping

from chantier.errors import ChantierError, UsageError

_CONNECT_S = 5.0


def find_engine(env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """(name, address) of the engine that answers: `unix:///…` or `tcp://…`. Raises UsageError naming all that were tried."""
    tried = []
    for name, address in _candidates(env):
        problem = _ping(address)
        if problem is None:
            return name, address
        tried.append(f"{name} at {address}: {problem}")
    raise UsageError(
        "no engine to load the image into: " + "; ".join(tried),
        hint="start Docker or Podman's socket, or write the image to a file with -o type=oci,dest=image.tar",
    )


def _candidates(env: Mapping[str, str]) -> list[tuple[str, str]]:
    if env.get("DOCKER_HOST"):
        return [("docker", env["DOCKER_HOST"])]
    found = [("docker", "unix:///var/run/docker.sock")]
    runtime = env.get("XDG_RUNTIME_DIR")
    if runtime:
        found.append(("docker", f"unix://{runtime}/docker.sock"))
    if env.get("CONTAINER_HOST"):
        found.append(("podman", env["CONTAINER_HOST"]))
    found.append(("podman", "unix:///run/podman/podman.sock"))
    if runtime:
        found.append(("podman", f"unix://{runtime}/podman/podman.sock"))
    return found


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(address: str, timeout: float | None) -> http.client.HTTPConnection:
    scheme, _, rest = address.partition("://")
    if scheme == "unix":
        return _UnixConnection(rest, timeout)
    if scheme == "tcp":
        host, _, port = rest.rstrip("/").partition(":")
        return http.client.HTTPConnection(host, int(port or 2375), timeout=timeout)
    raise UsageError(f"cannot load into an engine at {address}", hint="unix:// and tcp:// addresses are understood")


def _ping(address: str) -> str | None:
    try:
        connection = _connection(address, _CONNECT_S)
        connection.request("GET", "/_ping")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as err:
        return getattr(err, "strerror", None) or str(err) or type(err).__name__
    return None if status == 200 else f"status {status}"


class EngineSink:
    """A session.FileSink whose bytes are loaded into an engine; `close` waits until the engine says the image is in."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self._connection = _connection(address, None)
        self._started = False
        self.loaded = ""  # what the engine answered: "Loaded image: NAME"

    async def write(self, data: bytes | memoryview) -> None:
        await asyncio.to_thread(self._write, data)

    def _write(self, data: bytes | memoryview) -> None:
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
        self._write(b"")
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
