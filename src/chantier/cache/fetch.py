# SPDX-License-Identifier: Apache-2.0
"""Bringing the bytes of blobs here: from their sources in turn, once however many want them."""

from __future__ import annotations

from chantier.errors import CancelledError_, ChantierError, IntegrityError, NotFoundError, StoreError
from chantier.kernel.trace import point
from chantier.spec import Descriptor
from chantier.store import BlobStore, Writer

from .records import Records
from .types import Fetcher
from .work import Bytes, Work


class Blobs:
    """The blob store, with a way to get what is not in it."""

    def __init__(self, store: BlobStore, records: Records, fetcher: Fetcher | None) -> None:
        self.store = store
        self._records = records
        self._fetcher = fetcher
        self._refused: dict[str, str] = {}

    def refuse(self, digest: str, why: str) -> None:
        """Note that a blob cannot be had, or holds no layer, until it proves good after all."""
        self._refused[digest] = why

    def accept(self, digest: str) -> None:
        """It is good."""
        self._refused.pop(digest, None)

    def why_not(self, digest: str) -> str:
        """Why a blob is of no use as far as this process has seen; "" if nothing speaks against it."""
        if digest in self._refused:
            return self._refused[digest]
        if self.store.exists(digest) or self._records.sources(digest):
            return ""
        return f"blob {digest} is not here, and nothing is known of where to get it"

    def bring(self, descriptor: Descriptor, work: Work) -> None:
        """Make the blob local. Another thread or process that fetches it is waited for, and one that died is continued.

        Raises what the last source said, or NotFoundError if there is none.
        """
        if self.store.exists(descriptor.digest):
            return
        sources = self._records.sources(descriptor.digest)
        failure: ChantierError = NotFoundError(f"blob {descriptor.digest} is not here, and nothing is known of where to get it")
        for source in sources if self._fetcher is not None else ():
            try:
                self._from(source, descriptor, work)
            except CancelledError_:
                raise
            except ChantierError as err:
                failure = err
                work.check()
            else:
                self.accept(descriptor.digest)
                point("realise.fetched")
                return
        if not isinstance(failure, StoreError):  # which is trouble of ours
            self.refuse(descriptor.digest, failure.brief)
        raise failure

    def _from(self, source: str, descriptor: Descriptor, work: Work) -> None:
        progress = Bytes(work.step, descriptor.digest, descriptor.size)
        with self.store.writer(
            key=descriptor.digest, media_type=descriptor.media_type, on_bytes=progress.at, cancelled=work.cancelled
        ) as writer:
            if self.store.exists(descriptor.digest):  # whom we waited for has done it
                writer.abort()
                progress.done()
                return
            resumed = writer.resumed
            try:
                self._write(source, descriptor, writer, work)
            except IntegrityError:
                # What an earlier process left may be the damaged part: once more from the start.
                if not resumed:
                    raise
            else:
                progress.done()
                return
        with self.store.writer(
            key=descriptor.digest, media_type=descriptor.media_type, on_bytes=progress.at, cancelled=work.cancelled
        ) as writer:
            writer.restart()
            self._write(source, descriptor, writer, work)
        progress.done()

    def _write(self, source: str, descriptor: Descriptor, writer: Writer, work: Work) -> None:
        if self._fetcher is None:
            raise NotFoundError(f"blob {descriptor.digest} is not here")
        if writer.offset > descriptor.size:
            writer.restart()
        if writer.offset < descriptor.size:
            self._fetcher.fetch(source, descriptor, writer, step=work.step, sessions=work.sessions, cancelled=work.cancelled)
        work.check()
        writer.commit(descriptor.digest, descriptor.size)


__all__ = ["Blobs"]
