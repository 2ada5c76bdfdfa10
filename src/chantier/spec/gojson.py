# SPDX-License-Identifier: Apache-2.0
"""JSON with the bytes Go's encoding/json gives, since digests of configs and manifests depend on them.

Go escapes `<`, `>`, `&`, U+2028 and U+2029 inside strings and writes other characters as UTF-8; for a byte that is no UTF-8 (here
a lone surrogate) it writes U+FFFD as an escape. Key order is the
caller's (a dict keeps it); pass sort_keys=True for what Go marshals from a map.
"""

from __future__ import annotations

import json
import re
from typing import Any

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}

_NO_UTF8 = re.compile("[\ud800-\udfff]")


def _escape(text: str) -> str:
    # These characters cannot stand in JSON outside of strings, so replacing them in the whole text is safe.
    for char, escape in _ESCAPES.items():
        if char in text:
            text = text.replace(char, escape)
    return text if text.isascii() else _NO_UTF8.sub("\\\\ufffd", text)


def dumps(value: Any, *, sort_keys: bool = False) -> bytes:
    """Compact form, as json.Marshal."""
    return _escape(json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys)).encode()


def dumps_indent(value: Any, *, sort_keys: bool = False) -> bytes:
    """Two spaces a level, as json.MarshalIndent(v, "", "  ")."""
    return _escape(json.dumps(value, ensure_ascii=False, indent=2, separators=(",", ": "), sort_keys=sort_keys)).encode()
