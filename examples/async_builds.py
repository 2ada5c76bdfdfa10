# SPDX-License-Identifier: Apache-2.0
"""Builds a matrix of images at once in an event loop. What they have in common is run once; the first failure stops them all.

sudo python examples/async_builds.py           # writes one OCI layout for each
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import chantier

DOCKERFILE = """\
FROM alpine AS common
RUN echo "made once" > /common

FROM common
ARG FLAVOUR
RUN echo "$FLAVOUR" > /flavour
"""


async def main() -> None:
    with tempfile.TemporaryDirectory() as context:
        async with chantier.Builder() as builder, asyncio.timeout(600), asyncio.TaskGroup() as group:
            builds = {
                flavour: group.create_task(
                    builder.abuild(
                        context,
                        dockerfile_text=DOCKERFILE,
                        build_args={"FLAVOUR": flavour},
                        outputs=[f"type=oci,dest={Path.cwd()}/{flavour}.tar"],
                    )
                )
                for flavour in ("plain", "salted", "sweet")
            }
    for flavour, build in builds.items():
        print(flavour, build.result().digest)


if __name__ == "__main__":
    asyncio.run(main())
