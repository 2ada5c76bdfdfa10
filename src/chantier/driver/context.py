# SPDX-License-Identifier: Apache-2.0
"""Where Docker engines are: docker's contexts, DOCKER_HOST and its TLS settings (builders.md 0.6).

CONFIG/config.json                          currentContext
CONFIG/contexts/meta/SHA256(NAME)/meta.json {"Name", "Endpoints": {"docker": {"Host", "SkipTLSVerify"}}}
CONFIG/contexts/tls/SHA256(NAME)/docker/    ca.pem, cert.pem, key.pem
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.errors import ChantierError, NotFoundError, UsageError
from chantier.values import dataclass
from chantier.wire import ByteStream

from .pipe import Pipe

if TYPE_CHECKING:
    import http.client
    import ssl

DEFAULT_HOST = "unix:///var/run/docker.sock"
DEFAULT = "default"
_READ = 1 << 18


class SocketStream:
    """A socket as a wire.ByteStream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        try:
            return await self._reader.read(_READ)
        except ConnectionError:
            return b""

    async def write(self, data: bytes, /) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close_write(self) -> None:
        if self._writer.can_write_eof():
            self._writer.write_eof()

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):  # which an ssl.SSLError is
            await self._writer.wait_closed()


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One engine: its address, and what TLS to speak with it (None for none)."""

    address: str
    certificates: Path | None = None  # a directory with ca.pem, cert.pem, key.pem
    verify: bool = True

    @property
    def authority(self) -> str:
        scheme, _, rest = self.address.partition("://")
        return rest.rstrip("/") if scheme == "tcp" else "docker"

    async def connect(self) -> ByteStream:
        """A connection for HTTP/1.1. Raises OSError, ChantierError."""
        scheme, _, rest = self.address.partition("://")
        if scheme == "unix":
            return SocketStream(*await asyncio.open_unix_connection(rest))
        if scheme == "tcp":
            name, port = self.port()
            found = await asyncio.open_connection(name, port, ssl=self.tls(), server_hostname=name if self.secure else None)
            return SocketStream(*found)
        if scheme == "ssh":
            return await Pipe.start(ssh_command(self.address))
        raise UsageError(f"unsupported protocol scheme {scheme!r} in the Docker host {self.address}")

    def http(self, timeout: float | None) -> http.client.HTTPConnection:
        """The same for blocking code. Raises UsageError for an address that cannot be spoken to."""
        from .docker_http import connection  # half a hundred modules, which a command that asks no engine can do without

        return connection(self, timeout)

    @property
    def secure(self) -> bool:
        return self.certificates is not None or not self.verify

    def port(self) -> tuple[str, int]:
        name, _, port = self.address.partition("://")[2].rstrip("/").rpartition(":")
        if not name or not port.isdigit():
            raise UsageError(f"invalid Docker host {self.address!r}: expected tcp://HOST:PORT")
        return name.strip("[]"), int(port)

    def tls(self) -> ssl.SSLContext | None:
        if not self.secure:
            return None
        import ssl

        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        folder = self.certificates
        if folder is not None:
            try:
                if (folder / "ca.pem").exists():
                    context.load_verify_locations(folder / "ca.pem")
                if (folder / "cert.pem").exists():
                    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
            except (OSError, ssl.SSLError) as err:
                raise ChantierError(f"failed to load the certificates of {self.address} from {folder}: {err}") from err
        return context


class Contexts:
    """Docker's contexts as they are on disk; nothing is cached."""

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        self._env = env
        self.directory = Path(env["DOCKER_CONFIG"]) if env.get("DOCKER_CONFIG") else Path(env.get("HOME") or "/") / ".docker"

    def config(self) -> dict[str, Any]:
        """docker's config.json; {} if there is none. Raises ChantierError for one that is no JSON."""
        path = self.directory / "config.json"
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as err:
            raise ChantierError(f"failed to read {path}: {err}") from err
        return found if isinstance(found, dict) else {}

    def current(self) -> str:
        if self._env.get("DOCKER_HOST"):
            return DEFAULT
        return self._env.get("DOCKER_CONTEXT") or str(self.config().get("currentContext") or DEFAULT)

    def key(self) -> str:
        """The current endpoint: what a selection of a builder is kept for."""
        name = self.current()
        return name if name != DEFAULT else self.host(DEFAULT).address

    def names(self) -> list[str]:
        """All contexts, the default one too, sorted."""
        found = [DEFAULT]
        for path in (self.directory / "contexts/meta").glob("*/meta.json"):
            try:
                name = json.loads(path.read_text()).get("Name")
            except (OSError, ValueError, AttributeError):
                continue  # another's file, of no use to us
            if isinstance(name, str):
                found.append(name)
        return sorted(found)

    def exists(self, name: str) -> bool:
        return name == DEFAULT or self._meta(name).exists()

    def host(self, name: str) -> Host:
        """Raises NotFoundError."""
        if name == DEFAULT:
            return self._default()
        path = self._meta(name)
        try:
            endpoint = json.loads(path.read_text())["Endpoints"]["docker"]
        except FileNotFoundError as err:
            raise NotFoundError(f'context "{name}" does not exist') from err
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise ChantierError(f"failed to read the docker context {name} from {path}: {err}") from err
        folder = self.directory / "contexts/tls" / _id(name) / "docker"
        return Host(
            address=str(endpoint.get("Host") or DEFAULT_HOST),
            certificates=folder if folder.is_dir() else None,
            verify=not endpoint.get("SkipTLSVerify", False),
        )

    def resolve(self, endpoint: str) -> Host:
        """A context's name, or an address of an engine."""
        if "://" in endpoint:
            default = self._default()
            return default if default.address == endpoint else Host(address=endpoint)
        return self.host(endpoint)

    def _default(self) -> Host:
        address = self._env.get("DOCKER_HOST") or DEFAULT_HOST
        if "://" not in address:
            address = f"tcp://{address}"
        if not self._env.get("DOCKER_TLS_VERIFY") and not self._env.get("DOCKER_TLS"):
            return Host(address=address)
        folder = Path(self._env.get("DOCKER_CERT_PATH") or self.directory)
        return Host(address=address, certificates=folder, verify=bool(self._env.get("DOCKER_TLS_VERIFY")))

    def _meta(self, name: str) -> Path:
        return self.directory / "contexts/meta" / _id(name) / "meta.json"


def _id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def ssh_command(address: str) -> list[str]:
    from urllib.parse import urlsplit

    url = urlsplit(address)
    argv = ["ssh", *(["-l", url.username] if url.username else []), *(["-p", str(url.port)] if url.port else [])]
    return [*argv, "--", url.hostname or "", "docker", "system", "dial-stdio"]


__all__ = ["DEFAULT", "DEFAULT_HOST", "Contexts", "Host", "SocketStream", "ssh_command"]
