# SPDX-License-Identifier: Apache-2.0
"""What a Dockerfile becomes: vertices with their names, and what each of them says."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chantier import llb
from chantier.dockerfile import to_llb
from chantier.dockerfile.bridge import FrontendResult, SourceMeta
from chantier.dockerfile.frontend import frontend
from chantier.dockerfile.options import Options
from chantier.errors import ChantierError, DockerfileError, NotFoundError, UnsupportedError, UsageError
from chantier.llb import caps
from chantier.pb import ops_pb2 as pb
from chantier.spec import Platform, dumps

from .fakes import BASE, FakeBridge

IMAGES = {"docker.io/library/alpine:latest": BASE, "docker.io/library/busybox:latest": BASE}


@dataclass
class Made:
    """One conversion, easy to ask."""

    result: FrontendResult
    bridge: FakeBridge
    key: str = ""

    @property
    def graph(self) -> llb.Graph:
        return llb.load(self.result.definitions[self.key], known_caps=caps.ALL)

    @property
    def names(self) -> list[str]:
        return [v.name for v in self.graph.vertices.values()]

    def vertex(self, start: str) -> llb.LoadedVertex:
        found = [v for v in self.graph.vertices.values() if start in v.name]
        assert len(found) == 1, self.names
        return found[0]

    @property
    def config(self) -> dict[str, Any]:
        suffix = f"/{self.key}" if self.key else ""
        found: dict[str, Any] = json.loads(self.result.metadata["containerimage.config" + suffix])
        return found


def make(tmp: Path, dockerfile: str, opts: dict[str, str] | None = None, **more: Any) -> Made:
    (tmp / "Dockerfile").write_text(dockerfile)
    inputs = more.pop("inputs", {})
    bridge = FakeBridge(
        {"context": tmp, "dockerfile": tmp, **more.pop("locals", {})}, {**IMAGES, **more.pop("images", {})}, **more
    )
    return Made(asyncio.run(frontend(opts or {}, inputs, bridge)), bridge)


def refused(tmp: Path, dockerfile: str, opts: dict[str, str] | None = None, **more: Any) -> ChantierError:
    with pytest.raises(ChantierError) as caught:
        make(tmp, dockerfile, opts, **more)
    return caught.value


# Names


def test_the_names_of_a_build(tmp_path: Path) -> None:
    made = make(
        tmp_path,
        "FROM alpine AS b\nWORKDIR /\nWORKDIR /w\nRUN echo $PATH 'x'\nFROM alpine\nENV V=1\ncopy --from=b  /f \\\n  /g$V\nRUN x\n",
    )
    assert [n.split("@")[0] for n in made.names] == [
        "[b 1/4] FROM docker.io/library/alpine:latest",  # one vertex for both stages: the last name given stays
        "[b 2/4] WORKDIR /w",
        "[b 3/4] RUN echo /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin 'x'",
        "[stage-1 2/3] COPY --from=b  /f   /g1",
        "[stage-1 3/3] RUN x",
    ]


def test_a_single_stage_needs_no_name_and_numbers_are_padded(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM alpine\n" + "RUN x\n" * 10)
    assert made.names[1] == "[ 2/11] RUN x"
    assert made.names[-1] == "[11/11] RUN x"


def test_a_mount_gives_a_single_stage_its_name_back(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM scratch\nRUN --mount=type=tmpfs,target=/t x\n")
    assert made.names == ["[stage-0 1/1] RUN --mount=type=tmpfs,target=/t x"]


def test_platforms_are_shown_when_several_are_made(tmp_path: Path) -> None:
    made = make(
        tmp_path,
        "FROM --platform=$BUILDPLATFORM alpine AS b\nARG TARGETARCH\nRUN x\nFROM scratch\nCOPY --from=b /f /f\n",
        {"platform": "linux/amd64,linux/arm64"},
    )
    made.key = "linux/arm64"
    assert made.names[1:] == ["[linux/amd64->arm64 b 2/2] RUN x", "[linux/arm64 stage-1 1/1] COPY --from=b /f /f"]
    made.key = "linux/amd64"
    assert made.names[1] == "[linux/amd64 b 2/2] RUN x"
    assert [a for a in made.bridge.asked if a[0].startswith("docker.io")] == [
        (
            "docker.io/library/alpine:latest",
            "linux/amd64",
            "[linux/amd64 internal] load metadata for docker.io/library/alpine:latest",
        )
    ]
    assert json.loads(made.result.metadata["refs.platforms"])["Platforms"][1] == {
        "ID": "linux/arm64",
        "Platform": {"architecture": "arm64", "os": "linux"},
    }


def test_here_documents_in_names(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM alpine\nRUN <<EOF\necho 1\necho 2\nEOF\n")
    assert made.names[1] == "[2/2] RUN <<EOF (echo 1...)"


def test_secrets_in_variables_are_not_shown(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM alpine\nENV T=old\nRUN --mount=type=secret,id=t,env=T use $T\n")
    assert made.names[1].endswith("use ****")


# Steps


def test_run(tmp_path: Path) -> None:
    made = make(
        tmp_path,
        "FROM alpine\nUSER u\nWORKDIR /w\nARG A=1\nRUN --network=none make\n",
        {
            "add-hosts": "H=1.2.3.4",
            "shm-size": "1024",
            "ulimit": "nofile=1:2",
            "hostname": "box",
            "cgroup-parent": "/cg",
            "memory": "5",
            "build-arg:HTTP_PROXY": "p",
            "force-network-mode": "host",
            "no-cache": "",
        },
    )
    vertex = made.vertex("RUN --network")
    run, meta = vertex.op.exec, vertex.op.exec.meta
    assert list(meta.args) == ["/bin/sh", "-c", "make"]
    assert list(meta.env)[-2:] == ["BASE=yes", "A=1"]
    assert (meta.user, meta.cwd, meta.hostname, meta.cgroupParent) == ("u", "/w", "box", "/cg")
    assert run.network == pb.NONE
    assert [(m.dest, m.mountType) for m in run.mounts] == [("/", pb.BIND), ("/dev/shm", pb.TMPFS)]
    assert list(meta.extraHosts) == [pb.HostIP(Host="h", IP="1.2.3.4")]
    assert list(meta.ulimit) == [pb.Ulimit(Name="nofile", Soft=1, Hard=2)]
    assert meta.proxy_env.http_proxy == "p"
    assert vertex.metadata.linux_resources.memory == 5
    assert vertex.metadata.ignore_cache
    assert vertex.metadata.description["com.docker.dockerfile.v1.command"] == "RUN --network=none make"
    workdir = made.vertex("WORKDIR")
    assert not workdir.metadata.ignore_cache
    assert workdir.op.file.actions[0].mkdir.owner.user.byName.name == "u"


def test_no_cache_of_one_stage(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM alpine AS a\nRUN a\nFROM a AS b\nRUN b\n", {"no-cache": "A"})
    assert made.vertex("RUN a").metadata.ignore_cache
    assert not made.vertex("RUN b").metadata.ignore_cache


def test_mounts(tmp_path: Path) -> None:
    made = make(
        tmp_path,
        "FROM alpine AS src\nFROM alpine\nWORKDIR /w\nARG ID=i\nRUN "
        "--mount=from=src,source=a/b,target=rel --mount=type=cache,id=$ID,target=/c,uid=5 --mount=type=cache,target=/d/,sharing=locked "
        "--mount=target=/ctx,rw,source=x --mount=type=secret,id=s/t --mount=type=secret,target=/k/l,mode=0440 --mount=type=ssh true\n",
        {"build-arg:BUILDKIT_CACHE_MOUNT_NS": "ns"},
    )
    vertex = made.vertex("RUN --mount")
    mounts = {m.dest: m for m in vertex.op.exec.mounts}
    assert list(mounts) == ["/", "/c", "/ctx", "/d/", "/w/rel", "/run/secrets/t", "/k/l", "/run/buildkit/ssh_agent.0"]
    assert (mounts["/c"].cacheOpt.ID, mounts["/c"].selector) == ("ns/i", "/cache")
    assert (mounts["/d/"].cacheOpt.ID, mounts["/d/"].cacheOpt.sharing) == ("ns//d", pb.LOCKED)
    assert (mounts["/ctx"].readonly, mounts["/ctx"].output, mounts["/ctx"].selector) == (False, -1, "/x")
    assert (mounts["/w/rel"].readonly, mounts["/w/rel"].selector) == (True, "/a/b")
    assert mounts["/run/secrets/t"].secretOpt == pb.SecretOpt(ID="s/t", mode=0o400, optional=True)
    assert mounts["/k/l"].secretOpt == pb.SecretOpt(ID="l", mode=0o440, optional=True)
    owned = made.vertex("[internal] setting cache mount permissions").op.file.actions[0].mkdir
    assert (owned.path, owned.mode, owned.owner.user.byID, owned.owner.group.byID) == ("/cache", 0o755, 5, 0)
    local = made.vertex("[internal] load build context").op.source
    assert llb.parse_list(local.attrs["local.followpaths"]) == ("x",)


def test_a_script_is_a_file_that_is_run(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM alpine\nRUN <<-X\n\t#!/bin/py\n\tx\nX\n")
    run = made.vertex("RUN").op.exec
    assert list(run.meta.args) == ["/bin/sh", "-c", "/dev/pipes/X"]
    assert [(m.dest, m.readonly, m.selector) for m in run.mounts] == [("/", False, ""), ("/dev/pipes/", True, "/")]
    file = made.vertex("[internal] preparing inline document").op.file.actions[0].mkfile
    assert (file.path, file.mode, file.data) == ("/X", 0o755, b"#!/bin/py\nx\n")


def test_copy(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM alpine\nWORKDIR /w\nCOPY --chown=a:5 --chmod=640 --exclude=*.md a ../b d/\n")
    op = made.vertex("COPY").op
    one, two = op.file.actions
    assert (one.input, one.secondaryInput, one.output) == (0, 1, -1)
    assert (two.input, two.secondaryInput, two.output) == (2, 1, 0)
    assert (one.copy.src, two.copy.src, one.copy.dest) == ("/a", "/b", "/w/d/")
    assert (one.copy.mode, one.copy.timestamp) == (0o640, -1)
    assert list(one.copy.exclude_patterns) == ["*.md"]
    flags = ("followSymlink", "dirCopyContents", "createDestPath", "allowWildcard", "allowEmptyWildcard")
    assert all(getattr(one.copy, flag) for flag in flags)
    assert not one.copy.attemptUnpackDockerCompatibility


def test_copy_with_parents(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM alpine\nCOPY --parents a/./b/c x/*.txt /d/\n")
    one, two = (a.copy for a in made.vertex("COPY").op.file.actions)
    assert (one.src, list(one.include_patterns), list(one.required_paths)) == ("/a", ["b/c"], ["/a/b/c"])
    assert (two.src, list(two.include_patterns), list(two.required_paths)) == ("/", ["x/*.txt"], [])


def test_a_linked_copy_stands_beside_its_base(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM alpine\nCOPY --link a /b\nCOPY --link --chmod=600 a /c\nRUN x\n")
    copy, merged = made.vertex("[2/4] COPY"), made.vertex("[2/4] LINK COPY")
    assert copy.op.file.actions[0].input == -1
    assert merged.op.WhichOneof("op") == "merge"
    assert copy.metadata.progress_group.weak
    assert not merged.metadata.progress_group.weak
    assert copy.metadata.progress_group.id == merged.metadata.progress_group.id
    assert merged.metadata.progress_group.name == "[2/4] COPY --link a /b"
    assert made.vertex("[3/4] COPY").op.file.actions[0].input == 0
    plain = make(tmp_path, "FROM alpine\nCOPY --link a /b\n", caps=caps.ALL - {caps.MERGE})
    assert [v.op.WhichOneof("op") for v in plain.graph.vertices.values()].count("merge") == 0


def test_add_from_afar(tmp_path: Path) -> None:
    sha = "sha256:" + "a" * 64
    made = make(
        tmp_path,
        f"FROM alpine\nADD --checksum={sha} https://h.test/p/f%20x?q /d/\nADD --keep-git-dir https://h.test/r.git?submodules=0#v1:s /g\nADD t.tar /\n",
    )
    sources = {v.op.source.identifier: v for v in made.graph.vertices.values() if v.op.WhichOneof("op") == "source"}
    web, git = sources["https://h.test/p/f%20x?q"], sources["git://h.test/r.git#v1:s"]
    assert dict(web.op.source.attrs) == {"http.checksum": sha, "http.filename": "f x"}
    assert web.name.startswith("[2/4] ADD --checksum")
    assert git.op.source.attrs["git.keepgitdir"] == "true"
    assert git.op.source.attrs["git.skipsubmodules"] == "true"
    copies = [v.op.file.actions[0].copy for v in made.graph.vertices.values() if v.op.WhichOneof("op") == "file"]
    assert [(c.src, c.attemptUnpackDockerCompatibility, c.allowWildcard) for c in copies] == [
        ("/f x", False, False),
        ("/", False, False),
        ("/t.tar", True, True),
    ]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("ADD --checksum=sha256:x a b /c", "checksum can't be specified for multiple sources"),
        ("ADD --keep-git-dir=false https://h/x.git?keep-git-dir=1 /c", "inconsistent keep-git-dir configuration"),
        ("ADD --checksum=a https://h/x.git?checksum=b /c", 'checksum mismatch "a" != "b"'),
        ("ADD https://h/x.git?what=b /c", 'unexpected query "what"'),
        ("COPY --chmod=9 a /c", "invalid chmod parameter: '9'. it should be octal string and between 0 and 07777"),
        ("COPY --from=$X a /c", "variable expansion is not supported for --from"),
        ("RUN --mount=type=cache,target=/ x", 'invalid mount target "/"'),
    ],
)
def test_refusals_point_at_their_line(tmp_path: Path, line: str, error: str) -> None:
    got = refused(tmp_path, "FROM alpine\n\n" + line + "\n")
    assert str(got).startswith(error)
    if "--from" not in line:
        assert [r.start for r in got.sources[0].ranges] == [3]


def test_operations_know_their_lines(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM alpine\nRUN a \\\n  b\n")
    vertex = made.vertex("RUN")
    source = made.graph.source
    assert source is not None
    assert [r.start.line for r in source.locations[vertex.original].locations[0].ranges] == [2, 3]
    assert source.infos[0].filename == "Dockerfile"
    assert source.infos[0].data.startswith(b"FROM alpine")
    assert source.infos[0].HasField("definition")


# What is asked for, and when


def test_what_add_fetches_knows_its_line(tmp_path: Path) -> None:
    """A server that does not answer is an error of the line that names it."""
    text = "FROM scratch\nADD https://a.test/f /f\nADD https://a.test/r.git#main /r\n"
    graph = make(tmp_path, text).graph
    assert graph.source is not None
    for identifier, line in (("https://a.test/f", 2), ("git://a.test/r.git#main", 3)):
        (vertex,) = (v for v in graph.vertices.values() if v.op.source.identifier == identifier)
        assert [r.start.line for r in graph.source.locations[vertex.original].locations[0].ranges] == [line]


def test_only_what_the_target_needs_is_looked_up(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM nowhere AS a\nRUN x\nFROM busybox AS b\nFROM alpine AS c\nCOPY --from=b /x /y\n", {"target": "c"})
    assert sorted(a[0] for a in made.bridge.asked) == ["docker.io/library/alpine:latest", "docker.io/library/busybox:latest"]
    assert made.bridge.asked[0][2] == "[internal] load metadata for " + made.bridge.asked[0][0]


def test_one_image_is_asked_for_once(tmp_path: Path) -> None:
    made = make(
        tmp_path,
        "FROM alpine AS a\nRUN a\nFROM alpine AS b\nRUN b\nFROM alpine\nCOPY --from=a / /a\nCOPY --from=b / /b\nCOPY --from=alpine /c /c\n",
    )
    assert len(made.bridge.asked) == 1


def test_triggers_of_a_base_image(tmp_path: Path) -> None:
    config = json.loads(BASE)
    config["config"]["OnBuild"] = ["COPY --from=busybox /x /x", "RUN made"]
    made = make(
        tmp_path, "FROM scratch AS other\nFROM base AS s\nRUN own\n", images={"docker.io/library/base:latest": dumps(config)}
    )
    assert [n.split("@")[0] for n in made.names if not n.startswith("FROM")] == [
        "[s 1/2] FROM docker.io/library/base:latest",
        "[s 2/4] ONBUILD COPY --from=busybox /x /x",
        "[s 3/4] ONBUILD RUN made",
        "[s 4/4] RUN own",
    ]
    assert "OnBuild" not in made.config["config"]


def test_the_context_is_sent_as_far_as_it_is_used(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM alpine\nCOPY b /\nADD a/*.txt https://h.test/x /\n")
    attrs = made.vertex("[internal] load build context").op.source.attrs
    assert llb.parse_list(attrs["local.followpaths"]) == ("a/*.txt", "b")
    assert (attrs["local.session"], attrs["local.sharedkeyhint"]) == ("s1", "context")
    whole = make(tmp_path, "FROM alpine\nCOPY b /\nCOPY . /\n")
    assert "local.followpaths" not in whole.vertex("[internal] load build context").op.source.attrs


def test_ignore_files(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("*.md\n!keep.md\n")
    made = make(tmp_path, "FROM alpine\nCOPY . /\n", {"local-sessionid:context": "other"})
    attrs = made.vertex("[internal] load build context").op.source.attrs
    assert llb.parse_list(attrs["local.excludepatterns"]) == ("*.md", "!keep.md")
    assert attrs["local.session"] == "other"
    (tmp_path / "Dockerfile.dockerignore").write_text("a\n")
    made = make(tmp_path, "FROM alpine\nCOPY . /\n")
    assert llb.parse_list(made.vertex("[internal] load build context").op.source.attrs["local.excludepatterns"]) == ("a",)
    names = [llb.load(d).vertices for d in made.bridge.solved]
    assert all("load .dockerignore" not in v.name for graph in names for v in graph.values())


def test_the_dockerfile_is_asked_for_with_its_neighbours(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM scratch\n", {"filename": "Dockerfile"})
    (vertex,) = llb.load(made.bridge.solved[0]).vertices.values()
    assert vertex.name == "[internal] load build definition from Dockerfile"
    assert llb.parse_list(vertex.op.source.attrs["local.followpaths"]) == ("Dockerfile", "Dockerfile.dockerignore", "dockerfile")
    assert vertex.op.source.attrs["local.differ"] == "none"


# Contexts


def test_a_git_context(tmp_path: Path) -> None:
    url = "https://h.test/r.git?keep-git-dir=1#main:sub"
    web = {"git://h.test/r.git#main:sub": b"FROM alpine\nCOPY f /f\n"}

    class Git(FakeBridge):
        async def solve(self, definition: pb.Definition, **how: Any) -> Any:
            graph = llb.load(definition)
            if any(v.op.source.identifier in web for v in graph.vertices.values()):
                return _Files({"Dockerfile": web["git://h.test/r.git#main:sub"]})
            return await super().solve(definition, **how)

    bridge = Git({}, IMAGES)
    made = Made(asyncio.run(frontend({"context": url}, {}, bridge)), bridge)
    vertex = made.vertex("[internal] load git source " + url)
    assert vertex.op.source.attrs["git.keepgitdir"] == "true"
    assert made.vertex("COPY f").inputs[1][0] == vertex.digest


class _Files:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    async def read_file(self, path: str, *, offset: int = 0, length: int = 0) -> bytes:
        if path not in self.files:
            raise NotFoundError(f"open {path}: no such file or directory")
        return self.files[path][offset : offset + length if length else None]


def test_a_dockerfile_over_http(tmp_path: Path) -> None:
    url = "https://h.test/Dockerfile"
    bridge = FakeBridge({}, IMAGES, {url: b"FROM alpine\nCOPY context /f\n"})
    made = Made(asyncio.run(frontend({"context": url}, {}, bridge)), bridge)
    assert made.vertex("[internal] load remote build context").op.source.attrs["http.filename"] == "context"


def test_an_archive_over_http(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo("Dockerfile")
        info.size = 12
        tar.addfile(info, io.BytesIO(b"FROM scratch"))
    bridge = FakeBridge({}, IMAGES, {"https://h.test/a": out.getvalue()})
    with pytest.raises(NotFoundError, match="failed to read dockerfile: open Dockerfile"):
        asyncio.run(frontend({"context": "https://h.test/a"}, {}, bridge))
    copy = list(llb.load(bridge.solved[-1]).vertices.values())[-1].op.file.actions[0].copy
    assert (copy.src, copy.dest, copy.attemptUnpackDockerCompatibility) == ("/context", "/", True)


def test_inputs_stand_for_directories(tmp_path: Path) -> None:
    dockerfile = llb.scratch().mkfile("/Dockerfile", b"FROM scratch\nCOPY --from=in a /a\nCOPY b /b\n").marshal()
    context = llb.scratch().mkfile("/b", b"b").marshal()
    named = llb.image("alpine", name="nice").marshal()
    config = json.dumps({"containerimage.config": base64.b64encode(BASE).decode()})

    class Files(FakeBridge):
        async def solve(self, definition: pb.Definition, **how: Any) -> Any:
            if llb.raw_ops(definition) == llb.raw_ops(dockerfile):
                return _Files({"Dockerfile": b"FROM in\nCOPY b /b\n"})
            return await super().solve(definition, **how)

    bridge = Files({}, IMAGES)
    opts = {"context:in": "input:three", "input-metadata:three": config}
    made = Made(asyncio.run(frontend(opts, {"dockerfile": dockerfile, "context": context, "three": named}, bridge)), bridge)
    assert "nice" in made.names
    assert made.config["config"]["Env"][1] == "BASE=yes"


def test_named_contexts(tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    (more / ".dockerignore").write_text("no\n")
    made = make(
        tmp_path,
        "FROM two AS t\nFROM one\nCOPY --from=t a /a\nCOPY --from=t b /b\nCOPY --from=three /c /c\n",
        {
            "context:one": "docker-image://alpine",
            "context:two": "local:m",
            "sharedkey:localdir:two": "k",
            "context:three::linux/amd64": "https://h.test/f",
        },
        locals={"m": more},
    )
    assert made.bridge.asked[0][2] == "[context one] load metadata for alpine"
    assert made.vertex("[context one] alpine").op.source.identifier.startswith("docker-image://docker.io/library/alpine:latest")
    attrs = made.vertex("[context two] load from client").op.source.attrs
    assert llb.parse_list(attrs["local.followpaths"]) == ("a", "b")
    assert llb.parse_list(attrs["local.excludepatterns"]) == ("no",)
    assert attrs["local.sharedkeyhint"] == "context:two-k"
    assert made.vertex("[context three::linux/amd64] https://h.test/f").op.source.attrs["http.filename"] == "context"


def test_an_oci_layout_context(tmp_path: Path) -> None:
    digest = "sha256:" + "b" * 64
    made = make(
        tmp_path,
        "FROM x\nRUN y\n",
        {"context:x": f"oci-layout://store@{digest}"},
        images={f"docker.io/library/x@{digest}": BASE},
    )
    vertex = made.vertex("[context x] OCI load from client")
    assert vertex.op.source.identifier == f"oci-layout://docker.io/library/x@{digest}"
    assert dict(vertex.op.source.attrs) == {"oci.session": "s1", "oci.store": "store"}


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("nothing", "invalid context specifier nothing for x"),
        ("ftp://x", "unsupported context source ftp for x"),
        ("oci-layout://store", 'oci-layout reference "store" has no digest'),
        ("input:none", "invalid input none for x"),
    ],
)
def test_contexts_that_cannot_be(tmp_path: Path, value: str, error: str) -> None:
    assert str(refused(tmp_path, "FROM x\nRUN y\n", {"context:x": value})) == error


# Time


def test_a_time_is_that_of_every_entry_made_here(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM alpine\nWORKDIR /w\nENV a=b\n", {"build-arg:SOURCE_DATE_EPOCH": "1600000000"})
    assert [h.get("created") for h in made.config["history"]] == [None, "2020-09-13T12:26:40Z", "2020-09-13T12:26:40Z"]
    assert made.vertex("WORKDIR").op.file.actions[0].mkdir.timestamp == 1600000000 * 10**9
    assert made.result.metadata["source.date.epoch"] == b"1600000000"


def test_a_time_may_be_that_of_a_source(tmp_path: Path) -> None:
    text = "FROM scratch AS src\nADD https://h.test/f /\nFROM alpine\nARG SOURCE_DATE_EPOCH\nRUN x\n"
    opts = {"build-arg:SOURCE_DATE_EPOCH": "src"}
    made = make(tmp_path, text, opts, meta={"https://h.test/f": SourceMeta(last_modified=77)})
    assert made.result.metadata["source.date.epoch"] == b"77"
    assert "SOURCE_DATE_EPOCH=77" in made.vertex("RUN").op.exec.meta.env
    commit = b"tree x\nauthor A <a> 1 +0000\ncommitter B <b> 88 +0100\n\nmessage"
    text = text.replace("https://h.test/f", "https://h.test/r.git")
    made = make(tmp_path, text, opts, meta={"git://h.test/r.git": SourceMeta(commit_object=commit)})
    assert made.result.metadata["source.date.epoch"] == b"88"
    made = make(tmp_path, "FROM alpine\nRUN x\n", {"build-arg:SOURCE_DATE_EPOCH": "context"})
    assert "source.date.epoch" not in made.result.metadata


# The frontend


def test_warnings_are_told_for_the_first_platform_only(tmp_path: Path) -> None:
    made = make(tmp_path, "FROM alpine\nMAINTAINER me\n", {"platform": "linux/amd64,linux/386"})
    (warning,) = [w for w in made.bridge.warnings if b"Maintainer" in w.short]
    assert warning.short == b"MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 2)"
    assert warning.vertex == next(iter(llb.load(made.bridge.solved[0]).vertices))
    assert warning.url.endswith("/rule/maintainer-deprecated/")


def test_warnings_are_told_even_if_the_build_fails(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM alpine\nMAINTAINER me\nRUN --mount=type=x y\n")
    bridge = FakeBridge({"dockerfile": tmp_path, "context": tmp_path}, IMAGES)
    with pytest.raises(DockerfileError):
        asyncio.run(frontend({}, {}, bridge))
    assert len(bridge.warnings) == 1


@pytest.mark.parametrize(
    "syntax",
    [
        "docker/dockerfile:1",
        "docker/dockerfile:1.4-labs",
        "docker.io/docker/dockerfile-upstream:master",
        "docker/dockerfile@sha256:" + "a" * 64,
    ],
)
def test_our_own_language_is_served_here(tmp_path: Path, syntax: str) -> None:
    assert not make(tmp_path, f"# syntax={syntax}\nFROM alpine\n").bridge.forwarded


def test_another_frontend_is_asked_elsewhere(tmp_path: Path) -> None:
    error = refused(tmp_path, "# syntax=me/lang:1 --flag\nanything\n")
    assert isinstance(error, UnsupportedError)
    assert error.sources[0].ranges[0].start == 1
    assert "FROM" not in str(error)
    assert make(tmp_path, "# syntax=me/lang:1\nFROM alpine\n", {"cmdline": "x"}).names
    error = refused(tmp_path, "FROM alpine\n", {"build-arg:BUILDKIT_SYNTAX": "me/lang:1 x"})
    assert str(error).startswith("failed with build-arg:BUILDKIT_SYNTAX = me/lang:1 x: ")


def test_what_a_frontend_may_be_asked_for(tmp_path: Path) -> None:
    assert make(
        tmp_path, "FROM alpine\n", {"frontend.caps": "moby.buildkit.frontend.contexts,moby.buildkit.frontend.inputs"}
    ).names
    assert isinstance(refused(tmp_path, "FROM alpine\n", {"frontend.caps": "x"}), UnsupportedError)
    assert isinstance(refused(tmp_path, "FROM alpine\n", {"frontend.caps": "x+forward"}), UnsupportedError)
    assert "needs BuildKit 0.5" in str(refused(tmp_path, "FROM alpine\n", caps=frozenset[str]()))


def test_other_subrequests(tmp_path: Path) -> None:
    described = make(tmp_path, "FROM alpine\n", {"requestid": "frontend.subrequests.describe"}).result.metadata
    assert [r["name"] for r in json.loads(described["result.json"])] == [
        "frontend.outline",
        "frontend.targets",
        "frontend.subrequests.describe",
    ]
    assert described["result.txt"].startswith(b"NAME                 VERSION DESCRIPTION\n")
    graph = json.loads(
        make(tmp_path, "FROM alpine\nRUN x\n", {"requestid": "frontend.convertllb"}).result.metadata["result.json"]
    )
    assert len(graph["def"]) == 3
    assert str(refused(tmp_path, "FROM alpine\n", {"requestid": "frontend.x"})) == "unsupported request frontend.x"


def test_texts_of_calls(tmp_path: Path) -> None:
    text = "# who is greeted\nARG who=1\nFROM alpine AS one\n# two is last\nFROM $who AS two\nMAINTAINER x\nRUN --mount=type=secret,id=k,required x\n"
    images = {"docker.io/library/1:latest": BASE}
    outline = make(tmp_path, text, {"requestid": "frontend.outline"}, images=images).result.metadata["result.txt"].decode()
    assert outline == (
        "TARGET:      two\nDESCRIPTION: is last\n\n"
        "BUILD ARG   VALUE   DESCRIPTION\nwho         1       is greeted\n\n"
        "SECRET   REQUIRED\nk        true\n\n"
    )
    targets = make(tmp_path, text, {"requestid": "frontend.targets"}).result.metadata["result.txt"].decode()
    assert targets == "TARGET        DESCRIPTION\none           \ntwo (default) is last\n"
    lint = make(tmp_path, text, {"requestid": "frontend.lint"}, images=images).result.metadata["result.txt"].decode()
    assert "\nWARNING: MaintainerDeprecated - https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/\n" in lint
    assert "   6 | >>> MAINTAINER x\n" in lint


def test_a_missing_dockerfile(tmp_path: Path) -> None:
    error = refused(tmp_path, "FROM alpine\n", {"filename": "Other"})
    assert str(error) == "failed to read dockerfile: open Other: no such file or directory"


def test_an_unknown_image_names_what_was_meant(tmp_path: Path) -> None:
    assert str(refused(tmp_path, "FROM alpin\nRUN x\n")).endswith("not found (did you mean alpine?)")


def test_a_conversion_alone_asks_only_for_images() -> None:
    bridge = FakeBridge({}, IMAGES)
    text = b"FROM alpine AS one\nCOPY a /b\nLABEL x=y\n"
    made = asyncio.run(to_llb(text, Options(labels={"z": "w"}), bridge, platform=Platform.parse("linux/arm64")))
    assert not bridge.solved
    assert made.image.config.labels == {"golden.base": "1", "x": "y", "z": "w"}
    assert made.image.platform.architecture == "arm64"
    assert [w.rule.name for w in made.warnings] == ["InvalidBaseImagePlatform"]
    graph = llb.load(made.definition)
    assert (
        next(v for v in graph.vertices.values() if v.op.source.identifier == "local://context").name
        == "[internal] load build context"
    )


# Options


@pytest.mark.parametrize(
    ("opts", "error"),
    [
        ({"platform": "linux/amd64,x/y/z/w"}, "failed to parse target platform x/y/z/w: "),
        ({"add-hosts": "x"}, "failed to parse additional hosts: invalid key-value pair x"),
        ({"add-hosts": "x=y"}, "failed to parse additional hosts: failed to parse IP y"),
        ({"shm-size": "big"}, "failed to parse shm size: "),
        ({"ulimit": "what=1"}, "failed to parse ulimit: invalid ulimit type: what"),
        ({"ulimit": "nofile=5:1"}, "failed to parse ulimit: ulimit soft limit must be less than or equal to hard limit: 5 > 1"),
        ({"memory": "0"}, "failed to parse resource limits: invalid memory value: 0: must be > 0"),
        ({"memswap": "-2"}, "failed to parse resource limits: invalid memswap value: -2: must be -1 (unlimited) or > 0"),
        ({"force-network-mode": "x"}, "invalid netmode x"),
        ({"image-resolve-mode": "x"}, "invalid image-resolve-mode: x"),
        ({"multi-platform": "maybe"}, "invalid boolean value for multi-platform: maybe"),
        (
            {"multi-platform": "0", "platform": "linux,linux/arm64"},
            "conflicting config: returning multiple target platforms is not allowed",
        ),
        ({"override-copy-image": "x"}, 'support for "override-copy-image" was removed in BuildKit 0.11'),
        ({"attest:x": ""}, 'unknown attestation type "x"'),
        ({"cache-imports": "{"}, 'failed to unmarshal cache-imports ("{")'),
    ],
)
def test_options_that_cannot_be_meant(opts: dict[str, str], error: str) -> None:
    with pytest.raises(UsageError) as caught:
        Options.from_frontend_attrs(opts)
    assert str(caught.value).startswith(error)


def test_options() -> None:
    made = Options.from_frontend_attrs(
        {
            "build-arg:A": "1",
            "label:l": "2",
            "cache-imports": '[{"Type":"registry","Attrs":{"ref":"x"}}]',
            "cache-from": "y,z",
            "build-arg:BUILDKIT_MULTI_PLATFORM": "1",
            "attest:sbom": "generator=me/scan,x=y",
            "build-arg:BUILDKIT_SANDBOX_HOSTNAME": "h",
            "hostname": "other",
        }
    )
    assert made.build_args["A"] == "1"
    assert made.labels == {"l": "2"}
    assert [i.attrs["ref"] for i in made.cache_imports] == ["x", "y", "z"]
    assert made.multi_platform
    assert made.hostname == "h"
    assert made.sbom is not None
    assert (made.sbom.generator, dict(made.sbom.parameters)) == ("docker.io/me/scan:latest", {"x": "y"})
    assert not made.is_no_cache("x")


# Bytes that are no text


def test_bytes_that_are_no_utf8_are_refused_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_bytes(b"FROM scratch\nENV A=\xff\nRUN x \xe4\n")
    bridge = FakeBridge({"context": tmp_path, "dockerfile": tmp_path})
    with pytest.raises(UsageError) as caught:
        asyncio.run(frontend({}, {}, bridge))
    assert "not valid UTF-8 cannot be part of a build: b'" in caught.value.brief
    assert caught.value.sources[0].ranges[0].start == 3


def test_a_config_takes_bytes_that_are_no_utf8_as_go_does(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_bytes(b"FROM scratch\nLABEL A=\xff\n")
    result = asyncio.run(frontend({}, {}, FakeBridge({"context": tmp_path, "dockerfile": tmp_path})))
    assert json.loads(result.metadata["containerimage.config"])["config"]["Labels"] == {"A": "\ufffd"}
