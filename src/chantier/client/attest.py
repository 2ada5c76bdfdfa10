# SPDX-License-Identifier: Apache-2.0
"""What is to be attested of a build: `--attest`, `--provenance`, `--sbom` as frontend options (builders.md 5.7)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from chantier.errors import UsageError

from .output import Output

DEFAULT_PROVENANCE = "mode=min,inline-only=true"
_NO_DEFAULT = "BUILDX_NO_DEFAULT_ATTESTATIONS"
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


def attest_attrs(
    attest: Sequence[str], *, provenance: bool | str | None = None, sbom: bool | str | None = None
) -> dict[str, str | None]:
    """By kind the text that is asked for, None where it is switched off; the first of a kind wins. Raises UsageError."""
    texts = [*attest, *(_short(kind, value) for kind, value in (("provenance", provenance), ("sbom", sbom)))]
    found: dict[str, str | None] = {}
    for text in texts:
        if text:
            kind, value = _parse(text)
            found.setdefault(kind, value)
    return found


def has_default(found: Mapping[str, str | None], outputs: Sequence[Output], env: Mapping[str, str]) -> bool:
    """Whether provenance is attested though nobody spoke of it. Never where an output could not carry it. Raises UsageError."""
    if "provenance" in found or any(one.attrs.get("oci-mediatypes", "true") in _FALSE for one in outputs):
        return False
    value = env.get(_NO_DEFAULT)
    return value is None or not _bool(value, f"invalid {_NO_DEFAULT}")


def _short(kind: str, value: bool | str | None) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool) or value in _TRUE or value in _FALSE:
        disabled = value is False or value in _FALSE
        return f"type={kind},disabled={'true' if disabled else 'false'}"
    return f"type={kind},{value}"


def _parse(text: str) -> tuple[str, str | None]:
    kind, disabled = "", False
    attrs: dict[str, str] = {}
    for part in next(csv.reader([text]), []):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"invalid value {part}", hint="write --provenance mode=max, --attest type=sbom,generator=IMAGE")
        name = key.strip().lower()
        if name == "type":
            kind = value
        elif name == "disabled":
            disabled = _bool(value, f"invalid value {part}")
        else:
            attrs[key] = value
    if not kind:
        raise UsageError("attestation type not specified", hint="types are provenance and sbom")
    return kind, None if disabled else _csv([f"type={kind}", *(f"{key}={attrs[key]}" for key in sorted(attrs))])


def _bool(value: str, what: str) -> bool:
    if value not in _TRUE and value not in _FALSE:
        raise UsageError(f"{what}: {value!r} is neither true nor false")
    return value in _TRUE


def _csv(fields: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(fields)
    return out.getvalue()


__all__ = ["DEFAULT_PROVENANCE", "attest_attrs", "has_default"]
