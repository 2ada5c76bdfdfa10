# SPDX-License-Identifier: Apache-2.0
"""Signed commits and tags: made by git with real keys, judged as git itself judges them, and as a policy of keys asks."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from chantier.errors import IntegrityError, UsageError
from chantier.llb import GitSignature, git, http
from chantier.op.git import GitOp, named
from chantier.op.http import HttpOp
from chantier.op.signature import signed_commit, signed_tag
from chantier.pb import ops_pb2 as pb

from .test_http import Server

if TYPE_CHECKING:
    from conftest import Bench

pytestmark = [
    pytest.mark.root, pytest.mark.slow,
    pytest.mark.skipif(not all(map(shutil.which, ("git", "gpg", "ssh-keygen"))), reason="no git, gpg or ssh-keygen"),
]  # fmt: skip
NAMES = {f"GIT_{who}_{what}": "t@example.test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@dataclass
class Signers:
    """A home of gpg with secret keys, SSH keys beside it, and a repository with what they signed."""

    home: Path
    keys: dict[str, str] = field(default_factory=dict)  # name -> the public key as text
    ids: dict[str, str] = field(default_factory=dict)  # name -> what git takes as user.signingkey

    @property
    def repository(self) -> Path:
        return self.home / "repo"

    def run(self, *args: str, now: str = "") -> str:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "GNUPGHOME": str(self.home), **NAMES}
        done = subprocess.run(args, env=env, cwd=self.home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (args, done.stderr)
        return done.stdout

    def gpg(self, *args: str) -> str:
        return self.run("gpg", "--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback", *args)

    def git(self, *args: str) -> str:
        return self.run("git", "-C", str(self.repository), *args).strip()

    def pgp_key(self, name: str, kind: str = "ed25519", usage: str = "sign", expire: str = "never", at: str = "") -> None:
        self.gpg(*(["--faked-system-time", at] if at else []), "--quick-gen-key", f"{name}@example.test", kind, usage, expire)
        self.ids[name] = f"{name}@example.test"
        self.keys[name] = self.gpg("--armor", "--export", self.ids[name])

    def ssh_key(self, name: str) -> None:
        self.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.home / name))
        self.keys[name], self.ids[name] = (self.home / f"{name}.pub").read_text(), str(self.home / f"{name}.pub")

    def sign(self, by: str, *command: str, at: str = "") -> None:
        """A git command that signs."""
        how = ["-c", "gpg.format=ssh"] if by.startswith("ssh") else []
        if at:
            program = self.home / "gpg-then"
            program.write_text(f'#!/bin/sh\nexec gpg --faked-system-time {at} "$@"\n')
            program.chmod(0o755)
            how = ["-c", f"gpg.program={program}"]
        self.git(*how, "-c", f"user.signingkey={self.ids[by]}", *command)

    def commit(self, branch: str, by: str = "", at: str = "") -> None:
        self.git("checkout", "--quiet", "-B", branch)
        args = ("commit", "--quiet", "--allow-empty", "-m", f"made on {branch}\n\nwith two\nlines")
        self.sign(by, *args, "-S", at=at) if by else self.git(*args)

    def raw(self, kind: str, name: str) -> bytes:
        command = ["git", "-C", str(self.repository), "cat-file", kind, name]
        return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def signers() -> Iterator[Signers]:
    made = Signers(Path(tempfile.mkdtemp(prefix="sig", dir="/tmp")))  # short: gpg's agent has a socket in it
    try:
        made.repository.mkdir()
        made.git("init", "--quiet", "--initial-branch=main")
        (made.repository / "f").write_text("f")
        made.git("add", "f")
        for name in ("alice", "bob"):
            made.pgp_key(name)
        made.pgp_key("short", "rsa1024")
        made.pgp_key("long", "rsa2048")
        made.pgp_key("old", expire="seconds=86400", at="20200101T000000")
        made.ssh_key("ssh-carol")
        made.ssh_key("ssh-dave")
        made.commit("plain")
        for name in ("alice", "short", "long", "ssh-carol"):
            made.commit(f"by-{name}", name)
        made.commit("in-time", "old", at="20200101T100000")
        made.git("checkout", "--quiet", "plain")
        made.git("tag", "-a", "unsigned", "-m", "a tag")
        made.sign("alice", "tag", "-s", "signed", "-m", "a tag")
        made.sign("ssh-carol", "tag", "-s", "ssh-signed", "-m", "a tag\n\nof two lines")
        made.git("checkout", "--quiet", "by-alice")
        made.sign("bob", "tag", "-s", "both", "-m", "a tag of bob on a commit of alice")
        made.git("tag", "light")
        yield made
    finally:
        subprocess.run(["gpgconf", "--homedir", str(made.home), "--kill", "all"], capture_output=True, check=False)
        shutil.rmtree(made.home)


def check(bench: Bench, signers: Signers, ref: str, *keys: str, **more: bool) -> None:
    """The checkout of `ref`, if its signature counts."""
    wanted = GitSignature(keys="\n".join(signers.keys[key] for key in keys), **more)
    state = git("https://unused.test/x.git", ref, signature=wanted)
    op = pb.Op.FromString(getattr(state.marshal(), "def")[0])
    op.source.attrs["git.fullurl"] = f"file://{signers.repository}"
    made = GitOp(bench.vertex(op), bench.worker)
    bench.map_of(made)
    (result,) = bench.run(made)
    assert bench.files(result) == {"f": "f"}


@pytest.mark.parametrize(
    ("ref", "keys"),
    [
        ("by-alice", ["alice"]), ("by-alice", ["bob", "alice"]), ("by-long", ["long"]), ("by-ssh-carol", ["ssh-carol"]),
        ("by-ssh-carol", ["ssh-dave", "ssh-carol"]), ("by-alice", ["ssh-dave", "alice"]), ("signed", ["alice"]),
        ("ssh-signed", ["ssh-carol"]), ("both", ["bob"]), ("both", ["alice"]), ("light", ["alice"]), ("in-time", ["old"]),
    ],
)  # fmt: skip
def test_signatures_that_count(bench: Bench, signers: Signers, ref: str, keys: list[str]) -> None:
    check(bench, signers, ref, *keys)


@pytest.mark.parametrize(
    ("ref", "key", "said"),
    [
        ("plain", "alice", "git object is not signed"),
        ("by-alice", "bob", "signature made by unknown entity"),
        ("by-ssh-carol", "ssh-dave", "failed to verify ssh signature"),
        ("unsigned", "alice", "git object is not signed"),
        ("signed", "bob", "git object is not signed"),  # of the commit: the tag's is another's
        ("by-short", "short", "RSA key too short: 1024 bits"),
    ],
)
def test_signatures_that_do_not(bench: Bench, signers: Signers, ref: str, key: str, said: str) -> None:
    with pytest.raises(IntegrityError, match=f"failed to verify the signature of .*{said}"):
        check(bench, signers, ref, key)


def test_keys_of_another_kind_are_a_mistake(bench: Bench, signers: Signers) -> None:
    with pytest.raises(UsageError, match="failed to read armored public key"):
        check(bench, signers, "by-alice", "ssh-carol")
    with pytest.raises(UsageError, match="failed to parse ssh public key"):
        check(bench, signers, "by-ssh-carol", "alice")


def test_tags_can_be_asked_for_or_passed_over(bench: Bench, signers: Signers) -> None:
    check(bench, signers, "signed", "alice", require_signed_tag=True)
    check(bench, signers, "both", "alice", ignore_signed_tag=True)
    for ref in ("light", "by-alice"):
        with pytest.raises(IntegrityError, match="signed tag required but no signed tag found"):
            check(bench, signers, ref, "alice", require_signed_tag=True)
    with pytest.raises(IntegrityError, match=r"tag refs/tags/both .*signature made by unknown entity"):
        check(bench, signers, "both", "alice", require_signed_tag=True)
    with pytest.raises(IntegrityError, match=r"commit .*signature made by unknown entity"):
        check(bench, signers, "both", "bob", ignore_signed_tag=True)


def test_a_key_that_expired_since(bench: Bench, signers: Signers) -> None:
    with pytest.raises(IntegrityError, match="key expired"):
        check(bench, signers, "in-time", "old", reject_expired=True)


def test_a_revoked_key(bench: Bench, signers: Signers) -> None:
    signers.pgp_key("gone")
    signers.commit("by-gone", "gone")
    check(bench, signers, "by-gone", "gone")
    fingerprint = signers.gpg("--with-colons", "--list-keys", "gone@example.test").split("fpr:::::::::")[1].split(":")[0]
    certificate = (signers.home / f"openpgp-revocs.d/{fingerprint}.rev").read_text().replace(":-----BEGIN", "-----BEGIN")
    (signers.home / "revoked").write_text(certificate)
    signers.gpg("--import", str(signers.home / "revoked"))
    signers.keys["gone"] = signers.gpg("--armor", "--export", "gone@example.test")
    with pytest.raises(IntegrityError, match="key revoked"):
        check(bench, signers, "by-gone", "gone")


def test_what_was_changed_after_signing(signers: Signers) -> None:
    """A signature that git's own check takes holds for what `signed_commit` says was signed, and not for anything else."""
    for ref, read, kind in (("by-alice", signed_commit, "commit"), ("signed", signed_tag, "tag")):
        signers.git(f"verify-{kind}", ref)  # raises
        found = read(signers.raw(kind, ref))
        assert found is not None
        (signers.home / "sig").write_bytes(found.signature)
        (signers.home / "data").write_bytes(found.data)
        signers.gpg("--verify", str(signers.home / "sig"), str(signers.home / "data"))
        (signers.home / "data").write_bytes(found.data.replace(b"tree", b"treE").replace(b"tag", b"taG"))
        with pytest.raises(AssertionError, match="BAD signature"):
            signers.gpg("--verify", str(signers.home / "sig"), str(signers.home / "data"))


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_files_of_the_web(bench: Bench, signers: Signers, server: Server) -> None:
    (signers.home / "file").write_bytes(b"hello")
    signers.gpg(
        "--armor", "--local-user", signers.ids["alice"], "--output", str(signers.home / "file.asc"), "--detach-sign", "file"
    )
    signature = (signers.home / "file.asc").read_text()

    def made(url: str, by: str, **more: str) -> HttpOp:
        state = http(url, keys=signers.keys[by], signature=signature, filename="f", **more)  # type: ignore[arg-type]
        return HttpOp(bench.vertex(pb.Op.FromString(getattr(state.marshal(), "def")[0])), bench.worker)

    good = made(server.serve("/good", b"hello"), "alice")
    bench.map_of(good)
    (result,) = bench.run(good)
    assert bench.files(result) == {"f": "hello 600"}
    checksum = "sha256:" + hashlib.sha256(b"hello").hexdigest()
    for url, by, said in (
        (server.serve("/good", b"hello"), "bob", "unknown entity"),
        (server.serve("/bad", b"hell0"), "alice", "invalid"),
    ):
        for more in ({}, {"checksum": checksum}):
            with pytest.raises(IntegrityError, match=f"failed to verify the signature of {url}: .*{said}"):
                bench.map_of(made(url, by, **more))


def test_metadata_is_given_of_what_is_signed_only(bench: Bench, signers: Signers) -> None:
    """What a source policy asks before it decides (ResolveSourceMeta)."""
    attrs = {"git.fullurl": f"file://{signers.repository}", "git.sig.pubkey": signers.keys["alice"]}
    source = pb.SourceOp(identifier="git://unused.test/x.git#signed", attrs=attrs)
    object, ref, commit = bench.wait(named(source, bench.worker, [], job=SimpleNamespace(resolved={})))
    assert (object, ref, commit) == (
        signers.git("rev-parse", "signed"), "refs/tags/signed", signers.git("rev-parse", "plain"),
    )  # fmt: skip
    source.attrs["git.sig.pubkey"] = signers.keys["bob"]
    with pytest.raises(IntegrityError, match="not signed"):
        bench.wait(named(source, bench.worker, [], job=SimpleNamespace(resolved={})))
