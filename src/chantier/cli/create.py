# SPDX-License-Identifier: Apache-2.0
"""`chantier create`: a builder that runs elsewhere, in the store that docker buildx uses too."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .args import Parser
from .builders import add_timeout, run_async, seconds

_EXAMPLE = """chantier create --name big --use tcp://builder.example:1234 --driver-opt cacert=/certs/ca.pem,cert=/certs/me.pem,key=/certs/key.pem
chantier create --name box --driver docker-container --buildkitd-config /etc/buildkitd.toml --bootstrap
chantier create --name box --append --node box1 --platform linux/arm64 ssh://arm.example"""


def run(args: Sequence[str], debug: bool) -> int:
    given = _parser().parse(args)
    from chantier.driver.builder import Builder
    from chantier.driver.context import Contexts
    from chantier.driver.create import Wish, plan_create, plan_leave
    from chantier.driver.store import Store

    store = Store.open(os.environ)
    if given.leave:
        with store.locked():
            group = plan_leave(given.name, given.node, store)
            store.forget_builds(group.name, given.node)
            store.save(group)
        sys.stdout.write(f"{group.name}\n")
        return 0
    seconds(given.timeout)
    wish = Wish(
        name=given.name,
        endpoint=given.endpoint,
        node=given.node,
        driver=given.driver,
        driver_opts=tuple(given.driver_opt),
        platforms=tuple(given.platform),
        config=given.buildkitd_config,
        flags=given.buildkitd_flags,
        append=given.append,
    )
    with store.locked():
        made = plan_create(wish, store, os.environ)
        store.save(made.group)
        if given.use:
            store.choose(Contexts(os.environ).key(), made.group.name)
    for warning in made.warnings:
        sys.stderr.write(f"WARNING: {warning}\n")
    if given.bootstrap:
        boot(Builder(made.group, env=os.environ))
    sys.stdout.write(f"{made.group.name}\n")
    return 0


def boot(builder: object) -> None:
    """Start all nodes of a Builder, with progress on standard error. Raises ChantierError."""
    from chantier.display import open_display
    from chantier.driver.builder import Builder

    assert isinstance(builder, Builder)
    display = open_display("auto", sys.stderr)

    async def work() -> None:
        try:
            await builder.boot(display)
        finally:
            await builder.aclose()

    try:
        run_async(work())
    except BaseExceptionGroup as errs:
        raise errs.exceptions[0] from None
    finally:
        display.close()


def _parser() -> Parser:
    p = Parser("chantier create", "Create a builder, or change one. Prints its name.", _EXAMPLE)
    add = p.add_argument
    add("endpoint", nargs="?", default=None, metavar="CONTEXT | ENDPOINT", help="a docker context, or the address of a daemon")
    add("--append", action="store_true", help="add a node to a builder that exists")
    add("--bootstrap", action="store_true", help="start it now")
    add(
        "--buildkitd-config", "--config", default=None, metavar="FILE", help="the daemon's config; certificates it names go along"
    )
    add("--buildkitd-flags", default=None, metavar="FLAGS", help="flags of the daemon, as a shell would split them")
    add("--driver", default="", metavar="NAME", help="docker-container, kubernetes or remote (default: by the endpoint)")
    add("--driver-opt", action="append", default=[], metavar="KEY=VALUE", help="options of the driver, comma-separated")
    add("--leave", action="store_true", help="remove a node (--node) from a builder (--name)")
    add("--name", default="", metavar="NAME", help="the builder's name (default: a random one)")
    add("--node", default="", metavar="NAME", help="the node to create or change")
    add("--platform", action="append", default=[], metavar="PLATFORMS", help="platforms the node is for, whatever it says itself")
    add("--use", action="store_true", help="use it from now on")
    add_timeout(p)
    return p
