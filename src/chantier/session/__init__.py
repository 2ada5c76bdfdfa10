# SPDX-License-Identifier: Apache-2.0
"""What the engine may ask of the user's machine: files, secrets, credentials, agents, streams, places for results.

Promises: whatever a client says is checked where it arrives (paths stay inside, entries come in order, sizes have limits);
an answer that is not there is None or NotFoundError, a client that is gone is SessionError. Refuses: to follow a link of
the client's tree where it writes, to print or keep a secret.

Three names to know: `types.Session` (the protocol), `local.LocalSession` (this machine), `sync.Receiver` (a directory that
follows another).
"""

from .types import Credentials, FileSink, FilesRequest, Session, Stream

__all__ = ["Credentials", "FileSink", "FilesRequest", "Session", "Stream"]
