# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from chantier.client import BuildRequest, Output, parse_output, prepare
from chantier.client.parse import (
    parse_annotations,
    parse_contexts,
    parse_host,
    parse_pairs,
    parse_secret,
    parse_size,
    parse_ssh,
    parse_tag,
    parse_ulimit,
)
from chantier.errors import UsageError


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("-", Output(type="tar", dest="-")),
        ("out", Output(type="local", dest="out")),
        ("dest=x", Output(type="local", dest="dest=x")),
        ("type=oci,dest=a.tar,compression=zstd", Output(type="oci", dest="a.tar", attrs={"compression": "zstd"})),
        ("type=registry,name=a", Output(type="image", attrs={"push": "true", "unpack": "false", "name": "a"})),
        ('type=image,"name=a,b"', Output(type="image", attrs={"name": "a,b"})),
    ],
)
def test_outputs(text: str, want: Output) -> None:
    assert parse_output(text) == want


def test_output_without_type() -> None:
    with pytest.raises(UsageError, match="type is required for output"):
        parse_output("dest=a,name=b")


def test_sizes() -> None:
    assert parse_size("64m") == 64 << 20
    assert parse_size("1.5g") == 3 << 29
    assert parse_size("10") == 10
    with pytest.raises(UsageError, match="invalid size: 'zz'"):
        parse_size("zz")


def test_pairs_take_values_of_the_environment() -> None:
    assert parse_pairs(["A=1", "B", "C", "D="], {"B": "2"}) == {"A": "1", "B": "2", "D": ""}


def test_tags() -> None:
    assert parse_tag("reg:5000/a/b:1") == "reg:5000/a/b:1"
    with pytest.raises(UsageError, match=r'invalid tag "UPPER": .*must be lowercase'):
        parse_tag("UPPER")


def test_secrets(tmp_path: Path) -> None:
    file = tmp_path / "s"
    file.write_text("x")
    assert parse_secret(f"id=a,src={file}", {}).file == str(file)
    assert parse_secret("id=a", {"a": "1"}).env == "a"
    assert parse_secret("id=a,env=B", {}).env == "B"
    for bad, text in {
        "id=a,src=/nope": "failed to stat /nope: stat /nope: no such file",
        "id=a,foo=1": "unexpected key 'foo' in 'foo=1'",
        "id=a,type=x": 'unsupported secret type "x"',
        "id": "invalid field 'id' must be a key=value pair",
        f"src={file}": "secret missing ID",
    }.items():
        with pytest.raises(UsageError) as caught:
            parse_secret(bad, {})
        assert text in str(caught.value)
    file.write_bytes(bytes(500 * 1024 + 1))
    with pytest.raises(UsageError, match="too big"):
        parse_secret(f"id=a,src={file}", {})


def test_secret_values_do_not_show() -> None:
    from chantier.client import Secret

    assert "hunter2" not in repr(Secret(id="a", value=b"hunter2"))


def test_ssh() -> None:
    assert parse_ssh("default", {"SSH_AUTH_SOCK": "/s"}).paths == ("/s",)
    assert parse_ssh("k=/a,/b", {}).paths == ("/a", "/b")
    with pytest.raises(UsageError, match="invalid empty ssh agent socket"):
        parse_ssh("default", {})


def test_hosts() -> None:
    assert parse_host("a=1.2.3.4") == ["a=1.2.3.4"]
    assert parse_host("a:[::1]") == ["a=::1"]
    assert parse_host("a=1.2.3.4,::1") == ["a=1.2.3.4", "a=::1"]
    for bad in ("a", "a=b"):
        with pytest.raises(UsageError, match="invalid host"):
            parse_host(bad)


def test_annotations() -> None:
    assert parse_annotations(["a=b"]) == [("annotation.a", "b")]
    assert parse_annotations(["manifest[linux/amd64],index:k=v"]) == [
        ("annotation-manifest[linux/amd64].k", "v"),
        ("annotation-index.k", "v"),
    ]
    with pytest.raises(UsageError, match='unknown annotation type "bar"'):
        parse_annotations(["bar:a=b"])
    with pytest.raises(UsageError, match="expected key=value"):
        parse_annotations(["a"])


def test_ulimits_and_contexts() -> None:
    assert parse_ulimit("nofile=10") == "nofile=10:10"
    assert parse_ulimit("nofile=10:20") == "nofile=10:20"
    assert parse_contexts(["alpine:latest=./x"]) == {"alpine": "./x"}
    with pytest.raises(UsageError, match="expected key=value"):
        parse_contexts(["foo"])


def _never() -> io.BytesIO:
    raise AssertionError("standard input was read")


def _prepare(request: BuildRequest, stdin: bytes | None = None):
    return prepare(request, stdin=(lambda: io.BytesIO(stdin)) if stdin is not None else _never, env={})


def test_context_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "dockerfile").write_text("FROM scratch\n")
    done = _prepare(BuildRequest(context=str(tmp_path)))
    assert done.call.attrs["filename"] == "dockerfile"
    assert done.offer.context.directories == {"context": tmp_path, "dockerfile": tmp_path}


def test_dockerfile_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "My.Dockerfile").write_text("FROM scratch\n")
    done = _prepare(BuildRequest(context=str(tmp_path / "c"), dockerfile=str(tmp_path / "My.Dockerfile")))
    assert done.call.attrs["filename"] == "My.Dockerfile"
    assert done.offer.context.directories["dockerfile"] == tmp_path


def test_dockerfile_on_standard_input(tmp_path: Path) -> None:
    done = _prepare(BuildRequest(context=str(tmp_path), dockerfile="-"), b"FROM scratch\n")
    assert done.offer.context.files == {"dockerfile": {"Dockerfile": b"FROM scratch\n"}}
    assert done.call.attrs["dockerfilekey"] == "dockerfile"
    done = _prepare(BuildRequest(context="-"), b"FROM scratch\n")
    assert done.offer.context.files["dockerfile"] == {"Dockerfile": b"FROM scratch\n"}


def test_context_on_standard_input() -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("Dockerfile"))
    done = _prepare(BuildRequest(context="-"), data.getvalue())
    assert done.offer.context.upload is not None
    assert done.call.attrs["context"] == f"http://buildkit-session/{done.offer.context.upload[0]}"


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (BuildRequest(context=""), "please specify build context"),
        (BuildRequest(context="/nope"), 'unable to prepare context: path "/nope" not found'),
        (BuildRequest(context="-", dockerfile="-"), "can't use stdin for both build context and dockerfile"),
        (BuildRequest(context="/", network="foo"), 'network mode "foo" not supported by buildkit'),
        (BuildRequest(context="/", no_cache=True, no_cache_filter=("a",)), "cannot currently be used together"),
        (BuildRequest(context="/", allow=("foo",)), "unknown entitlement foo"),
        (BuildRequest(context="/", push=True), "tag is needed when pushing to registry"),
        (BuildRequest(context="/", outputs=(Output(type="local"),)), "dest is required for local exporter"),
        (BuildRequest(context="/", outputs=(Output(type="local", dest="-"),)), "dest cannot be stdout"),
        (BuildRequest(context="/", cache_from=("src=foo",)), "type required for"),
        (BuildRequest(context="/", call="bogus"), "unsupported request frontend.bogus"),
        (BuildRequest(context="/", build_contexts={"a": "/nope"}), "failed to get build context a: stat /nope"),
    ],
)
def test_requests_that_cannot_be_meant(request_: BuildRequest, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        _prepare(request_)
    assert text in str(caught.value)


def test_options_become_frontend_attributes(tmp_path: Path) -> None:
    done = _prepare(
        BuildRequest(
            context=str(tmp_path),
            build_args={"A": "1"},
            labels={"l": "v"},
            target="t",
            platforms=("linux/arm64/v8,linux/amd64",),
            no_cache=True,
            add_hosts=("a=1.2.3.4",),
            network="host",
            shm_size=5,
            ulimits=("nofile=1",),
            resources={"memory": "5"},
            tags=("x:1",),
            push=True,
            annotations=("k=v",),
        )
    )
    attrs = done.call.attrs
    assert attrs["build-arg:A"] == "1"
    assert attrs["label:l"] == "v"
    assert attrs["platform"] == "linux/arm64,linux/amd64"
    assert attrs["no-cache"] == ""
    assert attrs["add-hosts"] == "a=1.2.3.4"
    assert attrs["force-network-mode"] == "host"
    assert attrs["memory"] == "5"
    assert done.call.entitlements == ("network.host",)
    assert done.call.exporters == (("image", {"push": "true", "unpack": "false", "name": "x:1", "annotation.k": "v"}),)
