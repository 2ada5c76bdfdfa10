# SPDX-License-Identifier: Apache-2.0
"""`chantier graph`: what a build would do, as a picture or as JSON. Nothing is run; base images are looked up."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from chantier.client import BuildRequest, prepare
from chantier.client.parse import parse_contexts, parse_pairs
from chantier.display import open_display
from chantier.errors import UsageError

from .args import Parser
from .logs import logging_to

if TYPE_CHECKING:
    from chantier.pb import ops_pb2 as pb

_EXAMPLE = """chantier graph -o build.svg .
chantier graph --format dot --target test . | dot -Tpng > build.png
chantier graph --llb definition.pb --format json"""
_BY_NAME = {".svg": "svg", ".dot": "dot", ".gv": "dot", ".json": "json"}


def run(args: Sequence[str], debug: bool) -> int:
    given = _parser().parse(args)
    from chantier.llb import load
    from chantier.llb.picture import FORMS, draw

    form = given.format or _BY_NAME.get(os.path.splitext(given.output)[1], "dot")
    if form not in FORMS:
        raise UsageError(f"unknown form of a graph {form!r}", hint="forms are " + ", ".join(FORMS))
    if given.llb:
        definition = _read(given.llb)
    else:
        request = BuildRequest(
            context=given.context or ".",
            dockerfile=given.file,
            target=given.target,
            platforms=tuple(given.platform),
            build_args=parse_pairs(given.build_arg, os.environ),
            build_contexts=parse_contexts(given.build_context),
            call="convertllb",
        )
        definition = _ask(request, given.builder, given.root, given.config, debug=debug)
    text = draw(load(definition), form)
    if given.output and given.output != "-":
        from chantier.client.metadata import write_text

        write_text(given.output, text)
    else:
        sys.stdout.write(text)
        sys.stdout.flush()
    return 0


def _parser() -> Parser:
    p = Parser("chantier graph", "Draw the graph of a build.", _EXAMPLE)
    add = p.add_argument
    add("context", nargs="?", default=None, metavar="PATH | URL", help="the build context (default .)")
    add("--build-arg", action="append", default=[], metavar="KEY=VALUE", help="a build argument")
    add("--build-context", action="append", default=[], metavar="NAME=VALUE", help="one more context")
    add("--builder", default=None, metavar="NAME", help="the builder to ask")
    add("--config", default=None, metavar="FILE", help="the config file to use instead of the one found")
    add("-f", "--file", default=None, metavar="FILE", help="the Dockerfile")
    add("--format", default="", metavar="FORM", help="svg, dot or json (default: by the name of the output, else dot)")
    add("--llb", default="", metavar="FILE", help="a marshalled definition instead of a Dockerfile (- for standard input)")
    add("-o", "--output", default="", metavar="FILE", help="where the graph goes (default: standard output)")
    add("--platform", action="append", default=[], metavar="PLATFORM", help="the platform to build for")
    add("--root", default=None, metavar="DIR", help="where the engine keeps its state")
    add("--target", default="", metavar="STAGE", help="the stage to build")
    return p


def _read(name: str) -> pb.Definition:
    from google.protobuf.message import DecodeError

    from chantier.pb import ops_pb2 as pb

    try:
        data = sys.stdin.buffer.read() if name == "-" else open(name, "rb").read()
        return pb.Definition.FromString(data)
    except OSError as err:
        raise UsageError(f"failed to read {name}: {(err.strerror or '').lower()}") from err
    except DecodeError as err:
        raise UsageError(f"{name} is not a marshalled LLB definition") from err


def _ask(request: BuildRequest, builder: str | None, root: str | None, config: str | None, *, debug: bool) -> pb.Definition:
    from chantier.driver.select import open_builder

    driver = open_builder(builder, root=root, config=config, env=os.environ)
    display = open_display("quiet", sys.stderr)
    try:
        with logging_to(sys.stderr, driver.config, debug=debug), driver:
            result = driver.build(prepare(request), display)
    finally:
        display.close()
    return definition_of(result.calls)


def definition_of(calls: Mapping[str, bytes]) -> pb.Definition:
    """The definition in the answer to `convertllb`: operations as protobuf's JSON, by digest, in no order."""
    import json
    from graphlib import CycleError, TopologicalSorter

    from google.protobuf import json_format

    from chantier.llb import marshal_op
    from chantier.pb import ops_pb2 as pb
    from chantier.spec import digest_of

    value = json.loads(calls.get("result.json", b"{}"))
    ops = {digest: json_format.ParseDict(op, pb.Op(), ignore_unknown_fields=True) for digest, op in value.get("def", {}).items()}
    definition = pb.Definition()
    try:
        done = list(TopologicalSorter({digest: [edge.digest for edge in op.inputs] for digest, op in ops.items()}).static_order())
    except CycleError as err:
        raise UsageError("the builder's answer is no graph") from err
    # The last operation only names the result.
    last = next((d for d in done if ops[d].WhichOneof("op") is None), None)
    names: dict[str, str] = {}
    for digest in (*(d for d in done if d != last), *([last] if last is not None else [])):
        op = ops[digest]
        for edge in op.inputs:
            edge.digest = names.get(edge.digest, edge.digest)
        raw = marshal_op(op)
        names[digest] = digest_of(raw)
        getattr(definition, "def").append(raw)
        description = value.get("metadata", {}).get(digest, {}).get("description", {})
        definition.metadata[names[digest]].description.update(description)
    return definition


__all__ = ["definition_of", "run"]
