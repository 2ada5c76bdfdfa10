# SPDX-License-Identifier: Apache-2.0
"""How a build's errors look on the wire (protocol.md 4.8): mostly Unknown, so that clients print their text as it is."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from traceback import walk_tb

from chantier import __version__
from chantier.errors import ChantierError, MaterialsError, UnsupportedError
from chantier.wire import Detail, GrpcError, json_detail, status_of
from chantier.wire.status import CANCELLED, DEADLINE_EXCEEDED, INTERNAL, RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED, UNKNOWN

_MOST_FRAMES = 24
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
    if (stack := _stack(error)) is not None:
        details.append(stack)
    if isinstance(error, MaterialsError):
        incomplete = [{"name": name, "reason": "local_source"} for name in error.locals]
        details.append(json_detail("errdefs.ProvenanceMaterialsIncomplete", {"incomplete": incomplete}))
    return GrpcError(code, status.message, details, hint=status.hint)


def _stack(error: BaseException) -> Detail | None:
    """Where in this program it was raised, for `buildctl --debug`; innermost first, as Go prints stacks."""
    frames = [
        {
            "Name": f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}",
            "File": frame.f_code.co_filename,
            "Line": line,
        }
        for frame, line in walk_tb(error.__traceback__)
    ]
    if not frames:
        return None
    return json_detail("stack.Stack", {"frames": frames[: -_MOST_FRAMES - 1 : -1], "pid": os.getpid(), "version": __version__})


__all__ = ["build_status"]
