# SPDX-License-Identifier: Apache-2.0
"""A graph to be solved as it is, without a frontend: `prepare` for states and definitions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.errors import UsageError
from chantier.session.types import Credentials
from chantier.spec import Platform, new_id

from .attest import attest_attrs
from .call import Offer, Prepared, SolveCall
from .context import Context
from .output import Output, plan_outputs
from .parse import parse_annotations, parse_tag
from .request import Secret, Ssh

if TYPE_CHECKING:
    from chantier.llb import State
    from chantier.pb import ops_pb2 as pb


def prepare_graph(
    graph: State | pb.Definition,
    *,
    locals: Mapping[str, str | os.PathLike[str]] | None = None,
    platform: Platform | str | None = None,
    image_config: Mapping[str, Any] | bytes | None = None,
    outputs: Sequence[Output] = (),
    tags: Sequence[str] = (),
    push: bool = False,
    load: bool = False,
    annotations: Sequence[str] = (),
    secrets: Sequence[Secret] = (),
    ssh: Sequence[Ssh] = (),
    allow: Sequence[str] = (),
    logins: Mapping[str, Credentials] | None = None,
    attest: Sequence[str] = (),
    provenance: bool | str | None = None,
    sbom: bool | str | None = None,
) -> Prepared:
    """`locals` are the directories that `llb.local(NAME)` stands for, `image_config` is what an image is exported with.

    Raises UsageError for what cannot be meant.
    """
    from chantier.llb import State

    for tag in tags:
        parse_tag(tag)
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    planned = plan_outputs(
        outputs, tags=tags, push=push, load=load, annotations=parse_annotations(annotations), stdout_is_tty=False
    )
    directories = {}
    for name, path in (locals or {}).items():
        if not os.path.isdir(path):
            raise UsageError(f"the directory {os.fspath(path)} of the local source {name!r} does not exist")
        directories[name] = Path(path).resolve()
    config = image_config if isinstance(image_config, bytes | None) else json.dumps(dict(image_config)).encode()
    asked = attest_attrs(attest, provenance=provenance, sbom=sbom)
    return Prepared(
        call=SolveCall(
            ref=new_id(),
            frontend="",
            attrs={f"attest:{kind}": text for kind, text in asked.items() if text is not None},
            definition=graph.marshal(wanted) if isinstance(graph, State) else graph,
            metadata={} if config is None else {"containerimage.config": config},
            exporters=tuple((o.type, o.attrs) for o in planned),
            entitlements=tuple(allow),
        ),
        offer=Offer(
            context=Context(directories=directories),
            outputs=tuple(planned),
            secrets=tuple(secrets),
            ssh=tuple(ssh),
            logins=logins or {},
        ),
    )


__all__ = ["prepare_graph"]
