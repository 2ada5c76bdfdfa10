# SPDX-License-Identifier: Apache-2.0
"""Writes a build as a graph in Python instead of a Dockerfile: a loop makes branches that run side by side, and are merged.

sudo python examples/graph.py                  # writes merged.tar, an OCI layout, and draws the graph: merged.svg
"""

from __future__ import annotations

from pathlib import Path

import chantier
from chantier.llb import diff, load, merge
from chantier.llb.picture import draw

NAMES = ("red", "green", "blue")


def main() -> None:
    base = chantier.image("docker.io/library/alpine:latest")
    branches = [base.dir(f"/colours/{name}").run(f"echo {name} > name", name=f"paint it {name}") for name in NAMES]
    everything = merge([base, *(diff(base, branch) for branch in branches)])
    checked = everything.run("cat /colours/*/name")
    Path("merged.svg").write_text(draw(load(checked.marshal()), "svg"))
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["cat", *(f"/colours/{n}/name" for n in NAMES)]}}
    print(chantier.solve(checked, image_config=config, outputs=["type=oci,dest=merged.tar"]).digest)


if __name__ == "__main__":
    main()
