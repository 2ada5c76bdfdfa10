# SPDX-License-Identifier: Apache-2.0
"""The same work on chantier and its peers, in turns: medians, and ratios to BuildKit.

    scripts/peer DIR                                # once, to unpack the peer; it may be stopped again
    python bench/run.py --peer DIR [--lines hello,context] [--builders stock,buildkit] [--rounds 3] [--json FILE]

Interrupted, it finishes with the builder at hand and prints what it has.

As root, with docker-registry, skopeo, umoci, runc and buildah (mmdebstrap for the line `copy`). Each builder gets a fresh ext4 on a
loop device for every scene; those of a scene follow one another, and the rounds begin with another one each. Times are of the
whole command, from its start to its exit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from builders import ALL, Build, Builder, Peer, Setting, warm_up
from disk import Disk, fresh_disk
from inputs import Sizes, registry
from lines import SCENES, Inputs, Scene, chosen
from meter import Cost, measure, resident_bytes, tree

Found = dict[str, dict[str, list[Cost]]]
stopping: list[bool] = []
"""Not empty once a signal asked for the end: the builder at hand finishes, and unmounts what it mounted."""


class OneStage:
    """One builder on a disk of its own, for one scene in one round."""

    def __init__(self, builder: Builder, nonce: str, disks: Path, found: Found) -> None:
        self._builder, self.builder, self.nonce, self._disks, self._found = builder, builder.name, nonce, disks, found
        self._stack = ExitStack()
        self._disk: Disk | None = None

    def __enter__(self) -> OneStage:
        self.fresh()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def fresh(self) -> None:
        self._stack.close()
        self._disk = self._stack.enter_context(fresh_disk(self._disks, 16 << 30))
        state = self._disk.path / "state"
        state.mkdir()
        self._builder.start(state)
        self._stack.callback(self._builder.stop)

    def warm(self, *builds: Build) -> None:
        warm_up(self._builder, builds)

    def measure(self, line: str, *builds: Build, at_once: bool = False) -> None:
        assert self._disk is not None
        commands = [command for build in builds for command in self._builder.commands(build)]
        cost = measure(
            commands,
            env=self._builder.env(),
            daemons=self._builder.daemons(),
            device=self._disk.device,
            at_once=at_once,
        )
        self._keep(line, cost)

    def idle(self, line: str) -> None:
        if daemons := self._builder.daemons():
            self._keep(line, Cost(wall_s=0, cpu_s=0, peak_bytes=resident_bytes(tree(daemons)), written_bytes=0))

    def _keep(self, line: str, cost: Cost) -> None:
        self._found.setdefault(line, {}).setdefault(self.builder, []).append(cost)
        print(
            f"  {line:36}{self.builder:10}{cost.wall_s:8.3f} s {cost.cpu_s:8.2f} s CPU {cost.peak_bytes / 1e6:7.0f} MB"
            f"{cost.written_bytes / 1e6:9.1f} MB written",
            file=sys.stderr,
        )


@contextmanager
def loader(setting: Setting, disks: Path, *, wanted: bool) -> Iterator[None]:
    """A dockerd of its own for --load of the builders that are not in one."""
    if not wanted:
        yield
        return
    with fresh_disk(disks, 16 << 30) as disk:
        docker = Peer(setting)
        docker.start(disk.path)
        setting.loader = docker.address
        try:
            yield
        finally:
            setting.loader = ""
            docker.stop()


def median(costs: list[Cost]) -> Cost:
    """Of each figure by itself."""
    return Cost(**{field.name: statistics.median(getattr(cost, field.name) for cost in costs) for field in fields(Cost)})


def table(found: Found, names: list[str]) -> str:
    """Markdown: a row for each line and builder, medians, and the ratio of times to BuildKit's."""
    rows = [
        "| line | builder | wall s | of BuildKit | CPU s | of BuildKit | peak MB | written MB | runs |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for line, costs in found.items():
        peer = median(costs["buildkit"]) if "buildkit" in costs else None
        for name in (name for name in names if name in costs):
            own = median(costs[name])
            wall, cpu = _ratio(own.wall_s, peer and peer.wall_s), _ratio(own.cpu_s, peer and peer.cpu_s)
            if not own.wall_s:
                wall, cpu = _ratio(own.peak_bytes, peer and peer.peak_bytes), ""
            rows.append(
                f"| {line} | {name} | {own.wall_s:.3f} | {wall} | {own.cpu_s:.2f} | {cpu} | {own.peak_bytes / 1e6:.0f}"
                f" | {own.written_bytes / 1e6:.1f} | {len(costs[name])} |"
            )
    return "\n".join(rows)


def _ratio(own: float, peer: float | None) -> str:
    return f"{own / peer:.2f}" if peer else ""


def imports(rounds: int, env: dict[str, str]) -> str:
    """What starting costs: whole processes, medians."""
    from meter import measure as measured

    programs = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import chantier'": [sys.executable, "-c", "import chantier"],
        "chantier version": [str(Path(sys.executable).parent / "chantier"), "version"],
    }
    device = next(name for name in sorted(os.listdir("/sys/block")))
    rows = ["| start | wall ms | CPU ms |", "|---|--:|--:|"]
    for name, command in programs.items():
        cost = median([measured([command], env=env, daemons=[], device=device) for _ in range(max(rounds, 5))])
        rows.append(f"| {name} | {cost.wall_s * 1e3:.0f} | {cost.cpu_s * 1e3:.0f} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="the directory of scripts/peer")
    parser.add_argument("--lines", default=",".join(SCENES), help="scenes to run (default: all)")
    parser.add_argument("--builders", default=",".join(ALL), help="builders to compare (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"), help="where inputs and disks are made")
    parser.add_argument("--json", type=Path, help="every single figure, to a file")
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    given = parser.parse_args()
    sizes = replace(Sizes(), **{field.name: getattr(given, field.name) for field in fields(Sizes)})
    scenes, names = chosen(given.lines.split(",")), given.builders.split(",")
    compile_all()
    found: Found = {}
    begun = os.getloadavg()[0]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.append(True))
    starts = run_all(given, sizes, scenes, names, found)
    print(f"seed {sizes.seed}, {given.rounds} rounds, load {begun:.1f} at the start, {os.getloadavg()[0]:.1f} at the end\n")
    print(table(found, names), "", starts, sep="\n")
    if given.json:
        given.json.write_text(
            json.dumps({line: {k: [asdict(c) for c in v] for k, v in row.items()} for line, row in found.items()})
        )
    return 0


def run_all(given: argparse.Namespace, sizes: Sizes, scenes: dict[str, Scene], names: list[str], found: Found) -> str:
    """Fills `found`; returns the table of starts."""
    with tempfile.TemporaryDirectory(prefix="chantier-bench-", dir=given.work) as work, registry(Path(work, "registry")) as host:
        setting = Setting(registry=host, peer=given.peer.absolute())
        inputs = Inputs(Path(work), host, sizes)
        builders = [ALL[name](setting) for name in names]
        for label, scene in scenes.items():
            with loader(setting, Path(work), wanted=label == "load"):
                for number in range(given.rounds):
                    for builder in builders[number % len(builders) :] + builders[: number % len(builders)]:
                        if stopping:
                            return ""
                        try:
                            with OneStage(builder, f"{sizes.seed}-{number}", Path(work), found) as stage:
                                scene(stage, inputs)
                        except Exception as err:  # one builder that cannot do one line must not end the others' run
                            print(f"  {label}: {builder.name} failed: {err}", file=sys.stderr)
        return imports(given.rounds, setting.environment)


def compile_all() -> None:
    """Python writes what it compiled at the first import of an installed package: so it is here, whatever the environment says."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    package = subprocess.run(
        [sys.executable, "-c", "import chantier; print(chantier.__path__[0])"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    subprocess.run([sys.executable, "-m", "compileall", "-q", package.stdout.strip()], env=env, capture_output=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
