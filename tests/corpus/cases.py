# SPDX-License-Identifier: Apache-2.0
"""What is built. `{http}`, `{ssh}` and the like are places of `servers`; `{key}` is a key file for ssh.

What each case gives stands in `expected/NAME.json`, recorded from BuildKit by `record.py`, never from our own output.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    dockerfile: str = ""
    args: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)  # of the context; a value `-> x` is a link, `/` a directory
    context: str = ""  # instead of a directory made of `files`
    times: bool = False  # modification times count
    env: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # ssh
    rewrite: bool = False  # exported with rewrite-timestamp=true
    newer: dict[str, str] = field(default_factory=dict)
    """Texts of the recorded answer that a newer BuildKit words otherwise, by what `reference` says it writes instead."""


CASES = (
    # Git over HTTP
    Case(name="git-branch", dockerfile="FROM scratch\nADD {http}/git/app.git#main /src\n"),
    Case(name="git-branch-with-slash", dockerfile="FROM scratch\nADD {http}/git/app.git#feature/x /src/\n"),
    Case(name="git-default-branch", dockerfile="FROM scratch\nADD {http}/git/app.git /src\n"),
    Case(name="git-annotated-tag", dockerfile="FROM scratch\nADD {http}/git/plain.git#v1 /src\n"),
    Case(name="git-full-ref", dockerfile="FROM scratch\nADD {http}/git/app.git#refs/heads/main /src\n"),
    Case(name="git-commit", dockerfile="FROM scratch\nADD {http}/git/app.git#{second} /src\n"),
    Case(name="git-subdir", dockerfile="FROM scratch\nADD {http}/git/plain.git#main:sub /src\n"),
    Case(
        name="git-subdir-missing",
        dockerfile="FROM scratch\nADD {http}/git/plain.git#main:none /src\n",
        newer={'subdir /none: failed to lstat "none": statat none: no': "subdir none: no"},
    ),
    Case(name="git-ref-missing", dockerfile="FROM scratch\nADD {http}/git/app.git#nothing /src\n"),
    Case(name="git-chown-chmod", dockerfile="FROM scratch\nADD --chown=5:6 {http}/git/lib.git#main /l/\n"),
    Case(
        name="git-keep-dir",
        dockerfile="FROM alpine AS g\nADD --keep-git-dir=true {http}/git/app.git#main /src\n"
        "RUN cd /src && cat .git/HEAD .git/refs/heads/* > /head; ls -d .git/* | sort > /names\nFROM scratch\nCOPY --from=g /head /\n",
    ),
    Case(name="git-context", context="{http}/git/app.git#main"),
    Case(name="git-context-subdir", context="{http}/git/plain.git#main:sub", dockerfile="FROM scratch\nCOPY . /c\n"),
    Case(
        name="git-named-context",
        dockerfile="FROM scratch\nCOPY --from=lib . /l\n",
        args=("--build-context", "lib={http}/git/lib.git#main"),
        # Git contexts lost their `.git` directory later, unless BUILDKIT_CONTEXT_KEEP_GIT_DIR asks for it.
    ),
    Case(
        name="git-private",
        dockerfile="FROM scratch\nADD {http}/private/plain.git#main:sub /src\n",
        args=("--secret", "id=GIT_AUTH_TOKEN,env=THE_TOKEN"),
        env={"THE_TOKEN": "let-me-in"},
    ),
    Case(name="git-private-without-token", dockerfile="FROM scratch\nADD {http}/private/plain.git#main:sub /src\n"),
    Case(name="git-ssh", dockerfile="FROM scratch\nADD {ssh}/app.git#main /src\n", args=("--ssh", "default={key}"), needs=("ssh",)),
    Case(name="git-ssh-context", context="{ssh}/app.git#main", args=("--ssh", "default={key}"), needs=("ssh",)),
    # Files over HTTP
    Case(name="http-file", dockerfile="FROM scratch\nADD {http}/plain.txt /f\nADD {http}/plain.txt /d/\n", times=True),
    Case(name="http-modes", dockerfile="FROM scratch\nADD --chmod=755 --chown=3:4 {http}/plain.txt /f\n", times=True),
    Case(name="http-checksum", dockerfile="FROM scratch\nADD --checksum={plain} {http}/plain.txt /f\n"),
    Case(
        name="http-checksum-wrong",
        dockerfile=f"FROM scratch\nADD --checksum=sha256:{'0' * 64} {{http}}/plain.txt /f\n",
        newer={
            f"mismatch {{plain}}: sha256:{'0' * 64}": f"mismatch for {{http}}/plain.txt: {{plain}} (expected: sha256:{'0' * 64})"
        },
    ),
    Case(name="http-archive-stays", dockerfile="FROM scratch\nADD {http}/app.tar.gz /a/\n"),
    Case(name="http-redirect", dockerfile="FROM scratch\nADD {http}/moved/plain.txt /f\n"),
    Case(name="http-missing", dockerfile="FROM scratch\nADD {http}/nothing /f\n"),
    Case(name="http-two", dockerfile="FROM scratch\nADD {http}/plain.txt {http}/app.tar /two/\n"),
    Case(name="http-with-variable", dockerfile="FROM scratch\nARG NAME=plain\nADD {http}/$NAME.txt /$NAME/\n"),
    Case(name="http-context-tar", context="{http}/app.tar.gz"),
    Case(name="http-context-dockerfile", context="{http}/only.dockerfile"),
    Case(
        name="http-named-context",
        dockerfile="FROM scratch\nCOPY --from=w . /w\n",
        args=("--build-context", "w={http}/plain.txt"),
        newer={"w/plain.txt file": "w/context file"},
    ),
    # Named contexts
    Case(
        name="context-image",
        dockerfile="FROM nowhere.example/none\nCOPY f /f\n",
        files={"f": "f"},
        args=("--build-context", "nowhere.example/none=docker-image://alpine"),
    ),
    Case(
        name="context-replaces-stage",
        dockerfile="FROM scratch AS dep\nRUN this never runs\nFROM scratch\nCOPY --from=dep / /d\n",
        files={"other/x": "x", "other/.dockerignore": "y", "other/y": "y"},
        args=("--build-context", "dep={context}/other"),
    ),
    Case(
        name="context-mount",
        dockerfile="FROM alpine\nRUN --mount=type=bind,from=o,target=/o cp /o/x /x\n",
        files={"other/x": "x"},
        args=("--build-context", "o={context}/other"),
    ),
    # Heredocs and triggers
    Case(
        name="heredoc-both-ways",
        dockerfile="FROM alpine\nARG V=value\nCOPY <<A <<\"B\" /d/\n$V ${V:-x} \\$V\nA\n$V\nB\nRUN <<-C sh\n\techo \"got $V\" > /r\n\tC\n",
    ),
    Case(
        name="onbuild-with-heredoc",
        dockerfile="FROM alpine AS parent\nONBUILD COPY <<E /from-parent\nhello $WHO\nE\nONBUILD RUN echo $WHO > /ran\nENV WHO=me\nFROM parent\nRUN echo mine > /mine\n",
    ),
    Case(name="onbuild-grandchild", dockerfile="FROM scratch AS a\nONBUILD ENV X=1\nFROM a AS b\nFROM b\nLABEL l=1\n"),
    # Merge
    Case(
        name="link-deletes-nothing",
        dockerfile="FROM alpine\nCOPY --link a /x/a\nRUN rm /x/a && echo kept > /x/kept\nCOPY --link b /x/b\nCOPY --link d /x\n",
        files={"a": "a", "b": "b", "d/kept": "other", "d/e/": "/"},
    ),
    Case(
        name="link-over-file",
        dockerfile="FROM alpine\nRUN echo file > /x\nCOPY --link d /x/\n",
        files={"d/f": "f"},
    ),
    Case(
        name="link-same-path-twice",
        dockerfile="FROM scratch\nCOPY --link a /f\nCOPY --link b /f\n",
        files={"a": "a", "b": "b"},
    ),
    # Platforms
    Case(
        name="platform-foreign",
        dockerfile="FROM scratch\nARG TARGETPLATFORM TARGETARCH TARGETVARIANT BUILDPLATFORM\nLABEL t=$TARGETPLATFORM a=$TARGETARCH v=$TARGETVARIANT b=$BUILDPLATFORM\nCOPY f /f\n",
        files={"f": "f"},
        args=("--platform", "linux/arm/v6"),
        newer={
            "ARG TARGETPLATFORM TARGETARCH TARGETVARIANT BUILDPLATFORM": "ARG TARGETPLATFORM=linux/arm/v6 TARGETARCH=arm "
            "TARGETVARIANT=v6 BUILDPLATFORM=linux/amd64"
        },
    ),
    Case(
        name="platform-several",
        dockerfile="FROM --platform=$BUILDPLATFORM alpine AS t\nARG TARGETARCH\nRUN echo $TARGETARCH > /arch\nFROM scratch\nCOPY --from=t /arch /\n",
        args=("--platform", "linux/amd64,linux/arm64,linux/s390x"),
    ),
    Case(
        name="platform-of-single-image",
        dockerfile="FROM alpine\nCOPY f /f\n",
        files={"f": "f"},
        args=("--platform", "linux/ppc64le"),
    ),
    # Limits of steps
    Case(
        name="limits",
        dockerfile="FROM alpine\nRUN ulimit -n > /files && ulimit -c > /core && df -m /dev/shm | tail -1 | awk '{print $2}' > /shm\n",
        args=("--ulimit", "nofile=321:654", "--ulimit", "core=0", "--shm-size", "16m"),
    ),
    Case(
        name="hosts",
        dockerfile="FROM alpine\nRUN grep -c example.test /etc/hosts > /count; grep example.test /etc/hosts | tr '\\t' ' ' > /lines\n",
        args=("--add-host", "a.example.test=10.0.0.1", "--add-host", "b.example.test=::2"),
    ),
    Case(
        name="proxies",
        dockerfile="FROM alpine\nRUN env | grep -i proxy | sort > /env\nENV A=b\n",
        args=("--build-arg", "http_proxy=http://p.example:1", "--build-arg", "NO_PROXY=x.example"),
    ),
    # Copying
    Case(
        name="wildcard-below-a-file",
        dockerfile="FROM scratch AS s\nCOPY f /f\nFROM scratch\nCOPY --from=s /f/a/* /d/\n",
        files={"f": "f"},
    ),
    Case(
        name="wildcard-below-nothing",
        dockerfile="FROM scratch AS s\nCOPY f /f\nFROM scratch\nCOPY --from=s /none/a/* /d/\n",
        files={"f": "f"},
    ),
    Case(
        name="ignore-file-of-dockerfile",
        files={"sub/my.Dockerfile": "FROM scratch\nCOPY . /c\n", "sub/my.Dockerfile.dockerignore": "**/*.log\n!keep.log\n", "a.log": "", "keep.log": "", "d/b.log": "", "d/c": "", ".dockerignore": "d"},
        args=("-f", "{context}/sub/my.Dockerfile"),
    ),
    Case(
        name="epoch-rewrites-times",
        dockerfile="FROM scratch\nARG SOURCE_DATE_EPOCH\nWORKDIR /w\nCOPY f /f\nCOPY <<E /h\nx\nE\n",
        files={"f": "f"},
        args=("--build-arg", "SOURCE_DATE_EPOCH=1500000000"),
        times=True,
        rewrite=True,
        newer={"ARG SOURCE_DATE_EPOCH (empty)": "ARG SOURCE_DATE_EPOCH=1500000000 (empty)"},
    ),
)  # fmt: skip


__all__ = ["CASES", "Case"]
