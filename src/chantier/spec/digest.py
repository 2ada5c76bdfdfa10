# SPDX-License-Identifier: Apache-2.0
"""Content digests: `algorithm:hex` (image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import os
import re

from chantier.errors import ReferenceError_

_FORM = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+\Z")
_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


class Digest(str):
    """A digest that has been checked; a plain `str` otherwise, so it stands wherever text does."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Raises ReferenceError_ unless `text` is a well-formed digest of an algorithm we can verify."""
        algorithm, _, encoded = text.partition(":")
        length = _LENGTH.get(algorithm)
        if not _FORM.match(text) or length is None:
            raise ReferenceError_(f"invalid digest {text!r}: want sha256:<64 hex digits>, or sha384 or sha512")
        if len(encoded) != length or encoded.strip("0123456789abcdef"):
            raise ReferenceError_(f"invalid digest {text!r}: {algorithm} wants {length} lower-case hex digits")
        return cls(text)

    @property
    def algorithm(self) -> str:
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        return self.partition(":")[2]


def digest_of(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


EMPTY_LAYER = Digest("sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")
"""diffID of a layer without entries: 1024 zero bytes."""


def new_id() -> str:
    """A random id in BuildKit's form: 25 characters of base36."""
    number = int.from_bytes(os.urandom(16), "big")
    digits = []
    for _ in range(25):
        number, rest = divmod(number, 36)
        digits.append(_ID_ALPHABET[rest])
    return "".join(reversed(digits))
