# SPDX-License-Identifier: Apache-2.0
"""What a build is offered of this machine, as a session: directories, secrets, logins, agents, places for results."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chantier.client import Offer
from chantier.session.local import LocalSession, SecretSource, Target

from .context import Host
from .load import EngineSink, find_engine
from .logins import credentials_of

if TYPE_CHECKING:
    from chantier.session.serve import Offered


def open_session(offer: Offer, env: Mapping[str, str], stack: ExitStack) -> LocalSession:
    """The session of a build on this machine: an embedded engine reads the user's directories in place. Closed with the stack."""
    from .ssh import agent_for

    outputs: list[Target] = []
    for output in offer.outputs:
        if output.load:
            name, host = find_engine(env, context=output.attrs.get("context", ""))
            outputs.append(partial(_loading, name, host))
        elif output.dest == "-":
            outputs.append(sys.stdout.buffer)
        else:
            outputs.append(Path(output.dest) if output.dest else None)
    for folder in offer.scratch:
        stack.callback(folder.cleanup)
    uploads = {}
    if offer.context.upload is not None:
        id, stream, head = offer.context.upload
        uploads[id] = (stream, head)
    session = LocalSession(
        directories=offer.context.directories,
        files=offer.context.files,
        secrets={s.id: SecretSource(file=Path(s.file) if s.file else None, env=s.env, value=s.value) for s in offer.secrets},
        agents={s.id: stack.enter_context(agent_for(s.id, s.paths)) for s in offer.ssh},
        credentials=credentials_of(env, offer.logins),
        outputs=outputs,
        uploads=uploads,
        layouts=offer.layouts,
        shared_base=offer.context.shared_base,
        allow_delete=offer.allow_delete,
        env=env,
    )
    return stack.enter_context(session)


def offered(offer: Offer, session: LocalSession) -> Offered:
    """The session as it is served to a daemon."""
    from chantier.session.serve import Offered

    trees = {n: Path(o.dest) for n, o in enumerate(offer.outputs) if o.type == "local"}
    # Contexts in OCI layouts are asked for as `oci:ID`, caches and outputs by the name they were offered under.
    stores = {id if ":" in id or id == "export" else f"oci:{id}": path for id, path in offer.layouts.items()}
    delete = frozenset(n for n in trees if offer.outputs[n].attrs.get("mode") == "delete")
    return Offered(session, directories=trees, delete=delete, stores=stores)


def _loading(name: str, host: Host, metadata: Mapping[str, str]) -> EngineSink:
    return EngineSink(name, host, metadata)


__all__ = ["offered", "open_session"]
