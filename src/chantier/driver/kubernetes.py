# SPDX-License-Identifier: Apache-2.0
"""The driver `kubernetes`: daemons in pods, reached through the API server's exec (builders.md 2.9).

The official client (the extra `kubernetes`) makes the calls, in threads; exec is a WebSocket.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from chantier.errors import ChantierError, UnsupportedError, UsageError
from chantier.progress import Reporter, step
from chantier.wire import ByteStream

from .dial import KEEPALIVE
from .group import Node
from .kube_manifest import config_maps, labels_of, name_of, options_of, workload
from .kube_pick import pick
from .node import INACTIVE, RUNNING, STOPPED, Driver, NotRunning

if TYPE_CHECKING:
    from chantier.client.client import Client

_log = logging.getLogger(__name__)
_POLL_S = 0.1
_TRIES = 5
_AHEAD = 64  # messages of a pod that nobody has read yet
_NO_NAMESPACE = "default"


class Kubernetes(Driver):
    KIND = "kubernetes"

    def __init__(self, builder: str, node: Node, *, env: Mapping[str, str] = os.environ) -> None:
        super().__init__(builder, node, env=env)
        self.options = options_of(node)
        self.name = name_of(node)
        self._api: Any = None
        self.namespace = self.options.namespace
        self.pod = ""  # the one that was reached last

    # -- the API server

    def _open(self) -> Any:
        if self._api is None:
            try:
                client: Any = import_module("kubernetes.client")
                config: Any = import_module("kubernetes.config")
            except ImportError as err:
                raise UnsupportedError(
                    "the kubernetes driver needs the Kubernetes client for Python", hint="pip install 'chantier[kubernetes]'"
                ) from err
            file = parse_qs(urlsplit(self.node.endpoint).query).get("kubeconfig", [""])[0] or self.env.get("KUBECONFIG", "")
            try:
                configuration = client.Configuration()
                config.load_kube_config(config_file=file or None, client_configuration=configuration)
                namespace = _namespace(config, file)
            except config.ConfigException as err:
                try:
                    configuration = client.Configuration()
                    config.load_incluster_config(client_configuration=configuration)
                    namespace = _own_namespace()
                except config.ConfigException:
                    raise UsageError(
                        f"kubernetes driver requires kubernetes API access: {err}", hint="is KUBECONFIG right?"
                    ) from err
            configuration.retries = 2
            self._api = client.ApiClient(configuration)
            self.namespace = self.namespace or namespace
        return self._api

    async def _call(self, kind: str, method: str, *args: Any, **options: Any) -> Any:
        return await asyncio.to_thread(self._call_now, kind, method, *args, **options)

    def _call_now(self, kind: str, method: str, *args: Any, **options: Any) -> Any:
        """One call. Raises NotRunning for what is not there, ChantierError."""
        api = self._open()
        from kubernetes import client
        from urllib3 import exceptions

        try:
            return getattr(getattr(client, kind)(api), method)(*args, **options)
        except client.ApiException as err:
            if err.status == 404:
                raise NotRunning(f"the cluster has no such thing: {_message(err)}") from err
            failed = ChantierError(f"the Kubernetes API refused {method}: {_message(err)}")
            failed.detail = str(err.status)
            raise failed from err
        except (exceptions.HTTPError, OSError) as err:
            lost = ChantierError(f"failed to reach the Kubernetes API at {api.configuration.host}: {_why(err)}")
            lost.transient = True
            raise lost from err

    async def close(self) -> None:
        if self._api is not None:
            await asyncio.to_thread(self._api.close)
            self._api = None

    @property
    def _workload(self) -> str:
        return "stateful_set" if self.options.claim else "deployment"

    async def _read(self) -> Any:
        await asyncio.to_thread(self._open)
        return await self._call("AppsV1Api", f"read_namespaced_{self._workload}", self.name, self.namespace)

    # -- the driver

    async def status(self) -> str:
        try:
            found = await self._read()
        except NotRunning:
            return INACTIVE
        return RUNNING if found.status is not None and (found.status.ready_replicas or 0) > 0 else STOPPED

    async def boot(self, reporter: Reporter) -> None:
        with step(reporter, "[internal] booting buildkit") as report:
            try:
                await self._read()
            except NotRunning:
                await self._create()
            count = self.options.replicas
            took = self.options.timeout_s
            limit = f"{took / 60:g} minutes" if took >= 120 else f"{took:g} seconds"
            with report.action(f"waiting for {count} pods to be ready, timeout: {limit}"):
                await self._wait(count, took)

    async def _create(self) -> None:
        for body in config_maps(self.node, self.options):
            await self._put_config_map(body)
        await self._call("AppsV1Api", f"create_namespaced_{self._workload}", self.namespace, workload(self.node, self.options))

    async def _put_config_map(self, body: dict[str, Any]) -> None:
        try:
            await self._call("CoreV1Api", "create_namespaced_config_map", self.namespace, body)
        except ChantierError as err:
            if err.detail != "409":
                raise
            await self._call("CoreV1Api", "replace_namespaced_config_map", body["metadata"]["name"], self.namespace, body)

    async def _wait(self, count: int, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            found = await self._read()
            ready = (found.status.ready_replicas if found.status is not None else 0) or 0
            if ready >= count:
                return
            if loop.time() > end:
                raise ChantierError(
                    f"expected {count} replicas to be ready, got {ready}",
                    hint=f"kubectl -n {self.namespace} describe pods -l app={self.name}",
                )
            await asyncio.sleep(_POLL_S)

    async def pods(self) -> list[Any]:
        """Those that run, by name."""
        await asyncio.to_thread(self._open)
        selector = ",".join(f"{k}={v}" for k, v in labels_of(self.node, self.options).items())
        found = await self._call("CoreV1Api", "list_namespaced_pod", self.namespace, label_selector=selector)
        alive = [p for p in found.items if p.metadata.deletion_timestamp is None and p.status.phase == "Running"]
        return sorted(alive, key=lambda p: str(p.metadata.name))

    async def _choose(self, sticky: str) -> Any:
        pods = await self.pods()
        if not pods:
            raise NotRunning("no running buildkit pods found")
        chosen = pick([p.metadata.name for p in pods], sticky, self.options.loadbalance)
        self.pod = chosen
        return next(p for p in pods if p.metadata.name == chosen)

    async def client(self, *, sticky: str = "") -> Client:
        from chantier.client.client import Client
        from chantier.wire import Channel

        pod = await self._choose(sticky)

        async def connect() -> ByteStream:
            return await self._exec(pod)

        return Client(Channel.over(connect, name=f"pod {pod.metadata.name}", keepalive=KEEPALIVE))

    async def stream(self, *, sticky: str = "") -> ByteStream:
        return await self._exec(await self._choose(sticky))

    async def _exec(self, pod: Any) -> ByteStream:
        delay = 0.5
        name = pod.metadata.name
        for attempt in range(1, _TRIES + 1):
            try:
                return Executed(await asyncio.to_thread(self._exec_now, pod), name)
            except OSError as err:
                if attempt == _TRIES:
                    raise ChantierError(f"failed to connect to pod {name} after {_TRIES} attempts: {_why(err)}") from err
                _log.warning(
                    "Transient connection error to pod %s (attempt %d/%d): %s. Retrying in %gs", name, attempt, _TRIES, err, delay
                )
                await asyncio.sleep(delay)
                delay = min(delay * 2, 10)
        raise AssertionError

    def _exec_now(self, pod: Any) -> Any:
        from kubernetes import client
        from kubernetes.stream import stream

        api = client.CoreV1Api(client.ApiClient(self._open().configuration))  # `stream` changes the ApiClient it is given
        try:
            made = stream(
                api.connect_get_namespaced_pod_exec,
                pod.metadata.name,
                pod.metadata.namespace,
                command=["buildctl", "dial-stdio"],
                container=pod.spec.containers[0].name,
                stdin=True,
                stdout=True,
                stderr=True,
                tty=False,
                _preload_content=False,
                binary=True,
            )
        except client.ApiException as err:
            if err.status == 0 or (err.status or 0) >= 500:
                raise ConnectionError(_message(err)) from err
            raise ChantierError(f"failed to exec in pod {pod.metadata.name}: {_message(err)}") from err
        return made.sock

    async def deliver(self, node: Node, *, reload: bool) -> None:
        """The cluster carries ConfigMaps into pods within about a minute; a daemon of ours sees the change by itself."""
        await asyncio.to_thread(self._open)
        for body in config_maps(node, self.options):
            await self._put_config_map(body)

    async def remove(self, *, keep_state: bool = False) -> None:
        await asyncio.to_thread(self._open)
        with suppress(NotRunning):
            await self._call("AppsV1Api", f"delete_namespaced_{self._workload}", self.name, self.namespace)
        for body in config_maps(self.node, self.options):
            with suppress(NotRunning):
                await self._call("CoreV1Api", "delete_namespaced_config_map", body["metadata"]["name"], self.namespace)

    async def explain(self, err: ChantierError) -> ChantierError:
        """A pod that died during a build is named; `sticky` and `random` choose among those that run, so the next is another."""
        if not self.pod:
            return err
        try:
            running = [str(p.metadata.name) for p in await self.pods()]
        except ChantierError:  # the API server is gone too: what is known of the build is all there is to say
            return err
        if self.pod in running:
            return err
        found = err.reworded(f"pod {self.pod} died during the build: {err}")
        found.hint = (
            f"the next build goes to another pod ({len(running)} running)"
            if running
            else f"no other pod is running: kubectl -n {self.namespace} get pods -l app={self.name}"
        )
        found.transient = True
        return found


class Executed:
    """The WebSocket of an exec: each message is a channel's number and bytes. Implements wire.ByteStream."""

    def __init__(self, connection: Any, pod: str) -> None:
        self._socket = connection
        self._pod = pod
        self._said = b""
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = threading.Semaphore(_AHEAD)
        # The library blocks: a thread of its own reads, which `close` ends.
        self._thread = threading.Thread(target=self._receive, name=f"exec {pod}", daemon=True)
        self._thread.start()

    async def read(self) -> bytes:
        while True:
            data = await self._arrived.get()
            self._room.release()
            if not data:
                if self._said:
                    raise ChantierError(f"pod {self._pod}: {self._said.decode(errors='replace').strip()}")
                return b""
            channel, rest = data[0], data[1:]
            if channel == 1 and rest:
                return bytes(rest)
            if channel == 2:
                self._said = (self._said + rest)[-4096:]
            elif channel == 3 and (problem := _status(rest)):
                self._said = self._said or problem

    def _receive(self) -> None:
        from websocket import WebSocketException

        data = b"-"
        while data:
            self._room.acquire()
            try:
                _, found = self._socket.recv_data()
                data = found if isinstance(found, bytes) else str(found).encode()
            except (WebSocketException, OSError, AttributeError):  # closed, by whichever side
                data = b""
            try:
                self._loop.call_soon_threadsafe(self._arrived.put_nowait, data)
            except RuntimeError:  # the loop has ended
                return

    async def write(self, data: bytes, /) -> None:
        try:
            await asyncio.to_thread(self._socket.send_binary, b"\0" + data)
        except Exception as err:  # the library's own tree of errors, all of which mean that the connection is gone
            raise ConnectionError(f"the connection to pod {self._pod} is gone: {err}") from err

    async def close(self) -> None:
        with suppress(OSError, AttributeError):  # it may be gone already
            self._socket.sock.shutdown(socket.SHUT_RDWR)  # the thread that reads wakes up
        self._room.release(_AHEAD)
        await asyncio.to_thread(self._thread.join, 5)
        self._socket.shutdown()


def _status(data: bytes) -> bytes:
    """What ended the command; nothing for success."""
    with suppress(ValueError):
        status = json.loads(data)
        if status.get("status") != "Success":
            return str(status.get("message", "")).encode()
    return b""


def _namespace(config: Any, file: str) -> str:
    _, active = config.list_kube_config_contexts(config_file=file or None)
    return str(active["context"].get("namespace") or _NO_NAMESPACE)


def _own_namespace() -> str:
    try:
        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
            return file.read().strip()
    except OSError:
        return _NO_NAMESPACE


def _message(err: Any) -> str:
    with suppress(ValueError, TypeError, AttributeError):
        return str(json.loads(err.body)["message"])
    return str(err.reason or err)


def _why(err: BaseException) -> str:
    reason = getattr(err, "reason", err)
    return str(reason or type(err).__name__).lower()


__all__ = ["Executed", "Kubernetes"]
