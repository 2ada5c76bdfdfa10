# SPDX-License-Identifier: Apache-2.0
"""What frontend options ask to be attested of a result (protocol.md 3.2, `attest:*`)."""

from __future__ import annotations

import csv
from collections.abc import Mapping

from chantier.errors import ReferenceError_, UsageError
from chantier.spec import Reference
from chantier.values import dataclass, field

DEFAULT_GENERATOR = "docker/buildkit-syft-scanner:stable-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sbom:
    """What `attest:sbom` asks for. `parameters` go to the scanner as BUILDKIT_SCAN_NAME, spelled as they are."""

    generator: str = DEFAULT_GENERATOR
    parameters: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, attrs: Mapping[str, str]) -> Sbom:
        """Raises UsageError for a generator that is no image."""
        generator = attrs.get("generator", DEFAULT_GENERATOR)
        if not generator:
            raise UsageError("sbom generator cannot be empty")
        try:
            ref = str(Reference.parse(generator).with_default_tag())
        except ReferenceError_ as err:
            raise UsageError(f"failed to parse sbom scanner {generator}: {err}") from err
        return cls(generator=ref, parameters={key: value for key, value in attrs.items() if key != "generator"})


def attestation_options(attrs: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What frontend options ask for, by kind: `attest:KIND`, or the argument BUILDKIT_ATTEST_KIND. Raises UsageError."""
    texts: dict[str, str] = {}
    for prefix in ("build-arg:BUILDKIT_ATTEST_", "attest:"):  # the option wins
        texts |= {key.removeprefix(prefix).lower(): value for key, value in attrs.items() if key.startswith(prefix)}
    found: dict[str, dict[str, str]] = {}
    for kind, text in texts.items():
        if kind not in ("sbom", "provenance"):
            raise UsageError(f'unknown attestation type "{kind}"', hint="attestations are provenance and sbom")
        fields = next(csv.reader([text]), []) if text else []
        pairs = {part.partition("=")[0]: part.partition("=")[2] for part in fields}
        if pairs.get("disabled", "false").lower() in ("", "1", "t", "true"):
            continue
        found[kind] = pairs
    return found


__all__ = ["DEFAULT_GENERATOR", "Sbom", "attestation_options"]
