# SPDX-License-Identifier: Apache-2.0
"""`chantier build`: a Dockerfile becomes an image. The digest alone goes to standard output, talk to standard error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO

from chantier.client import BuildRequest, BuildResult, parse_output, prepare
from chantier.client.parse import parse_contexts, parse_labels, parse_pairs, parse_secret, parse_size, parse_ssh
from chantier.client.provenance import metadata_mode
from chantier.display import Display, open_display, print_error, print_warnings
from chantier.errors import ChantierError, UsageError
from chantier.values import replace

from .args import Parser
from .logs import logging_to

_EXAMPLE = """chantier build -t registry.example/app:1 --push .
chantier build --load -t app . -f Dockerfile.dev
chantier build -o type=oci,dest=app.tar --platform linux/amd64 https://git.example/app.git#main"""


def run(args: Sequence[str], debug: bool) -> int:
    # A value of its own must stand behind `=`: what follows `--pull` is the context.
    given = _parser().parse(["--pull=always" if arg == "--pull" else arg for arg in args])
    debug = debug or given.debug
    request = _request(given, os.environ)
    quiet = given.quiet or given.progress == "quiet"
    if given.quiet and given.progress not in ("auto", "quiet"):
        raise UsageError(f"progress={given.progress} and quiet cannot be used together")
    from chantier.driver.select import open_builder

    driver = open_builder(given.builder, root=given.root, config=given.config, env=os.environ)
    prepared = prepare(request, stdout_is_tty=sys.stdout.isatty(), default_output=driver.default_output, save=_saved)
    mode = metadata_mode(os.environ)
    prepared = replace(prepared, provenance=bool(given.metadata_file) and mode != "disabled")
    if given.on_error:
        from .on_error import on_failure

        prepared = replace(prepared, on_failure=on_failure(given.on_error, lambda: display, debug=debug))
    if given.iidfile and os.path.exists(given.iidfile):
        os.unlink(given.iidfile)
    show_progress = "quiet" if quiet else given.progress
    display = open_display(show_progress, sys.stderr, heading=driver.heading, title=driver.title, explain=given.explain)
    try:
        try:
            with logging_to(sys.stderr, driver.config, debug=debug), driver:
                result = driver.build(prepared, display)
        finally:
            display.close()
    except ChantierError as err:
        return _failed(err, request, display, debug=debug, quiet=quiet or given.progress == "rawjson")
    if request.call != "build":
        from .call import print_call

        return print_call(request.call.split(",")[0], given.call_format, result.calls, ignore_status=given.call_ignore_status)
    if not quiet and given.progress != "rawjson":
        print_warnings(display.warnings, sys.stderr, debug=debug)
    if not prepared.call.exporters and not quiet:
        sys.stderr.write(
            f"WARNING: No output specified{driver.without_output}. Build result will only remain in the build cache. "
            "To push result image into registry use --push or to load image into docker use --load\n"
        )
    _write_results(given, result, driver.place, prepared.offer.outputs and any(o.dest == "-" for o in prepared.offer.outputs))
    return 0


def _saved(image: str) -> AbstractContextManager[BinaryIO]:
    from chantier.driver.save import saved_image

    return saved_image(os.environ, image)


def _failed(err: ChantierError, request: BuildRequest, display: Display, *, debug: bool, quiet: bool) -> int:
    if request.call == "build" and not quiet:
        print_warnings(display.warnings, sys.stderr, debug=debug)
    print_error(err, sys.stderr, prefix="failed to build: " if request.call == "build" else "", debug=debug)
    return err.exit_code


def _write_results(given: argparse.Namespace, result: BuildResult, place: str, stdout_is_taken: object) -> None:
    from chantier.client.metadata import write_metadata, write_text

    if given.metadata_file:
        write_metadata(given.metadata_file, result, place=place, provenance=metadata_mode(os.environ))
    image_id = result.config_digest or result.digest
    if given.iidfile:
        write_text(given.iidfile, image_id)
    if stdout_is_taken:
        return
    if given.quiet:
        sys.stdout.write(f"{image_id}\n")
    elif result.digest:
        sys.stdout.write(f"{result.digest}\n")
    sys.stdout.flush()


def _parser() -> Parser:
    p = Parser("chantier build", "Build an image from a Dockerfile.", _EXAMPLE)
    add = p.add_argument
    add("context", metavar="PATH | URL | -", help="the build context: a directory, a git or http URL, or - for standard input")
    add("--add-host", action="append", default=[], metavar="HOST=IP", help="a line of the steps' hosts file")
    add(
        "--allow",
        action="append",
        default=[],
        metavar="ENTITLEMENT",
        help="grant network.host, security.insecure or device[=NAME] to the build",
    )
    add("--annotation", action="append", default=[], metavar="KEY=VALUE", help="an annotation of the image")
    add(
        "--attest",
        action="append",
        default=[],
        metavar="type=KIND",
        help="what to attest of the result: type=provenance,mode=max, type=sbom,generator=IMAGE",
    )
    add("--build-arg", action="append", default=[], metavar="KEY=VALUE", help="a build argument (KEY alone: its value here)")
    add("--builder", default=None, metavar="NAME", help="the builder: a name of `chantier ls`, an address, or embedded")
    add(
        "--build-context",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one more context: a path, image, git or http URL, oci-layout://DIR, docker-archive:FILE, docker-daemon:IMAGE",
    )
    add("--cache-from", action="append", default=[], metavar="REF", help="where to look for cached steps")
    add("--cache-to", action="append", default=[], metavar="REF", help="where to write the cache")
    add("--call", default="build", metavar="METHOD", help="build, check, outline or targets; add ,format=json for JSON")
    add("--cgroup-parent", default="", help="the parent cgroup of the steps")
    add("--check", action="store_true", help="the same as --call=check")
    add("--config", default=None, metavar="FILE", help="the config file to use instead of the one found")
    add("-D", "--debug", action="store_true", help="log what the engine and the registry client do")
    add("--explain", action="store_true", help="say for each step why it was cached or had to run")
    add("-f", "--file", default=None, metavar="FILE", help="the Dockerfile (default PATH/Dockerfile; - for standard input)")
    add("--iidfile", default="", metavar="FILE", help="write the image id to a file")
    add("--label", action="append", default=[], metavar="KEY=VALUE", help="a label of the image")
    add("--load", action="store_true", help="load the image into the local engine (docker, else podman)")
    add("--metadata-file", default="", metavar="FILE", help="write what is known of the result to a JSON file")
    add("--network", default="default", metavar="MODE", help="network of the steps: default, host or none")
    add("--no-cache", action="store_true", help="run every step again")
    add("--no-cache-filter", action="append", default=[], metavar="STAGE", help="run the steps of these stages again")
    add("--on-error", default="", metavar="shell", help="open a shell in a step that failed (on a terminal)")
    add(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="DEST",
        help="where the result goes: type=image|oci|docker|tar|local,dest=…",
    )
    add("--platform", action="append", default=[], metavar="PLATFORM", help="platforms to build for, such as linux/arm64")
    add("--progress", default="auto", metavar="MODE", help="auto, tty, plain, quiet or rawjson")
    add("--provenance", default=None, metavar="mode=max", help='short for --attest "type=provenance,…"; false for none')
    add(
        "--pull",
        default="",
        metavar="MODE",
        help="always (as without a mode): ask the registry again; missing: ask for what is not known here; never: ask nobody",
    )
    add("--push", action="store_true", help="push the image to its registry")
    add("-q", "--quiet", action="store_true", help="print the image id alone")
    add("--resource", action="append", default=[], metavar="KEY=VALUE", help="a limit of each step: memory=1g, cpu-quota=…, …")
    add("--root", default=None, metavar="DIR", help="where the engine keeps its state")
    add("--sbom", default=None, metavar="true", help='short for --attest "type=sbom,…"; false for none')
    add("--secret", action="append", default=[], metavar="id=NAME,src=FILE", help="a secret that steps may mount")
    add("--shm-size", default="0", metavar="SIZE", help="size of /dev/shm in steps")
    add("--ssh", action="append", default=[], metavar="default|ID[=SOCKET|KEY]", help="an ssh agent that steps may use")
    add("-t", "--tag", action="append", default=[], metavar="NAME:TAG", help="a name for the image")
    add("--target", default="", metavar="STAGE", help="the stage to build")
    add("--ulimit", action="append", default=[], metavar="NAME=SOFT[:HARD]", help="a limit of the steps' processes")
    return p


def _request(given: argparse.Namespace, env: Mapping[str, str]) -> BuildRequest:
    build_args = parse_pairs(given.build_arg, env)
    if "SOURCE_DATE_EPOCH" not in build_args and env.get("SOURCE_DATE_EPOCH"):
        build_args["SOURCE_DATE_EPOCH"] = env["SOURCE_DATE_EPOCH"]
    given.call_format, given.call_ignore_status, call = _call(given)
    platforms = given.platform or ([env["DOCKER_DEFAULT_PLATFORM"]] if env.get("DOCKER_DEFAULT_PLATFORM") else [])
    return BuildRequest(
        context=given.context,
        dockerfile=given.file,
        tags=tuple(given.tag),
        outputs=tuple(parse_output(o) for o in given.output),
        push=given.push,
        load=given.load,
        build_args=build_args,
        labels=parse_labels(given.label),
        target=given.target,
        platforms=tuple(platforms),
        no_cache=given.no_cache,
        no_cache_filter=tuple(given.no_cache_filter),
        pull=_pull(given.pull),
        secrets=tuple(parse_secret(s, env) for s in given.secret),
        ssh=tuple(parse_ssh(s, env) for s in given.ssh),
        build_contexts=parse_contexts(given.build_context),
        add_hosts=tuple(given.add_host),
        network=given.network,
        shm_size=parse_size(given.shm_size),
        ulimits=tuple(given.ulimit),
        cgroup_parent=given.cgroup_parent,
        resources=_resources(given.resource),
        allow=tuple(given.allow),
        annotations=tuple(given.annotation),
        cache_from=tuple(given.cache_from),
        cache_to=tuple(given.cache_to),
        attest=tuple(given.attest),
        provenance=given.provenance,
        sbom=given.sbom,
        call=call,
    )


def _pull(text: str) -> bool | str:
    """Docker's flag is a switch, which may be given a truth."""
    if text.lower() in ("", "false", "0", "f"):
        return False
    return True if text.lower() in ("true", "1", "t") else text


def _call(given: argparse.Namespace) -> tuple[str, bool, str]:
    method, _, options = given.call.partition(",")
    if given.check:
        method = "check"
    known = {}
    for option in options.split(","):
        key, _, value = option.partition("=")
        known[key] = value
    return known.get("format", ""), known.get("ignorestatus", "") in ("true", "1"), method or "build"


def _resources(values: Sequence[str]) -> dict[str, str]:
    limits = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"invalid resource {text}, expected key=value")
        limits[key] = str(parse_size(value)) if key in ("memory", "memory-swap") and value != "-1" else value
    return limits
