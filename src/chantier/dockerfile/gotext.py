# SPDX-License-Identifier: Apache-2.0
"""Texts and numbers as Go's library reads and prints them: the Dockerfile language is defined by it.

Quoting (strconv.Quote), durations (time.ParseDuration and its String), booleans, unsigned numbers, sizes
(docker's units) and one line of CSV (RFC 4180).
"""

from __future__ import annotations

import re
from typing import Final

from chantier.errors import DockerfileError

SPACE: Final = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""What Go's unicode.IsSpace calls space; str.isspace() has four more."""

SPACES: Final = frozenset(SPACE)

_SHORT: Final = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}


def quote(text: str) -> str:
    """The text in double quotes as Go's %q prints it; bytes that are not UTF-8 (surrogate escapes) as \\xNN."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(map(_quote_char, text)) + '"'


def _quote_char(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def parse_bool(text: str) -> bool | None:
    """Go's strconv.ParseBool; None where it would fail."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    return None


def parse_uint(text: str, base: int) -> int | None:
    """Go's strconv.ParseUint with 32 bits; None where it would fail."""
    digits = "0123456789abcdef"[:base]
    if not text or any(c not in digits for c in text.lower()):
        return None
    number = int(text, base)
    return number if number < 1 << 32 else None


def parse_size(text: str) -> int | None:
    """A size in docker's binary units (`64m`, `1.5 GiB`, `100`); None where it does not parse."""
    found = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+) ?(?:([kmgtp])(?:i?b)?|b)?", text, re.IGNORECASE | re.ASCII)
    if found is None:
        return None
    return int(float(found[1]) * 1024 ** ("_kmgtp".index((found[2] or "_").lower())))


_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "\xb5s": 1_000,
    "\u03bcs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_MAX_DURATION: Final = (1 << 63) - 1
_PART: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?", re.ASCII)
_UNIT: Final = re.compile(r"[^.0-9]*", re.ASCII)


def parse_duration(text: str) -> int:
    """Nanoseconds of a Go duration such as `1m30s`; raises DockerfileError with Go's text."""
    bad = DockerfileError(f"time: invalid duration {quote(text)}")
    negative = text.startswith("-")
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    if not rest:
        raise bad
    total = 0
    while rest:
        found = _PART.match(rest)
        if found is None or not (found[1] or found[2]):
            raise bad
        rest = rest[found.end() :]
        unit_match = _UNIT.match(rest)
        unit = unit_match[0] if unit_match else ""
        if not unit:
            raise DockerfileError(f"time: missing unit in duration {quote(text)}")
        if unit not in _UNITS:
            raise DockerfileError(f"time: unknown unit {quote(unit)} in duration {quote(text)}")
        rest = rest[len(unit) :]
        scale = _UNITS[unit]
        fraction = found[2] or ""
        total += int(found[1] or 0) * scale + (int(fraction) * scale // 10 ** len(fraction) if fraction else 0)
        if total > _MAX_DURATION:
            raise bad
    return -total if negative else total


def format_duration(nanoseconds: int) -> str:
    """A duration as Go prints it: `0s`, `1.5s`, `500ms`, `1m30s`, `1h0m0s`."""
    if nanoseconds == 0:
        return "0s"
    sign = "-" if nanoseconds < 0 else ""
    left = abs(nanoseconds)
    for unit, scale in (("ns", 1), ("\xb5s", 1_000), ("ms", 1_000_000)):
        if left < scale * 1_000:
            return f"{sign}{_decimal(left, scale)}{unit}"
    minutes, left = divmod(left, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    seconds = _decimal(left, 1_000_000_000) + "s"
    if hours:
        return f"{sign}{hours}h{minutes}m{seconds}"
    return f"{sign}{minutes}m{seconds}" if minutes else sign + seconds


def _decimal(number: int, scale: int) -> str:
    whole, rest = divmod(number, scale)
    if not rest:
        return str(whole)
    return f"{whole}.{str(rest).zfill(len(str(scale)) - 1).rstrip('0')}"


def csv_fields(line: str) -> list[str]:
    """The fields of one CSV line; raises DockerfileError as Go's reader words it."""
    if not line:
        raise DockerfileError("EOF")
    fields, i = [], 0
    while True:
        if line[i : i + 1] == '"':
            field, i = _quoted_field(line, i + 1)
        else:
            end = line.find(",", i)
            end = len(line) if end < 0 else end
            field = line[i:end]
            if '"' in field:
                column = len(line[: i + field.index('"')].encode(errors="surrogateescape")) + 1
                raise DockerfileError(f'parse error on line 1, column {column}: bare " in non-quoted-field')
            i = end
        fields.append(field)
        if i >= len(line):
            return fields
        i += 1  # the comma


def _quoted_field(line: str, i: int) -> tuple[str, int]:
    """A quoted field whose inside starts at i, and the index of the comma or end after it."""
    out = []
    while True:
        end = line.find('"', i)
        if end >= 0:
            out.append(line[i:end])
            after = line[end + 1 : end + 2]
            if after == '"':
                out.append('"')
                i = end + 2
                continue
            if after in ("", ","):
                return "".join(out), end + 1
        stop = len(line) if end < 0 else end
        column = len(line[:stop].encode(errors="surrogateescape")) + 1
        raise DockerfileError(f'parse error on line 1, column {column}: extraneous or missing " in quoted-field')


__all__ = [
    "SPACE",
    "SPACES",
    "csv_fields",
    "format_duration",
    "parse_bool",
    "parse_duration",
    "parse_size",
    "parse_uint",
    "quote",
]
