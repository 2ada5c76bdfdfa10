# SPDX-License-Identifier: Apache-2.0
"""What a State becomes: operations, their inputs and outputs, digests, metadata."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chantier import llb
from chantier.errors import SourceRange, UsageError
from chantier.llb import caps
from chantier.pb import ops_pb2 as pb
from chantier.spec import Platform, digest_of

ARM = Platform("linux", "arm64")


def ops(definition: pb.Definition) -> list[pb.Op]:
    out = []
    for raw in llb.raw_ops(definition):
        op = pb.Op()
        op.ParseFromString(raw)
        out.append(op)
    return out


def only(definition: pb.Definition, kind: str) -> Any:
    found = [getattr(op, kind) for op in ops(definition) if op.WhichOneof("op") == kind]
    assert len(found) == 1
    return found[0]


def meta(definition: pb.Definition, kind: str) -> pb.OpMetadata:
    return next(
        definition.metadata[digest_of(raw)]
        for raw, op in zip(llb.raw_ops(definition), ops(definition), strict=True)
        if op.WhichOneof("op") == kind
    )


def test_an_empty_tree_has_no_operations() -> None:
    assert llb.scratch().marshal() == pb.Definition()


def test_an_image_is_bytes_as_go_writes_them() -> None:
    raw, terminal = llb.raw_ops(llb.image("alpine").marshal(Platform("linux", "amd64")))
    # field 10 platform {1 arch, 2 os}, field 11 constraints (empty, but there), then field 3 source {1 identifier}
    platform = b"\x0a\x05amd64\x12\x05linux"
    source = b"\x0a\x27docker-image://docker.io/library/alpine:latest"
    source = b"\x0a" + bytes([len(source) - 2]) + source[2:]
    assert raw == b"\x52" + bytes([len(platform)]) + platform + b"\x5a\x00" + b"\x1a" + bytes([len(source)]) + source
    assert terminal == b"\x0a\x49\x0a\x47" + digest_of(raw).encode()


def test_the_terminal_names_the_result_and_carries_the_caps_of_what_metadata_is_used() -> None:
    definition = llb.image("a", ignore_cache=True, name="x", export_cache=False).marshal()
    caps_of = definition.metadata[digest_of(llb.raw_ops(definition)[-1])].caps
    assert set(caps_of) == {"constraints", "platform", "meta.ignorecache", "meta.description", "meta.exportcache"}


def test_parents_come_before_children_and_equal_operations_once() -> None:
    base = llb.image("base")
    one, two = base.run("x"), llb.image("base").run("x")
    definition = llb.merge([one, two.run("y")]).marshal()
    graph = llb.load(definition)
    assert [v.name for v in graph.vertices.values()][:3] == [
        "docker-image://docker.io/library/base:latest",
        "/bin/sh -c x",
        "/bin/sh -c y",
    ]
    assert len(graph.vertices) == 4
    assert all(v.digest == v.original for v in graph.vertices.values())


def test_mounts_are_sorted_by_target_and_outputs_numbered_over_the_writable_ones() -> None:
    src = llb.image("src")
    ran = llb.image("base").run(
        ["make"],
        mounts=[
            llb.bind("/z", src, readonly=False),
            llb.cache("/c"),
            llb.bind("/b", src, readonly=False),
            llb.tmpfs("/t", size=5),
            llb.bind("/a", src, path="/sub"),
            llb.Mount(target="/n", source=src, no_output=True),
        ],
    )
    execution = only(ran.mount("/z").marshal(), "exec")
    assert [(m.dest, m.input, m.output) for m in execution.mounts] == [
        ("/", 0, 0),
        ("/a", 1, -1),
        ("/b", 1, 1),
        ("/c", -1, -1),
        ("/n", 1, -1),
        ("/t", -1, -1),
        ("/z", 1, 2),
    ]
    assert execution.mounts[1].readonly
    assert execution.mounts[1].selector == "/sub"
    assert execution.mounts[3].cacheOpt == pb.CacheOpt(ID="/c", sharing=pb.SHARED)
    assert execution.mounts[5].TmpfsOpt.size == 5
    assert llb.load(ran.mount("/z").marshal()).root[1] == 2  # type: ignore[index]
    assert llb.load(ran.marshal()).root[1] == 0  # type: ignore[index]


def test_a_mount_that_cannot_be_asked_for_says_so() -> None:
    ran = llb.image("base").run("x", mounts=[llb.tmpfs("/t")])
    with pytest.raises(UsageError, match="tmpfs mount for /t can't be used as a parent"):
        ran.mount("/t")
    with pytest.raises(UsageError, match="no mount at /u"):
        ran.mount("/u")


def test_secrets_and_agents_come_after_the_mounts() -> None:
    ran = llb.image("base").run(
        "x",
        mounts=[llb.tmpfs("/zz")],
        secrets=[llb.Secret(id="s", target="/s"), llb.Secret(id="e", env="E", optional=True)],
        ssh=[llb.Ssh(), llb.Ssh(id="k", target="/k")],
    )
    definition = ran.marshal()
    execution = only(definition, "exec")
    assert [(m.dest, m.input, m.output) for m in execution.mounts] == [
        ("/", 0, 0),
        ("/zz", -1, -1),
        ("/s", -1, 0),
        ("/run/buildkit/ssh_agent.0", -1, 0),
        ("/k", -1, 0),
    ]
    assert list(execution.secretenv) == [pb.SecretEnv(ID="e", name="E", optional=True)]
    assert "SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0" in execution.meta.env
    assert set(meta(definition, "exec").caps) == {
        caps.EXEC_BASE,
        caps.EXEC_MOUNT_BIND,
        caps.EXEC_MOUNT_TMPFS,
        caps.EXEC_MOUNT_SECRET,
        caps.EXEC_SECRET_ENV,
        caps.EXEC_MOUNT_SSH,
    }


def test_circumstances_of_one_run_do_not_stay() -> None:
    state = llb.image("base").env("A", "1").env("B", "2").dir("/w").dir("x").user("u")
    ran = state.env("A", "3").run(
        ["x"], env={"C": "4"}, cwd="y", user="v", network="none", security="insecure", hosts=[("h", "1.2.3.4")], hostname="n"
    )
    execution = only(ran.marshal(), "exec")
    assert list(execution.meta.env) == ["A=3", "B=2", "C=4"]
    assert (execution.meta.cwd, execution.meta.user, execution.meta.hostname) == ("/w/x/y", "v", "n")
    assert (execution.network, execution.security) == (pb.NONE, pb.INSECURE)
    assert list(execution.meta.extraHosts) == [pb.HostIP(Host="h", IP="1.2.3.4")]
    assert execution.meta.removeMountStubsRecursive
    assert (ran.cwd, ran.username, ran.net, ran.get_env("C")) == ("/w/x", "u", "sandbox", None)


def test_path_is_left_to_an_engine_that_sets_it() -> None:
    state = llb.image("base").run("x")
    known = state.marshal(caps=caps.ALL)
    assert caps.EXEC_DEFAULT_PATH in meta(known, "exec").caps
    assert not only(known, "exec").meta.env
    old = state.marshal(caps=caps.ALL - {caps.EXEC_DEFAULT_PATH})
    assert list(only(old, "exec").meta.env) == ["PATH=" + llb.DEFAULT_PATH]


def test_file_actions_are_chained_and_may_feed_each_other() -> None:
    a = llb.image("a").dir("/abc")
    made = llb.mkdir("foo").on(llb.scratch().dir("/ced"))
    action = llb.mkdir("bar").copy(made, "foo", "baz/").rm("/gone", missing_ok=True)
    op = next(op for op in ops(a.file(action).marshal()) if op.WhichOneof("op") == "file")
    assert not op.HasField("platform")
    assert len(op.inputs) == 1
    rows = [(x.input, x.secondaryInput, x.output) for x in op.file.actions]
    assert rows == [(0, -1, -1), (-1, -1, -1), (1, 2, -1), (3, -1, 0)]
    assert op.file.actions[0].mkdir.path == "/abc/bar"
    assert op.file.actions[1].mkdir.path == "/ced/foo"
    assert (op.file.actions[2].copy.src, op.file.actions[2].copy.dest) == ("/ced/foo", "/abc/baz/")


def test_copy_options() -> None:
    src = llb.local("context", session="s")
    how = llb.Copying(mode="u=rwX", owner=llb.Owner.parse("app:50"), exclude=("*.md",), time=5)
    definition = llb.image("a").copy(src, "x", "/y/.", options=how).marshal()
    copy = only(definition, "file").actions[0].copy
    assert (copy.mode, copy.modeStr, copy.timestamp, list(copy.exclude_patterns)) == (0, "u=rwX", 5, ["*.md"])
    assert copy.dest == "/y/."
    assert copy.owner.user.byName == pb.NamedUserOpt(name="app", input=0)
    assert copy.owner.group.byID == 50
    plain = only(llb.image("a").copy(src, ".", "/").marshal(), "file").actions[0].copy
    assert (plain.src, plain.mode, plain.timestamp, plain.HasField("owner")) == ("/", -1, -1, False)


def test_owners_as_the_client_reads_them() -> None:
    assert llb.Owner.parse("root:root") == llb.Owner(0, 0)
    assert llb.Owner.parse("7") == llb.Owner(7, None)
    assert llb.Owner.parse("a b:9x") == llb.Owner("a b", "9x")
    assert llb.Owner.parse("99999999999") == llb.Owner("99999999999", None)


def test_merging_and_subtracting() -> None:
    a, b = llb.image("a").env("K", "a"), llb.image("b")
    assert llb.merge([llb.scratch(), llb.scratch()]).output is None
    assert llb.merge([llb.scratch(), b]) is b
    merged = llb.merge([a, b, a])
    assert merged.get_env("K") == "a"
    op = next(op for op in ops(merged.marshal()) if op.WhichOneof("op") == "merge")
    assert [i.input for i in op.merge.inputs] == [0, 1, 2]
    assert op.inputs[0] == op.inputs[2]
    assert llb.diff(llb.scratch(), b) is b
    op = next(op for op in ops(llb.diff(a, llb.scratch()).marshal()) if op.WhichOneof("op") == "diff")
    assert (op.diff.lower.input, op.diff.upper.input, len(op.inputs)) == (0, -1, 1)
    assert not op.HasField("platform")


def test_platforms_of_a_call_of_a_state_and_of_a_step() -> None:
    state = llb.image("a", platform=ARM)
    run = next(op for op in ops(state.run("x").marshal(Platform("linux", "amd64"))) if op.WhichOneof("op") == "exec")
    assert run.platform.Architecture == "arm64"
    other = state.run("x", platform=Platform("linux", "s390x"))
    run = next(op for op in ops(other.marshal()) if op.WhichOneof("op") == "exec")
    assert run.platform.Architecture == "s390x"
    by_call = next(op for op in ops(llb.scratch().run("x").marshal(ARM)) if op.WhichOneof("op") == "exec")
    assert by_call.platform.Architecture == "arm64"


def test_places_in_files_go_by_digest() -> None:
    source = llb.SourceMap(filename="Dockerfile", data=b"FROM x\nRUN y\n")
    same = llb.SourceMap(filename="Dockerfile", data=b"FROM x\nRUN y\n")
    state = llb.image("x", locations=(source.at(SourceRange(1, 1)),)).run("y", locations=(same.at(SourceRange(2, 2)),))
    definition = state.marshal()
    assert [i.filename for i in definition.Source.infos] == ["Dockerfile"]
    run = digest_of(llb.raw_ops(definition)[1])
    assert definition.Source.locations[run].locations[0].ranges[0].start.line == 2


def test_groups_and_limits_are_metadata_only() -> None:
    plain = llb.image("x").run("y")
    said = llb.image("x").run("y", group=llb.Group(id="g", name="G", weak=True), resources=llb.Resources(memory=7))
    a, b = plain.marshal(), said.marshal()
    assert llb.raw_ops(a) == llb.raw_ops(b)
    assert meta(b, "exec").progress_group == pb.ProgressGroup(id="g", name="G", weak=True)
    assert meta(b, "exec").linux_resources.memory == 7
    assert caps.EXEC_RESOURCES in meta(b, "exec").caps


def test_a_deferred_tree_is_decided_once_and_late() -> None:
    calls: list[int] = []

    def make() -> llb.State:
        calls.append(1)
        return llb.local("context", session="s", follow=["b"])

    context = llb.deferred(make)
    state = llb.image("x").copy(context, "a", "/").copy(context, "b", "/")
    assert not calls
    definition = state.marshal()
    assert calls == [1]
    assert sum(op.WhichOneof("op") == "source" for op in ops(definition)) == 2


def test_a_definition_can_be_built_on() -> None:
    first = llb.image("x", name="nice").run("y", group=llb.Group(id="g", name="G")).marshal(ARM)
    again = llb.from_definition(first).marshal()
    assert llb.raw_ops(again) == llb.raw_ops(first)
    assert again.metadata[digest_of(llb.raw_ops(first)[0])].description["llb.customname"] == "nice"
    more = llb.from_definition(first).run("z").marshal(ARM)
    assert llb.raw_ops(more)[:2] == llb.raw_ops(first)[:2]


def test_a_run_without_words_is_refused() -> None:
    with pytest.raises(UsageError, match="arguments are required"):
        llb.image("x").run([]).marshal()


@pytest.mark.slow
def test_a_large_and_deep_graph_costs_time_linear_in_its_size() -> None:
    def cost(size: int) -> float:
        state = llb.image("base")
        side = state
        for number in range(size):
            state = state.run([str(number)], mounts=[llb.bind("/side", side)])
            side = side.mkdir(f"/{number}") if number % 2 else side
        start = time.process_time()
        state.marshal()
        return time.process_time() - start

    cost(200)
    for _ in range(5):  # other work on the machine makes either dearer now and then
        small, large = min(cost(1000) for _ in range(3)), min(cost(4000) for _ in range(2))
        if large < small * 12:
            break
    assert large < small * 12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 30)), max_size=25))
def test_any_graph_loads_with_the_digests_it_was_given(plan: list[tuple[int, int, int]]) -> None:
    states = [llb.image("base"), llb.scratch(), llb.local("context", session="s")]
    for kind, one, two in plan:
        a, b = states[one % len(states)], states[two % len(states)]
        made = [
            lambda a=a, b=b: a.run("x", mounts=[llb.Mount(target="/m", source=b)]),
            lambda a=a, b=b: a.copy(b, "f", "/g"),
            lambda a=a, b=b: llb.merge([a, b]),
            lambda a=a, b=b: llb.diff(a, b),
        ][kind]()
        states.append(made)
    definition = states[-1].marshal()
    graph = llb.load(definition, known_caps=caps.ALL)
    assert all(v.digest == v.original for v in graph.vertices.values())
    assert set(definition.metadata) == {digest_of(raw) for raw in llb.raw_ops(definition)}
