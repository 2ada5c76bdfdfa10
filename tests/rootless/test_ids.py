# SPDX-License-Identifier: Apache-2.0
"""Which ids a user namespace gets, from what a process has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chantier.kernel import IdRange
from chantier.kernel.userns import DIRECT, HELPERS, ROOT, SINGLE, Caller, plan_ids, sub_ranges

SYS_ADMIN, SETUID_SETGID = 1 << 21, 1 << 7 | 1 << 6
USER = Caller(
    uid=1000,
    gid=1001,
    name="ann",
    newuidmap="/usr/bin/newuidmap",
    newgidmap="/usr/bin/newgidmap",
    subuid="bob:100000:65536\nann:200000:65536\n",
    subgid="ann:300000:65536\n",
)


def part(inside: int, outside: int, size: int) -> IdRange:
    return IdRange(inside=inside, outside=outside, size=size)


def test_root_needs_no_namespace() -> None:
    assert plan_ids(replace(USER, uid=0, capabilities=SYS_ADMIN)).how == ROOT


def test_subordinate_ids_follow_our_own() -> None:
    plan = plan_ids(USER)
    assert plan.how == HELPERS
    assert plan.uids == (part(0, 1000, 1), part(1, 200000, 65536))
    assert plan.gids == (part(0, 1001, 1), part(1, 300000, 65536))
    assert plan.count == 65537
    assert plan.notes() == ()


def test_several_ranges_are_stacked_without_a_gap() -> None:
    plan = plan_ids(replace(USER, subuid="ann:5000:10\n1000:9000:5\n"))
    assert plan.uids == (part(0, 1000, 1), part(1, 5000, 10), part(11, 9000, 5))
    assert plan.notes() == ("only 16 user ids: images with higher ones fail",)


def test_root_of_a_container_takes_what_it_has() -> None:
    outer = (part(0, 100000, 65536),)
    plan = plan_ids(replace(USER, uid=0, gid=0, capabilities=SETUID_SETGID, outer_uids=outer, outer_gids=outer))
    assert plan.how == DIRECT
    assert plan.uids == plan.gids == (part(0, 0, 65536),)


def test_root_of_a_container_without_a_namespace_can_still_be_told_from_the_machines() -> None:
    outer = (part(0, 0, 2**32 - 1),)
    plan = plan_ids(replace(USER, uid=0, gid=0, capabilities=SETUID_SETGID, outer_uids=outer, outer_gids=outer))
    assert plan.uids == plan.gids == (part(0, 0, 2**32 - 2),)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"newuidmap": ""}, "newuidmap not found"),
        ({"newuidmap": "", "newgidmap": ""}, "newuidmap and newgidmap not found"),
        ({"no_new_privs": True}, "no_new_privs keeps newuidmap from working"),
        ({"subuid": "bob:1:2\n"}, "/etc/subuid gives ann no subordinate ids"),
        ({"subgid": ""}, "/etc/subgid gives ann no subordinate ids"),
        ({"uid": 0, "capabilities": 0, "newgidmap": ""}, "newgidmap not found"),
    ],
)
def test_a_single_id_says_what_it_is_for_want_of(change: dict[str, object], why: str) -> None:
    caller = replace(USER, **change)  # type: ignore[arg-type]
    plan = plan_ids(caller)
    assert plan.how == SINGLE
    assert plan.why == why
    assert plan.hint
    assert plan.uids == (part(0, caller.uid, 1),)
    notes = "\n".join(plan.notes())
    for lost in ("several owners", "USER", "apt", "COPY --chown"):
        assert lost in notes


@pytest.mark.parametrize("text", ["", "ann", "ann:x:y", "ann:1", "# ann:1:2", "annette:1:2"])
def test_lines_of_others_and_odd_ones_count_for_nothing(text: str) -> None:
    assert sub_ranges(text, 1000, "ann") == ()
