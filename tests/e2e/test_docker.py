# SPDX-License-Identifier: Apache-2.0
"""Images that we load are images to a real Docker engine."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ..conftest import Command, RealRegistry, run_ok, start_docker
from ..daemon.conftest import _starter, _stop_all
from .peers import start_engine

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.docker, pytest.mark.slow]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a dockerd of our own."""
    with start_docker(tmp_path_factory.mktemp("docker")) as address:
        yield address


def test_load_and_run(chantier: Command, docker: str) -> None:
    text = 'FROM alpine\nRUN echo built > /f\nENV WHO=docker\nCMD cat /f; echo "hello $WHO"\n'
    done = chantier.build(text, "-t", "loaded:1", "--load", env={"DOCKER_HOST": docker}).ok()
    assert done.out.startswith("sha256:")
    out = run_ok("docker", "-H", docker, "run", "--rm", "--network=none", "loaded:1")
    assert out == "built\nhello docker\n"
    inspected = run_ok("docker", "-H", docker, "image", "inspect", "--format", "{{.Config.Env}} {{.Os}}", "loaded:1")
    assert "WHO=docker" in inspected


def loads(docker: str) -> int:
    """How often this engine was sent an archive."""
    until = f"--until={time.time():.6f}"  # an age such as 0s is cut down to whole seconds
    seen = run_ok("docker", "-H", docker, "events", "--since=2020-01-01", until, "--filter=type=image", "--filter=event=load")
    return len(seen.splitlines())


def test_an_image_that_the_engine_has_is_not_sent_again(chantier: Command, docker: str) -> None:
    text = "FROM alpine\nRUN echo known > /f\n"
    env = {"DOCKER_HOST": docker}
    first = chantier.build(text, "-t", "known:1", "--load", env=env).ok()
    sent = loads(docker)
    assert sent > 0

    def id_of(name: str) -> str:
        return run_ok("docker", "-H", docker, "image", "inspect", "--format", "{{.Id}}", name).strip()

    id = id_of("known:1")
    again = chantier.build(text, "-t", "known:1", "-t", "other/known:2", "--load", env=env).ok()
    assert again.out == first.out
    assert loads(docker) == sent
    assert id_of("other/known:2") == id

    chantier.build(text + "RUN echo more > /g\n", "-t", "known:1", "--load", env=env).ok()
    assert loads(docker) == sent + 1
    assert id_of("known:1") != id
    chantier.build(text, "-t", "known:1", "--load", env=env).ok()  # the name goes back to the image that is still there
    assert loads(docker) == sent + 1
    assert id_of("known:1") == id

    run_ok("docker", "-H", docker, "rmi", "-f", id)
    chantier.build(text, "-t", "known:1", "--load", env=env).ok()  # it is gone: all of it is sent
    assert run_ok("docker", "-H", docker, "run", "--rm", "--network=none", "known:1", "cat", "/f") == "known\n"


def test_load_without_an_engine_names_what_was_tried(chantier: Command, tmp_path: Path) -> None:
    done = chantier.build("FROM alpine\n", "-t", "x:1", "--load", env={"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    assert done.code == 1
    assert "no engine to load the image into" in done.err
    assert f"{tmp_path}/none.sock" in done.err
    assert "-o type=oci" in done.err


class Counting:
    """A socket before the engine's own: counts what clients send, and does something when an archive begins."""

    def __init__(self, where: Path, engine: str) -> None:
        self.address = f"unix://{where}"
        self.sent = 0
        self.before_load: Callable[[], object] = lambda: None
        self._engine = engine.removeprefix("unix://")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(where))
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            engine = socket.socket(socket.AF_UNIX)
            engine.connect(self._engine)
            threading.Thread(target=self._copy, args=(client, engine, True), daemon=True).start()
            threading.Thread(target=self._copy, args=(engine, client, False), daemon=True).start()

    def _copy(self, source: socket.socket, to: socket.socket, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if count:
                    if data.startswith(b"POST /images/load"):
                        self.before_load()
                    self.sent += len(data)
                to.sendall(data)
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.close()


@contextmanager
def engine(kind: str, directory: Path) -> Iterator[str]:
    """The installed one, or Debian 13's, with either of its image stores."""
    if kind == "installed":
        with start_docker(directory) as address:
            yield address
        return
    containerd = {"features": {"containerd-snapshotter": True}, "storage-driver": "overlayfs"}
    with start_engine(directory, containerd if kind == "containerd" else None) as found:
        yield found.address


@pytest.mark.parametrize(
    ("kind", "door"), [("installed", "embedded"), ("installed", "daemon"), ("newer", "embedded"), ("containerd", "embedded")]
)
def test_layers_that_the_engine_has_are_not_sent_again(
    chantier: Command,
    registry: RealRegistry,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    door: str,
) -> None:
    start, started = _starter(tmp_path, registry)
    with ExitStack() as stack:
        stack.callback(_stop_all, started)
        docker = stack.enter_context(engine(kind, tmp_path_factory.mktemp("e")))
        counting = Counting(tmp_path / "docker.sock", docker)
        stack.callback(counting.close)
        flags = ("--builder", start().address) if door == "daemon" else ()
        big = f"FROM alpine\nRUN dd if=/dev/urandom of=/big bs=1M count=12 2>/dev/null && echo {door} > /a && sha256sum /big > /sum\n"
        more = big + f"RUN echo {door} > /b\n"
        name = f"layers-{door}:1"

        def load(text: str) -> int:
            before = counting.sent
            chantier.build(text, *flags, "-t", name, "--load", env={"DOCKER_HOST": counting.address}).ok()
            return counting.sent - before

        def works() -> bool:
            cat = ("run", "--rm", "--network=none", name, "sh", "-c", "sha256sum -c /sum && cat /a /b")
            return run_ok("docker", "-H", docker, *cat) == f"/big: OK\n{door}\n{door}\n"

        assert load(big) > 12_000_000
        sent = load(more)
        assert (sent < 100_000) == (kind != "containerd")  # that store does not tell what it has
        assert works()
        # Other layers from the second one on share nothing, whatever they hold.
        assert load("FROM alpine\nRUN true > /c\n" + big.partition("\n")[2]) > 12_000_000
        # What was there a moment ago may be gone when the archive comes: then all of it is sent.
        run_ok("docker", "-H", docker, "image", "prune", "-af")
        load(big)

        def remove() -> None:
            counting.before_load = lambda: None
            run_ok("docker", "-H", docker, "image", "prune", "-af")

        counting.before_load = remove
        assert load(more) > 12_000_000
        assert works()
