# SPDX-License-Identifier: Apache-2.0
"""Signatures of commits, tags and files: OpenPGP by `gpg`, SSH by `ssh-keygen` (`git.sig.*`, `http.sig.*`; protocol.md 1.4.5).

Only the keys that the source names count: the programs get a home of their own, no network, no agent, no trust of the user's.
What else is asked of a signature is what BuildKit asks: SHA-256 or better, RSA (of 2048 bits at least), ECDSA or EdDSA, no revoked
key, no key that had expired when it signed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from chantier.errors import IntegrityError, UnsupportedError, UsageError
from chantier.values import dataclass

_BEGIN = re.compile(rb"^-----BEGIN (PGP|SSH) SIGNATURE-----$", re.MULTILINE)
_PGP_KEYS = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
_SSH_KEY = re.compile(r"^(?:ssh-|ecdsa-|sk-)[\w@.-]+ [A-Za-z0-9+/=]+", re.MULTILINE)
_HASHES = {"8": "SHA256", "9": "SHA384", "10": "SHA512"}  # RFC 9580, 9.5
_RSA = ("1", "3")
_ALGORITHMS = (*_RSA, "19", "22", "27")  # RFC 9580, 9.1: RSA, ECDSA, EdDSA, Ed25519
_RSA_BITS = 2048
_AHEAD_S = 300  # how far clocks may be apart
_ONE_OF = ("GOODSIG", "BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`keys` are armored OpenPGP public keys, one after another, or lines of SSH public keys."""

    keys: str
    reject_expired: bool = False
    require_signed_tag: bool = False
    ignore_signed_tag: bool = False


def wanted_of(attrs: Mapping[str, str]) -> Wanted | None:
    """None where a git source asks for no signature."""
    if not any(key.startswith("git.sig.") for key in attrs):
        return None
    return Wanted(
        keys=attrs.get("git.sig.pubkey", ""),
        reject_expired=attrs.get("git.sig.rejectexpired") == "true",
        require_signed_tag=attrs.get("git.sig.requiresignedtag") == "true",
        ignore_signed_tag=attrs.get("git.sig.ignoresignedtag") == "true",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    data: bytes
    signature: bytes


def signed_tag(raw: bytes) -> Signed | None:
    """A tag object's signature stands behind its message (git's Documentation/gitformat-signature). None without one."""
    found = [match.start() for match in _BEGIN.finditer(raw)]
    return Signed(data=raw[: found[-1]], signature=raw[found[-1] :]) if found else None


def signed_commit(raw: bytes, *, sha256: bool = False) -> Signed | None:
    """A commit's signature is a header of it, signed is the commit without such headers. None without one."""
    head, blank, message = raw.partition(b"\n\n")
    kept: list[bytes] = []
    signatures: dict[bytes, list[bytes]] = {}
    lines: list[bytes] = kept
    for line in head.split(b"\n"):
        if line.startswith(b" "):
            lines.append(line[1:] if lines is not kept else line)
            continue
        name, _, value = line.partition(b" ")
        lines = signatures.setdefault(name, []) if name in (b"gpgsig", b"gpgsig-sha256") else kept
        lines.append(value if lines is not kept else line)
    signature = signatures.get(b"gpgsig-sha256" if sha256 else b"gpgsig")
    if signature is None:
        return None
    return Signed(data=b"\n".join(kept) + blank + message, signature=b"\n".join(signature) + b"\n")


def check_name(kind: str, raw: bytes, sha: str) -> None:
    """Raises IntegrityError for an object that is not the one of that name."""
    make = hashlib.sha256 if len(sha) == 64 else hashlib.sha1
    got = make(b"%s %d\0" % (kind.encode(), len(raw)) + raw).hexdigest()
    if got != sha:
        raise IntegrityError(f"{kind} object checksum verification failed: got {got}, expected {sha}")


async def verify(what: str, signed: Signed | None, wanted: Wanted, home: Path) -> None:
    """`home` is a new, empty directory. Raises IntegrityError that says why the signature does not count."""
    try:
        if signed is None:
            raise IntegrityError("git object is not signed")
        kind = _BEGIN.search(signed.signature)
        if kind is None:
            raise IntegrityError("failed to decode armored signature")
        await asyncio.to_thread(_write, home, signed)
        await (_verify_pgp if kind[1] == b"PGP" else _verify_ssh)(wanted, home)
    except IntegrityError as err:
        raise IntegrityError(f"failed to verify the signature of {what}: {err}") from err


async def verify_file(what: str, path: Path, signature: str, keys: str, home: Path) -> None:
    """A file by an armored OpenPGP signature beside it. As `verify`."""
    if "-----BEGIN PGP SIGNATURE-----" not in signature:
        raise UsageError(f"failed to decode armored signature of {what}", hint="an armored, detached OpenPGP signature is wanted")

    def place() -> None:
        (home / "data").symlink_to(path)
        (home / "signature").write_text(signature)

    await asyncio.to_thread(place)
    try:
        await _verify_pgp(Wanted(keys=keys), home)
    except IntegrityError as err:
        raise IntegrityError(f"failed to verify the signature of {what}: {err}") from err


def _write(home: Path, signed: Signed) -> None:
    (home / "data").write_bytes(signed.data)
    (home / "signature").write_bytes(signed.signature)


# -- OpenPGP


async def _verify_pgp(wanted: Wanted, home: Path) -> None:
    if _PGP_KEYS not in wanted.keys:
        raise UsageError("failed to read armored public key: no armored data found", hint="give the key of who signed")
    gpg = ("gpg", "--homedir", str(home), "--no-options", "--batch", "--no-tty", "--no-autostart", "--disable-dirmngr")
    await asyncio.to_thread((home / "keys").write_text, wanted.keys)
    # Its exit code tells of the agent too, which is not there and not needed.
    _, out, said = await _run([*gpg, "--quiet", "--status-fd", "1", "--import", "keys"], home)
    if "[GNUPG:] IMPORT_OK " not in out:
        raise UsageError(f"failed to read armored public key: {said.strip().splitlines()[-1] if said.strip() else 'no keys'}")
    check = [*gpg, "--trust-model", "always", "--status-fd", "1", "--verify", "signature", "data"]
    _, out, _ = await _run(check, home)
    status = [line.split()[1:] for line in out.splitlines() if line.startswith("[GNUPG:] ")]
    try:
        primary = _judge(status, wanted)
    except IntegrityError as err:
        raise IntegrityError(f"failed to verify pgp signature: {err}") from err
    _, out, _ = await _run([*gpg, "--with-colons", "--list-keys", primary], home)
    for fields in (line.split(":") for line in out.splitlines() if line.startswith("pub:")):
        if fields[3] in _RSA and int(fields[2]) < _RSA_BITS:
            raise IntegrityError(f"RSA key too short: {fields[2]} bits")


def _judge(status: Sequence[Sequence[str]], wanted: Wanted) -> str:
    """The primary key's fingerprint. What gpg says by --status-fd is laid down in its doc/DETAILS."""
    found = [line for line in status if line and line[0] in _ONE_OF]
    if len(found) != 1:
        raise IntegrityError("no signature packet found" if not found else "there are several signatures")
    ((word, key, *_),) = found
    by = f"signature by {key}: "
    if word == "ERRSIG":
        missing = any(line[0] == "NO_PUBKEY" for line in status if line)
        raise IntegrityError(by + ("signature made by unknown entity" if missing else "unsupported signature"))
    if word == "BADSIG":
        raise IntegrityError(by + "invalid signature")
    if word == "REVKEYSIG":
        raise IntegrityError(by + "key revoked")
    if word == "EXPSIG":
        raise IntegrityError(by + "signature expired")
    valid = next((line for line in status if line and line[0] == "VALIDSIG"), None)
    if valid is None or len(valid) < 10:
        raise IntegrityError(by + "invalid signature")
    made_at, algorithm, hashed = int(valid[3]), valid[7], valid[8]
    if hashed not in _HASHES:
        raise IntegrityError(f"rejecting weak/unknown hash: {hashed}")
    if algorithm not in _ALGORITHMS:
        raise IntegrityError(f"rejecting unsupported pubkey algorithm: {algorithm}")
    if made_at > time.time() + _AHEAD_S:
        raise IntegrityError(f"signature creation time is in the future: {valid[2]}")
    if word == "EXPKEYSIG":
        ends = [int(line[1]) for line in status if len(line) > 1 and line[0] == "KEYEXPIRED" and line[1].isdecimal()]
        if wanted.reject_expired or not ends or made_at > min(ends):
            raise IntegrityError(by + "key expired")
    return valid[10] if len(valid) > 10 else valid[1]


# -- SSH


async def _verify_ssh(wanted: Wanted, home: Path) -> None:
    keys = _SSH_KEY.findall(wanted.keys)
    if not keys:
        raise UsageError("failed to parse ssh public key: none was given", hint="give the key of who signed, as in a .pub file")
    signers = "".join(f'signer namespaces="git" {key}\n' for key in keys)
    await asyncio.to_thread((home / "signers").write_text, signers)
    check = ["ssh-keygen", "-Y", "verify", "-f", "signers", "-I", "signer", "-n", "git", "-s", "signature"]
    code, _, said = await _run(check, home, stdin=home / "data")
    if code != 0:
        raise IntegrityError(f"failed to verify ssh signature: {said.strip() or 'signature made by unknown entity'}")


async def _run(argv: Sequence[str], home: Path, stdin: Path | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and error. The programs are short; a cancelled one is killed."""
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), "GNUPGHOME": str(home), "LC_ALL": "C"}
    given = os.open(stdin if stdin is not None else os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=given, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=home, env=env
        )
    except FileNotFoundError as err:
        raise UnsupportedError(
            f"failed to run {argv[0]}: no such program", hint=f"install {argv[0]} where the engine runs: signatures need it"
        ) from err
    finally:
        os.close(given)
    try:
        out, said = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, out.decode(errors="replace"), said.decode(errors="replace")


__all__ = ["Signed", "Wanted", "check_name", "signed_commit", "signed_tag", "verify", "verify_file", "wanted_of"]
