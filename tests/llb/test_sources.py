# SPDX-License-Identifier: Apache-2.0
"""Identifiers, attributes and capabilities of sources; addresses of git repositories."""

from __future__ import annotations

import pytest

from chantier import llb
from chantier.errors import ReferenceError_, UsageError
from chantier.pb import ops_pb2 as pb
from chantier.spec import digest_of


def source(state: llb.State, **how: str) -> tuple[str, dict[str, str], set[str], bool]:
    definition = state.marshal(**how)  # type: ignore[arg-type]
    raw = llb.raw_ops(definition)[0]
    op = pb.Op()
    op.ParseFromString(raw)
    return (
        op.source.identifier,
        dict(op.source.attrs),
        set(definition.metadata[digest_of(raw)].caps),
        op.HasField("platform"),
    )


def test_images() -> None:
    assert source(llb.image("alpine")) == ("docker-image://docker.io/library/alpine:latest", {}, {"source.image"}, True)
    _, attrs, caps, _ = source(llb.image("a/b:1", resolve_mode="pull", layer_limit=0, record_type="internal"))
    assert attrs == {"image.resolvemode": "pull", "image.layerlimit": "0", "image.recordtype": "internal"}
    assert caps == {"source.image", "source.image.resolvemode", "source.image.layerlimit"}
    assert source(llb.image("a", resolve_mode="local"))[2] == {"source.image"}


def test_a_wrong_reference_is_refused_when_it_is_needed() -> None:
    state = llb.image("UPPER")
    with pytest.raises(ReferenceError_, match="must be lowercase"):
        state.marshal()


def test_local_directories() -> None:
    identifier, attrs, caps, platform = source(
        llb.local("context", session="s", follow=["a", "b<"], exclude=["*"], shared_key="k", differ="none")
    )
    assert identifier == "local://context"
    assert attrs == {
        "local.session": "s",
        "local.followpaths": '["a","b\\u003c"]',
        "local.excludepatterns": '["*"]',
        "local.sharedkeyhint": "k",
        "local.differ": "none",
    }
    assert "source.local.differ" not in caps
    assert not platform
    assert llb.parse_list(attrs["local.followpaths"]) == ("a", "b<")


def test_a_directory_of_no_session_is_nobody_elses() -> None:
    assert source(llb.local("context"), unique_id="u")[1] == {"local.unique": "u"}
    assert source(llb.local("context"))[1] != source(llb.local("context"))[1]


@pytest.mark.parametrize(
    ("state", "identifier", "attrs"),
    [
        (
            llb.git("https://github.com/a/b.git", "v1", subdir="x/../d"),
            "git://github.com/a/b.git#v1:d",
            {"git.fullurl": "https://github.com/a/b.git"},
        ),
        (
            llb.git("git@github.com:a/b.git", checksum="abc"),
            "git://github.com/a/b.git",
            {"git.fullurl": "git@github.com:a/b.git", "git.mountsshsock": "default", "git.checksum": "abc"},
        ),
        (
            llb.git("github.com/a/b", keep_git_dir=True),
            "git://github.com/a/b",
            {"git.fullurl": "https://github.com/a/b", "git.keepgitdir": "true"},
        ),
    ],
)
def test_git(state: llb.State, identifier: str, attrs: dict[str, str]) -> None:
    got = source(state)
    assert got[0] == identifier
    assert got[1] == {"git.authtokensecret": "GIT_AUTH_TOKEN", "git.authheadersecret": "GIT_AUTH_HEADER", **attrs}


def test_files_over_http() -> None:
    identifier, attrs, caps, platform = source(llb.http("https://x.test/f", filename="g", mode=0o644, uid=1, accept="a/b"))
    assert identifier == "https://x.test/f"
    assert attrs == {"http.filename": "g", "http.perm": "0644", "http.uid": "1", "http.header.accept": "a/b"}
    assert caps == {"source.http", "source.http.perm", "soruce.http.uidgid", "source.http.header"}
    assert not platform


def test_oci_layouts_and_blobs() -> None:
    ref = "x@sha256:" + "a" * 64
    assert source(llb.oci_layout(ref, session="s", store="t"))[:2] == (
        "oci-layout://" + ref,
        {"oci.session": "s", "oci.store": "t"},
    )
    assert source(llb.image_blob(ref, filename="f"))[0] == "docker-image+blob://docker.io/library/" + ref
    identifier, attrs, caps, platform = source(llb.oci_layout_blob(ref, session="s", store="t", mode=0o600))
    assert identifier == "oci-layout+blob://docker.io/library/" + ref
    assert attrs == {"http.perm": "0600", "oci.session": "s", "oci.store": "t"}
    assert caps == {"source.imageblob"}
    assert not platform
    with pytest.raises(UsageError, match="tagged image reference not allowed"):
        llb.image_blob("x:1@sha256:" + "a" * 64)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("https://h.test/a.git#main:sub/dir", {"remote": "https://h.test/a.git", "ref": "main", "subdir": "sub/dir"}),
        ("https://h.test/a.git?tag=v1&subdir=d", {"ref": "refs/tags/v1", "subdir": "d"}),
        (
            "https://h.test/a.git?branch=x&keep-git-dir=1&submodules=false",
            {"ref": "refs/heads/x", "keep_git_dir": True, "submodules": False},
        ),
        ("git@h.test:a/b.git?ref=r#r", {"remote": "git@h.test:a/b.git", "ref": "r"}),
        ("ssh://git@h.test:22/a", {"remote": "ssh://git@h.test:22/a"}),
        ("git://h.test/a?commit=abc&mtime=commit", {"checksum": "abc", "mtime": "commit"}),
        ("github.com/a/b#r", {"remote": "github.com/a/b", "ref": "r", "like_local": True}),
    ],
)
def test_addresses_of_git(text: str, want: dict[str, object]) -> None:
    ref = llb.GitRef.parse(text)
    assert ref is not None
    assert {key: getattr(ref, key) for key in want} == want


@pytest.mark.parametrize("text", ["./x.git", "a/b", "https://h.test/a", "https://h.test/a.tar.gz", "ftp://h/a.git", "", "C:\\x"])
def test_not_git(text: str) -> None:
    assert llb.GitRef.parse(text) is None


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("ref=a&ref=b", 'query "ref" has multiple values'),
        ("ref=", 'query "ref" has no value'),
        ("wat=1", 'unexpected query "wat"'),
        ("tag=a&branch=b", "branch conflicts with tag"),
        ("tag=a#b", 'ref conflicts: "b" vs "refs/tags/a"'),
        ("keep-git-dir=maybe", 'invalid keep-git-dir value: "maybe"'),
        ("mtime=now", 'invalid mtime value: "now" (must be "checkout" or "commit")'),
    ],
)
def test_queries_that_cannot_be_meant(query: str, error: str) -> None:
    with pytest.raises(UsageError) as caught:
        llb.GitRef.parse("https://h.test/a.git?" + query)
    assert str(caught.value) == error
