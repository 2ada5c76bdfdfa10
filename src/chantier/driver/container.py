# SPDX-License-Identifier: Apache-2.0
"""The driver `docker-container`: a daemon in a container of a Docker engine (builders.md 2.7).

The container is `buildx_buildkit_NODE`, its state a volume of that name with `_state`. It is asked through
`docker exec`: nothing is published. The Docker SDK (the extra `docker`) makes the calls, in threads.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chantier.errors import ChantierError, UnsupportedError
from chantier.progress import Reporter, Step, step
from chantier.wire import ByteStream

from .container_spec import OPTS, PREFIXES, archive, body, checked
from .context import Contexts
from .dial import KEEPALIVE
from .dockerd import Upgraded, upgrade
from .group import Node
from .node import INACTIVE, RUNNING, STOPPED, Driver, NotRunning, check_opts

if TYPE_CHECKING:
    from chantier.client.client import Client

IMAGE = "moby/buildkit:buildx-stable-1"
_TRIES = 15
_DELAY_S = 0.12
_RESTARTS = 3
_LOG_LINES = 30
_TIMEOUT_S = 60


class Container(Driver):
    """A node whose endpoint is a docker context or an engine's address."""

    KIND = "docker-container"

    def __init__(self, builder: str, node: Node, *, env: Mapping[str, str] = os.environ) -> None:
        super().__init__(builder, node, env=env)
        check_opts(self.KIND, node.opts, OPTS, prefixes=PREFIXES)
        checked(node)
        self.name = f"buildx_buildkit_{node.name}"
        self.volume = f"{self.name}_state"
        self.host = Contexts(env).resolve(node.endpoint)
        self._sdk: Any = None

    # -- the engine

    async def _call(self, method: str, *args: Any, **options: Any) -> Any:
        """One call of the SDK. Raises ChantierError; NotRunning for what is not there."""
        return await asyncio.to_thread(self._call_now, method, *args, **options)

    def _call_now(self, method: str, *args: Any, **options: Any) -> Any:
        from docker import errors
        from requests import exceptions

        try:
            return getattr(self._api(), method)(*args, **options)
        except errors.NotFound as err:
            raise NotRunning(f"the Docker engine has no such thing: {err.explanation or err}") from err
        except errors.APIError as err:
            raise ChantierError(f"the Docker engine at {self.host.address} refused: {err.explanation or err}") from err
        except (errors.DockerException, exceptions.RequestException, OSError) as err:
            failed = ChantierError(
                f"failed to reach the Docker engine at {self.host.address}: {_why(err)}", hint="is it running?"
            )
            failed.transient = True
            raise failed from err

    def _api(self) -> Any:
        if self._sdk is None:
            try:
                import docker
            except ImportError as err:
                raise UnsupportedError(
                    "the docker-container driver needs the Docker SDK for Python",
                    hint="pip install 'chantier[docker]', or use a remote builder",
                ) from err
            self._sdk = docker.APIClient(
                base_url=self.host.address, version="auto", timeout=_TIMEOUT_S, tls=_tls(self), use_ssh_client=True
            )
        return self._sdk

    async def close(self) -> None:
        if self._sdk is not None:
            await asyncio.to_thread(self._sdk.close)
            self._sdk = None

    # -- the driver

    async def status(self) -> str:
        try:
            found = await self._call("inspect_container", self.name)
        except NotRunning:
            return INACTIVE
        return RUNNING if found["State"]["Running"] else STOPPED

    async def boot(self, reporter: Reporter) -> None:
        with step(reporter, "[internal] booting buildkit") as report:
            try:
                found = await self._call("inspect_container", self.name)
            except NotRunning:
                await self._create(report)
            else:
                if not found["State"]["Running"]:
                    with report.action(f"starting container {self.name}"):
                        await self._call("start", self.name)
            await self._wait(report)

    async def _create(self, report: Step) -> None:
        image = self.node.opts.get("image") or IMAGE
        missing: ChantierError | None = None
        with report.action(f"pulling image {image}"):
            try:
                await asyncio.to_thread(self._pull, image)
            except ChantierError as err:
                missing = err  # the engine may have it all the same
        try:
            await self._call("inspect_image", image)
        except ChantierError as err:
            if missing is not None:
                failed = missing.reworded(f"failed to pull image {image}, which the Docker engine does not have: {missing}")
                failed.hint = failed.hint or "another image: --driver-opt image=NAME (scripts/builder-image builds one)"
                raise failed from missing
            raise ChantierError(f"failed to inspect pulled image {image}: {err}") from err
        if missing is not None:
            with report.action(f"using local image {image}"):
                pass
        with report.action(f"creating container {self.name}"):
            info = await self._call("info")
            config = body(self.node, image, info, volume=self.volume)
            try:
                await self._call("create_container_from_config", config, self.name)
            except ChantierError as err:
                if "is already in use" not in str(err):  # somebody else boots it too
                    raise self._create_error(err, config) from err
                return
            await self._call("put_archive", self.name, "/etc", archive(self.node, self.env))
            try:
                await self._call("start", self.name)
            except ChantierError as err:
                await self._call("remove_container", self.name, force=True)
                raise self._create_error(err, config) from err

    @staticmethod
    def _create_error(err: ChantierError, config: Mapping[str, Any]) -> ChantierError:
        host = config["HostConfig"]
        if host.get("Privileged"):
            what, hint = "privileged", "without privileged=true a list of capabilities is asked for instead"
        else:
            what = "with the capabilities " + ", ".join(host["CapAdd"])
            hint = "if the engine allows privileged containers only: --driver-opt privileged=true"
        return ChantierError(f"failed to start a container {what}: {err}", hint=hint)

    def _pull(self, image: str) -> None:
        from docker import utils

        repository, tag = utils.parse_repository_tag(image)
        for line in self._call_now(
            "pull", repository, tag=tag or "latest", stream=True, decode=True, auth_config=self._login(image)
        ):
            if "error" in line:
                raise ChantierError(f"failed to pull {image}: {line['error']}")

    def _login(self, image: str) -> dict[str, str]:
        from chantier.registry import AuthFile
        from chantier.spec import Reference

        found = AuthFile(self.env).credentials(Reference.parse(image).domain)
        if found is None:
            return {}
        return {"username": found.username, "password": found.secret} if found.username else {"identitytoken": found.secret}

    async def _wait(self, report: Step) -> None:
        """Until the daemon lists its workers; its log says why if it does not."""
        said: tuple[int, bytes] = (0, b"")
        for attempt in range(1, _TRIES + 1):
            try:
                said = await self._exec(["buildctl", "debug", "workers"])
            except ChantierError as err:  # it has stopped, or has no buildctl
                said = (1, str(err).encode())
                if await self._ended():
                    break
            if said[0] == 0:
                return
            await asyncio.sleep(attempt * _DELAY_S)
        raise await self._boot_error(report, *said)

    async def _ended(self) -> bool:
        """Whether the daemon has ended, and will again if it was restarted."""
        found = await self._call("inspect_container", self.name)
        status = found["State"]["Status"]
        return status in ("exited", "dead") or (status == "restarting" and int(found.get("RestartCount") or 0) >= _RESTARTS)

    async def _boot_error(self, report: Step, code: int, said: bytes) -> ChantierError:
        """In the words of the daemon, if it ended; else in those of `buildctl`."""
        log = await self._call("logs", self.name, stdout=True, stderr=True, tail=_LOG_LINES)
        ended = await self._ended()
        report.log(log if ended else log + b"\n" + said, 2)
        lines = [line for line in (log if ended else log + b"\n" + said).decode(errors="replace").splitlines() if line.strip()]
        why = next((line for line in reversed(lines) if not line.startswith("hint: ")), "it said nothing")
        what = "the daemon ended" if ended else f"buildctl debug workers: exit code {code}"
        return ChantierError(
            f"failed to boot builder {self.name}: {what}: {why}",
            detail="\n".join(lines[-10:]) or None,
            hint=f"docker logs {self.name}",
        )

    async def _exec(self, argv: list[str]) -> tuple[int, bytes]:
        made = await self._call("exec_create", self.name, argv)
        out = await self._call("exec_start", made["Id"])
        found = await self._call("exec_inspect", made["Id"])
        return int(found["ExitCode"] or 0), out

    async def client(self, *, sticky: str = "") -> Client:
        from chantier.client.client import Client
        from chantier.wire import Channel

        await self._running()
        return Client(Channel.over(self._dial, name=f"docker-container://{self.name}", keepalive=KEEPALIVE))

    async def _running(self) -> None:
        if await self.status() != RUNNING:
            raise NotRunning(f"the container {self.name} is not running")

    async def stream(self, *, sticky: str = "") -> ByteStream:
        await self._running()
        return await self._dial()

    async def _dial(self) -> ByteStream:
        made = await self._call("exec_create", self.name, ["buildctl", "dial-stdio"], stdin=True)
        start = json.dumps({"Detach": False, "Tty": False}).encode()
        return Multiplexed(await upgrade(self.host, f"/exec/{made['Id']}/start", protocol="tcp", body=start), self.name)

    async def version(self) -> str:
        code, out = await self._exec(["buildkitd", "--version"])
        words = out.decode(errors="replace").split()
        return words[2] if code == 0 and len(words) == 4 else ""

    async def stop(self) -> None:
        if await self.status() == RUNNING:
            await self._call("stop", self.name)

    async def remove(self, *, keep_state: bool = False) -> None:
        if await self.status() == INACTIVE:
            return
        await self._call("remove_container", self.name, force=True, v=True)
        if not keep_state:
            try:
                await self._call("remove_volume", self.volume)
            except NotRunning:
                return  # somebody removed it

    async def read_file(self, path: str) -> bytes:
        """A file of the container. Raises NotRunning if there is no such file."""
        import io
        import tarfile

        chunks, _ = await self._call("get_archive", self.name, path)
        with tarfile.open(fileobj=io.BytesIO(await asyncio.to_thread(b"".join, chunks))) as tar:
            found = tar.extractfile(tar.next() or tarfile.TarInfo())
            return found.read() if found is not None else b""

    async def deliver(self, node: Node, *, reload: bool) -> None:
        await self._call("put_archive", self.name, "/etc", archive(node, self.env))
        if reload:
            await self._call("kill", self.name, "HUP")


class Multiplexed:
    """The stream of an exec without a terminal: [kind 0 0 0 size] before each piece. Implements wire.ByteStream."""

    def __init__(self, stream: Upgraded, name: str) -> None:
        self._stream = stream
        self._name = name
        self._buffer = b""
        self._said = b""
        self.write = stream.write
        self.close = stream.close

    async def read(self) -> bytes:
        while True:
            head = await self._exactly(8)
            if len(head) < 8:
                if self._said:
                    raise ChantierError(f"{self._name}: {self._said.decode(errors='replace').strip()}")
                return b""
            data = await self._exactly(int.from_bytes(head[4:], "big"))
            if head[0] == 1:
                return data
            self._said = (self._said + data)[-4096:]

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = await self._stream.read()
            if not data:
                break
            self._buffer += data
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


def _tls(driver: Container) -> Any:
    host = driver.host
    if not host.secure:
        return False
    from docker.tls import TLSConfig

    folder = host.certificates
    pair = None
    if folder is not None and (folder / "cert.pem").exists():
        pair = (str(folder / "cert.pem"), str(folder / "key.pem"))
    ca = str(folder / "ca.pem") if folder is not None and (folder / "ca.pem").exists() else None
    return TLSConfig(client_cert=pair, ca_cert=ca, verify=host.verify)


def _why(err: BaseException) -> str:
    """The innermost reason: the SDK and what it stands on wrap several times."""
    while err.__cause__ is not None or err.__context__ is not None:
        err = err.__cause__ or err.__context__  # type: ignore[assignment]
    return (getattr(err, "strerror", None) or str(err) or type(err).__name__).lower()


__all__ = ["IMAGE", "Container", "Multiplexed"]
