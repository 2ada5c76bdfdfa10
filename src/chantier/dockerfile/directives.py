# SPDX-License-Identifier: Apache-2.0
"""Parser directives: `# syntax=`, `# escape=`, `# check=` at the top of a file."""

from __future__ import annotations

import json
import re
from typing import Final

from chantier.errors import DockerfileError

from .gotext import SPACE
from .instructions import Directive

KNOWN: Final = frozenset({"syntax", "escape", "check"})
_FORM: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9]*)[\t\n\f\r ]*=[\t\n\f\r ]*(.+?)[\t\n\f\r ]*\Z")
_BOM: Final = b"\xef\xbb\xbf"


class DirectiveReader:
    """Reads directives line by line until the first line that is none; then it is `done` for good."""

    __slots__ = ("_prefix", "_seen", "done", "line")

    def __init__(self, prefix: str = "#", line: int = 0) -> None:
        self._prefix = prefix
        self._seen: set[str] = set()
        self.done = False
        self.line = line

    def read(self, line: str) -> Directive | None:
        """The directive on this line, if it is one; raises on a repeated one."""
        self.line += 1
        if self.done:
            return None
        found = _FORM.match(line[len(self._prefix) :].lstrip(SPACE)) if line.startswith(self._prefix) else None
        name = found[1].lower() if found else ""
        if found is None or name not in KNOWN:
            self.done = True
            return None
        if name in self._seen:
            raise DockerfileError(f"only one {name} parser directive can be used")
        self._seen.add(name)
        return Directive(name=name, value=found[2], line=self.line)


def detect_syntax(data: bytes) -> tuple[str, str] | None:
    """What frontend a file asks for: the reference (up to the first blank) and the whole value; None if it asks none.

    Looser than the parser: a `#!` line is skipped, `//` comments count too, and so does a JSON object with a
    `syntax` key.
    """
    found = find_directive(data, "syntax") or find_directive(data, "syntax", prefix="//")
    if found is not None:
        return found.value.split(" ", 1)[0], found.value
    try:
        parsed = json.loads(_without_shebang(data)[0])
    except (ValueError, RecursionError):  # most Dockerfiles are not JSON
        return None
    value = parsed.get("syntax") if isinstance(parsed, dict) else None
    return (value, value) if isinstance(value, str) else None


def find_directive(data: bytes, name: str, *, prefix: str = "#") -> Directive | None:
    """One directive of the raw bytes, whose comment sign must be the first character of its line."""
    text, skipped = _without_shebang(data)
    reader = DirectiveReader(prefix, skipped)
    for line in text.decode(errors="surrogateescape").split("\n"):
        try:
            directive = reader.read(line.removesuffix("\r"))
        except DockerfileError:  # a repeated directive: the parser reports it, a search stops here
            return None
        if directive is not None and directive.name == name:
            return directive
        if reader.done:
            return None
    return None


def _without_shebang(data: bytes) -> tuple[bytes, int]:
    data = data.removeprefix(_BOM)
    if data.startswith(b"#!"):
        return data.partition(b"\n")[2], 1
    return data, 0


__all__ = ["KNOWN", "DirectiveReader", "detect_syntax", "find_directive"]
