# SPDX-License-Identifier: Apache-2.0
"""The work that is measured. A scene gets one builder on a fresh disk, and measures one or more lines on it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from builders import Build
from inputs import Sizes, big_file, busybox_tree, debian_tree, many_files, push, touch


class Stage(Protocol):
    """What a scene may do with the builder it was given."""

    builder: str
    nonce: str

    def warm(self, *builds: Build) -> None:
        """Build, not measured."""

    def measure(self, line: str, *builds: Build, at_once: bool = False) -> None:
        """Build, measured, as one line of the table."""

    def fresh(self) -> None:
        """Go on with an empty state on a fresh disk."""

    def idle(self, line: str) -> None:
        """Measure the memory of the daemon while it does nothing."""


@dataclass
class Inputs:
    """Trees and images, made when a scene first asks for them, in a directory that lives as long as the run."""

    work: Path
    registry: str
    sizes: Sizes
    count: int = field(default=0)

    def _new(self) -> Path:
        self.count += 1
        path = self.work / f"in{self.count}"
        path.mkdir()
        return path

    def text(self, text: str) -> Path:
        path = self._new() / "Dockerfile"
        path.write_text(text)
        return path

    @functools.cached_property
    def empty(self) -> Path:
        return self._new()

    @functools.cached_property
    def base(self) -> str:
        work = self._new()
        return push(f"{self.registry}/bench/base:1", [busybox_tree(work / "root")], work)

    @functools.cached_property
    def layered(self) -> str:
        work = self._new()
        trees = [busybox_tree(work / "l0")]
        for number in range(self.sizes.layers):
            files = many_files(work / f"l{number}/opt/l{number}", self.sizes.layer_files, 12_000, self.sizes.seed + number)
            trees += [files.parents[1]] if number else []
        return push(f"{self.registry}/bench/layered:1", trees, work)

    @functools.cached_property
    def debian(self) -> str:
        work = self._new()
        return push(f"{self.registry}/bench/debian:1", [debian_tree(work / "root")], work)

    @functools.cached_property
    def files(self) -> Path:
        return many_files(self._new(), self.sizes.files, self.sizes.file_bytes, self.sizes.seed)

    @functools.cached_property
    def big(self) -> Path:
        work = self._new()
        big_file(work / "big", self.sizes.big_bytes, self.sizes.seed)
        return work

    def build(self, text: str, context: Path | None = None, **more: str) -> Build:
        return Build(dockerfile=self.text(text), context=context or self.empty, **more)


def hello(stage: Stage, inputs: Inputs) -> None:
    stage.warm(inputs.build(f"FROM {inputs.base}\nRUN true\n"))
    build = inputs.build(f"FROM {inputs.base}\nRUN echo hello {stage.nonce}\n")
    stage.measure("hello", build)
    stage.measure("hello, cached", build)
    stage.idle("idle memory")


def steps(stage: Stage, inputs: Inputs) -> None:
    stage.warm(inputs.build(f"FROM {inputs.base}\nRUN true\n"))
    runs = "".join(f"RUN echo {stage.nonce} > /f{n}\n" for n in range(inputs.sizes.steps))
    stage.measure(f"{inputs.sizes.steps} RUN steps", inputs.build(f"FROM {inputs.base}\n{runs}"))


def stages(stage: Stage, inputs: Inputs) -> None:
    stage.warm(inputs.build(f"FROM {inputs.base}\nRUN true\n"))
    each = "".join(f"FROM {inputs.base} AS s{n}\nRUN echo {stage.nonce} {n} > /out\n" for n in range(inputs.sizes.stages))
    last = "FROM scratch\n" + "".join(f"COPY --from=s{n} /out /out{n}\n" for n in range(inputs.sizes.stages))
    stage.measure(f"{inputs.sizes.stages} parallel stages", inputs.build(each + last))


def context(stage: Stage, inputs: Inputs) -> None:
    stage.warm(inputs.build(f"FROM {inputs.base}\nRUN true\n"))
    build = inputs.build(f"FROM {inputs.base}\nCOPY . /src\n", inputs.files)
    stage.measure(f"context of {inputs.sizes.files} files", build)
    touch(inputs.files, stage.nonce)
    stage.measure("context, one file touched", build)


def _big(stage: Stage, inputs: Inputs, compression: str) -> None:
    stage.warm(inputs.build(f"FROM {inputs.base}\nRUN true\n"))
    name = f"{inputs.registry}/big/{stage.builder}-{compression}:{stage.nonce}"
    text = f"FROM {inputs.base}\nLABEL nonce={stage.nonce}\nCOPY big /big\n"
    stage.measure(f"big file, {compression}, push", inputs.build(text, inputs.big, push=name, compression=compression))


def big_gzip(stage: Stage, inputs: Inputs) -> None:
    _big(stage, inputs, "gzip")


def big_zstd(stage: Stage, inputs: Inputs) -> None:
    _big(stage, inputs, "zstd")


def pull(stage: Stage, inputs: Inputs) -> None:
    text = f"FROM {inputs.layered}\nRUN test -d /opt/l0\n"
    stage.measure(f"pull of {inputs.sizes.layers} layers", inputs.build(text))


def copy(stage: Stage, inputs: Inputs) -> None:
    stage.warm(inputs.build(f"FROM {inputs.debian}\nRUN true\n"))
    stage.measure("Debian, cp -a /usr", inputs.build(f"FROM {inputs.debian}\nRUN cp -a /usr /copy && echo {stage.nonce}\n"))


def chain(stage: Stage, inputs: Inputs) -> None:
    source = inputs.text("").parent
    (source / "f").write_text(stage.nonce)
    text = "FROM scratch AS s0\nCOPY f /f\n"
    text += "".join(f"FROM scratch AS s{n}\nCOPY --from=s{n - 1} /f /f\n" for n in range(1, inputs.sizes.chain))
    build = inputs.build(text, source)
    stage.measure(f"{inputs.sizes.chain} chained stages", build)
    stage.measure(f"{inputs.sizes.chain} chained stages, cached", build)


def load(stage: Stage, inputs: Inputs) -> None:
    text = f"FROM {inputs.layered}\nRUN echo {stage.nonce} > /f\n"
    build = inputs.build(text, load=f"bench/{stage.builder}:{stage.nonce}")
    stage.warm(build)
    stage.measure("--load, unchanged", build)


def known_push(stage: Stage, inputs: Inputs) -> None:
    source = many_files(inputs.text("").parent / "c", 70, 600_000, inputs.sizes.seed)
    names = sorted(path.relative_to(source) for path in source.glob("d*/e*/*"))
    text = f"FROM {inputs.base}\nLABEL nonce={stage.nonce}\n"
    text += "".join(f"COPY {' '.join(map(str, names[n * 10 : n * 10 + 10]))} /l{n}/\n" for n in range(7))
    build = inputs.build(text, source, push=f"{inputs.registry}/known/{stage.builder}:{stage.nonce}")
    stage.warm(build)
    with open(source / names[-1], "a") as file:
        file.write(stage.nonce)
    stage.measure("push, all but the last layer known", build)


def cache_import(stage: Stage, inputs: Inputs) -> None:
    runs = "".join(f"RUN echo {stage.nonce} > /f{n}\n" for n in range(inputs.sizes.imported))
    text = f"FROM {inputs.base}\n{runs}"
    ref = f"{inputs.registry}/cache/{stage.builder}-{stage.nonce}:1"
    stage.warm(inputs.build(text, cache_to=ref))
    stage.fresh()
    stage.measure(f"cache import of {inputs.sizes.imported} steps", inputs.build(text, cache_from=ref))


def crowd(stage: Stage, inputs: Inputs) -> None:
    stage.warm(inputs.build(f"FROM {inputs.base}\nRUN true\n"))
    builds = [
        inputs.build(f"FROM {inputs.base}\nRUN echo {stage.nonce} {n} > /a\nRUN echo {n} > /b\n")
        for n in range(inputs.sizes.builds)
    ]
    stage.measure(f"{inputs.sizes.builds} builds at once", *builds, at_once=True)


Scene = Callable[[Stage, Inputs], None]
SCENES: dict[str, Scene] = {
    "hello": hello,
    "steps": steps,
    "stages": stages,
    "context": context,
    "big-gzip": big_gzip,
    "big-zstd": big_zstd,
    "pull": pull,
    "copy": copy,
    "chain": chain,
    "load": load,
    "known-push": known_push,
    "cache-import": cache_import,
    "crowd": crowd,
}


def chosen(names: Sequence[str]) -> dict[str, Scene]:
    unknown = [name for name in names if name not in SCENES]
    if unknown:
        raise SystemExit(f"no such lines: {', '.join(unknown)}; there are {', '.join(SCENES)}")
    return {name: SCENES[name] for name in names}
