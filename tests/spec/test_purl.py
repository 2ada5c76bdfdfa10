# SPDX-License-Identifier: Apache-2.0
"""Package URLs as BuildKit writes them (protocol.md 8.2, 8.3), and addresses that may be shown."""

from __future__ import annotations

import pytest

from chantier.spec import Platform, Reference
from chantier.spec.purl import package_url, redacted

DIGEST = "sha256:" + "ab" * 32
AMD = Platform("linux", "amd64")


@pytest.mark.parametrize(
    ("ref", "platform", "expected"),
    [
        ("busybox", None, "pkg:docker/busybox@latest"),
        ("library/busybox:1.36", AMD, "pkg:docker/busybox@1.36?platform=linux%2Famd64"),
        ("me/app:v2", None, "pkg:docker/me/app@v2"),
        ("reg.test/team/app", Platform("linux", "arm", "v7"), "pkg:docker/reg.test/team/app@latest?platform=linux%2Farm%2Fv7"),
        ("127.0.0.1:5000/x/a:1", AMD, "pkg:docker/127.0.0.1%3A5000/x/a@1?platform=linux%2Famd64"),  # as a dockerd wrote it
        (f"busybox@{DIGEST}", AMD, f"pkg:docker/busybox?digest={DIGEST}&platform=linux%2Famd64"),
        (f"busybox:1@{DIGEST}", None, f"pkg:docker/busybox@1?digest={DIGEST}"),
    ],
)
def test_images(ref: str, platform: Platform | None, expected: str) -> None:
    assert package_url(Reference.parse(ref), platform) == expected


def test_images_of_a_layout_and_more_qualifiers() -> None:
    assert package_url(Reference.parse("x/y:1"), kind="oci", ref_type="blob") == "pkg:oci/x/y@1?ref_type=blob"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:pass@host.test/a.git#v1", "https://xxxxx:xxxxx@host.test/a.git#v1"),
        ("https://me@host.test/a", "https://xxxxx@host.test/a"),
        ("https://:pass@host.test/a", "https://:xxxxx@host.test/a"),
        ("https://me:p@ss@host.test/a", "https://xxxxx:xxxxx@host.test/a"),
        ("https://host.test/a@b", "https://host.test/a@b"),
        ("git@host.test:me/a.git", "git@host.test:me/a.git"),
        ("no address", "no address"),
    ],
)
def test_passwords_are_not_shown(address: str, shown: str) -> None:
    assert redacted(address) == shown
