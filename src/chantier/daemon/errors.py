# SPDX-License-Identifier: Apache-2.0
"""How a build's errors look on the wire (protocol.md 4.8): mostly Unknown, so that clients print their text as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from chantier.errors import ChantierError, UnsupportedError
from chantier.wire import Detail, GrpcError, json_detail, status_of
from chantier.wire.status import CANCELLED, DEADLINE_EXCEEDED, INTERNAL, RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED, UNKNOWN

_KEPT = frozenset((CANCELLED, DEADLINE_EXCEEDED, INTERNAL, RESOURCE_EXHAUSTED, UNAVAILABLE))
_CAP = re.compile(r"unsupported frontend capability (\S+)")
_REQUEST = re.compile(r"unsupported request (\S+)")


def build_status(error: BaseException, extra: Sequence[Detail] = ()) -> GrpcError:
    """The status of an error that a build ended with; `extra` details stand first."""
    if isinstance(error, GrpcError) or not isinstance(error, ChantierError):
        return status_of(error, extra)
    status = status_of(error, extra)
    code = status.code if status.code in _KEPT else UNKNOWN
    details = list(status.details)
    if isinstance(error, UnsupportedError):
        if found := _CAP.search(error.brief):
            code = UNIMPLEMENTED
            details.append(json_detail("errdefs.FrontendCap", {"name": found[1]}))
        elif found := _REQUEST.search(error.brief):
            code = UNIMPLEMENTED
            details.append(json_detail("errdefs.Subrequest", {"name": found[1]}))
    return GrpcError(code, status.message, details, hint=status.hint)


__all__ = ["build_status"]
