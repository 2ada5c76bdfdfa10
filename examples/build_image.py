# SPDX-License-Identifier: Apache-2.0
"""Builds an image from a Python script: no daemon, no docker command, progress as Python values.

sudo python examples/build_image.py            # writes hello.tar, an OCI layout
sudo python examples/build_image.py NAME:TAG   # pushes instead
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import chantier
from chantier.progress import Event, Log, Vertex

DOCKERFILE = """\
FROM alpine
ARG WHO=world
COPY greeting.txt /greeting.txt
RUN echo "$(cat /greeting.txt), $WHO"
CMD ["cat", "/greeting.txt"]
"""


def show(event: Event) -> None:
    """Called for everything that happens, from whichever thread it happens in."""
    if isinstance(event, Log):
        print("  |", event.data.decode(errors="replace").rstrip())
    elif isinstance(event, Vertex) and event.completed:
        print("CACHED" if event.cached else "done  ", event.name)


def main() -> None:
    with tempfile.TemporaryDirectory() as context:
        Path(context, "greeting.txt").write_text("hello\n")
        target = {"tags": sys.argv[1:2], "push": True} if sys.argv[1:] else {"outputs": ["type=oci,dest=hello.tar"]}
        try:
            result = chantier.build(
                context, dockerfile_text=DOCKERFILE, build_args={"WHO": "from Python"}, on_event=show, **target
            )
        except chantier.ChantierError as err:
            sys.exit(f"the build failed: {err}")
    print(result.digest)


if __name__ == "__main__":
    main()
