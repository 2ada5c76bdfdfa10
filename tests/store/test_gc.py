# SPDX-License-Identifier: Apache-2.0
"""What may go: policies, limits, order, reasons."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chantier.errors import UsageError
from chantier.store import Disk, Policy, UsageRecord, default_policies, plan, why_kept
from chantier.store.gc import percent_of
from chantier.store.types import Eviction

HOUR = 3600 * 10**9
NOW = 1000 * HOUR
DISK = Disk(total=1000, free=1000)


def record(id: str, *, used: int | None = None, count: int = 1, size: int = 100, **more: object) -> UsageRecord:
    """`used` is hours ago; None for never."""
    last = None if used is None else NOW - used * HOUR
    return UsageRecord(id=id, last_used_at=last, usage_count=0 if used is None else count, size=size, **more)  # type: ignore[arg-type]


def ids(evictions: list[Eviction]) -> list[str]:
    return [eviction.id for eviction in evictions]


def test_without_limits_all_candidates_go() -> None:
    records = [record("a", used=1), record("b", used=9), record("c"), record("d", used=5, in_use=True)]
    assert ids(plan(records, Policy(), NOW, DISK)) == ["c", "b", "a"]


def test_children_go_before_parents() -> None:
    records = [record("base"), record("top", used=1, parents=("base",)), record("side", used=2, parents=("base",))]
    assert ids(plan(records, Policy(), NOW, DISK)) == ["side", "top", "base"]
    pinned = [record("base"), record("top", used=1, parents=("base",), in_use=True)]
    assert plan(pinned, Policy(), NOW, DISK) == []


def test_internal_frontend_and_shared_only_with_all() -> None:
    records = [record("a", record_type="internal"), record("b", record_type="frontend"), record("c", shared=True)]
    assert plan(records, Policy(), NOW, DISK) == []
    assert sorted(ids(plan(records, Policy(all=True), NOW, DISK))) == ["a", "b", "c"]


def test_keep_duration_spares_what_was_used_lately_but_not_what_never_was() -> None:
    records = [record("new", used=1), record("old", used=50), record("never")]
    assert ids(plan(records, Policy(keep_duration_ns=48 * HOUR), NOW, DISK)) == ["never", "old"]


@pytest.mark.parametrize(
    ("policy", "disk", "left"),
    [
        (Policy(max_used_space=250), DISK, 2),
        (Policy(max_used_space=1000), DISK, 5),
        (Policy(max_used_space=500), DISK, 4),  # at the limit is over it, as upstream has it
        (Policy(max_used_space=250, reserved_space=350), DISK, 3),
        (Policy(reserved_space=150), DISK, 1),
        (Policy(min_free_space=300), Disk(total=1000, free=100), 2),
        (Policy(min_free_space=300), Disk(total=1000, free=400), 5),
        (Policy(min_free_space=300, reserved_space=450), Disk(total=1000, free=100), 4),
        (Policy(min_free_space=300, max_used_space=150), Disk(total=1000, free=100), 1),
        (Policy(min_free_space=900), Disk(total=1000, free=100), 0),
    ],
)
def test_limits(policy: Policy, disk: Disk, left: int) -> None:
    records = [record(str(i), used=i + 1) for i in range(5)]
    assert 5 - len(plan(records, policy, NOW, disk)) == left


def test_order_weighs_last_use_and_use_count() -> None:
    records = [
        record("often-long-ago", used=100, count=50),
        record("once-lately", used=1, count=1),
        record("once-long-ago", used=90, count=1),
        record("never"),
    ]
    evictions = plan(records, Policy(max_used_space=250), NOW, DISK)
    assert ids(evictions) == ["never", "once-long-ago"]
    assert evictions[0].reason == "never used; usage 400B is at or over the limit of 250B"
    assert evictions[1].reason.startswith("used once, last 3d ago; ")


def test_filters_choose_and_only_what_they_choose_counts() -> None:
    records = [record("mount", used=1, record_type="exec.cachemount"), record("big", used=1, size=10_000)]
    assert plan(records, Policy(filters=("type==exec.cachemount",), max_used_space=500), NOW, DISK) == []
    assert ids(plan(records, Policy(filters=("type==exec.cachemount",)), NOW, DISK)) == ["mount"]


def test_why_kept() -> None:
    policy = Policy(keep_duration_ns=48 * HOUR, filters=("type==regular",))
    assert why_kept(record("a", in_use=True), policy, NOW) == "in use"
    assert why_kept(record("a"), policy, NOW, children=2) == "2 other records are built on it"
    assert why_kept(record("a", record_type="internal"), policy, NOW) == "internal records go only with `all`"
    assert why_kept(record("a", used=2), policy, NOW) == "used 2h ago, kept for 2d"
    assert why_kept(record("a", used=72, record_type="source.local"), policy, NOW) == "no filter matches it"
    assert why_kept(record("a"), policy, NOW) is None


def test_default_policies_are_buildkits() -> None:
    first, second, third, last = default_policies(Disk(total=252 << 30, free=1))
    assert first.filters == ("type==source.local", "type==exec.cachemount", "type==source.git.checkout")
    assert (first.keep_duration_ns, first.max_used_space) == (48 * HOUR, 512 * 10**6)
    assert (second.keep_duration_ns, third.keep_duration_ns, last.all) == (60 * 24 * HOUR, 0, True)
    assert (third.reserved_space, third.max_used_space, third.min_free_space) == (10 * 10**9, 100 * 10**9, 51 * 10**9)
    small = default_policies(Disk(total=20 << 30, free=1))[2]
    assert (small.reserved_space, small.max_used_space, small.min_free_space) == (3 * 10**9, 17 * 10**9, 5 * 10**9)
    assert percent_of(Disk(total=0, free=0), 10) == 2 * 10**9


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("id==a", "a"),
        ("id!=a", "bc"),
        ("description~=^apt", "b"),
        ('description=="apt get, update"', "b"),
        ("mutable", "c"),
        ("immutable,id~=/[bc]/", "b"),
        ("inuse", "a"),
        ("private", "abc"),
        ("shared", ""),
        ("parents==a;b", "c"),
        ("type==exec.cachemount", "c"),
        ("mutable==true", "c"),
        ("", "abc"),
    ],
)
def test_filters(text: str, found: str) -> None:
    from chantier.store import compile_filters

    records = [
        record("a", in_use=True),
        record("b", description="apt get, update"),
        record("c", mutable=True, record_type="exec.cachemount", parents=("a", "b")),
    ]
    test = compile_filters([text])
    assert "".join(r.id for r in records if test(r)) == found


@pytest.mark.parametrize("text", ["nosuch==a", "id=a", "id==a,", "description~=(", 'id=="a'])
def test_bad_filters_say_what_is_wrong(text: str) -> None:
    from chantier.store import compile_filters

    with pytest.raises(UsageError, match="failed to parse filter"):
        compile_filters([text])


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.integers(0, 200)), st.integers(1, 5), st.integers(0, 300), st.booleans(), st.integers(0, 99)
        ),
        max_size=12,
    ),
    st.integers(0, 1500),
    st.integers(0, 1500),
    st.integers(0, 800),
)
def test_no_plan_breaks_a_promise(
    rows: list[tuple[int | None, int, int, bool, int]], most: int, reserved: int, free: int
) -> None:
    records = []
    for place, (used, count, size, held, parent) in enumerate(rows):
        parents = (str(parent % place),) if place and parent % 3 else ()
        records.append(record(str(place), used=used, count=count, size=size, in_use=held, parents=parents))
    policy = Policy(max_used_space=most, reserved_space=reserved, min_free_space=free)
    evictions = plan(records, policy, NOW, Disk(total=2000, free=400))
    by_id = {r.id: r for r in records}
    gone: set[str] = set()
    total = sum(r.size for r in records)
    for eviction in evictions:
        assert not by_id[eviction.id].in_use
        assert all(r.id in gone for r in records if eviction.id in r.parents)  # children first
        assert not reserved or total >= reserved
        assert eviction.reason
        gone.add(eviction.id)
        total -= by_id[eviction.id].size
    assert len(gone) == len(evictions)
