# SPDX-License-Identifier: Apache-2.0
"""The session of a build in this process."""

from __future__ import annotations

import asyncio
import io
import os
import socketserver
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chantier.errors import ChantierError, NotFoundError, SessionError, UsageError
from chantier.session.local import LocalSession, SecretSource
from chantier.session.types import Credentials, FilesRequest, SentTree


def run(made: Any) -> Any:
    return asyncio.run(made)


async def whole(made: Any) -> bytes:
    stream: AsyncIterator[bytes] = await made
    return b"".join([chunk async for chunk in stream])


def test_directories(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/f").write_text("f")
    with LocalSession(directories={"context": tmp_path / "c"}, files={"dockerfile": {"Dockerfile": b"FROM x"}}) as session:
        assert session.directory("context") == tmp_path / "c"
        held = session.directory("dockerfile")
        assert held is not None
        assert (held / "Dockerfile").read_bytes() == b"FROM x"
        with pytest.raises(NotFoundError, match='no access allowed to dir "other"'):
            session.directory("other")
        (tmp_path / "into").mkdir()
        run(session.receive(FilesRequest(name="context"), tmp_path / "into"))
        assert os.listdir(tmp_path / "into") == ["f"]
    assert not held.exists()
    with LocalSession(files={"d": {"../x": b""}}) as session, pytest.raises(UsageError, match="invalid path"):
        session.directory("d")


def test_shared_key(tmp_path: Path) -> None:
    one, same = LocalSession(directories={"context": tmp_path}), LocalSession(directories={"context": tmp_path})
    assert one.shared_key == same.shared_key != LocalSession(directories={"context": tmp_path / "x"}).shared_key
    assert one.id != same.id
    assert LocalSession().shared_key != LocalSession().shared_key


def test_secrets(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"from file")
    (tmp_path / "big").write_bytes(b"x" * 512_001)
    session = LocalSession(
        secrets={
            "file": SecretSource(file=tmp_path / "s"),
            "env": SecretSource(env="TOKEN"),
            "unset": SecretSource(env="NOT_SET"),
            "value": SecretSource(value=b"\0raw"),
            "big": SecretSource(file=tmp_path / "big"),
            "gone": SecretSource(file=tmp_path / "gone"),
        },
        env={"TOKEN": "from env"},
    )
    assert run(session.secret("file")) == b"from file"
    assert run(session.secret("env")) == b"from env"
    assert run(session.secret("value")) == b"\0raw"
    assert run(session.secret("unset")) is run(session.secret("none")) is None
    with pytest.raises(UsageError, match="invalid secret size 512001 of big"):
        run(session.secret("big"))
    with pytest.raises(SessionError, match="no such file"):
        run(session.secret("gone"))
    assert "raw" not in repr(SecretSource(value=b"raw"))


def test_credentials() -> None:
    session = LocalSession(credentials=lambda host: Credentials(username=host, secret="s"))
    assert run(session.credentials("h")).username == "h"
    assert run(LocalSession().credentials("h")) is None
    assert run(session.token("h", "r", "s", [])) is None


def test_agent(tmp_path: Path) -> None:
    class Echo(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"got " + self.rfile.read(2))

    async def talk() -> bytes:
        session = LocalSession(agents={"default": tmp_path / "agent"})
        assert await session.has_agent("")
        assert not await session.has_agent("other")
        with pytest.raises(NotFoundError, match="unset ssh forward key other"):
            await session.agent("other")
        stream = await session.agent("default")
        await stream.write(b"hi")
        data = await stream.read()
        assert await stream.read() == b""
        await stream.close()
        return data

    with socketserver.UnixStreamServer(str(tmp_path / "agent"), Echo) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        assert run(talk()) == b"got hi"
        server.shutdown()
    with pytest.raises(SessionError, match="failed to connect"):
        run(LocalSession(agents={"default": tmp_path / "gone"}).agent(""))


def test_upload_is_read_once() -> None:
    session = LocalSession(uploads={"id": (io.BytesIO(b" and the rest"), b"head")})
    assert run(whole(session.upload("id"))) == b"head and the rest"
    with pytest.raises(NotFoundError):
        run(whole(session.upload("id")))


def test_blobs_of_a_layout(tmp_path: Path) -> None:
    digest = "sha256:" + "a" * 64
    (tmp_path / "blobs/sha256").mkdir(parents=True)
    (tmp_path / "blobs/sha256" / ("a" * 64)).write_bytes(b"blob")
    session = LocalSession(layouts={"store": tmp_path})
    assert run(whole(session.blob("store", digest))) == run(whole(session.blob("oci:store", digest))) == b"blob"
    for store, wanted in (("other", digest), ("store", "sha256:" + "b" * 64)):
        with pytest.raises(NotFoundError):
            run(whole(session.blob(store, wanted)))
    with pytest.raises(ChantierError):
        run(whole(session.blob("store", "sha256:../../etc/passwd")))


def test_file_outputs(tmp_path: Path) -> None:
    out = io.BytesIO()
    session = LocalSession(outputs=[tmp_path / "new/o.tar", out, None])

    async def write(number: int, *, abort: bool = False) -> None:
        sink = await session.send_file(number, {})
        await sink.write(b"one ")
        await sink.write(memoryview(b"two"))
        await (sink.abort() if abort else sink.close())

    run(write(0, abort=True))
    assert os.listdir(tmp_path / "new") == []
    run(write(0))
    run(write(1))
    assert (tmp_path / "new/o.tar").read_bytes() == out.getvalue() == b"one two"
    assert os.listdir(tmp_path / "new") == ["o.tar"]
    umask = os.umask(0)
    os.umask(umask)
    assert os.stat(tmp_path / "new/o.tar").st_mode & 0o777 == 0o666 & ~umask
    for number in (2, 3, -1):
        with pytest.raises(NotFoundError, match="not found"):
            run(write(number))
    run(LocalSession(outputs=[Path("/dev/null")]).send_file(0, {}))
    with pytest.raises(UsageError, match="is a directory"):
        run(LocalSession(outputs=[tmp_path]).send_file(0, {}))


@pytest.mark.root
def test_directory_outputs(tmp_path: Path) -> None:
    root, target = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    (root / "f").write_text("f")
    os.chown(root / "f", 5, 6)
    os.utime(root / "f", ns=(1, 2_000_000_000))
    session = LocalSession(outputs=[target])
    run(session.send_trees(0, [SentTree(root=root)]))
    assert os.stat(target).st_mode & 0o777 == 0o700
    info = os.stat(target / "f")
    assert (info.st_uid, info.st_gid, info.st_mtime_ns) == (os.getuid(), os.getgid(), 2_000_000_000)
    (target / "other").write_text("o")
    (root / "f").write_text("new")
    run(session.send_trees(0, [SentTree(root=root)]))
    assert sorted(os.listdir(target)) == ["f", "other"]
    assert (target / "f").read_text() == "new"
    with pytest.raises(UsageError, match="refusing to delete"):
        run(session.send_trees(0, [SentTree(root=root)], remove_others=True))
    run(LocalSession(outputs=[target], allow_delete=True).send_trees(0, [SentTree(root=root)], remove_others=True))
    assert os.listdir(target) == ["f"]
