# SPDX-License-Identifier: Apache-2.0
"""One history of all engines on a root: what a daemon built is there without it, and it knows what was built beside it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from chantier.pb import content_pb2
from chantier.pb import control_pb2 as pb
from chantier.wire import Stub

from ..conftest import Command, RealRegistry
from ..daemon.conftest import Chantierd, _starter, _stop_all

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.slow]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, registry: RealRegistry, base: str) -> Iterator[Chantierd]:
    start, started = _starter(tmp_path_factory.mktemp("daemon"), registry)
    yield start("")
    _stop_all(started)


@pytest.fixture
def here(daemon: Chantierd, tmp_path: Path) -> Command:
    """The command on the daemon's root."""
    return Command(root=daemon.root, config=daemon.config, env={"BUILDX_CONFIG": str(tmp_path / "buildx")})


@pytest.fixture
def there(here: Command, daemon: Chantierd, tmp_path: Path) -> Command:
    """The command with the daemon as its builder, and no root of its own."""
    return Command(root=tmp_path / "none", config=daemon.config, env={**here.env, "BUILDX_BUILDER": daemon.address})


def newest(command: Command) -> str:
    return command("history", "ls", "-q").ok().out.split()[0]


@pytest.mark.parametrize("engine", ["daemon", "embedded"])
def test_a_trace_says_when_what_happened(here: Command, there: Command, engine: str) -> None:
    who = there if engine == "daemon" else here
    who.build(f"FROM alpine\nRUN echo traced by {engine}\n").ok()
    ref = newest(who)
    for command in (here, there):
        first, *lines = command("history", "trace", ref).ok().out.splitlines()
        assert first.split()[0] == "0.000s"
        assert " build " in first
        assert any(line.endswith(f"RUN echo traced by {engine}") for line in lines)
        kept = command("history", "trace", "--format", "json", ref).ok().out
        assert "sha256:" in kept
        spans = json.loads(command("history", "trace", "--format", "otlp", ref).ok().out)["resourceSpans"][0]["scopeSpans"][0][
            "spans"
        ]
        assert len(spans) == len(lines) + 1
        names = {span["spanId"]: span["name"] for span in spans}
        (ran,) = [span for span in spans if span["name"].endswith(f"RUN echo traced by {engine}")]
        assert names[ran["parentSpanId"]] == spans[0]["name"]
        assert "FROM" in names[ran["links"][0]["spanId"]]
    assert "no record found" in here("history", "trace", "nosuchbuild").err
    assert "takes one build" in here("history", "trace", ref, ref).err
    assert "one of tree, json and otlp" in here("history", "trace", "--format", "table", ref).err


@pytest.mark.parametrize("engine", ["daemon", "embedded"])
def test_a_build_is_known_both_ways(here: Command, there: Command, engine: str, tmp_path: Path) -> None:
    who = there if engine == "daemon" else here
    who.build(f"FROM alpine\nRUN echo said by {engine}\n").ok()
    for command in (here, there):
        ref = newest(command)
        seen = json.loads(command("history", "inspect", "--format", "json", ref).ok().out)
        assert (seen["ref"], seen["status"], seen["error"]) == (ref, "completed", "")
        assert any(step["name"].endswith(f"RUN echo said by {engine}") and step["reason"] for step in seen["steps"])
        assert seen["provenance"]["buildDefinition"]["resolvedDependencies"]
        log = command("history", "logs", ref).ok().out
        assert f"said by {engine}\n" in log
        assert f"RUN echo said by {engine}" in log
        moved, taken = tmp_path / "moved.tar.gz", Command(root=tmp_path / f"taken-{command.root.name}", config=here.config)
        command("history", "export", "-o", str(moved), ref).ok()
        assert taken("history", "import", "--root", str(taken.root), "-f", str(moved)).ok().out == f"{ref}\n"
        assert f"said by {engine}\n" in taken("history", "logs", "--root", str(taken.root), ref).ok().out


def test_a_failed_build_and_its_removal(here: Command, there: Command) -> None:
    there.build("FROM alpine\nRUN echo before; exit 3\n")
    ref = newest(here)
    text = 'process "/bin/sh -c echo before; exit 3" did not complete successfully: exit code: 3'
    for command in (here, there):
        shown = command("history", "inspect", ref).ok().out
        assert "Status:     error" in shown
        assert text in shown
    there("history", "rm", ref).ok()
    for command in (here, there):
        done = command("history", "inspect", ref)
        assert done.code == 1
        assert ref in done.err
    refused = there("history", "import", "-f", "/dev/null")
    assert refused.code != 0
    assert "cannot be imported into the history of a daemon" in refused.err


def test_stock_clients_read_what_was_built_beside_the_daemon(here: Command, daemon: Chantierd) -> None:
    here.build("FROM alpine\nRUN echo beside\n").ok()
    ref = newest(here)

    async def ask() -> tuple[pb.BuildHistoryRecord, bytes]:
        async with daemon.client() as channel:
            async with Stub(channel, "moby.buildkit.v1.Control").stream("ListenBuildHistory") as call:
                await call.send(pb.BuildHistoryRequest(Ref=ref, EarlyExit=True))
                call.close_send()
                record = (await call.read()).record
            async with Stub(channel, "containerd.services.content.v1.Content").stream("Read") as call:
                await call.send(content_pb2.ReadContentRequest(digest=record.logs.digest))
                call.close_send()
                data = b"".join([message.data async for message in call])
        return record, data

    record, data = asyncio.run(ask())
    assert len(data) == record.logs.size
    at, said = 0, b""
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        said += b"".join(entry.msg for entry in pb.StatusResponse.FromString(data[at + 4 : at + 4 + length]).logs)
        at += 4 + length
    assert said == b"beside\n"


@pytest.mark.parametrize("engine", ["daemon", "embedded"])
def test_attachments_are_written_out(here: Command, there: Command, engine: str, tmp_path: Path) -> None:
    who = there if engine == "daemon" else here
    out = tmp_path / "out.tar"
    made = (
        who.build(f"FROM alpine\nRUN echo {engine} > /by\n", "--provenance=true", "-o", f"type=oci,dest={out}").ok().out.strip()
    )
    for command in (here, there):
        ref = newest(command)
        digests = {}
        for kind in ("index", "manifest", "image", "provenance"):
            data = command("history", "inspect", "attachment", ref, "--type", kind).ok().out
            digests[kind] = "sha256:" + hashlib.sha256(data.encode()).hexdigest()
            assert digests[kind] in command("history", "inspect", ref).ok().out
            assert command("history", "inspect", "attachment", ref, digests[kind]).ok().out == data
            if kind == "provenance":
                assert json.loads(data)["buildDefinition"]["resolvedDependencies"]
            if kind == "image":
                assert json.loads(data)["history"][-1]["created_by"].startswith(f"RUN /bin/sh -c echo {engine} > /by")
        assert digests["index"] == made
        native = command("history", "inspect", "attachment", ref, "--platform", "linux/amd64").ok().out
        assert "sha256:" + hashlib.sha256(native.encode()).hexdigest() == digests["manifest"]
        missing = command("history", "inspect", "attachment", ref, "--type", "sbom")
        assert missing.code != 0
        assert "no matching attachment found for ref" in missing.err
        vague = command("history", "inspect", "attachment", ref)
        assert "at least one of --type, --platform or DIGEST must be specified" in vague.err
