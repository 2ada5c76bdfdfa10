# SPDX-License-Identifier: Apache-2.0
"""A program's standard streams as a stream of bytes: `ssh host buildctl dial-stdio` and its kin."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress

from chantier.errors import ChantierError

_READ = 1 << 18
_LAST_WORDS_S = 2.0
_KEEP = 4096  # of what the program says on its standard error


class Pipe:
    """A running program. Implements wire.ByteStream; what it said on standard error explains why it ended."""

    def __init__(self, process: asyncio.subprocess.Process, argv: Sequence[str]) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self._process = process
        self._argv = argv
        self._in, self._out = process.stdin, process.stdout
        self._said = b""
        self._got = 0
        self._errors = asyncio.create_task(self._listen(process.stderr))

    @classmethod
    async def start(cls, argv: Sequence[str], env: Mapping[str, str] | None = None) -> Pipe:
        """Raises ChantierError if the program is not there."""
        pipe = asyncio.subprocess.PIPE
        try:
            # Its own session: an interrupt from the keyboard is ours to handle, and ssh must not stop to ask a terminal.
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(env) if env is not None else None, start_new_session=True
            )
        except FileNotFoundError as err:
            raise ChantierError(f"failed to run {argv[0]}: not found", hint=f"install {argv[0]}") from err
        except OSError as err:
            raise ChantierError(f"failed to run {argv[0]}: {(err.strerror or str(err)).lower()}") from err
        return cls(process, argv)

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(4096):
            self._said = (self._said + data)[-_KEEP:]

    async def read(self) -> bytes:
        data = await self._out.read(_READ)
        if not data:
            code = await self._process.wait()
            await self._errors
            if code != 0 or not self._got:
                raise self._ended(code)
        self._got += len(data)
        return data

    def _ended(self, code: int) -> ChantierError:
        said = self._said.decode(errors="replace").strip()
        last = said.splitlines()[-1] if said else ""
        brief = f"{shlex.join(self._argv)} ended with exit code {code}"
        return ChantierError(f"{brief}: {last}" if last else brief, detail=said if said != last else None)

    async def write(self, data: bytes, /) -> None:
        self._in.write(data)
        try:
            await self._in.drain()
        except ConnectionError as err:
            # It has ended, or is about to, and then says why.
            async with asyncio.timeout(_LAST_WORDS_S):
                code = await self._process.wait()
                await self._errors
            raise self._ended(code) from err

    async def close_write(self) -> None:
        self._in.close()

    async def close(self) -> None:
        self._in.close()
        with suppress(OSError):
            await self._in.wait_closed()
        if self._process.returncode is None:
            try:
                await asyncio.wait_for(self._process.wait(), 2)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._errors.cancel()


__all__ = ["Pipe"]
