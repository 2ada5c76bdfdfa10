# SPDX-License-Identifier: Apache-2.0
"""Where a client's directory lies, for a daemon on the same machine that would rather read it there (docs/adr/0013).

A daemon must not read for a client what that client could not read itself. So it asks for a proof:

    daemon                                     client
    a memfd with 32 random bytes
    Locate(name, pid, fd)               ->     opens /proc/PID/fd/FD, which the kernel lets only those do that may look into the
                                               daemon itself: its user, with all its capabilities (ptrace(2))
    reads the directory, if all is well <-     Location, and its HMAC with these bytes

The HMAC covers the session and the directory: who passes the question on to somebody more powerful cannot use the answer for
anything else. Whatever does not fit is `Elsewhere`, and the directory comes over the session.
"""

from __future__ import annotations

import hmac
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from chantier.pb import directories_pb2 as pb

NAME = "chantier.v1.Directories"
LOCATE = f"/{NAME}/Locate"
_PROOF = "chantier-proof"
_SIZE = 32


class Elsewhere(Exception):
    """A directory cannot be read where it lies, with the reason. No failure: it then comes over the session."""


class Proof:
    """What only a peer can read that may read whatever this process may. Good for one question; closed by leaving the block."""

    def __init__(self) -> None:
        """Raises Elsewhere where there can be none."""
        self.pid = os.getpid()
        try:
            self.fd = os.memfd_create(_PROOF, os.MFD_CLOEXEC)
        except OSError as err:  # too many files are open, or a filter of system calls does not know it
            raise Elsewhere(f"no proof can be asked for: {(err.strerror or '').lower()}") from err
        try:
            self._secret = os.urandom(_SIZE)
            os.write(self.fd, self._secret)
            # Of a daemon that may read what its mode forbids, the client must be one too (capabilities(7), CAP_DAC_OVERRIDE).
            os.fchmod(self.fd, 0)
            try:
                os.close(os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC))
            except PermissionError:
                os.fchmod(self.fd, 0o400)
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self.fd)

    def check(self, session: str, name: str, answer: pb.LocateResponse) -> Path:
        """The directory `name` of the client's session, once it is proved. Raises Elsewhere."""
        if answer.refusal:
            raise Elsewhere(answer.refusal)
        if not hmac.compare_digest(hmac.digest(self._secret, answer.location, "sha256"), answer.mac):
            raise Elsewhere("the client has not proved that it may read what this process may")
        told = pb.Location.FromString(answer.location)
        if (told.session, told.name) != (session, name):
            raise Elsewhere("the client has answered for another session or directory")
        if (told.mounts, told.root_device, told.root_inode) != _view():
            raise Elsewhere("the client sees other mounts, or has another root directory")
        path = os.fsdecode(told.path)
        if not os.path.isabs(path):
            raise Elsewhere("the client has told no absolute path")
        try:
            found = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise Elsewhere(f"{path}: {(err.strerror or '').lower()}") from err
        try:
            info = os.fstat(found)
        finally:
            os.close(found)
        if (info.st_dev, info.st_ino) != (told.device, told.inode):
            raise Elsewhere(f"{path} is another directory here")
        return Path(path)


def tell(session: str, request: pb.LocateRequest, directory: Path) -> pb.LocateResponse:
    """The client's answer: where its directory lies, or why it does not say so."""
    try:
        secret = _read_proof(request.pid, request.fd)
        info = os.stat(directory)
        mounts, device, inode = _view()
    except Elsewhere as err:
        return pb.LocateResponse(refusal=str(err))
    except OSError as err:
        return pb.LocateResponse(refusal=f"the client cannot tell: {(err.strerror or '').lower()}")
    location = pb.Location(
        session=session,
        name=request.name,
        path=os.fsencode(directory),
        device=info.st_dev,
        inode=info.st_ino,
        mounts=mounts,
        root_device=device,
        root_inode=inode,
    ).SerializeToString()
    return pb.LocateResponse(location=location, mac=hmac.digest(secret, location, "sha256"))


def _view() -> tuple[str, int, int]:
    """What paths mean to this process: its mounts and its root directory."""
    root = os.stat("/")
    return os.readlink("/proc/self/ns/mnt"), root.st_dev, root.st_ino


def _read_proof(pid: int, fd: int) -> bytes:
    """Nothing but a proof is ever opened for reading, whatever a daemon names. Raises Elsewhere."""
    try:
        place = os.open(f"/proc/{pid}/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
    except OSError as err:
        raise Elsewhere(f"the client may not look into the daemon: {(err.strerror or '').lower()}") from err
    try:
        mine = f"/proc/self/fd/{place}"
        if os.readlink(mine) != f"/memfd:{_PROOF} (deleted)" or not stat.S_ISREG(os.fstat(place).st_mode):
            raise Elsewhere("the daemon's processes are others than those the client sees")
        try:
            with open(mine, "rb") as file:
                secret = file.read(_SIZE + 1)
        except OSError as err:
            raise Elsewhere(f"the client may not read what the daemon may: {(err.strerror or '').lower()}") from err
    finally:
        os.close(place)
    if len(secret) != _SIZE:
        raise Elsewhere("the daemon's proof is no proof")
    return secret


__all__ = ["LOCATE", "NAME", "Elsewhere", "Proof", "tell"]
